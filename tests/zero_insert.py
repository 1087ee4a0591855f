"""The second formulation of the reference: insert zeros, then correlate.

A transposed convolution is a plain correlation of the zero-inserted input with the flipped,
zero-inserted weight; its gradients are correlations of the gradient of the uncropped output with
the zero-inserted weight or input. Nothing here scatters or computes which elements meet, so that a
mistake in the one formulation is not also made in the other. Exact on integers; only for tests.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from reference import Parameters, Results
from reference.scatter import Array, Triple


def evaluate_by_zero_insertion(
    input: Array, weight: Array, bias: Array | None, grad_output: Array, parameters: Parameters
) -> Results:
    """Same arguments and results as reference.evaluate."""
    in_channels, out_channels = input.shape[1], grad_output.shape[1]
    results = Results(
        np.zeros_like(grad_output),
        np.zeros_like(input),
        np.zeros_like(weight),
        grad_output.sum(axis=(0, 2, 3, 4)),
    )
    for group in range(parameters.groups):
        inputs = _channels_of(group, parameters.groups, in_channels)
        outputs = _channels_of(group, parameters.groups, out_channels)
        output, grad_input, grad_weight = _evaluate_one_group(
            input[:, inputs], weight[inputs], grad_output[:, outputs], parameters
        )
        results.output[:, outputs] = output
        results.grad_input[:, inputs] = grad_input
        results.grad_weight[inputs] = grad_weight
    if bias is not None:
        np.add(results.output, bias.reshape(1, -1, 1, 1, 1), out=results.output)
    return results


def _evaluate_one_group(
    input: Array, weight: Array, grad_output: Array, parameters: Parameters
) -> tuple[Array, Array, Array]:
    spread_input = _insert_zeros(input, parameters.stride)
    spread_weight = _insert_zeros(weight, parameters.dilation)
    reach = tuple(size - 1 for size in spread_weight.shape[2:])

    far_side = tuple(map(sum, zip(reach, parameters.output_padding, strict=True)))
    padded = np.pad(spread_input, _both_sides(reach, far_side))
    flipped = spread_weight[:, :, ::-1, ::-1, ::-1]
    uncropped = _correlate(padded, flipped.swapaxes(0, 1))
    inside = (
        slice(None),
        slice(None),
        *(
            slice(padding, padding + size)
            for padding, size in zip(parameters.padding, grad_output.shape[2:], strict=True)
        ),
    )
    grad_uncropped = np.zeros_like(uncropped)
    grad_uncropped[inside] = grad_output

    grad_input = _correlate(grad_uncropped, spread_weight)
    grad_weight = _correlate(grad_uncropped.swapaxes(0, 1), spread_input.swapaxes(0, 1))
    return (
        uncropped[inside],
        _keep_every(grad_input, parameters.stride, input.shape),
        _keep_every(grad_weight.swapaxes(0, 1), parameters.dilation, weight.shape),
    )


def _correlate(signal: Array, kernel: Array) -> Array:
    """(A, C, D, H, W) and (B, C, kD, kH, kW) -> (A, B, D - kD + 1, H - kH + 1, W - kW + 1)."""
    windows = sliding_window_view(signal, kernel.shape[2:], axis=(2, 3, 4))
    return np.moveaxis(np.tensordot(windows, kernel, axes=((1, 5, 6, 7), (1, 2, 3, 4))), 4, 1)


def _insert_zeros(tensor: Array, step: Triple) -> Array:
    """Put step - 1 zeros between neighbours along the last three axes."""
    size = ((length - 1) * every + 1 for length, every in zip(tensor.shape[2:], step, strict=True))
    spread = np.zeros((*tensor.shape[:2], *size), tensor.dtype)
    spread[:, :, :: step[0], :: step[1], :: step[2]] = tensor
    return spread


def _keep_every(tensor: Array, step: Triple, shape: tuple[int, ...]) -> Array:
    """Undo _insert_zeros, and drop what lies beyond shape."""
    kept = tensor[:, :, :: step[0], :: step[1], :: step[2]]
    return kept[:, :, : shape[2], : shape[3], : shape[4]]


def _both_sides(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0, 0), (0, 0), *zip(before, after, strict=True)]


def _channels_of(group: int, groups: int, channels: int) -> slice:
    each = channels // groups
    return slice(group * each, (group + 1) * each)
