"""forward on the matrix units: sums on their way to the output, through shared memory."""

SOURCE = r"""
// Needs matrix_multiply.py.
namespace convt3d {

// Sums lie in the registers channel by channel and run by run. A warp stages those of a few channels and
// all its columns, then stores them in vectors along W or along the channels.
constexpr int kStagedChannels = 8;  // along W
// Along the channels: those that 32 bytes hold, for all of a sector is then written at once.
template <typename scalar_t>
__host__ __device__ constexpr int staged_channels_last() {
  return int(32 / sizeof(scalar_t));
}

// One or two numbers, rounded.
template <typename scalar_t>
__device__ inline uint32_t round_word(float first, float second) {
  if constexpr (sizeof(scalar_t) == 4) {
    return bits_of(first);
  } else {
    return round_pair<scalar_t>(first, second);
  }
}

// What a warp keeps of its place in shared memory, behind its staging, for registers are short.
constexpr int kMostVectors = 4;                                  // along W, of a lane and a staging
constexpr int kShiftedBytes = 8, kMostEnds = 16, kNoQuad = 255;  // where rows start anywhere
struct alignas(16) KeptPlace {
  // Of a lane's vectors lane, lane + 32, ... along W: where they lie in phase (0, 0) of the output's plane.
  int offset[kWarpSize][kMostVectors];
  int edges
      [kWarpSize];  // kInside << i: the i-th is there; kLastRow << i, kLastColumn << i: it is at that edge
  int64_t to;                            // first channel, phase 0 at depth 0 of the sample's output
  int channel, first_channel, channels;  // of the warp's channels in the block; in the output; left
  int first_column, w;                   // of the warp in the flat plane; of the strip
  int has_columns;                       // whether any is there, and any channel
  int index;                             // of the place
  int depth, first_depth, last_depth;    // of the warp among the block's; columns along D
  int first_phase, last_phase;           // numbers in the part
  int ends;                              // of rows, two a row; see Note [Rows that start anywhere]
  unsigned char end_quad[kMostEnds];     // its quad, or kNoQuad
};
static_assert(sizeof(KeptPlace) <= 720, "KEPT_PLACE_BYTES of convt3d/matrix/work.py");
__device__ inline KeptPlace& kept_place(const MatrixParams& p, unsigned char* staging) {
  return *reinterpret_cast<KeptPlace*>(staging + p.at.staging_warp - sizeof(KeptPlace));
}

// Keeps the bias of a block's channels in shared memory, or zeros.
template <typename scalar_t, Engine kEngine, int kM>
__device__ inline void keep_bias(const MatrixParams& p, const BlockWork& work, int threads) {
  float* kept = reinterpret_cast<float*>(static_cast<unsigned char*>(shared_memory()) + p.at.bias);
  const scalar_t* bias = static_cast<const scalar_t*>(p.bias_data);
  for (int c = thread_index(); c < p.crews * kM * tile_channels<kEngine>(); c += threads) {
    const bool is_there = bias && work.first_channel + c < p.destination_channels;
    const int channel = work.group * p.destination_channels + work.first_channel + c;
    kept[c] = is_there ? to_acc(bias[channel * p.bias_stride]) : 0.0f;
  }
}

// Columns along W of a strip.
__device__ inline int strip_columns(const MatrixParams& p, int w) {
  const int left = p.columns[2] - w;
  return left < p.strip ? left : p.strip;
}

// Notes what the warp does at the index-th place.
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void keep_place(const MatrixParams& p, const BlockWork& work, int index,
                                  unsigned char* staging, int lane) {
  const MatrixPlace place = matrix_place(p, index);
  const int warp = warp_index(), first_column = place.flat + warp % p.flats * kWarpColumns;
  KeptPlace& kept = kept_place(p, staging);
  if (lane == 0) {
    const int before = p.phases_before[work.part * p.sets];
    const int share = work.part * p.sets + warp / (p.flats * p.depths) % p.sets;
    constexpr int kChannels = kM * tile_channels<kEngine>();
    kept.channel = crew_of(p, warp) * kChannels;
    const int first_channel = work.first_channel + kept.channel;
    kept.first_channel = work.group * p.destination_channels + first_channel;
    const int channels = p.destination_channels - first_channel;
    kept.channels = channels < kChannels ? channels : kChannels;
    kept.to = place.n * p.destination.outer + kept.first_channel * p.destination.channel;
    kept.first_column = first_column;
    kept.w = place.w;
    // A warpgroup multiplies as one; its warps are neighbours in the flat plane.
    const int together = kEngine == Engine::kWarpgroup ? warp % p.flats % 4 * kWarpColumns : 0;
    kept.has_columns =
        channels > 0 && first_column - together < (p.columns[1] - 1) * p.pitch + p.strip;
    kept.index = index;
    kept.depth = warp / p.flats % p.depths;
    kept.first_depth = place.d + kept.depth;
    kept.last_depth = kept.first_depth + place.steps * p.depths;
    kept.first_phase = p.phases_before[share] - before;
    kept.last_phase = p.phases_before[share + 1] - before;
  }
  const int vectors = kWarpColumns * W::kStride / p.store_vector;  // of a channel
  const int across = vectors < kWarpSize ? vectors : kWarpSize;
  const int element = lane % across * p.store_vector, strip = strip_columns(p, place.w);
  const int stride_h = p.stride[1] * int(p.destination.space[1]);
  const int flat = first_column + element / W::kStride;
  int column_h = flat / p.pitch, column_w = flat - column_h * p.pitch;
  int edges = 0;
  const int first_row = first_column / p.pitch;
  if (p.store_shifts) {
    if (lane == 0) kept.ends = 2 * ((first_column + kWarpColumns - 1) / p.pitch - first_row + 1);
    if (lane < kMostEnds) kept.end_quad[lane] = kNoQuad;
    warp_barrier();
  }
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int x = place.w + column_w;
    // With W fixed all phases along W lie side by side; else elements are a stride apart.
    const int w = W::kFixed ? x * W::kStride + element % W::kStride : x * p.stride[2];
    const bool used =
        i * across < vectors && column_h < p.columns[1] && column_w < strip && w < p.output_size[2];
    kept.offset[lane][i] = used ? column_h * stride_h + w * int(p.destination.space[2]) : 0;
    edges |= (used ? kInside << i : 0) | (column_h == p.columns[1] - 1 ? kLastRow << i : 0) |
             (x == p.columns[2] - 1 ? kLastColumn << i : 0);
    if (p.store_shifts && used) {
      const int in_row = p.output_size[2] - w, in_strip = (strip - column_w) * W::kStride;
      const int left = in_row < in_strip ? in_row : in_strip, number = i * across + lane % across;
      const int count = left < p.store_vector ? left : p.store_vector;
      const bool begins = column_w == 0 || number == 0;
      const bool ends = left <= p.store_vector || number == vectors - 1;
      edges |= (begins ? 0 : kGoesOn << i) | (ends ? kEnds << i : 0) |
               (count - 1) << (kCountBit + 2 * i);
      if (begins || ends)
        kept.end_quad[2 * (column_h - first_row) + (begins ? 0 : 1)] =
            static_cast<unsigned char>(number);
    }
    column_w += across * p.store_vector / W::kStride;
    while (column_w >= p.pitch) column_w -= p.pitch, ++column_h;
  }
  kept.edges[lane] = edges;
  warp_barrier();
}

// ---- along W ------------------------------------------------------------------------------------------

// 16 bytes of a channel's row -> where they are staged, so that the lanes that write meet different banks.
__device__ inline int staged_chunk(int chunk, int run_chunks) {
  return run_chunks == 2 ? chunk ^ (chunk >> 2 & 2) : chunk;
}

// Stages channels 8 * part to 8 * part + 7: [channel][column of the warp][phase along W].
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void stage_channels(const Sums<W, kEngine, kM>& sums, int part,
                                      const float* biases, unsigned char* staging, int lane) {
  const auto& sum = sums.sum;
  const float bias = biases[lane / 4];
  constexpr int kNumbers = word_numbers<scalar_t>();
  constexpr int kChunks = kRun * W::kStride * int(sizeof(scalar_t)) / 16;  // of a run
  constexpr int kRow = 8 * kChunks * 16 + 16;
  unsigned char* to = staging + lane / 4 * kRow;
  const int first = lane % 4 * 2 * kChunks;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (part == 2 * m + half)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int i = 0; i < kChunks; ++i) {
            Words<4> words;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int a = (4 * i + j) * kNumbers, b = a + kNumbers - 1;
              words.word[j] =
                  round_word<scalar_t>(sum[m][a % W::kStride][a / W::kStride][half * 2 + r] + bias,
                                       sum[m][b % W::kStride][b / W::kStride][half * 2 + r] + bias);
            }
            *reinterpret_cast<Words<4>*>(to + staged_chunk(first + r * kChunks + i, kChunks) * 16) =
                words;
          }
}

// Stores what is staged; `to` is the first channel's, offset[i] that of the i-th vector from there.
template <typename scalar_t, typename W, Engine kEngine, int kVector>
__device__ inline void store_channels(scalar_t* to, const int* offset, int edges,
                                      int64_t channel_stride, int channels,
                                      const unsigned char* staging, int lane) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kVectors = kWarpColumns * W::kStride / kVector;
  constexpr int kAcross = kVectors < kWarpSize ? kVectors : kWarpSize;
  constexpr int kAtOnce = kWarpSize / kAcross;  // channels
  constexpr int kRow = kWarpColumns * W::kStride * int(sizeof(scalar_t)) + 16;
  constexpr int kRunChunks = kRun * W::kStride * int(sizeof(scalar_t)) / 16;
  const int my_channel = kAtOnce == 1 ? 0 : lane / kAcross;
  to += my_channel * channel_stride;
  staging += my_channel * kRow;
#pragma unroll
  for (int i = 0; i < kVectors / kAcross; ++i) {
    const int byte = (lane % kAcross + i * kAcross) * int(sizeof(Vector));
    const int chunk =
        kEngine == Engine::kWarpgroup ? byte / 16 : staged_chunk(byte / 16, kRunChunks);
    const unsigned char* from = staging + chunk * 16 + byte % 16;
    scalar_t* at = to + offset[i];
    const int left = edges & kInside << i ? channels - my_channel : 0;
#pragma unroll
    for (int c = 0; c < kStagedChannels; c += kAtOnce) {
      if (c < left)
        *reinterpret_cast<Vector*>(at) = *reinterpret_cast<const Vector*>(from + c * kRow);
      at += kAtOnce * channel_stride;
    }
  }
}

// Note [Rows that start anywhere]
// A lane has 8 bytes of a row, a quad, but stores the 8 of memory that the first of them lie in: the last
// ones of the quad before, then its own. At the ends of a row that is not possible; what these quads cannot
// store so goes element by element, those of all channels at once.

// 8 bytes of 16 in a row, from 8 - 2 * halves on.
__device__ inline Words<2> shifted_words(const Words<2>& before, const Words<2>& own, int halves) {
  const bool by_word = halves & 2, by_half = halves & 1;
  const uint32_t first = by_word ? before.word[0] : before.word[1];
  const uint32_t second = by_word ? before.word[1] : own.word[0];
  const uint32_t third = by_word ? own.word[0] : own.word[1];
  return {{by_half ? first >> 16 | second << 16 : second,
           by_half ? second >> 16 | third << 16 : third}};
}
// 2-byte units from a whole 8 bytes of memory to an address.
__device__ inline int halves_past(const void* address) {
  return int(reinterpret_cast<uintptr_t>(address) / 2 % 4);
}

// What a lane's i-th quad can store: 8 bytes if its shift lies from `least` on, and in as many as `shifts`.
struct Quad {
  bool goes_on, ends;
  int count, least, shifts;
};
template <int kVector>
__device__ inline Quad quad_of(int edges, int i) {
  Quad quad;
  quad.goes_on = edges & kGoesOn << i;
  quad.ends = edges & kEnds << i;
  quad.count = (edges >> (kCountBit + 2 * i) & 3) + 1;
  quad.least = kVector - quad.count;
  quad.shifts = quad.goes_on ? quad.count : quad.count == kVector ? 1 : 0;
  return quad;
}

// How a warp's quads of a channel lie in staging.
template <typename scalar_t, typename W, Engine kEngine>
struct StagedRows {
  static constexpr int kBytes = int(sizeof(scalar_t)), kVector = kShiftedBytes / kBytes;
  static constexpr int kQuads = kWarpColumns * W::kStride / kVector;
  static constexpr int kAcross = kQuads < kWarpSize ? kQuads : kWarpSize;
  static constexpr int kRow = kWarpColumns * W::kStride * kBytes + 16;
  __device__ static int at(int byte) {
    constexpr int kRunChunks = kRun * W::kStride * kBytes / 16;
    return kEngine == Engine::kWarpgroup ? byte
                                         : staged_chunk(byte / 16, kRunChunks) * 16 + byte % 16;
  }
};

// Stores what is staged but for the ends of rows.
template <typename scalar_t, typename W, Engine kEngine>
__device__ inline void store_quads(scalar_t* to, const int* offset, int edges,
                                   int64_t channel_stride, int channels,
                                   const unsigned char* staging, int lane) {
  using Rows = StagedRows<scalar_t, W, kEngine>;
  constexpr int kAtOnce = kWarpSize / Rows::kAcross;  // channels
  const int my_channel = kAtOnce == 1 ? 0 : lane / Rows::kAcross;
  to += my_channel * channel_stride;
  staging += my_channel * Rows::kRow;
#pragma unroll 1
  for (int i = 0; i < Rows::kQuads / Rows::kAcross; ++i) {
    const int byte = (lane % Rows::kAcross + i * Rows::kAcross) * kShiftedBytes;
    const Quad quad = quad_of<Rows::kVector>(edges, i);
    const unsigned char* own_from = staging + Rows::at(byte);
    const unsigned char* before_from =
        quad.goes_on ? staging + Rows::at(byte - kShiftedBytes) : own_from;
    const int left = edges & kInside << i ? channels - my_channel : 0;
    scalar_t* at = to + offset[i];
#pragma unroll
    for (int c = 0; c < kStagedChannels; c += kAtOnce) {
      const int halves = halves_past(at), shift = halves * 2 / Rows::kBytes;
      const Words<2> before = *reinterpret_cast<const Words<2>*>(before_from + c * Rows::kRow);
      const Words<2> own = *reinterpret_cast<const Words<2>*>(own_from + c * Rows::kRow);
      if (c < left && unsigned(shift - quad.least) < unsigned(quad.shifts))
        *reinterpret_cast<Words<2>*>(at - shift) = shifted_words(before, own, halves);
      at += kAtOnce * channel_stride;
    }
  }
}

// Stores those: a lane has one channel of a quad at an end.
template <typename scalar_t, typename W, Engine kEngine>
__device__ inline void store_ends(const KeptPlace& kept, scalar_t* to, int lost,
                                  int64_t channel_stride, int channels,
                                  const unsigned char* staging, int lane) {
  using Rows = StagedRows<scalar_t, W, kEngine>;
  using Element = Neighbours<scalar_t, 1>;
  constexpr int kAtOnce = kWarpSize / kStagedChannels;  // quads
  const int c = lane % kStagedChannels;
#pragma unroll 1
  for (int end = lane / kStagedChannels; end < kept.ends; end += kAtOnce) {
    const int number = kept.end_quad[end];
    if (number == kNoQuad || c >= channels) continue;
    const int i = number / Rows::kAcross, from_lane = number % Rows::kAcross;
    const int edges = kept.edges[from_lane];
    if (edges & lost & kLastRow << i) continue;
    const Quad quad = quad_of<Rows::kVector>(edges, i);
    scalar_t* at = to + c * channel_stride + kept.offset[from_lane][i];
    const int shift = halves_past(at) * 2 / Rows::kBytes, rest = Rows::kVector - shift;
    const bool is_stored = unsigned(shift - quad.least) < unsigned(quad.shifts);
    const int first = is_stored ? rest : quad.goes_on ? -shift : 0;
    const int last = quad.ends || quad.count < rest ? quad.count : rest;
#pragma unroll
    for (int j = 0; j < Rows::kVector; ++j)
      if (first + j < last) {
        const int byte = number * kShiftedBytes + (first + j) * Rows::kBytes;
        *reinterpret_cast<Element*>(at + first + j) =
            *reinterpret_cast<const Element*>(staging + c * Rows::kRow + Rows::at(byte));
      }
  }
}

// ---- along the channels ---------------------------------------------------------------------------

// Bytes from a warp's column, or its run, to the next in staging.
template <typename W>
__host__ __device__ constexpr int staged_column() {
  return 32 * W::kStride;
}
template <typename W>
__host__ __device__ constexpr int staged_run() {
  return kRun * staged_column<W>() + 16;
}

// Stages part `part` of the channels: [run][position of the run][phase along W][channel].
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void stage_channels_last(const Sums<W, kEngine, kM>& sums, int part,
                                           const float* biases, unsigned char* staging, int lane) {
  const auto& sum = sums.sum;
  const int g = lane / 4, t4 = lane % 4;
  const float bias[2] = {biases[g], sizeof(scalar_t) == 2 ? biases[g + 8] : 0.0f};
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int t = 0; t < kRun; ++t)
#pragma unroll
        for (int e = 0; e < W::kStride; ++e) {
          const float* pair = sum[m][e][t] + 2 * half;
          const int at = t * staged_column<W>() + e * 32;
          if constexpr (sizeof(scalar_t) == 4) {
            if (part != 2 * m + half) continue;
#pragma unroll
            for (int r = 0; r < 2; ++r)
              *reinterpret_cast<uint32_t*>(staging + (2 * t4 + r) * staged_run<W>() + at + g * 4) =
                  bits_of(pair[r] + bias[0]);
          } else {
            if (part != m) continue;
            // From two runs of one channel to two channels of one run.
            const uint32_t word =
                transpose_matrix(round_pair<scalar_t>(pair[0] + bias[half], pair[1] + bias[half]));
            *reinterpret_cast<uint32_t*>(staging + g * staged_run<W>() + at + half * 16 + t4 * 4) =
                word;
          }
        }
}

// Stores what is staged; `to` is the first channel's, first row's and first element's of the phase.
template <typename scalar_t, typename W, int kVector>
__device__ inline void store_channels_last(const MatrixParams& p, const KeptPlace& kept,
                                           scalar_t* to, int lost, int first_channel,
                                           const unsigned char* staging, int lane) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kVectors = 32 / int(sizeof(Vector));  // of a position
  constexpr int kAtOnce = kWarpSize / kVectors;       // positions
  constexpr int kColumns = kAtOnce / W::kStride;
  const int vector = lane % kVectors, channel = first_channel + vector * kVector;
  if (channel >= kept.channels) return;
  const int e = lane / kVectors % W::kStride;
  const int stride_h = p.stride[1] * int(p.destination.space[1]);
  const int stride_w = p.stride[2] * int(p.destination.space[2]);
  const int rows = p.columns[1] - (lost & kLastRow ? 1 : 0);
  // Columns of the strip that have the element.
  int strip = strip_columns(p, kept.w);
  const int last =
      p.output_size[2] - (p.columns[2] - 1) * p.stride[2];  // phases of the last column
  if (kept.w + strip == p.columns[2] && (W::kFixed ? e >= last : lost & kLastColumn)) --strip;
  int column = lane / kVectors / W::kStride;  // of the warp
  int row = (kept.first_column + column) / p.pitch;
  int x = kept.first_column + column - row * p.pitch;
  scalar_t* at = to + int64_t(row) * stride_h + int64_t(kept.w + x) * stride_w +
                 (e * int(p.destination.space[2]) + channel);
  const int next = kColumns * stride_w, next_row = stride_h - p.pitch * stride_w;
  const unsigned char* from = staging + e * 32 + vector * int(sizeof(Vector));
#pragma unroll 1
  for (int i = 0; i < kWarpColumns / kColumns; ++i) {
    if (x < strip && row < rows)
      *reinterpret_cast<Vector*>(at) = *reinterpret_cast<const Vector*>(
          from + column / kRun * staged_run<W>() + column % kRun * staged_column<W>());
    column += kColumns;
    x += kColumns;
    at += next;
    while (x >= p.pitch) x -= p.pitch, ++row, at += next_row;
  }
}

// ---- both -----------------------------------------------------------------------------------------

// Adds the bias, rounds once and stores one phase of a warp's columns at depth d. Parts of the channels
// go through the staging one by one; one copy of the code serves all, hence the loops that pick what to
// stage.
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void store_phase(const MatrixParams& p, const Sums<W, kEngine, kM>& sums,
                                   unsigned char* staging, int d, const PhaseWork& phase,
                                   int lane) {
  const KeptPlace& kept = kept_place(p, staging);
  const int channels = kept.channels;
  const float* bias =
      reinterpret_cast<const float*>(static_cast<unsigned char*>(shared_memory()) + p.at.bias) +
      kept.channel;
  scalar_t* to = static_cast<scalar_t*>(p.destination_data) +
                 (kept.to + phase.to + int64_t(d) * (p.stride[0] * p.destination.space[0]));
  if (p.store_channels_last) {
    constexpr int kAtOnce = staged_channels_last<scalar_t>();
#pragma unroll 1
    for (int part = 0; part * kAtOnce < channels; ++part) {
      const int first = part * kAtOnce;
      stage_channels_last<scalar_t>(sums, part, bias + first, staging, lane);
      warp_barrier();
      with_vector<scalar_t>(p.store_vector, [&](auto vector) {
        store_channels_last<scalar_t, W, decltype(vector)::value>(p, kept, to, phase.lost, first,
                                                                  staging, lane);
      });
      warp_barrier();
    }
    return;
  }
  const int* offset = kept.offset[lane];
  const int all = kept.edges[lane], lost = all & phase.lost;
  const int edges = all & ~(lost / kLastRow | lost / kLastColumn);
  const int64_t channel_stride = p.destination.channel;
#pragma unroll 1
  for (int part = 0; part * kStagedChannels < channels; ++part) {
    const int first = part * kStagedChannels;
    stage_channels<scalar_t>(sums, part, bias + first, staging, lane);
    warp_barrier();
    const int left = channels - first;
    if (p.store_shifts) {
      store_quads<scalar_t, W, kEngine>(to, offset, edges, channel_stride, left, staging, lane);
      store_ends<scalar_t, W, kEngine>(kept, to, phase.lost, channel_stride, left, staging, lane);
    } else {
      with_vector<scalar_t>(p.store_vector, [&](auto vector) {
        store_channels<scalar_t, W, kEngine, decltype(vector)::value>(
            to, offset, edges, channel_stride, left, staging, lane);
      });
    }
    warp_barrier();
    to += kStagedChannels * channel_stride;
  }
}

}  // namespace convt3d
"""
