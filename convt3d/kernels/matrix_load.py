"""forward on the matrix units: weights and planes of input on their way to shared memory."""

SOURCE = r"""
// Needs matrix_params.py.
namespace convt3d {

// ---- weights --------------------------------------------------------------------------------------

// Which weights: taps first, first + step, ... along D and H, all along W; slabs of source channels.
struct WeightBlock {
  int tap_d, taps_d, tap_step_d, tap_h, taps_h, tap_step_h;
  int first_slab, slabs;
};

// Stages the weights of kM * 16 destination channels from `first_channel` on as fragments:
// [tap][step of K][m][lane][4 words]. What lies outside is zero.
template <typename scalar_t, int kM>
__device__ inline void stage_weights(const MatrixParams& p, const WeightBlock& block, int group,
                                     int first_channel, unsigned char* to, int thread,
                                     int threads) {
  constexpr int kNumbers = word_numbers<scalar_t>();
  using One = Neighbours<scalar_t, 1>;
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight_data) + group * p.weight_group +
                           first_channel * p.weight_destination + block.tap_d * p.weight_tap[0] +
                           block.tap_h * p.weight_tap[1];
  const int64_t step_d = block.tap_step_d * p.weight_tap[0];
  const int64_t step_h = block.tap_step_h * p.weight_tap[1];
  const int taps_d = block.taps_d, taps_h = block.taps_h, taps_w = p.kernel_size[2];
  const int channels = p.destination_channels - first_channel;
  const int all = taps_d * taps_h * taps_w * kM * 16 * block.slabs * 4;  // words
  // Taps fastest, as they lie in memory. A thread goes on by `threads`; divisions are slow.
  const auto split = [&](int number, int (&at)[4]) {
    at[0] = number % taps_w;
    number /= taps_w;
    at[1] = number % taps_h;
    number /= taps_h;
    at[2] = number % taps_d;
    at[3] = number / taps_d;
  };
  int now[4], step[4];  // tap along W, H, D; then channel and word
  split(thread, now);
  split(threads, step);
  constexpr int kBatch = 8;  // loads that are under way at once
  for (int i = thread; i < all; i += kBatch * threads) {
    uint32_t bits[kBatch];
    int at[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int c = now[3] % (kM * 16), word = now[3] / (kM * 16);
      const int first = block.first_slab * slab_channels<scalar_t>() + word * kNumbers;
      const scalar_t* from = weight + c * p.weight_destination + first * p.weight_source +
                             now[2] * step_d + now[1] * step_h + now[0] * p.weight_tap[2];
      const bool inside = i + b * threads < all && c < channels;
      bits[b] = 0;
#pragma unroll
      for (int j = 0; j < kNumbers; ++j)
        if (inside && first + j < p.source_channels)
          bits[b] |= uint32_t(reinterpret_cast<const One*>(from + j * p.weight_source)->unit[0])
                     << (16 * j);
      // Word t of slab s is word t + 4 * (s % 2) of step s / 2.
      const int lane = c % 8 * 4 + word % 4, reg = c % 16 / 8 + word / 4 % 2 * 2;
      const int tap = (now[2] * taps_h + now[1]) * taps_w + now[0];
      at[b] = tap * p.at.tap + (word / 8 * kM + c / 16) * 512 + lane * 16 + reg * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) now[j] += step[j];
      if (now[0] >= taps_w) now[0] -= taps_w, ++now[1];
      if (now[1] >= taps_h) now[1] -= taps_h, ++now[2];
      if (now[2] >= taps_d) now[2] -= taps_d, ++now[3];
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      if (i + b * threads < all) *reinterpret_cast<uint32_t*>(to + at[b]) = bits[b];
  }
}

// ---- planes ---------------------------------------------------------------------------------------

// The v-th neighbour of every channel of a slab, as 16 bytes.
template <typename scalar_t, int kCount>
__device__ inline Words<4> across(const Neighbours<scalar_t, kCount>* channels, int v) {
  Words<4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(scalar_t) == 4) {
      words.word[i] = channels[i].unit[v];
    } else {
      const uint32_t low = channels[2 * i].unit[v / 2], high = channels[2 * i + 1].unit[v / 2];
      words.word[i] = v % 2 == 0 ? (low & 0xffff) | high << 16 : low >> 16 | (high & 0xffff0000);
    }
  }
  return words;
}

// What a loading thread takes of every plane. The vectors of a row start at whole vectors of the input,
// so the first may begin before the row's first position: by `head`.
// Order: along W, slabs, rows; along the channels instead of W: slabs, positions, rows.
struct LoaderShare {
  int threads, vectors, head;
  int first[3], step[3];  // [0] fastest; this thread's first vector, and from one to its next
};
__device__ inline LoaderShare loader_share(const MatrixParams& p, int threads, int thread) {
  LoaderShare share;
  share.threads = threads;
  const int vector = p.load_vector;
  share.head = p.load_channels_last ? 0 : (p.low[2] % vector + vector) % vector;
  share.vectors = p.load_channels_last ? p.pitch : (share.head + p.pitch + vector - 1) / vector;
  const int fast = p.load_channels_last ? p.chunk_slabs : share.vectors;
  const int slow = p.load_channels_last ? share.vectors : p.chunk_slabs;
  share.first[0] = thread % fast;
  share.first[1] = thread / fast % slow;
  share.first[2] = thread / (fast * slow);
  share.step[0] = threads % fast;
  share.step[1] = threads / fast % slow;
  share.step[2] = threads / (fast * slow);
  return share;
}

// What is loaded into one slot: a plane of one chunk of channels.
template <typename scalar_t>
struct PlaneLoad {
  const scalar_t* from;  // channel 0 of the chunk, row 0, position 0 of the input plane
  bool inside;           // whether the plane is one of the input
  int channels;          // that are left
  int h, w;              // of the first row, and of the first position of a row
  int before;            // positions of the first row that are left out
  int rows;
  unsigned char* slot;
  uint64_t* empty;  // signals that the slot may be written
  int parity;
};

// Loads kVector neighbours along W of all channels of a slab at once and stores them channels first.
// The first loads are under way before the slot is free.
template <typename scalar_t, int kVector>
__device__ inline void load_plane(const MatrixParams& p, const PlaneLoad<scalar_t>& load,
                                  const LoaderShare& share, int thread) {
  constexpr int kSlab = slab_channels<scalar_t>(), kBatch = kVector == 4 ? 3 : 5;
  using Vector = Neighbours<scalar_t, kVector>;
  const int positions = p.positions, pitch = p.pitch, slabs = p.chunk_slabs;
  const unsigned size_h = unsigned(p.input_size[1]), size_w = unsigned(p.input_size[2]);
  const int64_t channel = p.source.channel;
  const int stride_h = int(p.source.space[1]), stride_w = int(p.source.space[2]);
  const int all = share.vectors * slabs * load.rows;
  int vector = share.first[0], slab = share.first[1], row = share.first[2];
  bool waits = true;
  for (int i = thread; i < all || waits; i += kBatch * share.threads) {
    Vector raw[kBatch][kSlab];
    unsigned char* to[kBatch];
    int at[kBatch], in_row[kBatch];  // positions of the first neighbour
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      in_row[j] = vector * kVector - share.head;
      at[j] = row * pitch + in_row[j] - load.before;
      const bool used = i + j * share.threads < all && at[j] + kVector > 0 && at[j] < positions;
      if (!used) in_row[j] = pitch;
      const int h = load.h + row, w = load.w + in_row[j];
      const bool inside = used && load.inside && unsigned(h) < size_h && unsigned(w) < size_w;
      const scalar_t* from = load.from + slab * kSlab * channel + (h * stride_h + w * stride_w);
      const int channels = inside ? load.channels - slab * kSlab : 0;
#pragma unroll
      for (int c = 0; c < kSlab; ++c) {
        raw[j][c] = c < channels ? *reinterpret_cast<const Vector*>(from) : Vector{};
        from += channel;
      }
      to[j] = load.slot + slab * p.at.slab;
      vector += share.step[0];
      slab += share.step[1];
      row += share.step[2];
      if (vector >= share.vectors) vector -= share.vectors, ++slab;
      if (slab >= slabs) slab -= slabs, ++row;
    }
    if (waits) signal_wait(load.empty, load.parity);
    waits = false;
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
#pragma unroll
      for (int v = 0; v < kVector; ++v)
        if (unsigned(in_row[j] + v) < unsigned(pitch) && unsigned(at[j] + v) < unsigned(positions))
          *reinterpret_cast<Words<4>*>(to[j] + unit_of(at[j] + v) * 16) =
              across<scalar_t, kVector>(raw[j], v);
  }
}

// The same for channels_last_3d: a position's 16 bytes of a slab are as they lie in memory.
template <typename scalar_t>
__device__ inline void load_plane_channels_last(const MatrixParams& p,
                                                const PlaneLoad<scalar_t>& load,
                                                const LoaderShare& share) {
  constexpr int kSlab = slab_channels<scalar_t>();
  const unsigned size_h = unsigned(p.input_size[1]), size_w = unsigned(p.input_size[2]);
  const int stride_h = int(p.source.space[1]), stride_w = int(p.source.space[2]);
  int slab = share.first[0], in_row = share.first[1], row = share.first[2];
  signal_wait(load.empty, load.parity);
  while (row < load.rows) {
    const int at = row * p.pitch + in_row - load.before;
    const int h = load.h + row, w = load.w + in_row;
    if (unsigned(at) < unsigned(p.positions)) {
      const bool inside = load.inside && unsigned(h) < size_h && unsigned(w) < size_w &&
                          slab * kSlab < load.channels;
      async_copy<16>(load.slot + slab * p.at.slab + unit_of(at) * 16,
                     inside ? load.from + slab * kSlab + (h * stride_h + w * stride_w) : load.from,
                     inside);
    }
    slab += share.step[0];
    in_row += share.step[1];
    row += share.step[2];
    if (slab >= p.chunk_slabs) slab -= p.chunk_slabs, ++in_row;
    if (in_row >= p.pitch) in_row -= p.pitch, ++row;
  }
  async_commit();
  async_wait<0>();
}

template <typename scalar_t>
__device__ inline void load_any_plane(const MatrixParams& p, const PlaneLoad<scalar_t>& load,
                                      const LoaderShare& share, int thread) {
  if (p.load_channels_last)
    load_plane_channels_last<scalar_t>(p, load, share);
  else if (p.load_vector == 4)
    load_plane<scalar_t, 4>(p, load, share, thread);
  else if (p.load_vector == 2)
    load_plane<scalar_t, 2>(p, load, share, thread);
  else
    load_plane<scalar_t, 1>(p, load, share, thread);
}

}  // namespace convt3d
"""
