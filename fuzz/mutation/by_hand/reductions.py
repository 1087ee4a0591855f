"""Sums over the batch, over warps and over the splits of grad_weight."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import in_weight, weight_statements
from fuzz.mutation.mutant import KernelMutant

HALVES = ("f16", "bf16")
_WEIGHT_LAUNCH = """launch(weight_tiled_kernel<scalar_t, index_t>, blocks, kWeightThreads,
                             int(sizeof(WeightShared<acc_t>)), stream, p)"""
_REDUCE_LAUNCH = """launch(weight_reduce_kernel<scalar_t, index_t>,
                (all + kWeightThreads - 1) / kWeightThreads, kWeightThreads, 0, stream, p)"""

MUTANTS = (
    KernelMutant(
        "grad_weight_of_the_first_sample_only",
        "the batch is not summed over",
        (
            in_weight(
                "p.batch * p.axis[0].input_size * p.axis[1].input_size * p.axis[2].input_size",
                "p.axis[0].input_size * p.axis[1].input_size * p.axis[2].input_size",
            ),
        ),
    ),
    KernelMutant(
        "grad_bias_of_the_first_sample_only",
        "grad_output is summed over space alone",
        (
            in_weight(
                "p.batch * p.axis[0].output_size * p.axis[1].output_size * p.axis[2].output_size",
                "p.axis[0].output_size * p.axis[1].output_size * p.axis[2].output_size",
            ),
        ),
    ),
    KernelMutant(
        "grad_bias_averaged_over_the_batch",
        "a mean in the place of a sum",
        (
            in_weight(
                "from_acc<scalar_t>(sum)",
                "from_acc<scalar_t>(sum / acc_t(p.batch))",
                within="(p.grad_bias_data)[channel] = from_acc<scalar_t>(sum);",
            ),
        ),
    ),
    KernelMutant(
        "half_a_warp_reduced",
        "the butterfly starts at a quarter of the warp: written for another warp size",
        (
            in_weight(
                "kWarpSize / 2",
                "kWarpSize / 4",
                within="for (int mask = kWarpSize / 2; mask > 0; mask /= 2)",
            ),
        ),
    ),
    KernelMutant(
        "last_warp_forgotten",
        "the sums of the warps are added but for the last",
        (
            in_weight(
                "warp < kWeightThreads / kWarpSize",
                "warp + 1 < kWeightThreads / kWarpSize",
                within="warp < kWeightThreads / kWarpSize; ++warp) sum +=",
            ),
        ),
    ),
    KernelMutant(
        "remainder_of_the_splits_dropped",
        "positions that the splits do not divide are left out: rocm-libraries#7199",
        (
            in_weight(
                "(positions + p.splits - 1) / p.splits",
                "positions / p.splits",
                within="static_cast<index_t>((positions + p.splits - 1) / p.splits)",
            ),
        ),
    ),
    KernelMutant(
        "remainder_of_the_splits_dropped_in_grad_bias",
        "the last positions belong to no split",
        (
            in_weight(
                "(positions + p.splits - 1) / p.splits",
                "positions / p.splits",
                within="const int64_t per_split = (positions + p.splits - 1) / p.splits;",
            ),
        ),
    ),
    KernelMutant(
        "last_split_reads_past_the_end",
        "the last split is as long as the others",
        (
            in_weight(
                "positions - begin < per_split ? positions : begin + per_split", "begin + per_split"
            ),
        ),
    ),
    KernelMutant(
        "empty_split_leaves_its_partial_sum_unwritten",
        "a split without positions returns, and its cells hold anything: composable_kernel#3387, pytorch#72157",
        (
            in_weight(
                "row < in_channels && column < all_columns",
                "row < in_channels && column < all_columns && begin < end",
            ),
        ),
    ),
    KernelMutant(
        "last_split_not_added",
        "the reduction ends one early",
        (in_weight("split < p.splits", "split + 1 < p.splits"),),
    ),
    KernelMutant(
        "partial_sums_lost_in_a_race",
        "splits add to one cell without an atomic: the last one to write wins",
        (
            weight_statements(
                "sum += static_cast<const acc_t*>(p.partials)[split * all + element];",
                "sum = static_cast<const acc_t*>(p.partials)[split * all + element];",
            ),
        ),
    ),
    KernelMutant(
        "partial_sums_read_before_they_are_complete",
        "the reduction does not wait for the splits",
        (
            in_weight(
                _WEIGHT_LAUNCH, f"(p.splits == 1 ? nullptr : {_REDUCE_LAUNCH}, {_WEIGHT_LAUNCH})"
            ),
            in_weight(_REDUCE_LAUNCH, "nullptr"),
        ),
    ),
    KernelMutant(
        "partial_sums_rounded",
        "the workspace has the type of the tensors: composable_kernel#265 is a split-K for bf16",
        (
            in_weight(
                "sum",
                "to_acc(from_acc<scalar_t>(sum))",
                within="bias_elements(p)) + element] =\n        sum;",
            ),
        ),
        dtypes=HALVES,
    ),
    KernelMutant(
        "partial_sums_of_the_bias_over_those_of_the_weight",
        "both start at the same place of the workspace",
        (in_weight("split * all + weight_elements(p) + channel", "split * all + channel"),),
    ),
)
