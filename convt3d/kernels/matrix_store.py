"""forward on the matrix units: sums on their way to the output, through shared memory."""

SOURCE = r"""
// Needs matrix_params.py.
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
constexpr int kMostVectors = 4;  // along W, of a lane and a staging
struct alignas(16) KeptPlace {
  // Of a lane's vectors lane, lane + 32, ... along W: where they lie in phase (0, 0) of the output's plane,
  // or -1 where there is none; bit i of the edge: the i-th is in the last row of columns; bit i + 8: in
  // the last column along W.
  int offset[kMostVectors][kWarpSize], edge[kWarpSize];
  uint64_t to;  // first channel, phase 0 at depth 0 of the sample's output
  int first_channel, channels;
  int first_column, w;                 // of the warp in the flat plane; of the strip
  int has_columns;                     // whether any is there
  int index;                           // of the place
  int depth, first_depth, last_depth;  // of the warp among the block's; columns along D
  int first_phase, last_phase;         // numbers
};
__device__ inline KeptPlace& kept_place(const MatrixParams& p, unsigned char* staging) {
  return *reinterpret_cast<KeptPlace*>(staging + p.at.staging_warp - sizeof(KeptPlace));
}

// Columns along W of a strip.
__device__ inline int strip_columns(const MatrixParams& p, int w) {
  const int left = p.columns[2] - w;
  return left < p.strip ? left : p.strip;
}

// Notes what the warp does at the index-th place.
template <typename scalar_t, typename W>
__device__ inline void keep_place(const MatrixParams& p, const BlockWork& work, int index,
                                  unsigned char* staging, int lane) {
  const MatrixPlace place = matrix_place(p, index);
  const int warp = warp_index(), first_column = place.flat + warp % p.flats * kWarpColumns;
  KeptPlace& kept = kept_place(p, staging);
  if (lane == 0) {
    const int share = work.part * p.sets + warp / (p.flats * p.depths);
    kept.first_channel = work.group * p.destination_channels + work.first_channel;
    kept.channels = p.destination_channels - work.first_channel;
    kept.to = reinterpret_cast<uint64_t>(static_cast<scalar_t*>(p.destination_data) +
                                         place.n * p.destination.outer +
                                         kept.first_channel * p.destination.channel);
    kept.first_column = first_column;
    kept.w = place.w;
    kept.has_columns = first_column < (p.columns[1] - 1) * p.pitch + p.strip;
    kept.index = index;
    kept.depth = warp / p.flats % p.depths;
    kept.first_depth = place.d + kept.depth;
    kept.last_depth = kept.first_depth + place.steps * p.depths;
    kept.first_phase = p.phases_before[share];
    kept.last_phase = p.phases_before[share + 1];
  }
  const int vectors = kWarpColumns * W::kStride / p.store_vector;  // of a channel
  const int across = vectors < kWarpSize ? vectors : kWarpSize;
  int edge = 0;
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int element = (lane % across + i * across) * p.store_vector;
    const int flat = first_column + element / W::kStride;
    const int column_h = flat / p.pitch, column_w = flat - column_h * p.pitch;
    const int h = column_h * p.stride[1], x = place.w + column_w;
    // With W fixed all phases along W lie side by side; else elements are a stride apart.
    const int w = W::kFixed ? x * W::kStride + element % W::kStride : x * p.stride[2];
    const bool used = i * across < vectors && column_h < p.columns[1] &&
                      column_w < strip_columns(p, place.w) && w < p.output_size[2];
    kept.offset[i][lane] =
        used ? h * int(p.destination.space[1]) + w * int(p.destination.space[2]) : -1;
    edge |= (column_h == p.columns[1] - 1) << i | (x == p.columns[2] - 1) << (i + 8);
  }
  kept.edge[lane] = edge;
  warp_barrier();
}

// ---- along W ------------------------------------------------------------------------------------------

// Stages channels 8 * part to 8 * part + 7: [channel][column of the warp][phase along W].
template <typename scalar_t, typename W, int kM>
__device__ inline void stage_channels(const float (&sum)[kM][W::kStride][kRun][4], int part,
                                      float bias, unsigned char* staging, int lane) {
  constexpr int kNumbers = word_numbers<scalar_t>();
  constexpr int kRunBytes = kRun * W::kStride * int(sizeof(scalar_t));
  const int row = 8 * kRunBytes + 16;
  unsigned char* to = staging + lane / 4 * row + lane % 4 * 2 * kRunBytes;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (part == 2 * m + half)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int i = 0; i < kRunBytes / 16; ++i) {
            Words<4> words;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int a = (4 * i + j) * kNumbers, b = a + kNumbers - 1;
              words.word[j] =
                  round_word<scalar_t>(sum[m][a % W::kStride][a / W::kStride][half * 2 + r] + bias,
                                       sum[m][b % W::kStride][b / W::kStride][half * 2 + r] + bias);
            }
            *reinterpret_cast<Words<4>*>(to + r * kRunBytes + i * 16) = words;
          }
}

// Stores what is staged; to[i] points to the i-th vector of the first channel, or is null.
template <typename scalar_t, typename W, int kVector>
__device__ inline void store_channels(scalar_t* const (&to)[kMostVectors], int64_t channel_stride,
                                      int channels, const unsigned char* staging, int lane) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kVectors = kWarpColumns * W::kStride / kVector;
  constexpr int kAcross = kVectors < kWarpSize ? kVectors : kWarpSize;
  constexpr int kAtOnce = kWarpSize / kAcross;  // channels
  constexpr int kRow = kWarpColumns * W::kStride * int(sizeof(scalar_t)) + 16;
  const int my_channel = lane / kAcross;
#pragma unroll
  for (int i = 0; i < kVectors / kAcross; ++i) {
    if (to[i] == nullptr) continue;
    scalar_t* at = to[i] + my_channel * channel_stride;
    const unsigned char* from =
        staging + my_channel * kRow + (lane % kAcross + i * kAcross) * int(sizeof(Vector));
#pragma unroll
    for (int c = 0; c < kStagedChannels; c += kAtOnce) {
      if (c + my_channel < channels)
        *reinterpret_cast<Vector*>(at) = *reinterpret_cast<const Vector*>(from + c * kRow);
      at += kAtOnce * channel_stride;
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
template <typename scalar_t, typename W, int kM>
__device__ inline void stage_channels_last(const float (&sum)[kM][W::kStride][kRun][4], int part,
                                           const float (&bias)[2], unsigned char* staging,
                                           int lane) {
  const int g = lane / 4, t4 = lane % 4;
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

// Stores what is staged, to the first channel, row and element of a plane.
template <typename scalar_t, typename W, int kVector>
__device__ inline void store_channels_last(const MatrixParams& p, const KeptPlace& kept,
                                           scalar_t* to, const MatrixPhase& phase,
                                           int first_channel, const unsigned char* staging,
                                           int lane) {
  using Vector = Neighbours<scalar_t, kVector>;
  constexpr int kVectors = 32 / int(sizeof(Vector));  // of a position
  constexpr int kAtOnce = kWarpSize / kVectors;       // positions
  const int vector = lane % kVectors, channel = first_channel + vector * kVector;
  if (channel >= kept.channels) return;
  const int stride_h = int(p.destination.space[1]), stride_w = int(p.destination.space[2]);
  const int stride = W::kFixed ? W::kStride : p.stride[2], strip = strip_columns(p, kept.w);
  const int e = W::kFixed ? lane / kVectors % W::kStride : phase.e[2];
  int column = lane / kVectors / W::kStride;  // of the warp
  int row = (kept.first_column + column) / p.pitch;
  int x = kept.first_column + column - row * p.pitch;
  const unsigned char* from = staging + (W::kFixed ? e : 0) * 32 + vector * int(sizeof(Vector));
#pragma unroll 1
  for (int i = 0; i < kWarpColumns * W::kStride / kAtOnce; ++i) {
    const int h = row * p.stride[1] + phase.e[1], w = (kept.w + x) * stride + e;
    if (x < strip && row < p.columns[1] && h < p.output_size[1] && w < p.output_size[2])
      *reinterpret_cast<Vector*>(to + h * stride_h + w * stride_w + channel) =
          *reinterpret_cast<const Vector*>(from + column / kRun * staged_run<W>() +
                                           column % kRun * staged_column<W>());
    column += kAtOnce / W::kStride;
    x += kAtOnce / W::kStride;
    while (x >= p.pitch) x -= p.pitch, ++row;
  }
}

// ---- both -----------------------------------------------------------------------------------------

// Adds the bias, rounds once and stores one phase of a warp's columns at depth d. Parts of the channels
// go through the staging one by one; one copy of the code serves all, hence the loops that pick what to
// stage.
template <typename scalar_t, typename W, int kM>
__device__ inline void store_phase(const MatrixParams& p,
                                   const float (&sum)[kM][W::kStride][kRun][4],
                                   unsigned char* staging, int d, const MatrixPhase& phase,
                                   int lane) {
  const KeptPlace& kept = kept_place(p, staging);
  const int g = lane / 4, channels = kept.channels;
  const int64_t channel_stride = p.destination.channel;
  scalar_t* base = reinterpret_cast<scalar_t*>(kept.to) +
                   int64_t(d * p.stride[0] + phase.e[0]) * p.destination.space[0];
  const scalar_t* bias = static_cast<const scalar_t*>(p.bias_data);
  if (bias) bias += kept.first_channel * p.bias_stride;
  const auto bias_of = [&](int channel) {
    return bias && channel < channels ? to_acc(bias[channel * p.bias_stride]) : 0.0f;
  };
  if (p.store_channels_last) {
    constexpr int kAtOnce = staged_channels_last<scalar_t>();
#pragma unroll 1
    for (int part = 0; part * kAtOnce < channels && part * kAtOnce < kM * 16; ++part) {
      const int first = part * kAtOnce;
      const float added[2] = {bias_of(first + g), bias_of(first + g + 8)};
      stage_channels_last<scalar_t, W, kM>(sum, part, added, staging, lane);
      warp_barrier();
      if (p.store_vector == 8) {
        if constexpr (sizeof(scalar_t) == 2)
          store_channels_last<scalar_t, W, 8>(p, kept, base, phase, first, staging, lane);
      } else if (p.store_vector == 4) {
        store_channels_last<scalar_t, W, 4>(p, kept, base, phase, first, staging, lane);
      } else if (p.store_vector == 2) {
        store_channels_last<scalar_t, W, 2>(p, kept, base, phase, first, staging, lane);
      } else {
        store_channels_last<scalar_t, W, 1>(p, kept, base, phase, first, staging, lane);
      }
      warp_barrier();
    }
    return;
  }
  // The last columns may not have all phases.
  const bool has_h = (p.columns[1] - 1) * p.stride[1] + phase.e[1] < p.output_size[1];
  const bool has_w = W::kFixed || (p.columns[2] - 1) * p.stride[2] + phase.e[2] < p.output_size[2];
  const int edge = kept.edge[lane];
  base += phase.e[1] * int(p.destination.space[1]) + phase.e[2] * int(p.destination.space[2]);
  scalar_t* to[kMostVectors];  // null where the output does not have it
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int offset = kept.offset[i][lane];
    const bool inside =
        offset >= 0 && (has_h || !(edge >> i & 1)) && (has_w || !(edge >> (i + 8) & 1));
    to[i] = inside ? base + offset : nullptr;
  }
#pragma unroll 1
  for (int part = 0; part < 2 * kM && part * kStagedChannels < channels; ++part) {
    const int first = part * kStagedChannels;
    stage_channels<scalar_t, W, kM>(sum, part, bias_of(first + g), staging, lane);
    warp_barrier();
    if (p.store_vector == 8) {
      if constexpr (sizeof(scalar_t) == 2)
        store_channels<scalar_t, W, 8>(to, channel_stride, channels - first, staging, lane);
    } else if (p.store_vector == 4) {
      store_channels<scalar_t, W, 4>(to, channel_stride, channels - first, staging, lane);
    } else if (p.store_vector == 2) {
      store_channels<scalar_t, W, 2>(to, channel_stride, channels - first, staging, lane);
    } else {
      store_channels<scalar_t, W, 1>(to, channel_stride, channels - first, staging, lane);
    }
    warp_barrier();
#pragma unroll
    for (int i = 0; i < kMostVectors; ++i)
      if (to[i] != nullptr) to[i] += kStagedChannels * channel_stride;
  }
}

}  // namespace convt3d
"""
