"""Calls with sizes of 0, and what PyTorch's op does with them: see Note [Empty tensors] in geometry.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import convt3d

# name -> shapes of input and weight, channels of the bias (None: no bias), other arguments.
TAKEN: dict[str, tuple[tuple[int, ...], tuple[int, ...], int | None, dict[str, Any]]] = {
    "batch": ((0, 2, 3, 3, 3), (2, 3, 2, 2, 2), 3, {}),
    "batch_with_groups": ((0, 4, 3, 2, 3), (4, 3, 2, 2, 2), 6, {"groups": 2, "stride": 2}),
    "batch_and_depth": ((0, 2, 0, 3, 3), (2, 3, 3, 3, 3), 3, {}),
    "batch_and_output": ((0, 2, 1, 3, 3), (2, 3, 2, 2, 2), 3, {"padding": (1, 0, 0)}),
    "batch_and_depth_and_output": ((0, 2, 0, 3, 3), (2, 3, 1, 1, 1), 3, {}),
    "output_depth": ((2, 2, 1, 3, 3), (2, 3, 2, 2, 2), 3, {"padding": (1, 0, 0)}),
    "output_width": ((2, 2, 3, 3, 1), (2, 3, 2, 2, 2), None, {"padding": (0, 0, 1)}),
    "output_everywhere": ((2, 2, 2, 2, 2), (2, 3, 3, 3, 3), 3, {"padding": 2}),
}
# Its CPU op refuses these; with outputs it depends on the batch.
TAKEN_ON_A_GPU: dict[str, tuple[tuple[int, ...], tuple[int, ...], int | None, dict[str, Any]]] = {
    "output_unbatched": ((2, 1, 3, 3), (2, 3, 2, 2, 2), 3, {"padding": (1, 0, 0)}),
    "out_channels": ((2, 2, 3, 3, 3), (2, 0, 2, 2, 2), None, {}),
    "out_channels_with_bias": ((2, 2, 3, 3, 3), (2, 0, 2, 2, 2), 0, {}),
}
REFUSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], int | None, dict[str, Any]]] = {
    "in_channels": ((2, 0, 3, 3, 3), (0, 3, 2, 2, 2), 3, {}),
    "in_channels_with_groups": ((2, 0, 3, 3, 3), (0, 3, 2, 2, 2), 6, {"groups": 2}),
    "all_channels": ((2, 0, 3, 3, 3), (0, 0, 2, 2, 2), None, {}),
    "batch_and_in_channels": ((0, 0, 3, 3, 3), (0, 3, 2, 2, 2), 3, {}),
    "batch_and_out_channels": ((0, 2, 3, 3, 3), (2, 0, 2, 2, 2), None, {}),
    "batch_and_kernel": ((0, 2, 3, 3, 3), (2, 3, 0, 2, 2), 3, {}),
    "depth": ((2, 2, 0, 3, 3), (2, 3, 2, 2, 2), 3, {}),
    "width": ((2, 2, 3, 3, 0), (2, 3, 3, 3, 3), 3, {}),
    "depth_unbatched": ((2, 0, 3, 3), (2, 3, 2, 2, 2), 3, {}),
    "everywhere": ((2, 2, 0, 0, 0), (2, 3, 3, 3, 3), 3, {}),
    "kernel": ((2, 2, 3, 3, 3), (2, 3, 0, 2, 2), 3, {}),
    "kernel_everywhere": ((2, 2, 3, 3, 3), (2, 3, 0, 0, 0), 3, {}),
    "negative_output": ((2, 2, 1, 3, 3), (2, 3, 2, 2, 2), 3, {"padding": (3, 0, 0)}),
    "negative_output_of_no_batch": ((0, 2, 1, 3, 3), (2, 3, 2, 2, 2), 3, {"padding": (3, 0, 0)}),
    "two_negative_outputs": ((2, 2, 1, 1, 3), (2, 3, 2, 2, 2), 3, {"padding": (3, 3, 0)}),
}


def call(function: Any, calls: Any, name: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Returns the output and the gradients of all operands."""
    input, weight, bias, options = calls[name]
    shapes = [input, weight] if bias is None else [input, weight, (bias,)]
    operands = [torch.ones(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes]
    output = function(*operands, **options)
    return [output, *torch.autograd.grad(output.sum(), operands)]


def ours(calls: Any, name: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    return call(convt3d.conv_transpose3d, calls, name, device, dtype)


def native(calls: Any, name: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    return call(torch.nn.functional.conv_transpose3d, calls, name, device, dtype)


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    """Asserts that results agree in shape, dtype and value."""
    for one, other in zip(got, expected, strict=True):
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        assert torch.equal(one, other)
