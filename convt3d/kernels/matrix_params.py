"""forward on the matrix units: how the work is cut, and the parameter struct that says so."""

SOURCE = r"""
// Needs columns.py.
#include <type_traits>

namespace convt3d {

// Note [Flat planes]
// The columns of a plane (H and W) are numbered in one row: column (h, x) is h * pitch + x, and so are
// the inputs that they meet. A shift by (a, b) is then a shift by a * pitch + b, the same everywhere. The
// pitch leaves room between two rows for zeros, so that a shift over the edge of a row meets those; the
// columns that lie there are computed and thrown away. Wide planes are cut into strips first.
//
// Note [Runs]
// A product is 16 output channels by 8 columns. Its 8 columns are not neighbours but the t-th ones of 8
// runs, each of 8 neighbours. So the input of the t-th columns, shifted by one, is that of the (t + 1)-th:
// one fragment serves every tap along W that reaches it, and a lane ends up with whole runs.
//
// Note [Planes in shared memory]
// A plane of input is [slab][position], 16 bytes each: a slab is the channels that 16 bytes hold. After
// every 8 positions one is left out, so that the 8 runs of a product lie in different banks.

constexpr int kWarpColumns = 8 * kRun;

// What weights that are neighbours in memory are neighbours along: W; all taps, then channels; channels.
constexpr int kRunAlongW = 0, kRunOfTaps = 1, kRunOfChannels = 2;

// Where things lie in shared memory, in bytes.
struct MatrixShared {
  int32_t tap, slab, slot, staging_warp;          // from one to the next
  int32_t slots, slot_weights, staging, signals;  // first ones; slot_weights counts from its slot
  int32_t bias, phases, work;
  int32_t all;
};

struct MatrixParams {
  int32_t batch, groups, source_channels, destination_channels;  // channels of one group
  int32_t input_size[3], output_size[3], kernel_size[3], stride[3];
  Strides source, destination;
  int64_t weight_group, weight_source, weight_destination, weight_tap[3];  // strides of the weight
  int64_t bias_stride;
  // How the work is cut: see convt3d/matrix_tile.py.
  int32_t columns[3];    // along D, H, W
  int32_t low[3];        // smallest shift
  int32_t span[3];       // largest shift less the smallest
  int32_t pitch, strip;  // of the flat planes; columns along W of a strip
  int32_t places[3];     // of blocks: along D, in a flat plane, strips
  int32_t crews;         // of warps, each with kM channel tiles of its own
  int32_t flats, depths,
      sets;           // of its warps: 64 columns each, columns along D, shares of the phases
  int32_t steps;      // of `depths` columns along D that a block marches
  int32_t positions;  // of a plane in shared memory
  int32_t chunk_slabs, chunks;  // the source channels, in chunks of so many slabs (an even number)
  int32_t slots;                // planes of one chunk that shared memory holds
  int32_t holds;                // 1: the planes of a step stay while all its phases are computed
  int32_t streams_weights;      // 1: the weights of a plane's taps come with the plane
  int32_t parts;                // of the phases: blocks that share a place
  int32_t splits[3];            // 1: a part has one phase of the axis, and only its taps
  int32_t weight_run, weight_vector;                // what neighbours are, and how many at once
  int32_t load_vector, store_vector;                // elements at once
  int32_t store_shifts;                             // 1: rows of output may start anywhere
  int32_t load_channels_last, store_channels_last;  // 1: the vectors run along the channels
  int32_t blocks_per_tile;                          // that share the places of one channel tile
  PhaseTaps taps[3][4];                             // [axis][phase]
  int32_t phase_of[64];       // e_D | e_H << 8 | e_W << 16, those of set 0 of part 0 first
  int32_t phases_before[65];  // where the phases of [part][set] start in it
  MatrixShared at;
  const void* source_data;
  const void* weight_data;
  const void* bias_data;  // or null
  void* destination_data;
};

// Who multiplies: a warp; a warp, operands in two parts; four warps together, from shared memory.
enum class Engine { kWarp, kSplit, kWarpgroup };

// Channels of a tile; a warp has kM tiles.
template <Engine kEngine>
__host__ __device__ constexpr int tile_channels() {
  return kEngine == Engine::kWarpgroup ? 8 : 16;
}
// Warps that multiply: more where their sums leave registers, for one waits while others work. Products of a
// warpgroup do not need that.
template <typename W, Engine kEngine, int kM>
__host__ __device__ constexpr int multiplying_warps() {
  return kEngine == Engine::kWarp && kM * W::kStride <= 2 ? 12 : 8;
}
// Loads wait for memory: the more warps load, the better, where registers allow.
template <typename W, Engine kEngine, int kM>
__host__ __device__ constexpr int loading_threads() {
  return (kEngine == Engine::kWarpgroup && kM * W::kStride <= 4 ? 8 : 4) * kWarpSize;
}
template <typename W, Engine kEngine, int kM>
__host__ __device__ constexpr int matrix_threads() {
  return multiplying_warps<W, kEngine, kM>() * kWarpSize + loading_threads<W, kEngine, kM>();
}

// fp32 whose operands are rounded to TF32 on their way to shared memory.
struct tf32_t {
  float value;
};
__device__ inline float to_acc(tf32_t number) { return number.value; }
// What the matrix units multiply.
template <typename scalar_t>
struct Factor {
  using type = scalar_t;
};
template <>
struct Factor<tf32_t> {
  using type = float;
};
// A word of input or weights -> that of a factor: the nearest TF32 number, or where that is infinite the
// nearest but for it. A NaN stays one though the matrix units cut off its last bits.
template <typename scalar_t>
__device__ inline uint32_t factor_word(uint32_t word) {
  if constexpr (std::is_same_v<scalar_t, tf32_t>) {
    constexpr uint32_t kExponent = 0x7f800000, kTf32 = 0xffffe000;
    const uint32_t rounded = (word + 0x1000) & kTf32;
    if ((word & 0x7fffffff) > kExponent) return word | 0x00400000;
    return (rounded & kExponent) == kExponent ? word & kTf32 : rounded;
  } else {
    return word;
  }
}

// Channels of a 16-byte unit, and numbers of a 4-byte word.
template <typename scalar_t>
__host__ __device__ constexpr int slab_channels() {
  return int(16 / sizeof(scalar_t));
}
template <typename scalar_t>
__host__ __device__ constexpr int word_numbers() {
  return int(4 / sizeof(scalar_t));
}

// kCount neighbours of a tensor, loaded or stored at once.
template <typename scalar_t, int kCount>
struct alignas(sizeof(scalar_t) * kCount) Neighbours {
  static constexpr int kUnits =
      sizeof(scalar_t) * kCount >= 4 ? int(sizeof(scalar_t)) * kCount / 4 : 1;
  using unit_t = std::conditional_t<(sizeof(scalar_t) * kCount >= 4), uint32_t, uint16_t>;
  unit_t unit[kUnits];
};

// Calls what needs to know at compile time how many neighbours it takes at once: at most 16 bytes.
template <typename scalar_t, typename Call>
__device__ inline void with_vector(int count, Call call) {
  if (count == 8) {
    if constexpr (sizeof(scalar_t) == 2) call(std::integral_constant<int, 8>{});
  } else if (count == 4) {
    call(std::integral_constant<int, 4>{});
  } else if (count == 2) {
    call(std::integral_constant<int, 2>{});
  } else {
    call(std::integral_constant<int, 1>{});
  }
}

// Position of a plane in shared memory -> 16-byte unit. Those of a warpgroup lie without gaps.
__device__ inline int unit_of(int position) { return position + int(unsigned(position) / kRun); }
template <Engine kEngine>
__device__ inline int plane_unit(int position) {
  return kEngine == Engine::kWarpgroup ? position : unit_of(position);
}

// Which work is a block's; kept in shared memory, for registers are short.
struct BlockWork {
  int first_place, part, group, first_channel;
};
template <Engine kEngine, int kM>
__device__ inline BlockWork block_work(const MatrixParams& p) {
  int block = int(block_index());
  BlockWork work;
  work.first_place = block % p.blocks_per_tile;
  block /= p.blocks_per_tile;
  work.part = block % p.parts;
  block /= p.parts;
  const int channels = p.crews * kM * tile_channels<kEngine>();
  const int channel_tiles = (p.destination_channels + channels - 1) / channels;
  work.first_channel = block % channel_tiles * channels;
  work.group = block / channel_tiles;
  return work;
}
__device__ inline BlockWork& kept_work(const MatrixParams& p) {
  return *reinterpret_cast<BlockWork*>(static_cast<unsigned char*>(shared_memory()) + p.at.work);
}

// Of a warp that multiplies.
__device__ inline int crew_of(const MatrixParams& p, int warp) {
  return warp / (p.flats * p.depths * p.sets);
}

// A block's place: a sample, its first column along D, in the flat plane and along W.
struct MatrixPlace {
  int n, d, flat, w, steps;
};
__device__ inline MatrixPlace matrix_place(const MatrixParams& p, int index) {
  MatrixPlace at;
  at.flat = index % p.places[1] * (p.flats * kWarpColumns);
  index /= p.places[1];
  at.w = index % p.places[2] * p.strip;
  index /= p.places[2];
  at.d = index % p.places[0] * (p.steps * p.depths);
  at.n = index / p.places[0];
  const int left = (p.columns[0] - at.d + p.depths - 1) / p.depths;
  at.steps = left < p.steps ? left : p.steps;
  return at;
}

// The phases of a part on an axis where it has only one; parts are numbered (e_D, e_H, e_W), without those
// axes of which they have all phases.
__device__ inline int part_phase(const MatrixParams& p, int part, int axis) {
  if (axis < 2 && p.splits[2]) part /= p.stride[2];
  if (axis < 1 && p.splits[1]) part /= p.stride[1];
  return p.splits[axis] ? part % p.stride[axis] : 0;
}

// A phase of all axes.
struct MatrixPhase {
  int e[3];
};
__device__ inline MatrixPhase matrix_phase(const MatrixParams& p, int number) {
  const int packed = p.phase_of[number];
  return {{packed & 255, packed >> 8 & 255, packed >> 16}};
}

// Of up to four vectors, the i-th: it is there; it is in the last row of columns, or the last column.
constexpr int kInside = 1, kLastRow = 1 << 8, kLastColumn = 1 << 16;
// Where vectors are shifted: its row goes on before it, or ends with it; its elements less 1, in two bits.
constexpr int kGoesOn = 1 << 4, kEnds = 1 << 12, kCountBit = 20;

// What the warps that multiply need of a phase. Made once for a block.
struct alignas(16) PhaseWork {
  int planes, plane, next_plane;  // taps along D; the first one's plane, and from one to the next
  int rows, position, next_row;   // taps along H; positions likewise
  int weights, next_tap,
      next_weights;             // bytes: the first tap's, from one along D, along H to the next
  int taps_w, first_w, next_w;  // taps along W, where the kernel does not know them
  int position_w, next_position_w;
  int depths;  // columns along D that have the phase
  int lost;    // kLastRow * 15, kLastColumn * 15: those edges do not have it
  int64_t to;  // its first element, from that of phase 0
};
static_assert(sizeof(PhaseWork) == 80, "PHASE_WORK_BYTES of convt3d/matrix/work.py");

}  // namespace convt3d
"""
