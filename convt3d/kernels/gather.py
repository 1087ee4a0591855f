"""forward and grad_input: each destination element gathers its own sum. Two kernels, `tiled` and `direct`."""

SOURCE = r"""
// Needs params.py.
namespace convt3d {

// The bias of one of all output channels.
template <typename scalar_t>
__device__ inline typename Accumulator<scalar_t>::type bias_at(const GatherParams& p,
                                                               int64_t channel) {
  return to_acc(static_cast<const scalar_t*>(p.bias_data)[channel * p.bias_stride]);
}

// ---- direct: a thread an element ---------------------------------------------------------------

constexpr int kDirectThreads = 128;

// Thread: one destination element. Warp: 32 neighbours along W, so loads and stores coalesce.
// Grid: ceil(elements / kDirectThreads). Shared memory: none.
// Only contributions that exist are multiplied: padding never meets a NaN or an infinity.
// Order of summation: taps (D, H, W), then source channels; bias last.
template <bool kForward, typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kDirectThreads, 4) gather_direct_kernel(const GatherParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  const index_t channels = static_cast<index_t>(p.groups * p.destination_channels);
  const index_t size_d = destination_size<kForward, index_t>(p.axis[0]);
  const index_t size_h = destination_size<kForward, index_t>(p.axis[1]);
  const index_t size_w = destination_size<kForward, index_t>(p.axis[2]);
  const int64_t element = block_index() * kDirectThreads + thread_index();
  if (element >= int64_t(p.batch) * channels * size_d * size_h * size_w) return;
  index_t rest = static_cast<index_t>(element);
  const index_t w = rest % size_w;
  rest /= size_w;
  const index_t h = rest % size_h;
  rest /= size_h;
  const index_t d = rest % size_d;
  rest /= size_d;
  const index_t channel = rest % channels;
  const index_t n = rest / channels;
  const index_t per_group = static_cast<index_t>(p.destination_channels);
  const index_t source_channels = static_cast<index_t>(p.source_channels);
  const index_t group = channel / per_group;

  const Phase<index_t> phase_d = make_phase<kForward, index_t>(p.axis[0], d);
  const Phase<index_t> phase_h = make_phase<kForward, index_t>(p.axis[1], h);
  const Phase<index_t> phase_w = make_phase<kForward, index_t>(p.axis[2], w);
  const scalar_t* source = static_cast<const scalar_t*>(p.source_data) +
                           n * static_cast<index_t>(p.source.outer) +
                           group * source_channels * static_cast<index_t>(p.source.channel);
  const scalar_t* weight =
      static_cast<const scalar_t*>(p.weight_data) + group * static_cast<index_t>(p.weight_group) +
      (channel - group * per_group) * static_cast<index_t>(p.weight_destination);

  acc_t sum = 0;
  for (index_t jd = 0; jd < phase_d.taps; ++jd) {
    const index_t source_d = phase_d.base + jd * phase_d.source_tap_step;
    if (source_d < 0 || source_d >= source_size<kForward, index_t>(p.axis[0])) continue;
    const index_t tap_d = phase_d.first_tap + jd * phase_d.tap_step;
    for (index_t jh = 0; jh < phase_h.taps; ++jh) {
      const index_t source_h = phase_h.base + jh * phase_h.source_tap_step;
      if (source_h < 0 || source_h >= source_size<kForward, index_t>(p.axis[1])) continue;
      const index_t tap_h = phase_h.first_tap + jh * phase_h.tap_step;
      for (index_t jw = 0; jw < phase_w.taps; ++jw) {
        const index_t source_w = phase_w.base + jw * phase_w.source_tap_step;
        if (source_w < 0 || source_w >= source_size<kForward, index_t>(p.axis[2])) continue;
        const index_t tap_w = phase_w.first_tap + jw * phase_w.tap_step;
        const scalar_t* from = source + source_d * static_cast<index_t>(p.source.space[0]) +
                               source_h * static_cast<index_t>(p.source.space[1]) +
                               source_w * static_cast<index_t>(p.source.space[2]);
        const scalar_t* by = weight + tap_d * static_cast<index_t>(p.weight_tap[0]) +
                             tap_h * static_cast<index_t>(p.weight_tap[1]) +
                             tap_w * static_cast<index_t>(p.weight_tap[2]);
        for (index_t c = 0; c < source_channels; ++c) {
          sum += to_acc(*from) * to_acc(*by);
          from += static_cast<index_t>(p.source.channel);
          by += static_cast<index_t>(p.weight_source);
        }
      }
    }
  }
  if (p.bias_data) sum += bias_at<scalar_t>(p, channel);
  static_cast<scalar_t*>(p.destination_data)[n * static_cast<index_t>(p.destination.outer) +
                                             channel * static_cast<index_t>(p.destination.channel) +
                                             d * static_cast<index_t>(p.destination.space[0]) +
                                             h * static_cast<index_t>(p.destination.space[1]) +
                                             w * static_cast<index_t>(p.destination.space[2])] =
      from_acc<scalar_t>(sum);
}

// ---- tiled: implicit GEMM through shared memory --------------------------------------------------

constexpr int kTileThreads = 128;
constexpr int kTilePositions = 128;  // destination positions of a block's tile: its rows * columns
constexpr int kTileChannels = 32;    // gemm_n: destination channels of a block's tile
constexpr int kTileSlots = 64;       // gemm_m of one pass: positions of one W phase
constexpr int kTileK = 16;           // gemm_k: source channels of one stage
constexpr int kThreadSlots = 4;      // slots 4 * slot_lane + i of a thread
constexpr int kThreadChannels = 4;   // channels 4 * channel_lane + j of a thread
constexpr int kSlotLanes = kTileSlots / kThreadSlots;
static_assert(kSlotLanes * (kTileChannels / kThreadChannels) == kTileThreads,
              "the threads cover the tile once");
static_assert(kTileThreads % kTileSlots == 0 && kTileK % (kTileThreads / kTileSlots) == 0,
              "the threads stage the source in whole rows");

template <typename scalar_t>
struct alignas(16) GatherShared {  // rows of whole 16 bytes: a thread reads its four values at once
  using acc_t = typename Accumulator<scalar_t>::type;
  acc_t source[kTileK][kTileSlots];
  acc_t weight[kTileK][kTileChannels];
  scalar_t result[kTileChannels][kTilePositions];
};

// A tile's rows are the (n, d, h) of one (D, H) phase, in order; its columns a run along W.
template <typename index_t>
struct Row {
  index_t n, d, h;  // d and h count within the phase
};

template <bool kForward, typename index_t>
__device__ inline bool is_inside(const GatherParams& p, index_t d, index_t h, index_t w) {
  return d >= 0 && d < source_size<kForward, index_t>(p.axis[0]) &&  //
         h >= 0 && h < source_size<kForward, index_t>(p.axis[1]) &&  //
         w >= 0 && w < source_size<kForward, index_t>(p.axis[2]);
}

// Block: one group, kTileChannels channels, tile_rows rows of one (D, H) phase, tile_columns columns.
//   All W phases of the columns are computed, one after the other, kTileSlots positions a pass, so
//   that taps are uniform in a pass while the tile is stored in whole runs along W.
// Thread: kThreadSlots positions times kThreadChannels channels of a pass.
// Grid: W tiles fastest, then row tiles, channel tiles, groups, H phases, D phases.
// Shared memory: GatherShared. Must hold: tile_rows * tile_columns <= kTilePositions.
// Order of summation: taps (D, H, W), then source channels, bias last. Padding enters as zeros.
template <bool kForward, typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kTileThreads, 2) gather_tiled_kernel(const GatherParams p) {
  using acc_t = typename Accumulator<scalar_t>::type;
  auto& shared = *static_cast<GatherShared<scalar_t>*>(shared_memory());
  const int thread = thread_index();             // [0, kTileThreads)
  const int slot_lane = thread % kSlotLanes;     // [0, 16)
  const int channel_lane = thread / kSlotLanes;  // [0, 8)
  const int staged_slot = thread % kTileSlots;   // [0, 64)
  const int staged_k = thread / kTileSlots;      // [0, 2)
  constexpr int kStagedRows = kTileThreads / kTileSlots;

  const index_t source_channels = static_cast<index_t>(p.source_channels);
  const index_t channels = static_cast<index_t>(p.destination_channels);
  const index_t size_d = destination_size<kForward, index_t>(p.axis[0]);
  const index_t size_h = destination_size<kForward, index_t>(p.axis[1]);
  const index_t size_w = destination_size<kForward, index_t>(p.axis[2]);
  const index_t tile_rows = static_cast<index_t>(p.tile_rows);
  const index_t tile_columns = static_cast<index_t>(p.tile_columns);

  // Which tile. Row tiles are counted for the largest phase; a smaller phase leaves some empty.
  int64_t block = block_index();
  const index_t first_column =
      static_cast<index_t>(block % ((size_w + tile_columns - 1) / tile_columns)) * tile_columns;
  block /= (size_w + tile_columns - 1) / tile_columns;
  const index_t phases_d = static_cast<index_t>(phase_count<kForward>(p.axis[0]));
  const index_t phases_h = static_cast<index_t>(phase_count<kForward>(p.axis[1]));
  const int64_t largest_rows =
      p.batch * ((size_d + phases_d - 1) / phases_d) * ((size_h + phases_h - 1) / phases_h);
  const int64_t row_tiles = (largest_rows + tile_rows - 1) / tile_rows;
  const index_t first_row = static_cast<index_t>(block % row_tiles) * tile_rows;
  block /= row_tiles;
  const index_t channel_tiles = (channels + kTileChannels - 1) / kTileChannels;
  const index_t first_channel = static_cast<index_t>(block % channel_tiles) * kTileChannels;
  block /= channel_tiles;
  const index_t group = static_cast<index_t>(block % p.groups);
  block /= p.groups;
  const Phase<index_t> phase_h =
      make_phase<kForward, index_t>(p.axis[1], static_cast<index_t>(block % phases_h));
  const Phase<index_t> phase_d =
      make_phase<kForward, index_t>(p.axis[0], static_cast<index_t>(block / phases_h));
  const index_t count_d = (size_d - phase_d.first + phase_d.step - 1) / phase_d.step;
  const index_t count_h = (size_h - phase_h.first + phase_h.step - 1) / phase_h.step;
  const index_t rows_left = static_cast<index_t>(p.batch) * count_d * count_h - first_row;
  const index_t rows = rows_left < tile_rows ? rows_left : tile_rows;
  if (rows <= 0) return;  // the whole block leaves
  const index_t columns =
      size_w - first_column < tile_columns ? size_w - first_column : tile_columns;

  const scalar_t* source = static_cast<const scalar_t*>(p.source_data) +
                           group * source_channels * static_cast<index_t>(p.source.channel);
  const scalar_t* weight = static_cast<const scalar_t*>(p.weight_data) +
                           group * static_cast<index_t>(p.weight_group) +
                           first_channel * static_cast<index_t>(p.weight_destination);
  auto row_at = [&](index_t row) {
    Row<index_t> at;
    at.h = row % count_h;
    row /= count_h;
    at.d = row % count_d;
    at.n = row / count_d;
    return at;
  };

  const index_t taps_d = phase_d.taps, taps_h = phase_h.taps;
  const int used_channels = used<kThreadChannels>(channels - first_channel, kTileChannels);
  const index_t step_w = kForward ? static_cast<index_t>(p.axis[2].stride) : 1;
  const index_t phases_w = step_w < columns ? step_w : columns;
  for (index_t w = 0; w < phases_w; ++w) {
    const Phase<index_t> phase_w = make_phase<kForward, index_t>(p.axis[2], first_column + w);
    const index_t columns_w = (columns - w + step_w - 1) / step_w;  // of this phase in the tile
    const index_t slots = rows * columns_w;
    for (index_t first_slot = 0; first_slot < slots; first_slot += kTileSlots) {
      acc_t sum[kThreadSlots][kThreadChannels] = {};

      // Of a pass or tile at the edge only what some thread uses is staged: whole groups of four.
      const int used_slots = used<kThreadSlots>(slots - first_slot, kTileSlots);
      const bool computes =
          slot_lane * kThreadSlots < used_slots && channel_lane * kThreadChannels < used_channels;

      // The position whose source this thread stages.
      const bool has_slot = first_slot + staged_slot < slots;
      const index_t my_slot = has_slot ? first_slot + staged_slot : 0;
      const Row<index_t> my_row = row_at(first_row + my_slot / columns_w);
      const index_t my_w = my_slot % columns_w;
      const scalar_t* my_source = source + my_row.n * static_cast<index_t>(p.source.outer);
      const index_t base_d = phase_d.base + my_row.d * phase_d.source_step;
      const index_t base_h = phase_h.base + my_row.h * phase_h.source_step;
      const index_t base_w = phase_w.base + my_w * phase_w.source_step;

      for (index_t tap = 0; tap < taps_d * taps_h * phase_w.taps; ++tap) {
        const index_t jw = tap % phase_w.taps;
        const index_t jh = tap / phase_w.taps % taps_h;
        const index_t jd = tap / phase_w.taps / taps_h;
        const index_t source_d = base_d + jd * phase_d.source_tap_step;
        const index_t source_h = base_h + jh * phase_h.source_tap_step;
        const index_t source_w = base_w + jw * phase_w.source_tap_step;
        const bool inside = has_slot && is_inside<kForward>(p, source_d, source_h, source_w);
        // Outside, the offset may not even fit index_t.
        const scalar_t* from = !inside ? my_source
                                       : my_source +
                                             source_d * static_cast<index_t>(p.source.space[0]) +
                                             source_h * static_cast<index_t>(p.source.space[1]) +
                                             source_w * static_cast<index_t>(p.source.space[2]);
        const scalar_t* by =
            weight +
            (phase_d.first_tap + jd * phase_d.tap_step) * static_cast<index_t>(p.weight_tap[0]) +
            (phase_h.first_tap + jh * phase_h.tap_step) * static_cast<index_t>(p.weight_tap[1]) +
            (phase_w.first_tap + jw * phase_w.tap_step) * static_cast<index_t>(p.weight_tap[2]);
        for (index_t first_k = 0; first_k < source_channels; first_k += kTileK) {
          // Stage up to kTileK channels of the source and of the weight; what lies outside is zero.
          const int depth =
              source_channels - first_k < kTileK ? int(source_channels - first_k) : kTileK;
          if (staged_slot < used_slots)
            for (int k = staged_k; k < depth; k += kStagedRows)
              shared.source[k][staged_slot] =
                  inside ? to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)])
                         : acc_t(0);
          for (int i = thread; i < depth * kTileChannels; i += kTileThreads) {
            const int k = i / kTileChannels, c = i % kTileChannels;
            if (c >= used_channels) continue;
            shared.weight[k][c] =
                first_channel + c < channels
                    ? to_acc(by[c * static_cast<index_t>(p.weight_destination) +
                                (first_k + k) * static_cast<index_t>(p.weight_source)])
                    : acc_t(0);
          }
          barrier();
          if (computes)
#pragma unroll
            for (int k = 0; k < kTileK; ++k) {
              if (k >= depth) break;
#pragma unroll
              for (int j = 0; j < kThreadChannels; ++j)
#pragma unroll
                for (int i = 0; i < kThreadSlots; ++i)
                  sum[i][j] += shared.source[k][slot_lane * kThreadSlots + i] *
                               shared.weight[k][channel_lane * kThreadChannels + j];
            }
          barrier();
        }
      }

      // Add the bias, round once, and lay the results out as the tile lies in memory.
      for (int i = 0; i < kThreadSlots; ++i) {
        const index_t slot = first_slot + slot_lane * kThreadSlots + i;
        if (slot >= slots || !computes) continue;
        const index_t position = slot / columns_w * tile_columns + w + slot % columns_w * step_w;
        for (int j = 0; j < kThreadChannels; ++j) {
          const index_t c = first_channel + channel_lane * kThreadChannels + j;
          acc_t value = sum[i][j];
          if (p.bias_data && c < channels) value += bias_at<scalar_t>(p, group * channels + c);
          shared.result[channel_lane * kThreadChannels + j][position] = from_acc<scalar_t>(value);
        }
      }
    }
  }
  barrier();

  // Store: neighbouring threads write neighbours along W, or along C in channels_last_3d.
  const index_t tile_positions = rows * tile_columns;
  scalar_t* destination =
      static_cast<scalar_t*>(p.destination_data) +
      (group * channels + first_channel) * static_cast<index_t>(p.destination.channel);
  for (index_t i = thread; i < tile_positions * kTileChannels; i += kTileThreads) {
    const index_t c = p.channels_innermost ? i % kTileChannels : i / tile_positions;
    const index_t position = p.channels_innermost ? i / kTileChannels : i % tile_positions;
    const index_t column = position % tile_columns;
    if (first_channel + c >= channels || column >= columns) continue;
    const Row<index_t> row = row_at(first_row + position / tile_columns);
    destination[row.n * static_cast<index_t>(p.destination.outer) +
                c * static_cast<index_t>(p.destination.channel) +
                (phase_d.first + row.d * phase_d.step) *
                    static_cast<index_t>(p.destination.space[0]) +
                (phase_h.first + row.h * phase_h.step) *
                    static_cast<index_t>(p.destination.space[1]) +
                (first_column + column) * static_cast<index_t>(p.destination.space[2])] =
        shared.result[c][position];
  }
}

// ---- launch ------------------------------------------------------------------------------------------

template <bool kForward, typename scalar_t, typename index_t>
const char* launch_gather(const GatherParams& p, bool tiled, void* stream) {
  int64_t size[3], largest_rows = p.batch, phases = 1;
  for (int i = 0; i < 3; ++i) {
    size[i] = kForward ? p.axis[i].output_size : p.axis[i].input_size;
    if (i == 2) break;
    const int64_t count = phase_count<kForward>(p.axis[i]);
    phases *= count;
    largest_rows *= (size[i] + count - 1) / count;
  }
  if (!tiled) {
    const int64_t elements =
        p.batch * p.groups * p.destination_channels * size[0] * size[1] * size[2];
    return launch(gather_direct_kernel<kForward, scalar_t, index_t>,
                  (elements + kDirectThreads - 1) / kDirectThreads, kDirectThreads, 0, stream, p);
  }
  if (p.tile_rows < 1 || p.tile_columns < 1 || p.tile_rows * p.tile_columns > kTilePositions)
    return "tile_rows * tile_columns must be in [1, kTilePositions]";
  const int64_t blocks = (size[2] + p.tile_columns - 1) / p.tile_columns *
                         ((largest_rows + p.tile_rows - 1) / p.tile_rows) *
                         ((p.destination_channels + kTileChannels - 1) / kTileChannels) * p.groups *
                         phases;
  return launch(gather_tiled_kernel<kForward, scalar_t, index_t>, blocks, kTileThreads,
                int(sizeof(GatherShared<scalar_t>)), stream, p);
}

template <typename scalar_t>
const char* run_gather(const GatherParams& p, bool forward, bool tiled, bool wide, void* stream) {
  if (forward)
    return wide ? launch_gather<true, scalar_t, int64_t>(p, tiled, stream)
                : launch_gather<true, scalar_t, int32_t>(p, tiled, stream);
  return wide ? launch_gather<false, scalar_t, int64_t>(p, tiled, stream)
              : launch_gather<false, scalar_t, int32_t>(p, tiled, stream);
}

}  // namespace convt3d
"""
