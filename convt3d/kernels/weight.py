"""grad_weight and grad_bias: one pass over input and grad_output, split-K with an ordered second pass."""

SOURCE = r"""
// Needs params.py.
namespace convt3d {

// Elements of grad_weight are numbered (C_in, C_out / groups, kD, kH, kW), of grad_bias C_out after
// them. Partial sums of split s lie at s * (all elements) + element.
__host__ __device__ inline int64_t tap_count(const WeightParams& p) {
  return p.axis[0].kernel_size * p.axis[1].kernel_size * p.axis[2].kernel_size;
}
__host__ __device__ inline int64_t weight_elements(const WeightParams& p) {
  return p.want_weight ? p.groups * p.in_channels * p.out_channels * tap_count(p) : 0;
}
__host__ __device__ inline int64_t bias_elements(const WeightParams& p) {
  return p.want_bias ? p.groups * p.out_channels : 0;
}
__host__ __device__ inline int64_t input_positions(const WeightParams& p) {
  return p.batch * p.axis[0].input_size * p.axis[1].input_size * p.axis[2].input_size;
}
__host__ __device__ inline int64_t output_positions(const WeightParams& p) {
  return p.batch * p.axis[0].output_size * p.axis[1].output_size * p.axis[2].output_size;
}

// A position (n, d, h, w) of a tensor.
template <typename index_t>
struct Position {
  index_t n, space[3];
};
template <bool kOfInput, typename index_t>
__device__ inline Position<index_t> position_at(const WeightParams& p, index_t flat) {
  Position<index_t> at;
  for (int i = 2; i >= 0; --i) {
    const index_t size =
        static_cast<index_t>(kOfInput ? p.axis[i].input_size : p.axis[i].output_size);
    at.space[i] = flat % size;
    flat /= size;
  }
  at.n = flat;
  return at;
}
template <typename index_t>
__device__ inline index_t offset_of(const Strides& strides, const Position<index_t>& at) {
  return at.n * static_cast<index_t>(strides.outer) +
         at.space[0] * static_cast<index_t>(strides.space[0]) +
         at.space[1] * static_cast<index_t>(strides.space[1]) +
         at.space[2] * static_cast<index_t>(strides.space[2]);
}

// The tap with that number; coordinates along D, H and W.
template <typename index_t>
struct Tap {
  index_t space[3];
};
template <typename index_t>
__device__ inline Tap<index_t> tap_at(const WeightParams& p, index_t number) {
  Tap<index_t> tap;
  for (int i = 2; i >= 0; --i) {
    const index_t size = static_cast<index_t>(p.axis[i].kernel_size);
    tap.space[i] = number % size;
    number /= size;
  }
  return tap;
}

// The grad_output position where `tap` takes the input position `at`; false when it is cropped.
template <typename index_t>
__device__ inline bool meets(const WeightParams& p, const Position<index_t>& at,
                             const Tap<index_t>& tap, Position<index_t>& output) {
  bool inside = true;
  output.n = at.n;
  for (int i = 0; i < 3; ++i) {
    output.space[i] = at.space[i] * static_cast<index_t>(p.axis[i].stride) -
                      static_cast<index_t>(p.axis[i].padding) +
                      tap.space[i] * static_cast<index_t>(p.axis[i].dilation);
    inside = inside && output.space[i] >= 0 &&
             output.space[i] < static_cast<index_t>(p.axis[i].output_size);
  }
  return inside;
}

// Writes a finished sum, or a split's part of it, of element (ci, co, tap) of a group.
template <typename scalar_t, typename index_t, typename acc_t>
__device__ inline void put_weight(const WeightParams& p, index_t group, index_t ci, index_t co,
                                  index_t tap_number, index_t split, acc_t sum) {
  const index_t channel = group * static_cast<index_t>(p.in_channels) + ci;
  if (p.splits > 1) {
    const int64_t element = (int64_t(channel) * p.out_channels + co) * tap_count(p) + tap_number;
    static_cast<acc_t*>(p.partials)[split * (weight_elements(p) + bias_elements(p)) + element] =
        sum;
    return;
  }
  const Tap<index_t> tap = tap_at<index_t>(p, tap_number);
  static_cast<scalar_t*>(
      p.grad_weight_data)[channel * static_cast<index_t>(p.grad_weight.outer) +
                          co * static_cast<index_t>(p.grad_weight.channel) +
                          tap.space[0] * static_cast<index_t>(p.grad_weight.space[0]) +
                          tap.space[1] * static_cast<index_t>(p.grad_weight.space[1]) +
                          tap.space[2] * static_cast<index_t>(p.grad_weight.space[2])] =
      from_acc<scalar_t>(sum);
}
template <typename scalar_t, typename acc_t>
__device__ inline void put_bias(const WeightParams& p, int64_t channel, int64_t split, acc_t sum) {
  if (p.splits > 1) {
    const int64_t all = weight_elements(p) + bias_elements(p);
    static_cast<acc_t*>(p.partials)[split * all + weight_elements(p) + channel] = sum;
    return;
  }
  static_cast<scalar_t*>(p.grad_bias_data)[channel] = from_acc<scalar_t>(sum);
}

// ---- direct: a thread an element ---------------------------------------------------------------

constexpr int kWeightThreads = 128;

// Thread: one element of grad_weight, or of grad_bias after them.
// Grid: ceil(elements / kWeightThreads). Shared memory: none. Must hold: splits == 1.
// Only contributions that exist are multiplied: cropped positions never meet a NaN or an infinity.
// Order of summation: positions (N, D, H, W).
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kWeightThreads, 4) weight_direct_kernel(const WeightParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t element = block_index() * kWeightThreads + thread_index();
  if (element >= weight_elements(p) + bias_elements(p)) return;
  const index_t per_group = static_cast<index_t>(p.out_channels);
  const scalar_t* grad_output = static_cast<const scalar_t*>(p.grad_output_data);
  acc_t sum = 0;

  if (element >= weight_elements(p)) {
    const index_t channel = static_cast<index_t>(element - weight_elements(p));
    grad_output += channel * static_cast<index_t>(p.grad_output.channel);
    const index_t positions = static_cast<index_t>(output_positions(p));
    for (index_t i = 0; i < positions; ++i)
      sum += to_acc(grad_output[offset_of(p.grad_output, position_at<false, index_t>(p, i))]);
    put_bias<scalar_t>(p, channel, 0, sum);
    return;
  }

  const index_t taps = static_cast<index_t>(tap_count(p));
  const index_t tap_number = static_cast<index_t>(element % taps);
  const index_t co = static_cast<index_t>(element / taps % per_group);
  const index_t channel = static_cast<index_t>(element / taps / per_group);
  const index_t group = channel / static_cast<index_t>(p.in_channels);
  const Tap<index_t> tap = tap_at<index_t>(p, tap_number);
  const scalar_t* input =
      static_cast<const scalar_t*>(p.input_data) + channel * static_cast<index_t>(p.input.channel);
  grad_output += (group * per_group + co) * static_cast<index_t>(p.grad_output.channel);
  const index_t positions = static_cast<index_t>(input_positions(p));
  for (index_t i = 0; i < positions; ++i) {
    const Position<index_t> at = position_at<true, index_t>(p, i);
    Position<index_t> output;
    if (meets(p, at, tap, output))
      sum += to_acc(input[offset_of(p.input, at)]) *
             to_acc(grad_output[offset_of(p.grad_output, output)]);
  }
  put_weight<scalar_t>(p, group, channel - group * static_cast<index_t>(p.in_channels), co,
                       tap_number, index_t(0), sum);
}

// ---- tiled: a GEMM over all positions -----------------------------------------------------------

constexpr int kWeightRows = 32;          // gemm_m: input channels of a block's tile
constexpr int kWeightColumns = 64;       // gemm_n: (tap, output channel) pairs of a block's tile
constexpr int kWeightK = kWarpSize;      // gemm_k: positions of one stage, one a lane
constexpr int kWeightThreadRows = 4;     // rows 4 * row_lane + i of a thread
constexpr int kWeightThreadColumns = 4;  // columns column_lane + 16 * j of a thread
constexpr int kColumnLanes = kWeightColumns / kWeightThreadColumns;
static_assert(kColumnLanes * (kWeightRows / kWeightThreadRows) == kWeightThreads,
              "the threads cover the tile once");

template <typename acc_t>
struct WeightShared {
  // One element of padding a row: threads that read a column of the tile hit different banks.
  acc_t input[kWeightRows][kWeightK + 1];
  acc_t grad_output[kWeightColumns][kWeightK + 1];
};

// Sum of grad_output over this split's part of the positions of one output channel, by one block.
// Order of summation: every 128th position in a thread, a butterfly in a warp, then the warps.
template <typename scalar_t, typename index_t>
__device__ inline void sum_bias(const WeightParams& p, int64_t channel, int64_t split) {
  using acc_t = typename Accumulator<scalar_t>::type;
  acc_t* warp_sums = static_cast<acc_t*>(shared_memory());  // (warps)
  const int thread = thread_index();
  const int64_t positions = output_positions(p);
  const int64_t per_split = (positions + p.splits - 1) / p.splits;
  const int64_t begin = split * per_split;
  const int64_t end = begin + per_split < positions ? begin + per_split : positions;
  const scalar_t* from =
      static_cast<const scalar_t*>(p.grad_output_data) + channel * p.grad_output.channel;
  acc_t sum = 0;
  for (int64_t i = begin + thread; i < end; i += kWeightThreads)
    sum += to_acc(
        from[offset_of(p.grad_output, position_at<false, index_t>(p, static_cast<index_t>(i)))]);
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread % kWarpSize == 0) warp_sums[thread / kWarpSize] = sum;
  barrier();
  if (thread != 0) return;
  for (int warp = 1; warp < kWeightThreads / kWarpSize; ++warp) sum += warp_sums[warp];
  put_bias<scalar_t>(p, channel, split, sum);
}

// Block: kWeightRows x kWeightColumns elements of one group over one split of the positions; blocks
//   after those sum one output channel of grad_bias over one split.
// Thread: 4 rows times 4 columns.
// Grid: (column tiles, row tiles, groups, splits), column tiles fastest, then C_out * splits.
// Shared memory: WeightShared. Cropped grad_output enters as zeros.
// Order of summation: positions (N, D, H, W) within a split, then the splits in order.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kWeightThreads, 4) weight_tiled_kernel(const WeightParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int thread = thread_index();              // [0, kWeightThreads)
  const int lane = thread % kWarpSize;            // [0, 32)
  const int warp = thread / kWarpSize;            // [0, 4)
  const int column_lane = thread % kColumnLanes;  // [0, 16)
  const int row_lane = thread / kColumnLanes;     // [0, 8)
  constexpr int kWarps = kWeightThreads / kWarpSize;

  const index_t in_channels = static_cast<index_t>(p.in_channels);
  const index_t out_channels = static_cast<index_t>(p.out_channels);
  const index_t taps = static_cast<index_t>(tap_count(p));
  const index_t all_columns = taps * out_channels;
  const index_t column_tiles = (all_columns + kWeightColumns - 1) / kWeightColumns;
  const index_t row_tiles = (in_channels + kWeightRows - 1) / kWeightRows;
  const int64_t weight_blocks =
      p.want_weight ? int64_t(column_tiles) * row_tiles * p.groups * p.splits : 0;
  int64_t block = block_index();
  if (block >= weight_blocks) {
    block -= weight_blocks;
    sum_bias<scalar_t, index_t>(p, block / p.splits, block % p.splits);
    return;
  }
  auto& shared = *static_cast<WeightShared<acc_t>*>(shared_memory());
  const index_t first_column = static_cast<index_t>(block % column_tiles) * kWeightColumns;
  block /= column_tiles;
  const index_t first_row = static_cast<index_t>(block % row_tiles) * kWeightRows;
  block /= row_tiles;
  const index_t group = static_cast<index_t>(block % p.groups);
  const index_t split = static_cast<index_t>(block / p.groups);

  const index_t positions = static_cast<index_t>(input_positions(p));
  const index_t per_split = static_cast<index_t>((positions + p.splits - 1) / p.splits);
  const index_t begin = split * per_split;
  const index_t end = positions - begin < per_split ? positions : begin + per_split;
  const scalar_t* input = static_cast<const scalar_t*>(p.input_data) +
                          (group * in_channels + first_row) * static_cast<index_t>(p.input.channel);
  const scalar_t* grad_output = static_cast<const scalar_t*>(p.grad_output_data) +
                                group * out_channels * static_cast<index_t>(p.grad_output.channel);

  // Of a tile at the edge only what some thread uses is staged: whole groups of rows and columns.
  const int used_rows = used<kWeightThreadRows>(in_channels - first_row, kWeightRows);
  const int used_columns = used<kColumnLanes>(all_columns - first_column, kWeightColumns);

  acc_t sum[kWeightThreadRows][kWeightThreadColumns] = {};
  for (index_t first = begin; first < end; first += kWeightK) {
    // Stage: a lane has one position, a warp takes every fourth row and column.
    const bool has_position = first + lane < end;
    const Position<index_t> at = position_at<true, index_t>(p, has_position ? first + lane : begin);
    const index_t input_offset = offset_of(p.input, at);
    for (int i = warp; i < used_rows; i += kWarps)
      shared.input[i][lane] =
          has_position && first_row + i < in_channels
              ? to_acc(input[input_offset + i * static_cast<index_t>(p.input.channel)])
              : acc_t(0);
    for (int i = warp; i < used_columns; i += kWarps) {
      const index_t column = first_column + i;
      Position<index_t> output;
      const bool inside = has_position && column < all_columns &&
                          meets(p, at, tap_at<index_t>(p, column / out_channels), output);
      shared.grad_output[i][lane] =
          inside ? to_acc(grad_output[offset_of(p.grad_output, output) +
                                      column % out_channels *
                                          static_cast<index_t>(p.grad_output.channel)])
                 : acc_t(0);
    }
    barrier();
    if (row_lane * kWeightThreadRows < used_rows)
      for (int k = 0; k < kWeightK; ++k)
#pragma unroll
        for (int j = 0; j < kWeightThreadColumns; ++j) {
          if (j * kColumnLanes >= used_columns) break;
#pragma unroll
          for (int i = 0; i < kWeightThreadRows; ++i)
            sum[i][j] += shared.input[row_lane * kWeightThreadRows + i][k] *
                         shared.grad_output[column_lane + j * kColumnLanes][k];
        }
    barrier();
  }

  for (int i = 0; i < kWeightThreadRows; ++i)
    for (int j = 0; j < kWeightThreadColumns; ++j) {
      const index_t row = first_row + row_lane * kWeightThreadRows + i;
      const index_t column = first_column + column_lane + j * kColumnLanes;
      if (row < in_channels && column < all_columns)
        put_weight<scalar_t>(p, group, row, column % out_channels, column / out_channels, split,
                             sum[i][j]);
    }
}

// ---- the second pass of split-K -----------------------------------------------------------------

// Thread: adds the partial sums of one element in order and rounds once.
// Grid: ceil(elements / kWeightThreads). Shared memory: none.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kWeightThreads, 4) weight_reduce_kernel(const WeightParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t element = block_index() * kWeightThreads + thread_index();
  const int64_t all = weight_elements(p) + bias_elements(p);
  if (element >= all) return;
  acc_t sum = 0;
  for (int64_t split = 0; split < p.splits; ++split)
    sum += static_cast<const acc_t*>(p.partials)[split * all + element];
  WeightParams whole = p;
  whole.splits = 1;
  if (element >= weight_elements(p)) {
    put_bias<scalar_t>(whole, element - weight_elements(p), 0, sum);
    return;
  }
  const int64_t channel = element / tap_count(p) / p.out_channels;
  put_weight<scalar_t>(whole, static_cast<index_t>(channel / p.in_channels),
                       static_cast<index_t>(channel % p.in_channels),
                       static_cast<index_t>(element / tap_count(p) % p.out_channels),
                       static_cast<index_t>(element % tap_count(p)), index_t(0), sum);
}

// ---- launch ------------------------------------------------------------------------------------------

template <typename scalar_t, typename index_t>
const char* launch_weight(const WeightParams& p, bool tiled, void* stream) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const int64_t all = weight_elements(p) + bias_elements(p);
  if (!tiled) {
    if (p.splits != 1) return "the direct kernel has no split-K";
    return launch(weight_direct_kernel<scalar_t, index_t>,
                  (all + kWeightThreads - 1) / kWeightThreads, kWeightThreads, 0, stream, p);
  }
  const int64_t column_tiles =
      (p.out_channels * tap_count(p) + kWeightColumns - 1) / kWeightColumns;
  const int64_t row_tiles = (p.in_channels + kWeightRows - 1) / kWeightRows;
  const int64_t blocks =
      p.splits * ((p.want_weight ? column_tiles * row_tiles * p.groups : 0) + bias_elements(p));
  const char* error = launch(weight_tiled_kernel<scalar_t, index_t>, blocks, kWeightThreads,
                             int(sizeof(WeightShared<acc_t>)), stream, p);
  if (error || p.splits == 1) return error;
  return launch(weight_reduce_kernel<scalar_t, index_t>,
                (all + kWeightThreads - 1) / kWeightThreads, kWeightThreads, 0, stream, p);
}

template <typename scalar_t>
const char* run_weight(const WeightParams& p, bool tiled, bool wide, void* stream) {
  return wide ? launch_weight<scalar_t, int64_t>(p, tiled, stream)
              : launch_weight<scalar_t, int32_t>(p, tiled, stream);
}

}  // namespace convt3d
"""
