"""Which taps meet which positions."""

from __future__ import annotations

from fuzz.mutation.by_hand.edits import STAGED_SOURCE, in_gather, in_params, in_weight
from fuzz.mutation.mutant import STATEMENTS, Edit, KernelMutant

_GRAD_INPUT_PHASE = (
    "return {first, 1, 0, 1, kernel_size, first * stride - padding, stride, dilation};"
)

MUTANTS = (
    KernelMutant(
        "division_instead_of_divisibility",
        "(o + padding - tap * dilation) / stride is taken whether or not the stride divides it",
        (
            in_params(
                "static_cast<index_t>(axis.tap_step)",
                "index_t(1)",
                within="const index_t tap_step = static_cast<index_t>(axis.tap_step);",
            ),
            in_params(
                "static_cast<index_t>(int64_t(residue / gcd) * axis.dilation_inverse % axis.tap_step)",
                "index_t(0)",
            ),
            in_params("residue % gcd != 0 || first_tap >= kernel_size", "false"),
        ),
    ),
    KernelMutant(
        "common_divisor_not_checked",
        "a phase that no tap reaches gets taps; stride and dilation together went wrong in onnxruntime#2518",
        (in_params("residue % gcd != 0 || first_tap >= kernel_size", "first_tap >= kernel_size"),),
    ),
    KernelMutant(
        "phase_forgets_the_padding",
        "the residue of o is taken where that of o + padding decides: values shifted by a pixel in keras#22876",
        (in_params("(first + padding) % stride", "first % stride"),),
    ),
    KernelMutant(
        "taps_stepped_by_the_stride",
        "right only where stride and dilation have no common divisor",
        (
            in_params(
                "static_cast<index_t>(axis.tap_step)",
                "stride",
                within="const index_t tap_step = static_cast<index_t>(axis.tap_step);",
            ),
        ),
    ),
    KernelMutant(
        "source_stepped_by_the_whole_dilation",
        "the distance between the sources of two taps is not divided by the common divisor",
        (in_params("-(dilation / gcd)", "-dilation"),),
    ),
    KernelMutant(
        "taps_of_a_phase_rounded_down",
        "a decomposition into phases that expects the stride to divide the kernel size",
        (
            in_params(
                "(kernel_size - first_tap + tap_step - 1) / tap_step",
                "(kernel_size - first_tap) / tap_step",
            ),
        ),
    ),
    KernelMutant(
        "last_tap_of_a_phase_dropped",
        "the loop over taps ends one early",
        (
            in_gather(
                "tap < taps_d * taps_h * phase_w.taps", "tap + 1 < taps_d * taps_h * phase_w.taps"
            ),
        ),
    ),
    KernelMutant(
        "kernel_not_flipped",
        "a convolution in the place of its transpose: the taps run the wrong way",
        (
            in_gather(
                "phase_w.first_tap + jw * phase_w.tap_step",
                "static_cast<index_t>(p.axis[2].kernel_size) - 1 - "
                "(phase_w.first_tap + jw * phase_w.tap_step)",
                within="const index_t tap_w = phase_w.first_tap + jw * phase_w.tap_step;",
            ),
        ),
    ),
    KernelMutant(
        "kernel_height_and_width_swapped",
        "the taps along H step as those along W: axes mixed up in ComputeLibrary#482 and mlpack#3146",
        (
            in_gather(
                "static_cast<index_t>(p.weight_tap[1])",
                "static_cast<index_t>(p.weight_tap[2])",
                within="(phase_h.first_tap + jh * phase_h.tap_step) * "
                "static_cast<index_t>(p.weight_tap[1])",
            ),
        ),
    ),
    KernelMutant(
        "stride_and_dilation_swapped_in_grad_input",
        "candle#2337: a convolution with the two exchanged computes the gradient of the input",
        (
            Edit(
                "params.py",
                _GRAD_INPUT_PHASE,
                "return {first, 1, 0, 1, kernel_size, first * dilation - padding, dilation, stride};",
                STATEMENTS,
            ),
        ),
    ),
    KernelMutant(
        "grad_input_stepped_by_the_kernel",
        "a stride above the kernel size is cut to it: the gradient of another phase",
        (
            in_params(
                "first * stride - padding",
                "first * (stride < kernel_size ? stride : kernel_size) - padding",
            ),
        ),
    ),
    KernelMutant(
        "negative_coordinate_wraps",
        "an index below zero reads the end of the row before",
        (in_gather("w >= 0", "true"),),
    ),
    KernelMutant(
        "padding_clamped_to_the_edge",
        "what lies in the padding is read from the nearest position that exists",
        (
            in_gather(
                STAGED_SOURCE,
                "to_acc(from[(first_k + k) * static_cast<index_t>(p.source.channel)])",
            ),
        ),
    ),
    KernelMutant(
        "cropped_position_wraps_in_grad_weight",
        "a position that the padding crops is read from the row before",
        (in_weight("output.space[i] >= 0", "true"),),
    ),
)
