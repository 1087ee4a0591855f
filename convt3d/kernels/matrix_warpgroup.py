"""forward on the matrix units, by warpgroups: weights, products and sums where four warps multiply together."""

SOURCE = r"""
// Needs matrix_load.py, matrix_multiply.py and matrix_store.py.
namespace convt3d {

// Note [Warpgroups]
// Four warps compute 256 neighbouring columns of the flat plane by products that read both operands from
// shared memory: the rows of one are 64 columns, those of the other are channels. A block of 8 columns
// lies in 128 bytes wherever it starts, so that a shift is an address. Of the four products that make 256
// columns the i-th has the blocks i, i + 4, i + 8, ...: each warp then ends up with 64 neighbours.
//
// Note [Taps together]
// Where each tap along W of a stride's taps has a phase of its own and all have the same shift, their
// weights lie together, [slab][crew][tap][channel], 16 bytes each, so that one product serves all of them.
// Where only some taps could share a product, none does: the compiler lets products of different sizes
// wait for each other.
template <typename W>
__host__ __device__ constexpr int taps_together() {
  if constexpr (W::kFixed)
    return W::kPadding == 0 && W::kDilation == 1 && W::kTaps % W::kStride == 0 ? W::kStride : 1;
  else
    return 1;
}

// ---- weights --------------------------------------------------------------------------------------

// As WeightVector, of a slab's source channels: where the channels' 16 bytes go.
template <int kVector>
struct SlabVector {
  int64_t from;
  bool is_inside;
  int to[kVector];
};
template <typename W, int kM, int kVector>
__device__ inline SlabVector<kVector> slab_vector(const MatrixParams& p, const WeightBlock& block,
                                                  int channels, int index) {
  constexpr int kTile = kM * 8;  // channels of a crew
  constexpr int kTogether = taps_together<W>();
  WeightAt at = weight_at(p, block, p.crews * kTile, kVector, index);
  SlabVector<kVector> vector;
  vector.is_inside = at.channel < channels;
  vector.from = at.from(p, block);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const int among = at.tap[2] % kTogether, row = at.number(block) - among;
    const int place = at.channel / kTile * kTogether + among;
    vector.to[j] = row * p.at.tap + (place * kTile + at.channel % kTile) * 16;
    at.advance(block, p.weight_run);
  }
  return vector;
}

// Stages the weights of a block's destination channels; see Note [Taps together]. What lies outside is zero.
template <typename scalar_t, typename W, int kM, int kVector>
__device__ inline void stage_slab_vectors(const MatrixParams& p, const WeightBlock& block,
                                          int group, int first_channel, unsigned char* to,
                                          int thread, int threads) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kSlab = slab_channels<scalar_t>();
  const int vectors = block.axis[0].count * block.axis[1].count * block.axis[2].count * p.crews *
                      kM * 8 / kVector;                        // of a source channel
  const int next = p.crews * kM * (taps_together<W>() * 128);  // from slab to slab
  if (vectors == 0) return;  // no tap reaches the phases of this part
  const int at_once = vectors < threads ? threads / vectors : 1;  // slabs
  const int first = block.first_slab * kSlab;
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight_data) + group * p.weight_group +
                           first_channel * p.weight_destination + first * p.weight_source;
  const int left = p.source_channels - first, channels = p.destination_channels - first_channel;
  const int my_slab = vectors < threads ? thread / vectors : 0;
  if (my_slab >= at_once) return;
  for (int index = thread - my_slab * vectors; index < vectors; index += threads) {
    const auto vector = slab_vector<W, kM, kVector>(p, block, channels, index);
    for (int slab = my_slab; slab < block.slabs; slab += at_once) {
      const scalar_t* from = weight + vector.from + slab * kSlab * p.weight_source;
      const int inside = vector.is_inside ? left - slab * kSlab : 0;
      Vector raw[kSlab];
#pragma unroll
      for (int i = 0; i < kSlab; ++i)
        raw[i] =
            i < inside ? *reinterpret_cast<const Vector*>(from + i * p.weight_source) : Vector{};
#pragma unroll
      for (int j = 0; j < kVector; ++j)
        *reinterpret_cast<Words<4>*>(to + vector.to[j] + slab * next) =
            across<scalar_t, kVector>(raw, j);
    }
  }
}

template <typename scalar_t, typename W, int kM>
__device__ inline void stage_slabs(const MatrixParams& p, const WeightBlock& block, int group,
                                   int first_channel, unsigned char* to, int thread, int threads) {
  with_vector<scalar_t>(p.weight_vector, [&](auto vector) {
    stage_slab_vectors<scalar_t, W, kM, decltype(vector)::value>(p, block, group, first_channel, to,
                                                                 thread, threads);
  });
}

// ---- products -------------------------------------------------------------------------------------

// The sums of a warp among four: [i][(e * kM + tile) * 4 + ...], of the columns 8 * i + lane / 4, and 32 more.
template <typename W, int kM>
struct Sums<W, Engine::kWarpgroup, kM> {
  float sum[4][W::kStride * kM * 4];
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < W::kStride * kM * 4; ++j) sum[i][j] = 0;
    warpgroup_begin();
  }
  template <int kPending>
  __device__ void finish() {
    warpgroup_wait<kPending>(sum[0]);
    if constexpr (kPending == 0)
#pragma unroll
      for (int i = 1; i < 4; ++i) warpgroup_wait<kPending>(sum[i]);
  }
};

template <typename scalar_t, typename W, int kM>
__device__ inline void multiply_item(Sums<W, Engine::kWarpgroup, kM>& sums, const ItemWalk& walk,
                                     const PhaseWork& phase) {
  using factor_t = typename Factor<scalar_t>::type;
  constexpr int kTogether = taps_together<W>();
  constexpr int kTile =
      kTogether * kM * 8;  // 16-byte units of the taps together, of a slab and a crew
  uint64_t row = shared_matrix(walk.from + walk.position * 16, walk.next_step / 2, 512);
  uint64_t weights =
      shared_matrix(walk.fragments, walk.crews * (kTile * 16), 128) + walk.crew * kTile;
#pragma unroll 1
  for (int left = walk.rows; left > 0; --left) {
#pragma unroll 1
    for (int step = 0; step < walk.steps; ++step) {
      const uint64_t columns = row + step * (walk.next_step / 16);
      uint64_t taps = weights + (walk.first_step + step) * 2 * walk.crews * kTile;
      if constexpr (W::kFixed) {
#pragma unroll
        for (int k = 0; k < W::kTaps; k += kTogether) {
          const int e = (k * W::kDilation + W::kStride - W::kPadding) % W::kStride;
          const int shift = W::shift(e, k);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            warpgroup_multiply<factor_t, kTile>(sums.sum[i] + e * kM * 4, columns + (shift + 8 * i),
                                                taps);
          taps += kTogether * (walk.tap / 16);
        }
      } else {
        taps += phase.first_w / 16;
        uint64_t shifted = columns + phase.position_w;
#pragma unroll 1
        for (int j = 0; j < phase.taps_w; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            warpgroup_multiply<factor_t, kTile>(sums.sum[i], shifted + 8 * i, taps);
          taps += phase.next_w / 16;
          shifted += phase.next_position_w;
        }
      }
    }
    row += walk.next_row;
    weights += phase.next_weights / 16;
  }
  warpgroup_commit();
}

// ---- sums -----------------------------------------------------------------------------------------

// Stages 8 channels, the part-th: [channel][column of the warp][phase along W].
template <typename scalar_t, typename W, int kM>
__device__ inline void stage_channels(const Sums<W, Engine::kWarpgroup, kM>& sums, int part,
                                      const float* biases, unsigned char* staging, int lane) {
  constexpr int kBytes = int(sizeof(scalar_t)), kStride = W::kStride;
  constexpr int kRow = kWarpColumns * kStride * kBytes + 16;
  const int g = lane / 4, t = lane % 4;
  const float bias[2] = {biases[2 * t], biases[2 * t + 1]};
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (part == m)
#pragma unroll
      for (int run = 0; run < kRun; ++run) {
        float value[2][kStride];  // of two channels at column g
#pragma unroll
        for (int e = 0; e < kStride; ++e) {
          const float* pair = sums.sum[run % 4] + (e * kM + m) * 4 + run / 4 * 2;
          value[0][e] = pair[0] + bias[0];
          value[1][e] = pair[1] + bias[1];
        }
        if constexpr (kBytes == 2 && kStride == 1) {  // of channel g at two columns
          *reinterpret_cast<uint32_t*>(staging + g * kRow + (run * kRun + 2 * t) * 2) =
              transpose_matrix(round_pair<scalar_t>(value[0][0], value[1][0]));
        } else {
          constexpr int kNumbers = word_numbers<scalar_t>();
          using Phases = Words<kStride / kNumbers>;
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            Phases phases;
#pragma unroll
            for (int i = 0; i < kStride / kNumbers; ++i)
              phases.word[i] = round_word<scalar_t>(value[c][i * kNumbers],
                                                    value[c][i * kNumbers + kNumbers - 1]);
            *reinterpret_cast<Phases*>(staging + (2 * t + c) * kRow +
                                       (run * kRun + g) * (kStride * kBytes)) = phases;
          }
        }
      }
}

// Stages part `part` of the channels: [run][position of the run][phase along W][channel].
template <typename scalar_t, typename W, int kM>
__device__ inline void stage_channels_last(const Sums<W, Engine::kWarpgroup, kM>& sums, int part,
                                           const float* biases, unsigned char* staging, int lane) {
  constexpr int kTiles = staged_channels_last<scalar_t>() / 8;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < kM; ++m)
    if (part == m / kTiles) {
      const float* bias = biases + m % kTiles * 8 + 2 * t;
#pragma unroll
      for (int run = 0; run < kRun; ++run)
#pragma unroll
        for (int e = 0; e < W::kStride; ++e) {
          const float* pair = sums.sum[run % 4] + (e * kM + m) * 4 + run / 4 * 2;
          const float first = pair[0] + bias[0], second = pair[1] + bias[1];
          unsigned char* to = staging + run * staged_run<W>() + g * staged_column<W>() + e * 32;
          if constexpr (sizeof(scalar_t) == 4)
            *reinterpret_cast<Words<2>*>(to + t * 8) = {{bits_of(first), bits_of(second)}};
          else
            *reinterpret_cast<uint32_t*>(to + m % kTiles * 16 + t * 4) =
                round_pair<scalar_t>(first, second);
        }
    }
}

}  // namespace convt3d
"""
