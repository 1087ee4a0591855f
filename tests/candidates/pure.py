"""A right implementation in plain PyTorch: loops over taps and channels, sums in float32. Slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Triple = tuple[int, int, int]
Slices = tuple[slice, slice, slice]


def conv_transpose3d(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    output_padding: Triple = (0, 0, 0),
    groups: int = 1,
    dilation: Triple = (1, 1, 1),
) -> Tensor:
    """As torch.nn.functional.conv_transpose3d."""
    output: Tensor = _Convolution.apply(x, w, b, stride, padding, output_padding, groups, dilation)
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, *parameters: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.parameters = parameters
        _, _, _, groups, _ = parameters
        whole, cropped = _whole_output(x, w, parameters)
        source, weight = _by_group(x, groups), _by_group(w.transpose(0, 1), groups, w.shape[1])
        target = _by_group(whole, groups)
        for (kz, ky, kx), place in _taps(x, w, parameters):
            for i in range(source.shape[2]):
                factor = weight[:, :, i, kz, ky, kx][..., None, None, None]
                target[(..., *place)] += source[:, :, i : i + 1] * factor
        output = whole[(..., *cropped)]
        if b is not None:
            output = output + b.to(output.dtype)[:, None, None, None]
        return output.to(x.dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, w = ctx.saved_tensors
        parameters = ctx.parameters
        groups = parameters[3]
        whole, cropped = _whole_output(x, w, parameters)
        whole[(..., *cropped)] = gradient.to(whole.dtype)
        source, target = _by_group(x, groups), _by_group(whole, groups)
        weight = _by_group(w.transpose(0, 1), groups, w.shape[1])
        of_x, of_w = torch.zeros_like(source), torch.zeros_like(weight)
        for (kz, ky, kx), place in _taps(x, w, parameters):
            met = target[(..., *place)]
            for o in range(weight.shape[1]):
                factor = weight[:, o, :, kz, ky, kx][..., None, None, None]
                of_x += met[:, :, o : o + 1] * factor
                of_w[:, o, :, kz, ky, kx] = (met[:, :, o : o + 1] * source).sum((0, 3, 4, 5))
        of_w = of_w.transpose(1, 2).reshape(w.shape)
        of_b = gradient.to(whole.dtype).sum((0, 2, 3, 4)).to(x.dtype)
        wants = ctx.needs_input_grad
        return (
            of_x.reshape(x.shape).to(x.dtype) if wants[0] else None,
            of_w.to(w.dtype) if wants[1] else None,
            of_b if wants[2] else None,
            *(None,) * 5,
        )


def _whole_output(x: Tensor, w: Tensor, parameters: Any) -> tuple[Tensor, Slices]:
    """Zeros for the output before its padding is cropped, and what is left of it then."""
    stride, padding, output_padding, groups, dilation = parameters
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sizes = [
        (i - 1) * s + (k - 1) * d + 1 + more
        for i, k, s, d, more in zip(x.shape[2:], w.shape[2:], stride, dilation, output_padding)
    ]
    whole = torch.zeros(x.shape[0], groups * w.shape[1], *sizes, dtype=dtype, device=x.device)
    depth, height, width = (slice(p, size - p) for p, size in zip(padding, sizes))
    return whole, (depth, height, width)


def _taps(x: Tensor, w: Tensor, parameters: Any) -> Iterator[tuple[Triple, Slices]]:
    """Every tap, and which elements of the whole output it reaches."""
    stride, _, _, _, dilation = parameters
    for tap in itertools.product(*map(range, w.shape[2:])):
        depth, height, width = (
            slice(k * d, k * d + (i - 1) * s + 1, s)
            for k, d, s, i in zip(tap, dilation, stride, x.shape[2:])
        )
        yield (tap[0], tap[1], tap[2]), (depth, height, width)


def _by_group(tensor: Tensor, groups: int, out_each: int = 0) -> Tensor:
    """(N, C, ...) as (N, groups, C/groups, ...); a weight (out_each, C, ...) as (groups, out_each, C/groups, ...)."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if out_each:
        parts = tensor.reshape(out_each, groups, -1, *tensor.shape[2:]).transpose(0, 1)
        return parts.to(dtype)
    return tensor.reshape(tensor.shape[0], groups, -1, *tensor.shape[2:]).to(dtype)
