"""forward with few channels a group, depthwise above all: each thread computes a run of columns along W."""

SOURCE = r"""
// Needs columns.py.
namespace convt3d {

// Note [Lines]
// A group of few channels leaves the matrix units nearly empty. Here a thread computes kRun columns along W
// with all their phases, of one output channel: what it reads of a line of input serves every tap along W.
// Input, with zeros around it, and weights lie in shared memory.

constexpr int kLineThreads = 256;  // of a block, at most
constexpr int kLinesAtOnce = 4;    // lines of input that a warp has under way

struct LineParams {
  int32_t batch, groups, source_channels, destination_channels;  // channels of one group
  int32_t input_size[3], output_size[3], kernel_size[3], stride[3];
  Strides source, destination;
  int64_t weight_group, weight_source, weight_destination, weight_tap[3];  // strides of the weight
  int64_t bias_stride;
  int32_t columns[3];           // along D, H, W
  int32_t low[3];               // smallest shift
  int32_t span[3];              // largest shift less the smallest
  int32_t depths, rows, strip;  // columns of a block along D, H and W
  int32_t steps;                // of `depths` columns along D
  int32_t places[3];            // of blocks, along D, H and W
  int32_t runs;                 // of kRun columns in a strip
  int32_t along_channels;       // 1: neighbouring threads have neighbouring channels
  int32_t block_groups;         // groups of a block: 1, but with along_channels
  int32_t threads;              // of a block
  int32_t pitch, staged_pitch;  // elements from line to line: of the input, and of staged results
  int32_t input_at, staging_at, staging_bytes, shared_bytes;  // in shared memory; two stagings
  PhaseTaps taps[3][4];                                       // [axis][phase]
  const void* source_data;
  const void* weight_data;
  const void* bias_data;  // or null
  void* destination_data;
};

// A block's place: a sample, its first group and how many, its first columns.
struct LinePlace {
  int n, group, groups, d, h, w;
};
__device__ inline LinePlace line_place(const LineParams& p) {
  int64_t block = block_index();
  LinePlace at;
  at.w = int(block % p.places[2]) * p.strip;
  block /= p.places[2];
  at.h = int(block % p.places[1]) * p.rows;
  block /= p.places[1];
  at.d = int(block % p.places[0]) * (p.depths * p.steps);
  block /= p.places[0];
  const int parts = (p.groups + p.block_groups - 1) / p.block_groups;
  at.group = int(block % parts) * p.block_groups;
  at.n = int(block / parts);
  at.groups = p.groups - at.group < p.block_groups ? p.groups - at.group : p.block_groups;
  return at;
}

// What a thread computes of a step: one phase along H, of W where the kernel does not know the taps.
struct LineItem {
  int d, h, e_h, e_w;
  int column, next;  // first one along W, and from one to the next
};
template <typename W>
__device__ inline LineItem line_item(const LineParams& p, int index) {
  LineItem item;
  const int run = index % p.runs;
  index /= p.runs;
  item.h = index % p.rows;
  index /= p.rows;
  item.e_w = W::kFixed ? 0 : index % p.stride[2];
  if (!W::kFixed) index /= p.stride[2];
  item.e_h = index % p.stride[1];
  item.d = index / p.stride[1];
  // Taken one by one, neighbours along W belong to neighbouring threads.
  item.column = W::kFixed ? run * kRun : run;
  item.next = W::kFixed ? 1 : p.runs;
  return item;
}
// Items of a step.
template <typename W>
__host__ __device__ inline int line_items(const LineParams& p) {
  return p.depths * p.stride[1] * (W::kFixed ? 1 : p.stride[2]) * p.rows * p.runs;
}

// ---- into shared memory ---------------------------------------------------------------------------

// Stages the weights of a block: [tap][source channel of a group][destination channel of the block].
template <typename scalar_t>
__device__ inline void stage_line_weights(const LineParams& p, const LinePlace& place,
                                          typename Accumulator<scalar_t>::type* to) {
  const int taps_w = p.kernel_size[2], taps_h = p.kernel_size[1];
  const int taps = p.kernel_size[0] * taps_h * taps_w;
  const int channels = p.destination_channels, block_channels = p.block_groups * channels;
  const int all = taps * p.source_channels * channels * place.groups;
  for (int i = thread_index(); i < all; i += p.threads) {  // taps fastest, as they lie in memory
    const int tap = i % taps, c = i / taps % channels, rest = i / taps / channels;
    const int source = rest % p.source_channels, group = rest / p.source_channels;
    const scalar_t* from = static_cast<const scalar_t*>(p.weight_data) +
                           (place.group + group) * p.weight_group + source * p.weight_source +
                           c * p.weight_destination + tap / taps_w / taps_h * p.weight_tap[0] +
                           tap / taps_w % taps_h * p.weight_tap[1] + tap % taps_w * p.weight_tap[2];
    to[(tap * p.source_channels + source) * block_channels + group * channels + c] = to_acc(*from);
  }
}

// Stages the input of a block: [source channel][plane][line][position], or with the channels of all its
// groups last. What lies outside is zero.
template <typename scalar_t, bool kAlongChannels>
__device__ inline void stage_line_input(const LineParams& p, const LinePlace& place, scalar_t* to) {
  const int warp = thread_index() / kWarpSize, warps = p.threads / kWarpSize;
  const int planes = p.depths * p.steps + p.span[0], lines = p.rows + p.span[1];
  const int channels = kAlongChannels ? place.groups * p.source_channels : 1;  // of a line
  const int first_d = place.d + p.low[0], first_h = place.h + p.low[1],
            first_w = place.w + p.low[2];
  const int pitch = kAlongChannels ? p.pitch * channels : p.pitch;
  const int all = (kAlongChannels ? 1 : p.source_channels) * planes * lines;
  const scalar_t* source = static_cast<const scalar_t*>(p.source_data) + place.n * p.source.outer +
                           int64_t(place.group) * p.source_channels * p.source.channel;
  for (int first = warp; first < all; first += kLinesAtOnce * warps) {
    const scalar_t* from[kLinesAtOnce];
    bool inside[kLinesAtOnce];
#pragma unroll
    for (int j = 0; j < kLinesAtOnce; ++j) {
      const int line = first + j * warps;
      const int h = first_h + line % lines, d = first_d + line / lines % planes;
      inside[j] = line < all && unsigned(h) < unsigned(p.input_size[1]) &&
                  unsigned(d) < unsigned(p.input_size[0]);
      from[j] = source;
      if (inside[j])
        from[j] += line / lines / planes * p.source.channel + d * p.source.space[0] +
                   h * p.source.space[1];
    }
    int x = thread_index() % kWarpSize / channels, c = thread_index() % kWarpSize % channels;
#pragma unroll 2
    for (int i = thread_index() % kWarpSize; i < pitch; i += kWarpSize) {
      const int w = first_w + x;
      const bool inside_w = unsigned(w) < unsigned(p.input_size[2]);
      const int64_t offset =
          inside_w ? w * p.source.space[2] + (kAlongChannels ? c * p.source.channel : 0) : 0;
      scalar_t value[kLinesAtOnce];
#pragma unroll
      for (int j = 0; j < kLinesAtOnce; ++j) {
        value[j] = from_acc<scalar_t>(typename Accumulator<scalar_t>::type(0));
        if (inside_w && inside[j]) value[j] = from[j][offset];
      }
#pragma unroll
      for (int j = 0; j < kLinesAtOnce; ++j)
        if (first + j * warps < all) to[(first + j * warps) * pitch + i] = value[j];
      x += kWarpSize / channels;
      c += kWarpSize % channels;
      if (c >= channels) c -= channels, ++x;
    }
  }
}

// ---- sums -----------------------------------------------------------------------------------------

// Elements that are read at once.
template <typename scalar_t>
struct alignas(16) Chunk {
  static constexpr int kCount = int(16 / sizeof(scalar_t));
  scalar_t value[kCount];
};

// sum += a line of input times the taps along W. `from` points to the input of the first column, lowest
// shift; columns and shifts lie `next` and `shift` elements apart.
template <typename scalar_t, typename W, bool kAlongChannels>
__device__ inline void multiply_line(typename Accumulator<scalar_t>::type (&sum)[W::kStride][kRun],
                                     const scalar_t* from, int next, int shift,
                                     const typename Accumulator<scalar_t>::type* weights,
                                     int next_tap, const PhaseTaps& taps_w) {
  using acc_t = typename Accumulator<scalar_t>::type;
  if constexpr (W::kFixed) {
    constexpr int kChunk = Chunk<scalar_t>::kCount;
    constexpr int kChunks = (kRun + W::span() + kChunk - 1) / kChunk;
    acc_t input[kChunks * kChunk];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      if constexpr (kAlongChannels) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j)
          if (i * kChunk + j < kRun + W::span())
            input[i * kChunk + j] = to_acc(from[(i * kChunk + j) * shift]);
      } else {
        const auto chunk = reinterpret_cast<const Chunk<scalar_t>*>(from)[i];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) input[i * kChunk + j] = to_acc(chunk.value[j]);
      }
    }
#pragma unroll
    for (int k = 0; k < W::kTaps; ++k) {
      const acc_t weight = weights[k * next_tap];
#pragma unroll
      for (int e = 0; e < W::kStride; ++e)
        if (W::meets(e, k))
#pragma unroll
          for (int t = 0; t < kRun; ++t) sum[e][t] += input[t + W::shift(e, k)] * weight;
    }
  } else {
    for (int j = 0; j < taps_w.count; ++j) {
      const acc_t weight = weights[(taps_w.first + j * taps_w.step) * next_tap];
      const scalar_t* at = from + (taps_w.base + j * taps_w.shift) * shift;
#pragma unroll
      for (int t = 0; t < kRun; ++t) sum[0][t] += to_acc(at[t * next]) * weight;
    }
  }
}

// The sums of an item in phase e_d of step `step`, for a destination channel of the block.
template <typename scalar_t, typename W, bool kAlongChannels>
__device__ inline void sum_item(const LineParams& p, const LinePlace& place, const LineItem& item,
                                int step, int e_d, int channel, const scalar_t* input,
                                const typename Accumulator<scalar_t>::type* weights,
                                typename Accumulator<scalar_t>::type (&sum)[W::kStride][kRun]) {
  const PhaseTaps taps_d = p.taps[0][e_d], taps_h = p.taps[1][item.e_h];
  const PhaseTaps taps_w = p.taps[2][item.e_w];
  const int planes = p.depths * p.steps + p.span[0], lines = p.rows + p.span[1];
  const int source_channels = p.source_channels;
  const int block_channels = p.block_groups * p.destination_channels;
  // From one position, line, plane and source channel to the next.
  const int shift = kAlongChannels ? place.groups * source_channels : 1;
  const int line = p.pitch * shift, plane = lines * line;
  const int next_channel = kAlongChannels ? 1 : planes * plane;
  if (kAlongChannels) input += channel / p.destination_channels * source_channels;
  input += (step * p.depths + item.d) * plane + item.h * line + item.column * shift;
  weights += channel;
#pragma unroll
  for (int e = 0; e < W::kStride; ++e)
#pragma unroll
    for (int t = 0; t < kRun; ++t) sum[e][t] = 0;
  for (int jd = 0; jd < taps_d.count; ++jd)
    for (int jh = 0; jh < taps_h.count; ++jh) {
      const int tap =
          ((taps_d.first + jd * taps_d.step) * p.kernel_size[1] + taps_h.first + jh * taps_h.step) *
          p.kernel_size[2];
      const scalar_t* from = input + (taps_d.base + jd * taps_d.shift) * plane +
                             (taps_h.base + jh * taps_h.shift) * line;
      for (int i = 0; i < source_channels; ++i)
        multiply_line<scalar_t, W, kAlongChannels>(
            sum, from + i * next_channel, item.next * shift, shift,
            weights + (tap * source_channels + i) * block_channels,
            source_channels * block_channels, taps_w);
    }
}

template <typename scalar_t>
__device__ inline typename Accumulator<scalar_t>::type line_bias(const LineParams& p, int channel) {
  if (!p.bias_data) return 0;
  return to_acc(static_cast<const scalar_t*>(p.bias_data)[channel * p.bias_stride]);
}

// ---- output along W -------------------------------------------------------------------------------

// Stages the sums of an item in its row: all its phases along W side by side.
template <typename scalar_t, typename W>
__device__ inline void stage_item(
    const LineParams& p, const LineItem& item, typename Accumulator<scalar_t>::type bias,
    const typename Accumulator<scalar_t>::type (&sum)[W::kStride][kRun], scalar_t* staging) {
  const int row = (item.d * p.rows + item.h) * p.stride[1] + item.e_h;
  scalar_t* to = staging + row * p.staged_pitch;
  if constexpr (W::kFixed) {
    constexpr int kChunk = Chunk<scalar_t>::kCount;
    to += item.column * W::kStride;
#pragma unroll
    for (int i = 0; i < kRun * W::kStride / kChunk; ++i) {
      Chunk<scalar_t> chunk;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        const int at = i * kChunk + j;
        chunk.value[j] = from_acc<scalar_t>(sum[at % W::kStride][at / W::kStride] + bias);
      }
      reinterpret_cast<Chunk<scalar_t>*>(to)[i] = chunk;
    }
  } else {
#pragma unroll
    for (int t = 0; t < kRun; ++t)
      to[(item.column + t * item.next) * p.stride[2] + item.e_w] =
          from_acc<scalar_t>(sum[0][t] + bias);
  }
}

// Stores staged rows of `length` elements. Rows that follow each other in memory are one run, in which
// neighbouring threads store neighbouring words of whole lines of 128 bytes; else each row is one.
template <typename scalar_t>
__device__ inline void store_rows(const LineParams& p, scalar_t* to, int rows, int length,
                                  const scalar_t* staged) {
  constexpr int kNumbers = sizeof(scalar_t) < 4 ? int(4 / sizeof(scalar_t)) : 1;
  struct alignas(sizeof(scalar_t) * kNumbers) Word {
    scalar_t number[kNumbers];
  };
  const int thread = thread_index(), pitch = p.staged_pitch;
  const bool is_one_run = p.destination.space[1] == length;
  const int all = is_one_run ? rows * length : length;
  const int first = (is_one_run ? thread : thread % kWarpSize) * kNumbers;
  const int step = (is_one_run ? p.threads : kWarpSize) * kNumbers;
  const int step_rows = step / length, step_columns = step % length;
  for (int row = is_one_run ? 0 : thread / kWarpSize; row < (is_one_run ? 1 : rows);
       row += p.threads / kWarpSize) {
    scalar_t* at = to + row * p.destination.space[1];
    // The element of this thread's first word, counted from a whole line of memory.
    int element = first - int(reinterpret_cast<uint64_t>(at) % 128 / sizeof(scalar_t));
    int line = element / length, column = element % length;
    if (column < 0) column += length, --line;
    for (; element < all; element += step) {
      const scalar_t* from = staged + (row + line) * pitch + column;
      if constexpr (kNumbers == 1) {
        if (element >= 0) at[element] = *from;
      } else {
        const scalar_t* second = column + 1 < length ? from + 1 : from + 1 - length + pitch;
        if (element >= 0 && element + 1 < all) {
          *reinterpret_cast<Word*>(at + element) = Word{{*from, *second}};
        } else if (element >= 0) {
          at[element] = *from;
        } else if (element == -1) {
          at[0] = *second;
        }
      }
      line += step_rows;
      column += step_columns;
      if (column >= length) column -= length, ++line;
    }
  }
}

// Block: one group, `depths` * `steps` columns along D, `rows` along H, a strip along W.
// Thread: kRun columns along W, one phase along H; of D the phases and steps one after the other.
// Grid: strips fastest, then rows, depths, groups, samples. Shared memory: weights, input, two stagings.
// Must hold: the items of a step are at most p.threads; the output's neighbours along W are neighbours
//   in memory.
// Order of summation: taps along D and H, source channels, taps along W; bias last. Padding enters as
//   zeros.
template <typename scalar_t, typename W>
__global__ void __launch_bounds__(kLineThreads, 3) lines_kernel(const LineParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  unsigned char* shared = static_cast<unsigned char*>(shared_memory());
  acc_t* weights = reinterpret_cast<acc_t*>(shared);
  scalar_t* input = reinterpret_cast<scalar_t*>(shared + p.input_at);
  const LinePlace place = line_place(p);
  stage_line_weights<scalar_t>(p, place, weights);
  stage_line_input<scalar_t, false>(p, place, input);
  barrier();
  const LineItem item = line_item<W>(p, thread_index());
  const bool computes = thread_index() < line_items<W>(p);
  const int first_h = place.h * p.stride[1], first_w = place.w * p.stride[2];
  const int left_h = p.output_size[1] - first_h, left_w = p.output_size[2] - first_w;
  const int rows = left_h < p.rows * p.stride[1] ? left_h : p.rows * p.stride[1];
  const int length = left_w < p.strip * p.stride[2] ? left_w : p.strip * p.stride[2];
  int turn = 0;
  for (int c = 0; c < p.destination_channels; ++c) {
    const int channel = place.group * p.destination_channels + c;
    const acc_t bias = line_bias<scalar_t>(p, channel);
    scalar_t* destination = static_cast<scalar_t*>(p.destination_data) +
                            place.n * p.destination.outer + channel * p.destination.channel +
                            first_h * p.destination.space[1] + first_w * p.destination.space[2];
    for (int step = 0; step < p.steps; ++step)
      for (int e_d = 0; e_d < p.stride[0]; ++e_d) {
        // While some still store from one staging, others fill the other.
        scalar_t* staging =
            reinterpret_cast<scalar_t*>(shared + p.staging_at + turn * p.staging_bytes);
        turn ^= 1;
        if (computes) {
          acc_t sum[W::kStride][kRun];
          sum_item<scalar_t, W, false>(p, place, item, step, e_d, c, input, weights, sum);
          stage_item<scalar_t, W>(p, item, bias, sum, staging);
        }
        barrier();
        for (int j = 0; j < p.depths; ++j) {
          const int d = (place.d + step * p.depths + j) * p.stride[0] + e_d;
          if (d < p.output_size[0])
            store_rows<scalar_t>(p, destination + d * p.destination.space[0], rows, length,
                                 staging + j * p.rows * p.stride[1] * p.staged_pitch);
        }
      }
  }
}

// ---- output along the channels --------------------------------------------------------------------

// Block: `block_groups` groups, and columns as above.
// Thread: one channel and kRun columns along W, one phase along H; neighbouring threads have neighbouring
//   channels.
// Grid, shared memory, order of summation: as above, without staging.
template <typename scalar_t, typename W>
__global__ void __launch_bounds__(kLineThreads, 2) lines_of_channels_kernel(const LineParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  unsigned char* shared = static_cast<unsigned char*>(shared_memory());
  acc_t* weights = reinterpret_cast<acc_t*>(shared);
  scalar_t* input = reinterpret_cast<scalar_t*>(shared + p.input_at);
  const LinePlace place = line_place(p);
  stage_line_weights<scalar_t>(p, place, weights);
  stage_line_input<scalar_t, true>(p, place, input);
  barrier();
  const int block_channels = p.block_groups * p.destination_channels;
  const int c = thread_index() % block_channels, at_once = p.threads / block_channels;
  if (thread_index() / block_channels >= at_once || c >= place.groups * p.destination_channels)
    return;
  const int channel = place.group * p.destination_channels + c;
  const acc_t bias = line_bias<scalar_t>(p, channel);
  scalar_t* destination = static_cast<scalar_t*>(p.destination_data) +
                          place.n * p.destination.outer + channel * p.destination.channel;
  const int items = line_items<W>(p);
  for (int index = thread_index() / block_channels; index < items; index += at_once) {
    const LineItem item = line_item<W>(p, index);
    const int h = (place.h + item.h) * p.stride[1] + item.e_h;
    if (h >= p.output_size[1]) continue;
    for (int step = 0; step < p.steps; ++step)
      for (int e_d = 0; e_d < p.stride[0]; ++e_d) {
        const int d = (place.d + step * p.depths + item.d) * p.stride[0] + e_d;
        if (d >= p.output_size[0]) continue;
        acc_t sum[W::kStride][kRun];
        sum_item<scalar_t, W, true>(p, place, item, step, e_d, c, input, weights, sum);
        scalar_t* to = destination + d * p.destination.space[0] + h * p.destination.space[1];
#pragma unroll
        for (int t = 0; t < kRun; ++t)
#pragma unroll
          for (int e = 0; e < W::kStride; ++e) {
            const int column = item.column + t * item.next;
            const int w = (place.w + column) * (W::kFixed ? W::kStride : p.stride[2]) +
                          (W::kFixed ? e : item.e_w);
            if (column < p.strip && w < p.output_size[2])
              to[w * p.destination.space[2]] = from_acc<scalar_t>(sum[e][t] + bias);
          }
      }
  }
}

// ---- launch ------------------------------------------------------------------------------------------

template <typename scalar_t, typename W>
const char* run_lines(const LineParams& p, void* stream) {
  if (W::kFixed && (W::kStride != p.stride[2] || W::kTaps != p.kernel_size[2]))
    return "this kernel is for other parameters along W";
  if (p.threads < kWarpSize || p.threads > kLineThreads || p.threads % kWarpSize != 0)
    return "a block must have 32 to 256 threads, in whole warps";
  if (!p.along_channels && line_items<W>(p) > p.threads)
    return "a step has more items than threads";
  if (p.along_channels && p.block_groups * p.destination_channels > p.threads)
    return "a block has more channels than threads";
  const int64_t blocks = int64_t(p.places[0]) * p.places[1] * p.places[2] *
                         ((p.groups + p.block_groups - 1) / p.block_groups) * p.batch;
  return p.along_channels
             ? launch(lines_of_channels_kernel<scalar_t, W>, blocks, p.threads, p.shared_bytes,
                      stream, p)
             : launch(lines_kernel<scalar_t, W>, blocks, p.threads, p.shared_bytes, stream, p);
}

}  // namespace convt3d
"""
