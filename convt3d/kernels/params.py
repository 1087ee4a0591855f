"""The parameter structs and the arithmetic of phases. `convt3d/launch.py` mirrors the structs in ctypes."""

SOURCE = r"""
// Needs the machine layer: primitives.py or the emulator's host.py.
namespace convt3d {

// The type in which sums are kept: fp64 for fp64, else fp32.
template <typename scalar_t>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// One spatial axis; all in elements of that axis.
struct Axis {
  int64_t input_size, output_size, kernel_size, stride, padding, dilation;
  int64_t gcd;               // of stride and dilation
  int64_t tap_step;          // stride / gcd: the distance between two taps of a phase
  int64_t dilation_inverse;  // of dilation / gcd, modulo tap_step
};

// Strides of a 5-D tensor (N, C, D, H, W) or (C_in, C_out / groups, kD, kH, kW), in elements.
struct Strides {
  int64_t outer, channel, space[3];
};

// forward and grad_input: destination[n, c, ...] = sum over source channels and taps.
// The source is input (forward) or grad_output; the destination is output or grad_input.
struct GatherParams {
  int64_t batch, groups, source_channels, destination_channels;  // channels of one group
  Axis axis[3];
  Strides source, destination;
  int64_t weight_group, weight_source, weight_destination, weight_tap[3];  // strides of the weight
  int64_t bias_stride;
  int64_t tile_rows, tile_columns;  // of the tiled kernel: rows * columns <= its tile of positions
  int64_t channels_innermost;       // 1: the destination is channels_last_3d
  const void* source_data;
  const void* weight_data;
  const void* bias_data;  // or null
  void* destination_data;
};

// grad_weight and grad_bias.
struct WeightParams {
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  Axis axis[3];
  Strides input, grad_output, grad_weight;
  int64_t splits;                  // split-K factor
  int64_t want_weight, want_bias;  // 1 or 0
  const void* input_data;          // may be null when only grad_bias is wanted
  const void* grad_output_data;
  void* grad_weight_data;
  void* grad_bias_data;
  void* partials;  // splits * (weight elements + bias elements) sums, or null when splits == 1
};

// Destination coordinates first, first + step, ... on one axis, and the taps that serve them:
//   tap of the j-th                     = first_tap + j * tap_step              j in [0, taps)
//   source coordinate that the t-th destination and it meet at
//                                       = base + t * source_step + j * source_tap_step
template <typename index_t>
struct Phase {
  index_t first, step;
  index_t first_tap, tap_step, taps;
  index_t base, source_step, source_tap_step;
};

// Phases on an axis: phase i starts at destination coordinate i. grad_input has one, with every tap.
template <bool kForward>
__host__ __device__ inline int64_t phase_count(const Axis& axis) {
  if (!kForward) return 1;
  return axis.stride < axis.output_size ? axis.stride : axis.output_size;
}

// The phase whose coordinates start at `first`, which need not be the smallest of its residue.
// Note [Phases] in geometry.py derives this.
template <bool kForward, typename index_t>
__device__ inline Phase<index_t> make_phase(const Axis& axis, index_t first) {
  const index_t stride = static_cast<index_t>(axis.stride);
  const index_t padding = static_cast<index_t>(axis.padding);
  const index_t dilation = static_cast<index_t>(axis.dilation);
  const index_t kernel_size = static_cast<index_t>(axis.kernel_size);
  if (!kForward) return {first, 1, 0, 1, kernel_size, first * stride - padding, stride, dilation};
  const index_t gcd = static_cast<index_t>(axis.gcd);
  const index_t tap_step = static_cast<index_t>(axis.tap_step);
  const index_t residue = (first + padding) % stride;
  // 64-bit: a product of two numbers below the stride
  const index_t first_tap =
      static_cast<index_t>(int64_t(residue / gcd) * axis.dilation_inverse % axis.tap_step);
  if (residue % gcd != 0 || first_tap >= kernel_size) return {first, stride, 0, 1, 0, 0, 1, 0};
  const index_t taps = (kernel_size - first_tap + tap_step - 1) / tap_step;
  const index_t base = (first + padding - first_tap * dilation) / stride;  // exact
  return {first, stride, first_tap, tap_step, taps, base, 1, -(dilation / gcd)};
}

// The smaller of what is left and what a tile holds, rounded up to whole groups of kGroup.
template <int kGroup, typename index_t>
__device__ inline int used(index_t left, int tile) {
  return left < tile ? (int(left) + kGroup - 1) / kGroup * kGroup : tile;
}

// Size of the source on an axis.
template <bool kForward, typename index_t>
__device__ inline index_t source_size(const Axis& axis) {
  return static_cast<index_t>(kForward ? axis.input_size : axis.output_size);
}
template <bool kForward, typename index_t>
__device__ inline index_t destination_size(const Axis& axis) {
  return static_cast<index_t>(kForward ? axis.output_size : axis.input_size);
}

}  // namespace convt3d
"""
