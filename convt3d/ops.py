"""The three primitives as registered operators, each differentiated into the other two.

    torch.ops.convt3d.forward(input, weight, bias, stride, padding, output_padding, dilation, groups)
    torch.ops.convt3d.grad_input(grad_output, weight, stride, ...)
    torch.ops.convt3d.grad_weight(input, grad_output, kernel_size, stride, ..., want_weight, want_bias)

All three are linear in each operand, so that

    forward      d input  = grad_input(g, w)     d weight = grad_weight(x, g)     d bias = its grad_bias
    grad_input   d g      = forward(v, w)        d weight = grad_weight(v, g)
    grad_weight  d input  = grad_input(g, v)     d g      = forward(x, v, bias=v_bias)

and any order of derivative needs no further kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from convt3d import launch
from convt3d.geometry import Geometry, Triple, check_geometry, grad_input_geometry

_PARAMETERS = "int[3] stride, int[3] padding, int[3] output_padding, int[3] dilation, int groups"
_library = torch.library.Library("convt3d", "DEF")
_library.define(f"forward(Tensor input, Tensor weight, Tensor? bias, {_PARAMETERS}) -> Tensor")
_library.define(f"grad_input(Tensor grad_output, Tensor weight, {_PARAMETERS}) -> Tensor")
_library.define(
    f"grad_weight(Tensor input, Tensor grad_output, int[3] kernel_size, {_PARAMETERS}, "
    "bool want_weight, bool want_bias) -> (Tensor, Tensor)"
)

# What an operator takes after its tensors: stride, padding, output_padding, dilation, groups.
Parameters = tuple[Triple, Triple, Triple, Triple, int]


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Tensor:
    """Returns the output (N, C_out, oD, oH, oW) in the operands' dtype and memory format."""
    _check_operands(input=input, weight=weight, bias=bias)
    geometry = _forward_geometry(input.shape, weight.shape, *_hashable(parameters))
    if bias is not None and bias.shape != (geometry.out_channels,):
        raise RuntimeError(
            f"bias has shape {tuple(bias.shape)}, but must have shape ({geometry.out_channels},): "
            "one value for each output channel"
        )
    output = launch.allocate(
        geometry.output_shape, input.dtype, input.device, launch.is_channels_last(input, weight)
    )
    if output.numel() and not output.is_meta:
        launch.gather("forward", geometry, input, weight, bias, output)
    return output


def grad_input(grad_output: Tensor, weight: Tensor, *parameters: Any) -> Tensor:
    """Returns the gradient (N, C_in, D, H, W) of the input; grad_output's size fixes D, H and W."""
    _check_operands(grad_output=grad_output, weight=weight)
    geometry = _backward_geometry(grad_output.shape, weight.shape, *_hashable(parameters))
    result = launch.allocate(
        geometry.input_shape,
        grad_output.dtype,
        grad_output.device,
        launch.is_channels_last(grad_output, weight),
    )
    if result.numel() and not result.is_meta:
        launch.gather("grad_input", geometry, grad_output, weight, None, result)
    return result


def grad_weight(
    input: Tensor, grad_output: Tensor, kernel_size: Triple, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Returns the gradients (C_in, C_out/groups, kD, kH, kW) of the weight and (C_out,) of the bias.

    Either comes back empty, and costs nothing, when it is not wanted.
    """
    *parameters, want_weight, want_bias = rest
    _check_operands(input=input, grad_output=grad_output)
    if parameters[-1] < 1:
        raise RuntimeError(f"groups={parameters[-1]}, but must be at least 1")
    weight_shape = (input.shape[1], grad_output.shape[1] // parameters[-1], *kernel_size)
    geometry = _forward_geometry(input.shape, weight_shape, *_hashable(tuple(parameters)))
    if grad_output.shape != geometry.output_shape:
        raise RuntimeError(
            f"grad_output has shape {tuple(grad_output.shape)}, but the output has shape "
            f"{geometry.output_shape}"
        )
    dtype, device = input.dtype, input.device
    channels_last = launch.is_channels_last(input, grad_output)
    shapes = (geometry.weight_shape if want_weight else (0,), (geometry.out_channels * want_bias,))
    weight = launch.allocate(shapes[0], dtype, device, channels_last and want_weight)
    bias = launch.allocate(shapes[1], dtype, device, False)
    if (want_weight or want_bias) and not weight.is_meta:
        launch.weight_gradient(
            geometry,
            input if want_weight else None,
            grad_output,
            weight if want_weight else None,
            bias if want_bias else None,
        )
    return weight, bias


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any
    ) -> Any:
        ctx.save_for_backward(input, weight)
        ctx.parameters = parameters
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.convt3d.forward(input, weight, bias, *parameters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_input = of_weight = of_bias = None
        if wants_input:
            of_input = torch.ops.convt3d.grad_input(gradient, weight, *ctx.parameters)
        if wants_weight or wants_bias:
            of_weight, of_bias = torch.ops.convt3d.grad_weight(
                input, gradient, weight.shape[2:], *ctx.parameters, wants_weight, wants_bias
            )
        return (
            of_input,
            of_weight if wants_weight else None,
            of_bias if wants_bias else None,
            *(None,) * len(ctx.parameters),
        )


class _GradInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, *parameters: Any) -> Any:
        ctx.save_for_backward(grad_output, weight)
        ctx.parameters = parameters
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.convt3d.grad_input(grad_output, weight, *parameters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        grad_output, weight = ctx.saved_tensors
        of_grad_output = of_weight = None
        if ctx.needs_input_grad[0]:
            of_grad_output = torch.ops.convt3d.forward(gradient, weight, None, *ctx.parameters)
        if ctx.needs_input_grad[1]:
            of_weight, _ = torch.ops.convt3d.grad_weight(
                gradient, grad_output, weight.shape[2:], *ctx.parameters, True, False
            )
        return (of_grad_output, of_weight, *(None,) * len(ctx.parameters))


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grad_output: Tensor, kernel_size: Any, *rest: Any) -> Any:
        ctx.save_for_backward(input, grad_output)
        ctx.rest = rest
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.convt3d.grad_weight(input, grad_output, kernel_size, *rest)

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor | None, of_bias: Tensor | None) -> Any:
        input, grad_output = ctx.saved_tensors
        *parameters, want_weight, want_bias = ctx.rest
        of_weight = of_weight if want_weight else None
        of_bias = of_bias if want_bias else None
        of_input = of_grad_output = None
        if ctx.needs_input_grad[0] and of_weight is not None:
            of_input = torch.ops.convt3d.grad_input(grad_output, of_weight, *parameters)
        if ctx.needs_input_grad[1]:
            if of_weight is not None:
                of_grad_output = torch.ops.convt3d.forward(input, of_weight, of_bias, *parameters)
            elif of_bias is not None:
                of_grad_output = of_bias[:, None, None, None].expand(grad_output.shape)
        return (of_input, of_grad_output, None, *(None,) * len(ctx.rest))


def _register() -> None:
    primitives = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
    functions = {"forward": _Forward, "grad_input": _GradInput, "grad_weight": _GradWeight}
    for name, primitive in primitives.items():
        for key in ("CPU", "CUDA", "Meta"):
            _library.impl(name, primitive, key)
        _library.impl(name, functions[name].apply, "Autograd")


_register()


def _hashable(parameters: tuple[Any, ...]) -> Parameters:
    """Returns the parameters as tuples: the dispatcher hands over lists."""
    *triples, groups = parameters
    stride, padding, output_padding, dilation = (tuple(values) for values in triples)
    return stride, padding, output_padding, dilation, groups


def _check_operands(**operands: Tensor | None) -> None:
    """Raises unless all operands have one supported dtype, one device, and their dimensions."""
    (first_name, first), *others = operands.items()
    assert first is not None
    if first.dtype not in launch.DTYPE_NAMES:
        supported = ", ".join(str(dtype) for dtype in launch.DTYPE_NAMES)
        raise NotImplementedError(
            f"{first_name} has dtype {first.dtype}, but must have one of {supported}"
        )
    if first.device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(
            f"{first_name} is on {first.device}, but must be on a CPU or CUDA device"
        )
    for name, tensor in others:
        if tensor is None:
            continue
        if tensor.device != first.device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, but {first_name} is on {first.device}: all must be on "
                "one device"
            )
        if tensor.dtype != first.dtype:
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}, but {first_name} has dtype {first.dtype}: all must "
                "have one dtype"
            )
    for name, tensor in operands.items():
        if tensor is not None and name != "bias" and tensor.dim() != 5:
            raise RuntimeError(f"{name} has {tensor.dim()} dimensions, but must have 5")


@functools.lru_cache(maxsize=4096)
def _forward_geometry(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Triple,
    padding: Triple,
    output_padding: Triple,
    dilation: Triple,
    groups: int,
) -> Geometry:
    if input_shape[1] != weight_shape[0]:
        raise RuntimeError(
            f"input has {input_shape[1]} channels, but weight, of shape {tuple(weight_shape)}, is for "
            f"{weight_shape[0]}"
        )
    geometry = Geometry(
        batch=input_shape[0],
        in_channels=input_shape[1],
        out_channels=weight_shape[1] * groups,
        groups=groups,
        input_size=(input_shape[2], input_shape[3], input_shape[4]),
        kernel_size=(weight_shape[2], weight_shape[3], weight_shape[4]),
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    check_geometry(geometry)
    return geometry


@functools.lru_cache(maxsize=4096)
def _backward_geometry(
    grad_output_shape: tuple[int, ...], weight_shape: tuple[int, ...], *parameters: Any
) -> Geometry:
    geometry = grad_input_geometry(grad_output_shape, weight_shape, *parameters)
    check_geometry(geometry)
    if grad_output_shape[1] != weight_shape[1] * geometry.groups:
        raise RuntimeError(
            f"grad_output has {grad_output_shape[1]} channels, but weight, of shape "
            f"{tuple(weight_shape)}, with groups={geometry.groups} gives "
            f"{weight_shape[1] * geometry.groups}"
        )
    return geometry
