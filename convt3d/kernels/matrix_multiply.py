"""forward on the matrix units: the products of one plane."""

SOURCE = r"""
// Needs matrix_params.py.
namespace convt3d {

// A float's bits -> those of the nearest TF32 number, and of what is left. Neither may be infinite or NaN
// but for such a number: its parts are 1 with its sign, and itself, for 0 times an infinity is NaN.
__device__ inline void split_tf32(uint32_t& word, uint32_t& rest) {
  constexpr uint32_t kExponent = 0x7f800000, kTf32 = 0xffffe000;
  const uint32_t number = word;
  word = (number + 0x1000) & kTf32;
  if ((word & kExponent) == kExponent || (number & kExponent) == kExponent) {
    const bool is_finite = (number & kExponent) != kExponent;
    word = is_finite ? number & kTf32 : (number & 0x80000000) | bits_of(1.0f);
    rest = is_finite ? bits_of(float_of(number) - float_of(word)) : number;
    return;
  }
  // The matrix units cut off what TF32 does not have; half of it added before makes that rounding.
  rest = bits_of(float_of(number) - float_of(word)) + 0x1000;
}

// Operands as the matrix units take them. Split: number = word + rest, both in TF32, so that four
// products make one whose error is near fp32's, and none on integers; else rest is not used.
template <bool kSplit>
struct Operand {
  Words<4> word, rest;
  __device__ void split() {
    if constexpr (kSplit) {
#pragma unroll
      for (int i = 0; i < 4; ++i) split_tf32(word.word[i], rest.word[i]);
    }
  }
  // Of what is left, what may be multiplied by what is left of the other: that is often 0.
  __device__ uint32_t finite_rest(int i) const {
    return (rest.word[i] & 0x7f800000) == 0x7f800000 ? 0 : rest.word[i];
  }
};

// sum += a times column `odd` of the two in b. Split: a chain of four, for the matrix units truncate sums.
template <typename scalar_t, bool kSplit>
__device__ inline void multiply_operands(float (&sum)[4], const Operand<kSplit>& a,
                                         const Operand<kSplit>& b, int odd) {
  const uint32_t low = b.word.word[2 * odd], high = b.word.word[2 * odd + 1];
  if constexpr (kSplit) {
    float product[4] = {0, 0, 0, 0};
    const uint32_t low_rest = b.rest.word[2 * odd], high_rest = b.rest.word[2 * odd + 1];
    const Words<4> rests = {
        {a.finite_rest(0), a.finite_rest(1), a.finite_rest(2), a.finite_rest(3)}};
    multiply_add<typename Factor<scalar_t>::type>(product, rests, b.finite_rest(2 * odd),
                                                  b.finite_rest(2 * odd + 1));
    multiply_add<typename Factor<scalar_t>::type>(product, a.rest, low, high);
    multiply_add<typename Factor<scalar_t>::type>(product, a.word, low_rest, high_rest);
    multiply_add<typename Factor<scalar_t>::type>(product, a.word, low, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += product[i];
  } else {
    multiply_add<typename Factor<scalar_t>::type>(sum, a.word, low, high);
  }
}

// The sums of a warp: 64 columns, all phases along W, kM tiles of 16 channels.
template <typename W, Engine kEngine, int kM>
struct Sums {
  float sum[kM][W::kStride][kRun][4];
  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int e = 0; e < W::kStride; ++e)
#pragma unroll
        for (int t = 0; t < kRun; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[m][e][t][i] = 0;
  }
  // Waits until the products but of the latest kPending planes have landed.
  template <int kPending>
  __device__ void finish() {}
};

// Where the rows and steps of K of an item lie.
struct ItemWalk {
  const unsigned char* from;       // this lane's run in the slot, first slab
  const unsigned char* fragments;  // weights: this lane's of the first tap and step
  int position;                    // shift of the first row, with this lane's part of a pair
  int rows, steps;
  int first_step;  // of the weights
  int crew, crews;
  int next_row;        // positions
  int next_step, tap;  // bytes
};

// Pairs of neighbouring columns that a run meets.
template <typename W>
__host__ __device__ constexpr int column_pairs() {
  return (kRun + W::span() + 1) / 2;
}
// Of the products of a step, tap by tap and column by column, the last one that uses a pair.
template <typename W>
__host__ __device__ constexpr int last_use(int pair) {
  int last = -1;
  for (int k = 0; k < W::kTaps; ++k)
    for (int t = 0; t < kRun; ++t)
      for (int e = 0; e < W::kStride; ++e)
        if (W::meets(e, k) && (t + W::shift(e, k)) / 2 == pair) last = k * kRun + t;
  return last;
}
// Whether the columns of the next step fit the registers beside the sums, and weights of two taps.
template <typename W, int kM>
__host__ __device__ constexpr bool prefetches() {
  const int registers = multiplying_warps<W, Engine::kWarp, kM>() > 8 ? 106 : 146;
  return 4 * kM * W::kStride * kRun + 5 * column_pairs<W>() + 8 * kM <= registers;
}

// sum += weights times positions, for all taps along H of a chunk of a plane and every phase and tap
// along W.
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void multiply_item(Sums<W, kEngine, kM>& sums, ItemWalk walk,
                                     const PhaseWork& phase) {
  constexpr bool kSplit = kEngine == Engine::kSplit;
  constexpr int kPairs = column_pairs<W>();
  auto& sum = sums.sum;
  const int next_fragments = walk.crews * (kM * 512);
  const int fragments_row = phase.next_weights - walk.steps * next_fragments;
  walk.fragments += walk.first_step * next_fragments;
  const auto load_positions = [&](Operand<kSplit>& b, int position) {
    load_matrices(b.word, walk.from + unit_of(position) * 16);
    b.split();
  };
  const auto load_weights = [&](Operand<kSplit>(&a)[kM], const unsigned char* from) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      a[m].word = *reinterpret_cast<const Words<4>*>(from + m * 512);
      a[m].split();
    }
  };
  int step = 0;
  const auto advance = [&] {  // to the next step, at the end of a row to the next row
    walk.from += walk.next_step;
    walk.fragments += next_fragments;
    if (++step < walk.steps) return false;
    step = 0;
    walk.from -= walk.steps * walk.next_step;
    walk.fragments += fragments_row;
    walk.position += walk.next_row;
    return true;
  };
  const int all = walk.rows * walk.steps;
  if constexpr (W::kFixed && !kSplit && prefetches<W, kM>()) {
    Operand<kSplit> a[2][kM], b[kPairs];
    int pair_at[kPairs];  // of the row
    const auto find_pairs = [&] {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) pair_at[i] = unit_of(walk.position + 2 * i) * 16;
    };
    find_pairs();
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (last_use<W>(i) >= 0) load_matrices(b[i].word, walk.from + pair_at[i]);
    load_weights(a[0], walk.fragments);
#pragma unroll 1
    for (int left = all; left > 0; --left) {
      // Weights come in a tap ahead, columns as soon as their place is free. After the last step comes that again.
      const unsigned char* fragments = walk.fragments;
      if (left > 1 && advance()) find_pairs();
#pragma unroll
      for (int k = 0; k < W::kTaps; ++k) {
        load_weights(a[(k + 1) % 2],
                     k + 1 < W::kTaps ? fragments + (k + 1) * walk.tap : walk.fragments);
#pragma unroll
        for (int t = 0; t < kRun; ++t) {
#pragma unroll
          for (int e = 0; e < W::kStride; ++e)
            if (W::meets(e, k)) {
              const int column = t + W::shift(e, k);
#pragma unroll
              for (int m = 0; m < kM; ++m)
                multiply_operands<scalar_t, kSplit>(sum[m][e][t], a[k % 2][m], b[column / 2],
                                                    column % 2);
            }
#pragma unroll
          for (int i = 0; i < kPairs; ++i)
            if (last_use<W>(i) == k * kRun + t) load_matrices(b[i].word, walk.from + pair_at[i]);
        }
      }
      if constexpr (W::kTaps % 2 == 1)
#pragma unroll
        for (int m = 0; m < kM; ++m) a[0][m] = a[1][m];
    }
  } else if constexpr (W::kFixed) {
#pragma unroll 1
    for (int left = all; left > 0; --left) {
      Operand<kSplit> b[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) load_positions(b[i], walk.position + 2 * i);
#pragma unroll
      for (int k = 0; k < W::kTaps; ++k) {
        Operand<kSplit> a[kM];
        load_weights(a, walk.fragments + k * walk.tap);
#pragma unroll
        for (int e = 0; e < W::kStride; ++e)
          if (W::meets(e, k))
#pragma unroll
            for (int t = 0; t < kRun; ++t) {
              const int column = t + W::shift(e, k);
#pragma unroll
              for (int m = 0; m < kM; ++m)
                multiply_operands<scalar_t, kSplit>(sum[m][e][t], a[m], b[column / 2], column % 2);
            }
      }
      advance();
    }
  } else {
#pragma unroll 1
    for (int left = all; left > 0; --left) {
#pragma unroll 1
      for (int j = 0; j < phase.taps_w; ++j) {
        const int position = walk.position + phase.position_w + j * phase.next_position_w;
        Operand<kSplit> a[kM];
        load_weights(a, walk.fragments + phase.first_w + j * phase.next_w);
#pragma unroll
        for (int t = 0; t < kRun; t += 2) {
          Operand<kSplit> b;
          load_positions(b, position + t);
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            multiply_operands<scalar_t, kSplit>(sum[m][0][t], a[m], b, 0);
            multiply_operands<scalar_t, kSplit>(sum[m][0][t + 1], a[m], b, 1);
          }
        }
      }
      advance();
    }
  }
}

}  // namespace convt3d
"""
