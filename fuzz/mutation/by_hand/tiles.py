"""Tiles, their edges, and the barriers between their steps."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import (
    STAGED_SOURCE,
    gather_statements,
    in_gather,
    in_weight,
    weight_statements,
)
from fuzz.mutation.mutant import STATEMENTS, Edit, KernelMutant

_STAGED_GRAD_OUTPUT = """shared.grad_output[i][lane] =
          inside ? to_acc(grad_output[offset_of(p.grad_output, output) +
                                      column % out_channels *
                                          static_cast<index_t>(p.grad_output.channel)])
                 : acc_t(0);"""

_TILES = (
    KernelMutant(
        "last_k_slice_dropped",
        "channels that do not fill a slice are left out: tilelang#2381, CUTLASS#3536",
        (
            in_gather(
                "first_k < source_channels",
                "first_k < source_channels && (first_k == 0 || first_k + kTileK <= source_channels)",
                within="first_k < source_channels; first_k += kTileK",
            ),
        ),
    ),
    KernelMutant(
        "last_k_slice_of_grad_weight_dropped",
        "positions that do not fill a slice are left out",
        (
            in_weight(
                "first < end",
                "first < end && (first == begin || first + kWeightK <= end)",
                within="first < end; first += kWeightK",
            ),
        ),
    ),
    KernelMutant(
        "stale_rows_of_the_last_k_slice",
        "a slice that is not full is multiplied whole: tilelang-ascend#1723",
        (gather_statements("if (k >= depth) break;", ""),),
    ),
    KernelMutant(
        "uninitialised_shared_memory",
        "where the source lies in the padding, nothing is staged",
        (
            gather_statements(
                f"shared.source[k][staged_slot] =\n                  {STAGED_SOURCE};",
                "if (inside) shared.source[k][staged_slot] = "
                "to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)]);",
            ),
        ),
    ),
    KernelMutant(
        "stale_shared_memory_in_grad_weight",
        "where a position is cropped, what the last slice left is multiplied",
        (
            weight_statements(
                _STAGED_GRAD_OUTPUT,
                f"if (inside) {_STAGED_GRAD_OUTPUT}",
            ),
        ),
    ),
    KernelMutant(
        "tail_tile_of_channels_unguarded",
        "the mask is computed and not used where the tile is stored: flash-attention#2790",
        (in_gather("first_channel + c >= channels || column >= columns", "column >= columns"),),
    ),
    KernelMutant(
        "store_one_vector_too_far",
        "the last columns are stored in whole vectors of four",
        (
            in_gather(
                "column >= columns",
                "column >= (columns + 3) / 4 * 4",
                within="first_channel + c >= channels || column >= columns",
            ),
        ),
    ),
    KernelMutant(
        "tail_rows_of_grad_weight_unguarded",
        "rows past a group's last channel are stored over the next group",
        (in_weight("row < in_channels && column < all_columns", "column < all_columns"),),
    ),
    KernelMutant(
        "last_row_tile_dropped",
        "the grid is rounded down: the last outputs stay unwritten, as in tilelang#2537",
        (
            in_gather(
                "((largest_rows + p.tile_rows - 1) / p.tile_rows)",
                "(largest_rows < p.tile_rows ? 1 : largest_rows / p.tile_rows)",
            ),
        ),
    ),
    KernelMutant(
        "phase_without_a_tap_not_written",
        "a block that has nothing to add returns before it stores",
        (in_gather("rows <= 0", "rows <= 0 || phase_d.taps == 0 || phase_h.taps == 0"),),
    ),
    KernelMutant(
        "last_output_not_written",
        "the guard of the last thread is off by one",
        (
            in_gather(
                "element >= int64_t(p.batch) * channels * size_d * size_h * size_w",
                "element + 1 >= int64_t(p.batch) * channels * size_d * size_h * size_w",
            ),
        ),
    ),
    KernelMutant(
        "write_past_the_end",
        "the guard of the last thread is off by one, the other way",
        (
            in_gather(
                "element >= int64_t(p.batch) * channels * size_d * size_h * size_w",
                "element > int64_t(p.batch) * channels * size_d * size_h * size_w",
            ),
        ),
    ),
)


def _without_barrier(name: str, why: str, file: str, within: str) -> KernelMutant:
    return KernelMutant(name, why, (Edit(file, "barrier();", "", STATEMENTS, within),))


_BARRIERS = (
    _without_barrier(
        "missing_barrier_before_the_tile_is_read",
        "read after write",
        "gather.py",
        "barrier();\n          if (computes)\n",
    ),
    _without_barrier(
        "missing_barrier_before_the_tile_is_overwritten",
        "write after read in a loop, as in csarofeen/pytorch#380 and cuml#6578",
        "gather.py",
        "            }\n          barrier();\n        }\n      }\n",
    ),
    _without_barrier(
        "missing_barrier_before_the_results_are_stored",
        "read after write between the epilogue and the store",
        "gather.py",
        "barrier();\n\n  // Store",
    ),
    _without_barrier(
        "missing_barrier_before_grad_weight_reads",
        "read after write",
        "weight.py",
        "barrier();\n    if (row_lane",
    ),
    _without_barrier(
        "missing_barrier_before_grad_weight_stages_again",
        "write after read in a loop",
        "weight.py",
        "        }\n    barrier();\n  }\n",
    ),
    _without_barrier(
        "missing_barrier_in_the_sum_of_the_bias",
        "one thread adds what the other warps have not written yet: arrayfire#633",
        "weight.py",
        "barrier();\n  if (thread != 0) return;",
    ),
    KernelMutant(
        "barrier_in_a_branch",
        "only the threads that compute reach it: neon#171",
        (
            gather_statements(
                "barrier();",
                "if (computes) barrier();",
                within="barrier();\n          if (computes)\n",
            ),
        ),
    ),
    KernelMutant(
        "early_return_before_a_barrier",
        "threads without a position leave, and the others wait for them",
        (in_gather("rows <= 0", "rows <= 0 || thread >= rows * tile_columns"),),
    ),
)

MUTANTS = (*_TILES, *_BARRIERS)
