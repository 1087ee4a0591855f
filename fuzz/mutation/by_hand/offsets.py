"""Offsets above 2^31, which 32 bits do not hold."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import in_gather, in_weight
from fuzz.mutation.mutant import KernelMutant

MUTANTS = (
    KernelMutant(
        "wide_plan_runs_narrow_kernel",
        "the 64-bit kernel is compiled and never called",
        (
            in_gather("wide", "false", within="wide ? launch_gather<true"),
            in_gather("wide", "false", within="wide ? launch_gather<false"),
        ),
    ),
    KernelMutant(
        "wide_plan_runs_narrow_kernel_in_grad_weight",
        "the 64-bit kernel is compiled and never called",
        (in_weight("wide", "false", within="wide ? launch_weight<"),),
    ),
    KernelMutant(
        "offset_of_the_sample_in_32_bits",
        "FlagGems#6588: a large batch overflows the index of the input",
        (
            in_gather(
                "n * static_cast<index_t>(p.source.outer)",
                "static_cast<int32_t>(n * static_cast<index_t>(p.source.outer))",
                within="                           n * static_cast<index_t>(p.source.outer)",
            ),
        ),
    ),
    KernelMutant(
        "offset_of_the_store_in_32_bits",
        "rocm-libraries#4611, mlx#3143: part of a large result stays unwritten, or something else is overwritten",
        (
            in_gather(
                "(first_column + column) * static_cast<index_t>(p.destination.space[2])",
                "static_cast<int32_t>("
                "(first_column + column) * static_cast<index_t>(p.destination.space[2]))",
            ),
        ),
    ),
    KernelMutant(
        "offset_of_a_position_in_32_bits",
        "an overflow in grad_weight alone",
        (
            in_weight(
                "at.space[1] * static_cast<index_t>(strides.space[1])",
                "static_cast<int32_t>(at.space[1] * static_cast<index_t>(strides.space[1]))",
            ),
        ),
    ),
)
