"""The public function."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from convt3d.geometry import integer, triple
from convt3d.ops import OPERATORS
from convt3d.ops.autograd import run_forward
from convt3d.ops.primitives import check_alike, check_dtypes


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Applies a 3-D transposed convolution, as PyTorch's conv_transpose3d does.

    CUDA tensors run on the GPU, CPU tensors on the emulator of the same kernels. Differentiable in input, weight and
    bias, to any order. Bitwise repeatable. Complex numbers take four launches, all others one.

    Args:
        input: (N, C_in, D, H, W) or (C_in, D, H, W); fp64, fp32, fp16, bf16 or complex, on a CPU or CUDA device, any
            strides. See Note [Empty tensors] in geometry.py for sizes of 0.
        weight: (C_in, C_out/groups, kD, kH, kW), of the input's dtype and device.
        bias: (C_out,), likewise, or None.
        stride: step between the outputs of two neighbouring inputs; one int, or three for D, H, W.
        padding: elements cropped from both ends of each output axis, at least 0.
        output_padding: elements added at the far end of each output axis, below stride or dilation.
        groups: divides C_in and C_out into so many independent convolutions.
        dilation: step between two taps; 1 means none.

    Returns:
        (N, C_out, oD, oH, oW), or without N for an input without it, in the input's dtype, with
        oD = (D - 1) * stride - 2 * padding + dilation * (kD - 1) + output_padding + 1; channels_last_3d when
        input or weight is.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an integer does not fit 64 bits.
        NotImplementedError: the dtype is not supported.
        IndexError: batch and weight are both empty.
        RuntimeError: dtypes, devices, shapes or parameters do not fit; or a compiler is missing or fails.
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            conv_transpose3d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride,
            padding,
            output_padding,
            groups,
            dilation,
        )
    for name, value in (("input", input), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, but must be a Tensor")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias is a {type(bias).__name__}, but must be a Tensor or None")
    if input.dim() not in (4, 5):
        raise RuntimeError(
            f"input has {input.dim()} dimensions, but must have 5 (N, C_in, D, H, W), or 4 without N"
        )
    parameters = (
        triple("stride", stride),
        triple("padding", padding),
        triple("output_padding", output_padding),
        triple("dilation", dilation),
        integer("groups", groups),
    )
    batched = input if input.dim() == 5 else input.unsqueeze(0)
    if input.is_complex():
        output = _complex_forward(batched, weight, bias, *parameters)
    else:
        if not input.is_floating_point():  # a fake tensor's kernel would lose the exception
            check_dtypes(input=input, weight=weight, bias=bias)
        output = run_forward(batched, weight, bias, *parameters)
    return output if input.dim() == 5 else output.squeeze(0)


def _complex_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any
) -> Tensor:
    """The forward operator on complex numbers: on their real and imaginary parts, which are read where they lie."""
    check_alike(input=input, weight=weight, bias=bias)
    run = OPERATORS.forward
    of_real, of_imaginary = (None, None) if bias is None else (bias.real, bias.imag)
    with _no_autocast(input.device.type):  # it casts no complex numbers, hence not their parts
        real = run(input.real, weight.real, of_real, *parameters)
        imaginary = run(input.real, weight.imag, of_imaginary, *parameters)
        real = real - run(input.imag, weight.imag, None, *parameters)
        imaginary = imaginary + run(input.imag, weight.real, None, *parameters)
    return torch.complex(real, imaginary)


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    has_autocast = device_type in ("cpu", "cuda")
    return torch.autocast(device_type, enabled=False) if has_autocast else nullcontext()
