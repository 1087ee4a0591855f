"""forward on the matrix units: weights and planes of input on their way to shared memory."""

SOURCE = r"""
// Needs matrix_params.py.
namespace convt3d {

// ---- weights --------------------------------------------------------------------------------------

// Which weights: taps first, first + step, ... on each axis; slabs of source channels.
struct WeightTaps {
  int first, count, step;
};
struct WeightBlock {
  WeightTaps axis[3];
  int first_slab, slabs;
};

// A weight of a block: its taps, counted among those of the block, and its destination channel.
struct WeightAt {
  int tap[3], channel;
  __device__ int number(const WeightBlock& block) const {  // of its taps
    return (tap[0] * block.axis[1].count + tap[1]) * block.axis[2].count + tap[2];
  }
  __device__ int64_t from(const MatrixParams& p, const WeightBlock& block) const {
    int64_t offset = channel * p.weight_destination;
#pragma unroll
    for (int i = 0; i < 3; ++i)
      offset += (block.axis[i].first + tap[i] * block.axis[i].step) * p.weight_tap[i];
    return offset;
  }
  __device__ void advance(const WeightBlock& block, int run) {  // to its neighbour in memory
    if (run == kRunOfChannels) {
      ++channel;
    } else if (++tap[2] == block.axis[2].count) {
      tap[2] = 0;
      if (++tap[1] == block.axis[1].count) {
        tap[1] = 0;
        if (++tap[0] == block.axis[0].count) tap[0] = 0, ++channel;
      }
    }
  }
};
// The first weight of the index-th vector; vectors run along so many channels, or along the taps: then of a row
// along W, or of all taps of all channels, one after the other.
__device__ inline WeightAt weight_at(const MatrixParams& p, const WeightBlock& block, int channels,
                                     int vector, int index) {
  const bool along_channels = p.weight_run == kRunOfChannels;
  WeightAt at;
  if (along_channels) {
    at.channel = index % (channels / vector) * vector;
    index /= channels / vector;
  } else {
    index *= vector;
  }
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    at.tap[axis] = index % block.axis[axis].count;
    index /= block.axis[axis].count;
  }
  if (!along_channels) at.channel = index;
  return at;
}

// Where a thread's vectors of kVector neighbours in memory come from and go to; the same for every source
// channel. There are two, of channels c and c + 8, for these are neighbours as fragments.
template <typename scalar_t, int kVector>
struct WeightVector {
  int64_t from;     // of the first element, from the first channel's first tap
  bool inside[2];   // whether they are channels' of the group
  int to[kVector];  // bytes from the place of the source channel
};
template <typename scalar_t, int kVector>
__device__ inline WeightVector<scalar_t, kVector> weight_vector(const MatrixParams& p, int tiles,
                                                                const WeightBlock& block,
                                                                int channels, int index) {
  WeightAt at = weight_at(p, block, tiles * 8, kVector, index);
  at.channel = at.channel / 8 * 16 + at.channel % 8;  // no vector crosses a multiple of 8
  WeightVector<scalar_t, kVector> vector;
  vector.inside[0] = at.channel < channels;
  vector.inside[1] = at.channel + 8 < channels;
  vector.from = at.from(p, block);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    vector.to[j] = at.number(block) * p.at.tap + at.channel / 16 * 512 + at.channel % 8 * 64;
    at.advance(block, p.weight_run);
  }
  return vector;
}

// The v-th neighbours of one channel, or of two, as a word.
template <typename scalar_t, int kCount>
__device__ inline uint32_t channels_word(const Neighbours<scalar_t, kCount>* channels, int v) {
  if constexpr (sizeof(scalar_t) == 4) {
    return factor_word<scalar_t>(channels[0].unit[v]);
  } else {
    const uint32_t low = channels[0].unit[v / 2], high = channels[1].unit[v / 2];
    return v % 2 == 0 ? (low & 0xffff) | high << 16 : low >> 16 | (high & 0xffff0000);
  }
}

// Stages the weights of `tiles` * 16 destination channels from `first_channel` on as fragments:
// [tap][step of K][tile][lane][slab of the step][half of the tile]. What lies outside is zero. A thread
// loads the source channels of a word, for both halves.
template <typename scalar_t, int kVector>
__device__ inline void stage_weight_vectors(const MatrixParams& p, int tiles,
                                            const WeightBlock& block, int group, int first_channel,
                                            unsigned char* to, int thread, int threads) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kNumbers = word_numbers<scalar_t>(), kSlab = slab_channels<scalar_t>();
  constexpr int kVectorBytes = kVector * int(sizeof(scalar_t));
  constexpr int kBatch = kVectorBytes * kNumbers == 32 ? 2 : 4;  // words whose loads are under way
  const int vectors = block.axis[0].count * block.axis[1].count * block.axis[2].count * tiles * 8 /
                      kVector;  // of a source channel, and a half
  if (vectors == 0) return;     // no tap reaches the phases of this part
  const int at_once = vectors < threads ? threads / vectors : 1;  // words of source channels
  const int first = block.first_slab * kSlab, words = block.slabs * 4;
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight_data) + group * p.weight_group +
                           first_channel * p.weight_destination + first * p.weight_source;
  const int left = p.source_channels - first, channels = p.destination_channels - first_channel;
  const int my_word = vectors < threads ? thread / vectors : 0;
  if (my_word >= at_once) return;
  for (int index = thread - my_word * vectors; index < vectors; index += threads) {
    const auto vector = weight_vector<scalar_t, kVector>(p, tiles, block, channels, index);
    const scalar_t* from = weight + vector.from;
    for (int k = my_word; k < words; k += kBatch * at_once) {
      Vector raw[kBatch][2][kNumbers];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < kNumbers; ++i) {
            const int word = k + b * at_once, c = word * kNumbers + i;
            const bool inside = vector.inside[half] && word < words && c < left;
            const scalar_t* at = from + half * (8 * p.weight_destination) + c * p.weight_source;
            raw[b][half][i] = inside ? *reinterpret_cast<const Vector*>(at) : Vector{};
          }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int word = k + b * at_once;
        if (word >= words) break;
        unsigned char* at = to + word / 8 * (tiles * 512) + word / 4 % 2 * 8 + word % 4 * 16;
#pragma unroll
        for (int j = 0; j < kVector; ++j)
          *reinterpret_cast<Words<2>*>(at + vector.to[j]) = {
              {channels_word<scalar_t, kVector>(raw[b][0], j),
               channels_word<scalar_t, kVector>(raw[b][1], j)}};
      }
    }
  }
}

template <typename scalar_t>
__device__ inline void stage_weights(const MatrixParams& p, int tiles, const WeightBlock& block,
                                     int group, int first_channel, unsigned char* to, int thread,
                                     int threads) {
  with_vector<scalar_t>(p.weight_vector, [&](auto vector) {
    stage_weight_vectors<scalar_t, decltype(vector)::value>(p, tiles, block, group, first_channel,
                                                            to, thread, threads);
  });
}

// ---- planes ---------------------------------------------------------------------------------------

// The v-th neighbour of every channel of a slab, as 16 bytes.
template <typename scalar_t, int kCount>
__device__ inline Words<4> across(const Neighbours<scalar_t, kCount>* channels, int v) {
  Words<4> words;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words.word[i] = channels_word<scalar_t, kCount>(channels + i * word_numbers<scalar_t>(), v);
  return words;
}

// Exchanges a slab's four neighbours so that the v-th becomes the (v ^ order)-th. Lanes with orders of their own
// then write to different banks at once, though each has four neighbours. What is left of the order comes
// with across.
template <typename scalar_t>
__device__ inline void exchange(Neighbours<scalar_t, 4>* channels, int order) {
  constexpr int kUnits = Neighbours<scalar_t, 4>::kUnits;
#pragma unroll
  for (int distance = kUnits / 2; distance > 0; distance /= 2)
    if (order & (4 / kUnits) * distance)
#pragma unroll
      for (int c = 0; c < slab_channels<scalar_t>(); ++c)
#pragma unroll
        for (int i = 0; i < kUnits; ++i)
          if ((i & distance) == 0) {
            const auto unit = channels[c].unit[i];
            channels[c].unit[i] = channels[c].unit[i + distance];
            channels[c].unit[i + distance] = unit;
          }
}
// As across, of the (v ^ order)-th, after that exchange.
template <typename scalar_t>
__device__ inline Words<4> across_exchanged(const Neighbours<scalar_t, 4>* channels, int v,
                                            int order) {
  if constexpr (sizeof(scalar_t) == 4) {
    return across<scalar_t, 4>(channels, v);
  } else {
    const uint32_t which = (v ^ order) % 2 == 0 ? 0x5410 : 0x7632;
    Words<4> words;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words.word[i] =
          pick_bytes(channels[2 * i].unit[v / 2], channels[2 * i + 1].unit[v / 2], which);
    return words;
  }
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
// The first loads are under way before the slot is free. kFew: registers are short.
template <typename scalar_t, int kVector, Engine kEngine, bool kFew>
__device__ inline void load_plane(const MatrixParams& p, const PlaneLoad<scalar_t>& load,
                                  const LoaderShare& share, int thread) {
  constexpr int kSlab = slab_channels<scalar_t>(), kBatch = (kVector == 4 ? 3 : 5) - int(kFew);
  using Vector = Neighbours<scalar_t, kVector>;
  const int positions = p.positions, pitch = p.pitch, slabs = p.chunk_slabs;
  const unsigned size_h = unsigned(p.input_size[1]), size_w = unsigned(p.input_size[2]);
  const int channel = int(p.source.channel);
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
      const int h = load.h + row, w = load.w + in_row[j];
      if (i + j * share.threads >= all) at[j] = positions;
      const bool inside = at[j] + kVector > 0 && at[j] < positions && load.inside &&
                          unsigned(h) < size_h && unsigned(w) < size_w;
      const scalar_t* from =
          load.from + int64_t(slab) * kSlab * channel + (h * stride_h + w * stride_w);
      const int channels = inside ? load.channels - slab * kSlab : 0;
      if (channels >= kSlab) {
#pragma unroll
        for (int c = 0; c < kSlab; ++c)
          raw[j][c] = *reinterpret_cast<const Vector*>(from + int64_t(c) * channel);
      } else {
#pragma unroll
        for (int c = 0; c < kSlab; ++c)
          raw[j][c] = c < channels ? *reinterpret_cast<const Vector*>(from + int64_t(c) * channel)
                                   : Vector{};
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
    for (int j = 0; j < kBatch; ++j) {
      // Neighbours that are in the row and in the plane.
      const int before = in_row[j] < at[j] ? -in_row[j] : -at[j];
      const int in_row_left = pitch - in_row[j], left = positions - at[j];
      const int last = in_row_left < left ? in_row_left : left;
      if constexpr (kEngine == Engine::kWarpgroup && kVector == 4) {
        const int order = thread / 2 % 4;
        exchange<scalar_t>(raw[j], order);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const int v = i ^ order;
          if (v >= before && v < last)
            *reinterpret_cast<Words<4>*>(to[j] + (at[j] + v) * 16) =
                across_exchanged<scalar_t>(raw[j], i, order);
        }
      } else {
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          if (v >= before && v < last)
            *reinterpret_cast<Words<4>*>(to[j] + plane_unit<kEngine>(at[j] + v) * 16) =
                across<scalar_t, kVector>(raw[j], v);
      }
    }
  }
}

// The same for channels_last_3d: a position's 16 bytes of a slab are as they lie in memory, so they are
// copied asynchronously, but for what must be rounded.
template <typename scalar_t, Engine kEngine>
__device__ inline void load_plane_channels_last(const MatrixParams& p,
                                                const PlaneLoad<scalar_t>& load,
                                                const LoaderShare& share) {
  constexpr int kSlab = slab_channels<scalar_t>();
  constexpr bool kRounds = std::is_same_v<scalar_t, tf32_t>;
  constexpr int kBatch = kRounds ? 8 : 1;
  const unsigned size_h = unsigned(p.input_size[1]), size_w = unsigned(p.input_size[2]);
  const int stride_h = int(p.source.space[1]), stride_w = int(p.source.space[2]);
  int slab = share.first[0], in_row = share.first[1], row = share.first[2];
  signal_wait(load.empty, load.parity);
  while (row < load.rows) {
    Words<4> words[kBatch];
    unsigned char* to[kBatch];  // null: nowhere
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int at = row * p.pitch + in_row - load.before;
      const int h = load.h + row, w = load.w + in_row;
      to[j] = nullptr;
      if constexpr (kRounds) words[j] = Words<4>{};
      if (row < load.rows && unsigned(at) < unsigned(p.positions)) {
        const bool inside = load.inside && unsigned(h) < size_h && unsigned(w) < size_w &&
                            slab * kSlab < load.channels;
        const scalar_t* from =
            inside ? load.from + slab * kSlab + (h * stride_h + w * stride_w) : load.from;
        to[j] = load.slot + slab * p.at.slab + plane_unit<kEngine>(at) * 16;
        if constexpr (kRounds) {
          if (inside) words[j] = *reinterpret_cast<const Words<4>*>(from);
        } else {
          async_copy<16>(to[j], from, inside);
        }
      }
      slab += share.step[0];
      in_row += share.step[1];
      row += share.step[2];
      if (slab >= p.chunk_slabs) slab -= p.chunk_slabs, ++in_row;
      if (in_row >= p.pitch) in_row -= p.pitch, ++row;
    }
    if constexpr (kRounds) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) words[j].word[i] = factor_word<scalar_t>(words[j].word[i]);
        if (to[j] != nullptr) *reinterpret_cast<Words<4>*>(to[j]) = words[j];
      }
    }
  }
  if constexpr (!kRounds) {
    async_commit();
    async_wait<0>();
  }
}

template <typename scalar_t, Engine kEngine, bool kFew>
__device__ inline void load_any_plane(const MatrixParams& p, const PlaneLoad<scalar_t>& load,
                                      const LoaderShare& share, int thread) {
  if (p.load_channels_last)
    load_plane_channels_last<scalar_t, kEngine>(p, load, share);
  else if (p.load_vector == 4)
    load_plane<scalar_t, 4, kEngine, kFew>(p, load, share, thread);
  else if (p.load_vector == 2)
    load_plane<scalar_t, 2, kEngine, kFew>(p, load, share, thread);
  else
    load_plane<scalar_t, 1, kEngine, kFew>(p, load, share, thread);
}

}  // namespace convt3d
"""
