"""forward with few channels a group, depthwise above all: each thread computes a run of columns along W."""

SOURCE = r"""
// Needs columns.py.
#include <type_traits>

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
  // Where a thread has a whole run, neighbouring threads have neighbouring rows: those lie in different banks.
  const int fast = W::kFixed ? p.rows : p.runs, slow = W::kFixed ? p.runs : p.rows;
  const int first = index % fast, second = index / fast % slow;
  index /= fast * slow;
  const int run = W::kFixed ? second : first;
  item.h = W::kFixed ? first : second;
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

// Where a block's weights lie: [taps along D and H][source channel of a group][destination channel of the
// block][tap along W], or with the tap along W before the channels.
struct LineWeights {
  int row, source, channel, tap;  // from one to the next
};
template <bool kAlongChannels>
__device__ inline LineWeights line_weights(const LineParams& p) {
  const int taps_w = p.kernel_size[2], channels = p.block_groups * p.destination_channels;
  const int row = taps_w * p.source_channels * channels;
  return kAlongChannels ? LineWeights{row, channels, 1, p.source_channels * channels}
                        : LineWeights{row, channels * taps_w, taps_w, 1};
}
template <typename scalar_t, bool kAlongChannels>
__device__ inline void stage_line_weights(const LineParams& p, const LinePlace& place,
                                          typename Accumulator<scalar_t>::type* to) {
  const int taps_w = p.kernel_size[2], taps_h = p.kernel_size[1];
  const int taps = p.kernel_size[0] * taps_h * taps_w;
  const int channels = p.destination_channels;
  const LineWeights at = line_weights<kAlongChannels>(p);
  const int all = taps * p.source_channels * channels * place.groups;
  for (int i = thread_index(); i < all; i += p.threads) {  // taps fastest, as they lie in memory
    const int tap = i % taps, c = i / taps % channels, rest = i / taps / channels;
    const int source = rest % p.source_channels, group = rest / p.source_channels;
    const scalar_t* from = static_cast<const scalar_t*>(p.weight_data) +
                           (place.group + group) * p.weight_group + source * p.weight_source +
                           c * p.weight_destination + tap / taps_w / taps_h * p.weight_tap[0] +
                           tap / taps_w % taps_h * p.weight_tap[1] + tap % taps_w * p.weight_tap[2];
    to[tap / taps_w * at.row + source * at.source + (group * channels + c) * at.channel +
       tap % taps_w * at.tap] = to_acc(*from);
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

// Note [Short chains]
// A sum that grows rounds ever larger numbers. In fp32, where nothing hides that, what so many lines add is
// summed by itself first; native's sums are of that kind, too. Fewer lines or more err more.
constexpr int kChainLines = 4;
template <typename scalar_t>
__host__ __device__ constexpr bool has_short_chains() {
  return std::is_same_v<scalar_t, float>;
}

// Blocks that a multiprocessor is to hold: as many as registers allow.
template <typename scalar_t, typename W>
__host__ __device__ constexpr int line_blocks() {
  return sizeof(scalar_t) == 8 || (has_short_chains<scalar_t>() && W::kTaps > 3) ? 2 : 3;
}

// The sums of an item in phase e_d of step `step`, for a destination channel of the block.
template <typename scalar_t, typename W, bool kAlongChannels>
__device__ inline void sum_item(const LineParams& p, const LinePlace& place, const LineItem& item,
                                int step, int e_d, int channel, const scalar_t* input,
                                const typename Accumulator<scalar_t>::type* weights,
                                typename Accumulator<scalar_t>::type (&sum)[W::kStride][kRun]) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const PhaseTaps taps_d = p.taps[0][e_d], taps_h = p.taps[1][item.e_h];
  const PhaseTaps taps_w = p.taps[2][item.e_w];
  const int planes = p.depths * p.steps + p.span[0], lines = p.rows + p.span[1];
  const int source_channels = p.source_channels;
  const LineWeights at = line_weights<kAlongChannels>(p);
  // From one position, line, plane and source channel to the next.
  const int shift = kAlongChannels ? place.groups * source_channels : 1;
  const int line = p.pitch * shift, plane = lines * line;
  const int next_channel = kAlongChannels ? 1 : planes * plane;
  if (kAlongChannels) input += channel / p.destination_channels * source_channels;
  input += (step * p.depths + item.d + taps_d.base) * plane + (item.h + taps_h.base) * line +
           item.column * shift;
  weights += (taps_d.first * p.kernel_size[1] + taps_h.first) * at.row + channel * at.channel;
  const int next_plane = taps_d.shift * plane, next_line = taps_h.shift * line;
  const int next_weights_d = taps_d.step * p.kernel_size[1] * at.row;
  const int next_weights_h = taps_h.step * at.row;
  const int next_w = item.next * shift, next_tap = kAlongChannels ? at.tap : 1;
  acc_t chain[W::kStride][kRun];  // see Note [Short chains]
  int chain_lines = 0;
#pragma unroll
  for (int e = 0; e < W::kStride; ++e)
#pragma unroll
    for (int t = 0; t < kRun; ++t) sum[e][t] = chain[e][t] = 0;
  const auto end_chain = [&] {
#pragma unroll
    for (int e = 0; e < W::kStride; ++e)
#pragma unroll
      for (int t = 0; t < kRun; ++t) {
        sum[e][t] += chain[e][t];
        chain[e][t] = 0;
      }
  };
  const auto multiply = [&](const scalar_t* from, const acc_t* taps) {
    if constexpr (has_short_chains<scalar_t>()) {
      multiply_line<scalar_t, W, kAlongChannels>(chain, from, next_w, shift, taps, next_tap,
                                                 taps_w);
      if (++chain_lines % kChainLines == 0) end_chain();
    } else {
      multiply_line<scalar_t, W, kAlongChannels>(sum, from, next_w, shift, taps, next_tap, taps_w);
    }
  };
#pragma unroll 1
  for (int jd = 0; jd < taps_d.count; ++jd) {
    const scalar_t* from = input;
    const acc_t* taps = weights;
#pragma unroll 1
    for (int jh = 0; jh < taps_h.count; ++jh) {
      multiply(from, taps);
#pragma unroll 1
      for (int i = 1; i < source_channels; ++i)
        multiply(from + i * next_channel, taps + i * at.source);
      from += next_line;
      taps += next_weights_h;
    }
    input += next_plane;
    weights += next_weights_d;
  }
  if constexpr (has_short_chains<scalar_t>()) end_chain();
}

template <typename scalar_t>
__device__ inline typename Accumulator<scalar_t>::type line_bias(const LineParams& p, int channel) {
  if (!p.bias_data) return 0;
  return to_acc(static_cast<const scalar_t*>(p.bias_data)[channel * p.bias_stride]);
}

// ---- output along W -------------------------------------------------------------------------------

// Note [Images]
// Results are staged as an image of the memory that they go to: a row starts as many bytes after a multiple of 16 as
// it does there, so that what lies between two such multiples is copied at once, wherever rows start. Rows that follow
// each other in memory make one image; else each row has its own.
struct LineImage {
  int rows, length;  // of the results; elements
  bool is_one_run;   // the rows follow each other in memory
  int pitch;         // of the images of single rows
};

// Elements from a multiple of 16 bytes to an address.
template <typename scalar_t>
__device__ inline int image_head(const scalar_t* address) {
  return int(reinterpret_cast<uint64_t>(address) % 16 / sizeof(scalar_t));
}

// Where row `row` is staged that goes to `to`; `first` is where row 0 of its plane goes.
template <typename scalar_t>
__device__ inline int image_row(const LineImage& image, const scalar_t* first, const scalar_t* to,
                                int row) {
  return image.is_one_run ? image_head(first) + row * image.length
                          : row * image.pitch + image_head(to);
}

// Stages the sums of an item in its row, all its phases along W side by side; `to` is the row's place.
template <typename scalar_t, typename W>
__device__ inline void stage_item(
    const LineParams& p, const LineItem& item, int length,
    typename Accumulator<scalar_t>::type bias,
    const typename Accumulator<scalar_t>::type (&sum)[W::kStride][kRun], scalar_t* to) {
  if constexpr (W::kFixed) {
    constexpr int kChunk = Chunk<scalar_t>::kCount, kCount = kRun * W::kStride;
    to += item.column * W::kStride;
    const int left = length - item.column * W::kStride;  // elements of the row
    const auto result = [&](int i) { return sum[i % W::kStride][i / W::kStride] + bias; };
    const int odd = int(reinterpret_cast<uint64_t>(to) % 4 / sizeof(scalar_t));
    if (left < kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < left) to[i] = from_acc<scalar_t>(result(i));
    } else if (reinterpret_cast<uint64_t>(to) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kCount / kChunk; ++i) {
        Chunk<scalar_t> chunk;
#pragma unroll
        for (int j = 0; j < kChunk; ++j)
          chunk.value[j] = from_acc<scalar_t>(result(i * kChunk + j));
        reinterpret_cast<Chunk<scalar_t>*>(to)[i] = chunk;
      }
    } else if constexpr (sizeof(scalar_t) == 2) {
      if (odd) {
        to[0] = from_acc<scalar_t>(result(0));
#pragma unroll
        for (int i = 1; i < kCount - 1; i += 2)
          *reinterpret_cast<uint32_t*>(to + i) = round_pair<scalar_t>(result(i), result(i + 1));
        to[kCount - 1] = from_acc<scalar_t>(result(kCount - 1));
      } else {
#pragma unroll
        for (int i = 0; i < kCount; i += 2)
          *reinterpret_cast<uint32_t*>(to + i) = round_pair<scalar_t>(result(i), result(i + 1));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = from_acc<scalar_t>(result(i));
    }
  } else {
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      const int at = (item.column + t * item.next) * p.stride[2] + item.e_w;
      if (at < length) to[at] = from_acc<scalar_t>(sum[0][t] + bias);
    }
  }
}

// Stores the images of a plane, whose first row goes to `to`.
template <typename scalar_t>
__device__ inline void store_images(const LineParams& p, const LineImage& image, scalar_t* to,
                                    const scalar_t* staged) {
  constexpr int kChunk = Chunk<scalar_t>::kCount;
  const int count = image.is_one_run ? image.rows * image.length : image.length;
  const int images = image.is_one_run ? 1 : image.rows;
  const int chunks = (count - 1) / kChunk + 2;  // of an image that starts anywhere
  const int step_images = p.threads / chunks, step = p.threads - step_images * chunks;
  int row = thread_index() / chunks, chunk = thread_index() - row * chunks;
  while (row < images) {
    scalar_t* at = to + row * p.destination.space[1];
    const int head = image_head(at), first = chunk * kChunk - head;
    const scalar_t* from = staged + (image.is_one_run ? 0 : row * image.pitch) + chunk * kChunk;
    if (first >= 0 && first + kChunk <= count) {
      *reinterpret_cast<Chunk<scalar_t>*>(at + first) =
          *reinterpret_cast<const Chunk<scalar_t>*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i)
        if (first + i >= 0 && first + i < count) at[first + i] = from[i];
    }
    row += step_images;
    chunk += step;
    if (chunk >= chunks) chunk -= chunks, ++row;
  }
}

// Block: one group, `depths` * `steps` columns along D, `rows` along H, a strip along W.
// Thread: kRun columns along W, one phase along H; of D the phases and steps one after the other.
// Grid: strips fastest, then rows, depths, groups, samples. Shared memory: weights, input, two stagings.
// Must hold: the items of a step are at most p.threads; the output's neighbours along W are neighbours
//   in memory.
// Order of summation: taps along D and H, source channels, taps along W, see Note [Short chains]; bias last.
//   Padding enters as zeros.
template <typename scalar_t, typename W>
__global__ void __launch_bounds__(kLineThreads, (line_blocks<scalar_t, W>()))
    lines_kernel(const LineParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  unsigned char* shared = static_cast<unsigned char*>(shared_memory());
  acc_t* weights = reinterpret_cast<acc_t*>(shared);
  scalar_t* input = reinterpret_cast<scalar_t*>(shared + p.input_at);
  const LinePlace place = line_place(p);
  stage_line_weights<scalar_t, false>(p, place, weights);
  stage_line_input<scalar_t, false>(p, place, input);
  barrier();
  const LineItem item = line_item<W>(p, thread_index());
  const bool computes = thread_index() < line_items<W>(p);
  const int first_h = place.h * p.stride[1], first_w = place.w * p.stride[2];
  const int left_h = p.output_size[1] - first_h, left_w = p.output_size[2] - first_w;
  LineImage image;
  image.rows = left_h < p.rows * p.stride[1] ? left_h : p.rows * p.stride[1];
  image.length = left_w < p.strip * p.stride[2] ? left_w : p.strip * p.stride[2];
  image.is_one_run = p.destination.space[1] == image.length;
  image.pitch = p.staged_pitch;
  const int row = item.h * p.stride[1] + item.e_h;
  const int plane = p.rows * p.stride[1] * p.staged_pitch;  // staged
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
        const int first_d = (place.d + step * p.depths) * p.stride[0] + e_d;
        if (computes && row < image.rows) {
          acc_t sum[W::kStride][kRun];
          sum_item<scalar_t, W, false>(p, place, item, step, e_d, c, input, weights, sum);
          const scalar_t* first =
              destination + (first_d + item.d * p.stride[0]) * p.destination.space[0];
          const int at = image_row(image, first, first + row * p.destination.space[1], row);
          stage_item<scalar_t, W>(p, item, image.length, bias, sum, staging + item.d * plane + at);
        }
        barrier();
        for (int j = 0; j < p.depths; ++j) {
          const int d = first_d + j * p.stride[0];
          if (d < p.output_size[0])
            store_images<scalar_t>(p, image, destination + d * p.destination.space[0],
                                   staging + j * plane);
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
  stage_line_weights<scalar_t, true>(p, place, weights);
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
