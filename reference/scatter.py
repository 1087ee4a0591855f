"""Scatter, one tap at a time.

Along each axis, input element i meets tap k at output element

    o = i * stride + k * dilation - padding,        0 <= o < output size

and that sentence is the whole operation: the input element times the tap's weight is added to the
output element (output), the output element's gradient times the same weight is added to the input
element (grad_input), and input element times output gradient is added to the tap (grad_weight). The
loop in evaluate walks the taps once and does the three for all elements that meet at the tap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Parameters:
    """What conv_transpose3d takes beside tensors; triples are in the order depth, height, width."""

    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    output_padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Results:
    """One array for each of the four results.

    Args:
        output: (N, C_out, oD, oH, oW).
        grad_input: (N, C_in, D, H, W).
        grad_weight: (C_in, C_out / groups, kD, kH, kW).
        grad_bias: (C_out,).
    """

    output: Array
    grad_input: Array
    grad_weight: Array
    grad_bias: Array


class _AxisTap(NamedTuple):
    """One tap of one axis, and the elements that meet there: input[source] with output[target]."""

    tap: int
    source: slice
    target: slice
    length: int  # of source and of target, at least 1


def output_size(
    input_size: Sequence[int], kernel_size: Sequence[int], parameters: Parameters
) -> Triple:
    """Size of the output along each axis; below 1 where the padding crops all of it away.

    Source: the Shape section of torch.nn.ConvTranspose3d.
    """
    depth, height, width = (
        (input_size[axis] - 1) * parameters.stride[axis]
        - 2 * parameters.padding[axis]
        + parameters.dilation[axis] * (kernel_size[axis] - 1)
        + parameters.output_padding[axis]
        + 1
        for axis in range(3)
    )
    return depth, height, width


@np.errstate(invalid="ignore", over="ignore")  # NaN, infinity and overflow are legal data
def evaluate(
    input: Array, weight: Array, bias: Array | None, grad_output: Array, parameters: Parameters
) -> Results:
    """Transposed 3-D convolution and its three gradients.

    Nothing is multiplied by a padded or inserted zero: a NaN or an infinity reaches the elements
    that it is behind and no others.

    Args:
        input: (N, C_in, D, H, W), float64 or int64; N may be 0.
        weight: (C_in, C_out / groups, kD, kH, kW), same dtype.
        bias: (C_out,), same dtype, or None.
        grad_output: (N, C_out, oD, oH, oW), same dtype.
        parameters: stride, padding, output_padding, dilation, groups.

    Returns:
        C-contiguous arrays of the same dtype; grad_bias also without a bias. In int64 they are
        exact while magnitude() stays below 2^63, which is the caller's to see to.

    Raises:
        TypeError: input is neither float64 nor int64, or another array is not of its dtype.
        ValueError: shapes that fit neither each other nor the parameters.
    """
    _check_dtypes(input, weight, bias, grad_output)
    _check_shapes(input.shape, weight.shape, bias, grad_output.shape, parameters)
    output = np.zeros(grad_output.shape, input.dtype)
    if bias is not None:
        output += bias[:, None, None, None]
    grad_input = np.zeros(input.shape, input.dtype)
    grad_weight = np.zeros(weight.shape, input.dtype)
    results = Results(output, grad_input, grad_weight, grad_output.sum(axis=(0, 2, 3, 4)))

    axes = _meeting_points(input.shape, weight.shape, output.shape, parameters)
    n, groups, out_channels = input.shape[0], parameters.groups, weight.shape[1]
    in_channels = input.shape[1] // groups
    # From here on each name is a view of its tensor: writing to it fills the results.
    input, grad_input = _by_group(input, groups), _by_group(grad_input, groups)
    output, grad_output = _by_group(output, groups), _by_group(grad_output, groups)
    weight = weight.reshape(groups, in_channels, *weight.shape[1:])
    grad_weight = grad_weight.reshape(weight.shape)

    for d, h, w in itertools.product(*axes):
        tap = (..., d.tap, h.tap, w.tap)
        source = (..., d.source, h.source, w.source)
        target = (..., d.target, h.target, w.target)
        box = (n, d.length, h.length, w.length)
        positions = n * d.length * h.length * w.length
        x = input[source].reshape(groups, in_channels, positions)
        g = grad_output[target].reshape(groups, out_channels, positions)
        k = weight[tap]  # (groups, in_channels, out_channels)
        # At one tap an element is met once at most, so that adding to a slice loses no product.
        to_output, to_input = output[target], grad_input[source]
        to_output += (k.swapaxes(1, 2) @ x).reshape(groups, out_channels, *box)
        to_input += (k @ g).reshape(groups, in_channels, *box)
        grad_weight[tap] = x @ g.swapaxes(1, 2)
    return results


def magnitude(
    input: Array, weight: Array, bias: Array | None, grad_output: Array, parameters: Parameters
) -> Results:
    """Sum of the absolute values of what is summed in each element of evaluate's results.

    Args, Returns, Raises: as evaluate.
    """
    absolute_bias = None if bias is None else np.abs(bias)
    return evaluate(np.abs(input), np.abs(weight), absolute_bias, np.abs(grad_output), parameters)


def products(
    input_shape: Sequence[int], weight_shape: Sequence[int], parameters: Parameters
) -> Results:
    """Number of products summed in each element of the results; the bias is not counted.

    Args:
        input_shape: N, C_in, D, H, W.
        weight_shape: C_in, C_out / groups, kD, kH, kW.
        parameters: stride, padding, output_padding, dilation, groups.

    Returns:
        int64 arrays of the results' shapes, read-only. grad_bias has no products: it counts the
        elements of grad_output that are summed.
    """
    n, in_channels = input_shape[:2]
    out_channels = weight_shape[1] * parameters.groups
    size = output_size(input_shape[2:], weight_shape[2:], parameters)
    output_shape = (n, out_channels, *size)
    met_output = [np.zeros(length, np.int64) for length in size]
    met_input = [np.zeros(length, np.int64) for length in input_shape[2:]]
    met_tap = [np.zeros(length, np.int64) for length in weight_shape[2:]]
    axes = _meeting_points(input_shape, weight_shape, output_shape, parameters)
    for axis, taps in enumerate(axes):
        for tap, source, target, length in taps:
            met_output[axis][target] += 1
            met_input[axis][source] += 1
            met_tap[axis][tap] = length
    return Results(
        np.broadcast_to(in_channels // parameters.groups * _outer(met_output), output_shape),
        np.broadcast_to(weight_shape[1] * _outer(met_input), tuple(input_shape)),
        np.broadcast_to(n * _outer(met_tap), tuple(weight_shape)),
        np.broadcast_to(np.int64(n * math.prod(size)), (out_channels,)),
    )


def _meeting_points(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    output_shape: Sequence[int],
    parameters: Parameters,
) -> list[list[_AxisTap]]:
    """For each axis, the taps at which at least one input element meets an output element."""
    axes = []
    for axis in range(3):
        stride = parameters.stride[axis]
        taps = []
        for tap in range(weight_shape[2 + axis]):
            shift = tap * parameters.dilation[axis] - parameters.padding[axis]
            # 0 <= i * stride + shift <= output size - 1, solved for i.
            first = max(0, -(shift // stride))
            last = min(input_shape[2 + axis] - 1, (output_shape[2 + axis] - 1 - shift) // stride)
            if first <= last:
                source = slice(first, last + 1)
                target = slice(first * stride + shift, last * stride + shift + 1, stride)
                taps.append(_AxisTap(tap, source, target, last + 1 - first))
        axes.append(taps)
    return axes


def _by_group(tensor: Array, groups: int) -> Array:
    """View (N, C, D, H, W) as (groups, C / groups, N, D, H, W)."""
    n, channels, *size = tensor.shape
    return tensor.reshape(n, groups, channels // groups, *size).transpose(1, 2, 0, 3, 4, 5)


def _outer(axes: list[Array]) -> Array:
    """Product of one vector for each axis: (D,), (H,), (W,) -> (D, H, W)."""
    depth, height, width = axes
    return depth[:, None, None] * height[:, None] * width


def _check_dtypes(input: Array, weight: Array, bias: Array | None, grad_output: Array) -> None:
    if input.dtype not in (np.float64, np.int64):
        raise TypeError(f"input has dtype {input.dtype}, but must be float64 or int64")
    for name, array in (("weight", weight), ("bias", bias), ("grad_output", grad_output)):
        if array is not None and array.dtype != input.dtype:
            raise TypeError(f"{name} has dtype {array.dtype}, but must be {input.dtype} like input")


def _check_shapes(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias: Array | None,
    grad_output_shape: tuple[int, ...],
    parameters: Parameters,
) -> None:
    for name, shape in (("input", input_shape), ("weight", weight_shape)):
        if len(shape) != 5:
            raise ValueError(f"{name} has shape {shape}, but must have 5 dimensions")
    in_channels, groups = input_shape[1], parameters.groups
    if groups < 1 or in_channels % groups:
        raise ValueError(f"groups={groups}, but must be a positive divisor of C_in={in_channels}")
    if weight_shape[0] != in_channels:
        raise ValueError(f"weight has shape {weight_shape}, but must begin with C_in={in_channels}")
    out_channels = weight_shape[1] * groups
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias has shape {bias.shape}, but must be {(out_channels,)}")
    size = output_size(input_shape[2:], weight_shape[2:], parameters)
    expected = (input_shape[0], out_channels, *size)
    if grad_output_shape != expected:
        raise ValueError(f"grad_output has shape {grad_output_shape}, but must be {expected}")
