"""forward on the matrix units: an implicit GEMM whose blocks march along D; some warps load, others multiply."""

SOURCE = r"""
// Needs matrix_load.py, matrix_multiply.py, matrix_warpgroup.py and matrix_store.py.
namespace convt3d {

// A ring of slots, as one side sees it.
struct Ring {
  uint64_t* full;     // signals, one a slot: it may be read
  uint64_t* empty;    // it may be written
  uint64_t* weights;  // they are there
  int slots;
};

// ---- weights ----------------------------------------------------------------------------------------

__device__ inline WeightTaps taps_of(const PhaseTaps& taps) {
  return {taps.first, taps.count, taps.step};
}
// All weights that the phases of a part need.
__device__ inline WeightBlock part_weights(const MatrixParams& p, int part) {
  WeightBlock block;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis)
    block.axis[axis] = p.splits[axis] ? taps_of(p.taps[axis][part_phase(p, part, axis)])
                                      : WeightTaps{0, p.kernel_size[axis], 1};
  block.first_slab = 0;
  block.slabs = p.chunks * p.chunk_slabs;
  return block;
}
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void stage_any_weights(const MatrixParams& p, const WeightBlock& block, int group,
                                         int first_channel, unsigned char* to, int thread,
                                         int threads) {
  if constexpr (kEngine == Engine::kWarpgroup)
    stage_slabs<scalar_t, W, kM>(p, block, group, first_channel, to, thread, threads);
  else
    stage_weights<scalar_t>(p, p.crews * kM, block, group, first_channel, to, thread, threads);
}
// The j-th tap of a phase among those that are staged: with `only` its own are, else all of the axis.
__device__ inline int staged_tap(bool only, const PhaseTaps& taps, int j) {
  return only ? j : taps.first + j * taps.step;
}

// What the number-th phase of all parts needs.
template <typename W>
__device__ inline PhaseWork phase_work(const MatrixParams& p, int number) {
  const MatrixPhase phase = matrix_phase(p, number);
  const PhaseTaps& taps_d = p.taps[0][phase.e[0]];
  const PhaseTaps& taps_h = p.taps[1][phase.e[1]];
  const PhaseTaps& taps_w = p.taps[2][phase.e[2]];
  // Weights that come with a plane are those of its tap along D and of this phase.
  const bool streams = p.streams_weights != 0;
  const bool only_h = streams || p.splits[1], only_w = streams || p.splits[2];
  const int staged_h = only_h ? taps_h.count : p.kernel_size[1];
  const int row = (W::kFixed ? W::kTaps : only_w ? taps_w.count : p.kernel_size[2]) * p.at.tap;
  PhaseWork work;
  work.planes = taps_h.count > 0 && taps_w.count > 0 ? taps_d.count : 0;
  work.plane = taps_d.base * p.chunks;
  work.next_plane = taps_d.shift * p.chunks;
  work.rows = taps_h.count;
  work.position = taps_h.base * p.pitch;
  work.next_row = taps_h.shift * p.pitch;
  work.weights = ((streams ? 0 : staged_tap(p.splits[0], taps_d, 0) * staged_h) +
                  staged_tap(only_h, taps_h, 0)) *
                 row;
  work.next_tap = streams ? 0 : (p.splits[0] ? 1 : taps_d.step) * staged_h * row;
  work.next_weights = (only_h ? 1 : taps_h.step) * row;
  work.taps_w = taps_w.count;
  work.first_w = staged_tap(only_w, taps_w, 0) * p.at.tap;
  work.next_w = (only_w ? 1 : taps_w.step) * p.at.tap;
  work.position_w = taps_w.base;
  work.next_position_w = taps_w.shift;
  // The last columns may not have all phases.
  const auto has_all = [&](int axis) {
    return (p.columns[axis] - 1) * p.stride[axis] + phase.e[axis] < p.output_size[axis];
  };
  work.depths = p.columns[0] - (has_all(0) ? 0 : 1);
  work.lost = (has_all(1) ? 0 : kLastRow * 15) | (W::kFixed || has_all(2) ? 0 : kLastColumn * 15);
  work.to = phase.e[0] * p.destination.space[0] + phase.e[1] * p.destination.space[1] +
            phase.e[2] * p.destination.space[2];
  return work;
}

// ---- the warps that load --------------------------------------------------------------------------

// Loads what the others need in the order in which they need it.
template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void load_planes(const MatrixParams& p, const Ring& ring, int places,
                                   int thread) {
  constexpr bool kFew = matrix_threads<W, kEngine, kM>() > 12 * kWarpSize;  // registers
  const BlockWork work = kept_work(p);
  unsigned char* slots = static_cast<unsigned char*>(shared_memory()) + p.at.slots;
  const LoaderShare share = loader_share(p, loading_threads<W, kEngine, kM>(), thread);
  const scalar_t* source = static_cast<const scalar_t*>(p.source_data) +
                           int64_t(work.group) * p.source_channels * p.source.channel;
  int slot = 0, parity = 1;
  const auto load = [&](const MatrixPlace& place, int d, int chunk) {
    PlaneLoad<scalar_t> plane;
    const int first = chunk * p.chunk_slabs * slab_channels<scalar_t>();
    const int row = place.flat / p.pitch;
    plane.inside = d >= 0 && d < p.input_size[0];
    plane.from = source + place.n * p.source.outer + first * p.source.channel +
                 (plane.inside ? d : 0) * p.source.space[0];
    plane.channels = p.source_channels - first;
    plane.h = row + p.low[1];
    plane.w = place.w + p.low[2];
    plane.before = place.flat - row * p.pitch;
    plane.rows = (plane.before + p.positions + p.pitch - 1) / p.pitch;
    plane.slot = slots + slot * p.at.slot;
    plane.empty = ring.empty + slot;
    plane.parity = parity;
    load_any_plane<scalar_t, kEngine, kFew>(p, plane, share, thread);
  };
  const auto finish = [&] {  // the slot
    if constexpr (kEngine == Engine::kWarpgroup) publish_to_products();
    signal_arrive(ring.full + slot);
    if (++slot == ring.slots) slot = 0, parity ^= 1;
  };
  for (int index = work.first_place; index < places; index += p.blocks_per_tile) {
    const MatrixPlace place = matrix_place(p, index);
    if (p.holds) {
      for (int j = 0; j < place.steps * p.depths + p.span[0]; ++j)
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          load(place, place.d + p.low[0] + j, chunk);
          finish();
        }
      continue;
    }
    for (int step = 0; step < place.steps; ++step)
      for (int number = p.phases_before[work.part]; number < p.phases_before[work.part + 1];
           ++number) {
        const MatrixPhase phase = matrix_phase(p, number);
        const PhaseTaps& taps_d = p.taps[0][phase.e[0]];
        const PhaseTaps& taps_h = p.taps[1][phase.e[1]];
        const PhaseTaps& taps_w = p.taps[2][phase.e[2]];
        if (taps_h.count == 0 || taps_w.count == 0) continue;
        for (int j = 0; j < taps_d.count; ++j)
          for (int chunk = 0; chunk < p.chunks; ++chunk) {
            load(place, place.d + step + p.low[0] + taps_d.base + j * taps_d.shift, chunk);
            if (p.streams_weights)
              stage_any_weights<scalar_t, W, kEngine, kM>(
                  p,
                  {{{taps_d.first + j * taps_d.step, 1, 1}, taps_of(taps_h), taps_of(taps_w)},
                   chunk * p.chunk_slabs,
                   p.chunk_slabs},
                  work.group, work.first_channel, slots + slot * p.at.slot + p.at.slot_weights,
                  thread, loading_threads<W, kEngine, kM>());
            finish();
          }
      }
  }
}

// ---- the warps that multiply ----------------------------------------------------------------------

template <typename scalar_t, typename W, Engine kEngine, int kM>
__device__ inline void multiply_planes(const MatrixParams& p, const Ring& ring, int places) {
  unsigned char* shared = static_cast<unsigned char*>(shared_memory());
  const int warp = warp_index(), lane = thread_index() % kWarpSize;
  const int chunks = p.chunks, slots = ring.slots;
  const PhaseWork* const phases = reinterpret_cast<const PhaseWork*>(shared + p.at.phases);
  if (!p.streams_weights) {  // by the warps that need them, while the others load the first planes
    const BlockWork work = kept_work(p);
    stage_any_weights<scalar_t, W, kEngine, kM>(p, part_weights(p, work.part), work.group,
                                                work.first_channel, shared, thread_index(),
                                                multiplying_warps<W, kEngine, kM>() * kWarpSize);
    if constexpr (kEngine == Engine::kWarpgroup) publish_to_products();
    signal_arrive(ring.weights);
    signal_wait(ring.weights, 0);
  }

  const int flat = warp % p.flats, crew = crew_of(p, warp);
  const unsigned char* fragments =
      shared + (kEngine == Engine::kWarpgroup ? 0 : crew * (kM * 512) + lane * 16);
  const int matrix = lane / 8;  // of load_matrices: the slab, then the next position
  // Runs are whole, so the units left out before one of them are known.
  const unsigned char* positions =
      shared + p.at.slots +
      (kEngine == Engine::kWarpgroup
           ? flat / 4 * (4 * kWarpColumns) * 16
           : matrix % 2 * p.at.slab + (flat * 8 + lane % 8) * (kRun + 1) * 16);
  const int next = kEngine == Engine::kWarpgroup ? 0 : matrix / 2;
  unsigned char* staging = shared + p.at.staging + warp * p.at.staging_warp;

  int ready = 0, ready_slot = 0, parity = 0;  // planes that are known to be there
  const auto need = [&](int item) {
    while (ready <= item) {
      signal_wait(ring.full + ready_slot, parity);
      ++ready;
      if (++ready_slot == slots) ready_slot = 0, parity ^= 1;
    }
  };
  int item = 0, item_slot = 0;  // holds: the lowest plane of the step; else the next one
  const auto advance = [&](int count) {
    need(item + count - 1);  // a warp that has no use for a plane must not run ahead of it
    item += count;
    item_slot += count;
    while (item_slot >= slots) item_slot -= slots;
  };
  int freed_slot = 0;
  const auto free = [&](int count) {
    for (int i = 0; i < count; ++i) {
      signal_arrive(ring.empty + freed_slot);
      if (++freed_slot == slots) freed_slot = 0;
    }
  };

  KeptPlace& kept = kept_place(p, staging);
  for (int index = kept_work(p).first_place; index < places;) {
    keep_place<scalar_t, W, kEngine, kM>(p, kept_work(p), index, staging, lane);
    for (int d = kept.first_depth; d < kept.last_depth; d += p.depths) {
      for (int number = kept.first_phase; number < kept.last_phase; ++number) {
        const PhaseWork& phase = phases[number];
        Sums<W, kEngine, kM> sums;
        sums.clear();
        const int planes = phase.planes;
        bool under_way = false;
        for (int j = 0; j < planes; ++j) {
          for (int chunk = 0; chunk < chunks; ++chunk) {
            const int ahead =
                p.holds ? kept.depth * chunks + phase.plane + j * phase.next_plane + chunk : 0;
            need(item + ahead);
            int slot = item_slot + ahead;
            if (slot >= slots) slot -= slots;  // never more than `slots` ahead
            if (kept.has_columns) {
              ItemWalk walk;
              walk.from = positions + slot * p.at.slot;
              walk.position = phase.position + next;
              walk.rows = phase.rows;
              walk.steps = p.chunk_slabs / 2;
              walk.next_row = phase.next_row;
              walk.next_step = 2 * p.at.slab;
              walk.tap = p.at.tap;
              walk.crew = crew;
              walk.crews = p.crews;
              walk.fragments =
                  fragments + phase.weights +
                  (p.streams_weights ? p.at.slots + slot * p.at.slot + p.at.slot_weights
                                     : j * phase.next_tap);
              walk.first_step = p.streams_weights ? 0 : chunk * walk.steps;
              multiply_item<scalar_t>(sums, walk, phase);
            }
            if constexpr (W::kStride > 1) {
              // The compiler puts products of different sizes one after the other unless all have ended.
              if (!p.holds) {
                sums.template finish<0>();
                advance(1);
                free(1);
              }
            } else if (!p.holds) {
              // While products of this plane are under way, those of the one before end.
              advance(1);
              if (slots == 1) {
                sums.template finish<0>();
                free(1);
                continue;
              }
              sums.template finish<1>();
              if (under_way) free(1);
              under_way = true;
            }
          }
        }
        sums.template finish<0>();
        if (under_way) free(1);
        if (kept.has_columns && d < phase.depths)
          store_phase<scalar_t>(p, sums, staging, d, phase, lane);
      }
      if (p.holds) advance(p.depths * chunks), free(p.depths * chunks);
    }
    if (p.holds) advance(p.span[0] * chunks), free(p.span[0] * chunks);
    index = kept.index + p.blocks_per_tile;
    warp_barrier();  // before the next place is noted
  }
}

// ---- the kernel -----------------------------------------------------------------------------------

// Block: crews * kM tiles of channels of one group and a part of the phases; it takes every blocks_per_tile-th place
//   and marches along D.
// The first 8 or 12 warps multiply: (crew, set, depth, flat), flat fastest, has 64 columns of the flat plane at one
//   depth and computes the phases of its set for the channels of its crew. The others load planes into slots.
// Grid: blocks_per_tile fastest, then parts, channel tiles, groups. Shared memory: MatrixShared.
// Must hold: coordinates and offsets in a plane fit 31 bits; crews * flats * depths * sets is their number; without
//   `holds`, depths = sets = 1.
// Order of summation: taps along D, chunks, taps along H, steps of K, taps along W; bias last.
template <typename scalar_t, typename W, Engine kEngine, int kM>
__global__ void __launch_bounds__((matrix_threads<W, kEngine, kM>()), 1)
    gather_matrix_kernel(const MatrixParams p) {
  constexpr int kMultiplyingWarps = multiplying_warps<W, kEngine, kM>();
  unsigned char* shared = static_cast<unsigned char*>(shared_memory());
  const int slots = p.slots;
  Ring ring;
  ring.full = reinterpret_cast<uint64_t*>(shared + p.at.signals);
  ring.empty = ring.full + slots;
  ring.weights = ring.empty + slots;
  ring.slots = slots;

  const int places = p.batch * p.places[0] * p.places[1] * p.places[2];

  const BlockWork work = block_work<kEngine, kM>(p);
  PhaseWork* const phases = reinterpret_cast<PhaseWork*>(shared + p.at.phases);
  if (thread_index() == 0) {
    kept_work(p) = work;
    signal_init(ring.weights, kMultiplyingWarps * kWarpSize);
    for (int i = 0; i < slots; ++i) {
      signal_init(ring.full + i, loading_threads<W, kEngine, kM>());
      signal_init(ring.empty + i, kMultiplyingWarps * kWarpSize);
    }
  }
  const int first_phase = p.phases_before[work.part * p.sets];
  if (thread_index() < p.phases_before[(work.part + 1) * p.sets] - first_phase)
    phases[thread_index()] = phase_work<W>(p, first_phase + thread_index());
  keep_bias<scalar_t, kEngine, kM>(p, work, matrix_threads<W, kEngine, kM>());
  barrier();
  if (warp_index() >= kMultiplyingWarps)
    load_planes<scalar_t, W, kEngine, kM>(p, ring, places,
                                          thread_index() - kMultiplyingWarps * kWarpSize);
  else
    multiply_planes<scalar_t, W, kEngine, kM>(p, ring, places);
}

// ---- launch ------------------------------------------------------------------------------------------

template <typename scalar_t, typename W, Engine kEngine, int kM>
const char* launch_matrix(const MatrixParams& p, void* stream) {
  if (W::kFixed && (W::kStride != p.stride[2] || W::kTaps != p.kernel_size[2]))
    return "this kernel is for other parameters along W";
  if (p.crews * p.flats * p.depths * p.sets != multiplying_warps<W, kEngine, kM>())
    return "crews * flats * depths * sets must be the number of warps that multiply";
  if (kEngine == Engine::kWarpgroup && p.flats % 4 != 0)
    return "the warps of a warpgroup must be neighbours in the flat plane";
  if (!p.holds && p.depths * p.sets != 1) return "without holds, depths and sets must be 1";
  const int channels = p.crews * kM * tile_channels<kEngine>();
  const int64_t channel_tiles = (p.destination_channels + channels - 1) / channels;
  return launch(gather_matrix_kernel<scalar_t, W, kEngine, kM>,
                p.blocks_per_tile * p.parts * channel_tiles * p.groups,
                matrix_threads<W, kEngine, kM>(), p.at.all, stream, p);
}

// Runs the kernel for so many channel tiles of a warp; kTiles: those that there are kernels for.
template <typename scalar_t, typename W, Engine kEngine, int... kTiles>
const char* run_matrix(const MatrixParams& p, int channel_tiles, void* stream) {
  const char* error = "there is no kernel for so many channel tiles";
  const bool found[] = {channel_tiles == kTiles &&
                        (error = launch_matrix<scalar_t, W, kEngine, kTiles>(p, stream), true)...};
  (void)found;
  return error;
}

}  // namespace convt3d
"""
