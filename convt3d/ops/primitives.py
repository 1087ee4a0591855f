"""The three primitives as registered operators: schemas, checks and the kernels that the dispatcher calls.

torch.ops.convt3d.forward(input, weight, bias, stride, padding, output_padding, dilation, groups)
torch.ops.convt3d.grad_input(grad_output, weight, stride, ..., groups, channels_last)
torch.ops.convt3d.grad_weight(
    input, grad_output, kernel_size, stride, ..., groups, channels_last, want_weight, want_bias
)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convt3d import launch
from convt3d.geometry import Geometry, Triple, check_geometry, grad_input_geometry

NAMESPACE = "convt3d"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPERATORS = getattr(torch.ops, NAMESPACE)

_PARAMETERS = "SymInt[3] stride, SymInt[3] padding, SymInt[3] output_padding, SymInt[3] dilation, SymInt groups"
LIBRARY.define(f"forward(Tensor input, Tensor weight, Tensor? bias, {_PARAMETERS}) -> Tensor")
LIBRARY.define(
    f"grad_input(Tensor grad_output, Tensor weight, {_PARAMETERS}, bool channels_last) -> Tensor"
)
LIBRARY.define(
    f"grad_weight(Tensor input, Tensor grad_output, SymInt[3] kernel_size, {_PARAMETERS}, "
    "bool channels_last, bool want_weight, bool want_bias) -> (Tensor, Tensor)"
)


class Call(NamedTuple):
    """What is known of a call whose arguments are right."""

    geometry: Geometry
    channels_last: bool


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Tensor:
    """Returns the output (N, C_out, oD, oH, oW) in the operands' dtype and memory format."""
    call = _check_forward(input, weight, bias, *parameters)
    return _run_forward(call, input, weight, bias)


def grad_input(grad_output: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """Returns the gradient (N, C_in, D, H, W) of the input; grad_output's size fixes D, H and W."""
    return _run_grad_input(_check_grad_input(grad_output, weight, *rest), grad_output, weight)


def grad_weight(
    input: Tensor, grad_output: Tensor, kernel_size: Triple, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Returns the gradients (C_in, C_out/groups, kD, kH, kW) of the weight and (C_out,) of the bias.

    Either comes back empty, and costs nothing, when it is not wanted.
    """
    call = _check_grad_weight(input, grad_output, kernel_size, *rest)
    return _run_grad_weight(call, input, grad_output, *rest[-2:])


# The same for tensors that are plain, see Note [The short way]: what was right once is not checked again.


def plain_forward(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Tensor:
    """As `forward`; parameters are tuples."""
    call = _known(_check_forward, (input, weight, bias), parameters)
    return _run_forward(call, input, weight, bias)


def plain_grad_input(grad_output: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """As `grad_input`; parameters are tuples."""
    call = _known(_check_grad_input, (grad_output, weight), rest)
    return _run_grad_input(call, grad_output, weight)


def plain_grad_weight(input: Tensor, grad_output: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """As `grad_weight`; kernel_size and parameters are tuples."""
    call = _known(_check_grad_weight, (input, grad_output), rest)
    return _run_grad_weight(call, input, grad_output, *rest[-2:])


_known_calls = launch.Remembered()  # of Call


def _known(
    check: Callable[..., Call], operands: tuple[Tensor | None, ...], rest: tuple[Any, ...]
) -> Call:
    """Checks a call, unless one with operands and parameters like these has been found right."""
    looks = [
        tensor is not None and (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        for tensor in operands
    ]
    key = (check, rest, *looks)
    return _known_calls.get(key) or _known_calls.keep(key, check(*operands, *rest))


def _check_forward(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Call:
    _check_operands(input=input, weight=weight, bias=bias)
    geometry = _forward_geometry(input, weight.shape, parameters)
    if bias is not None and bias.shape != (geometry.out_channels,):
        raise RuntimeError(
            f"bias has shape {tuple(bias.shape)}, but must have shape ({geometry.out_channels},): "
            "one value for each output channel"
        )
    return Call(geometry, launch.is_channels_last(input, weight))


def _run_forward(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    geometry, channels_last = call
    output = launch.allocate(geometry.output_shape, input.dtype, input.device, channels_last)
    if not output.is_meta and output.numel():
        launch.gather("forward", geometry, input, weight, bias, output)
    return output


def _check_grad_input(grad_output: Tensor, weight: Tensor, *rest: Any) -> Call:
    *parameters, channels_last = rest
    _check_operands(grad_output=grad_output, weight=weight)
    return Call(_backward_geometry(grad_output, weight, tuple(parameters)), channels_last)


def _run_grad_input(call: Call, grad_output: Tensor, weight: Tensor) -> Tensor:
    geometry, channels_last = call
    result = launch.allocate(
        geometry.input_shape, grad_output.dtype, grad_output.device, channels_last
    )
    if result.is_meta or not result.numel():
        return result
    if not grad_output.numel():
        return result.zero_()
    launch.gather("grad_input", geometry, grad_output, weight, None, result)
    return result


def _check_grad_weight(input: Tensor, grad_output: Tensor, kernel_size: Triple, *rest: Any) -> Call:
    *parameters, channels_last, _, _ = rest
    _check_operands(input=input, grad_output=grad_output)
    groups = parameters[-1]
    if groups < 1:
        raise RuntimeError(f"groups={groups}, but must be at least 1")
    weight_shape = (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    geometry = _forward_geometry(input, weight_shape, tuple(parameters))
    if grad_output.shape != geometry.output_shape:
        raise RuntimeError(
            f"grad_output has shape {tuple(grad_output.shape)}, but the output has shape "
            f"{geometry.output_shape}"
        )
    return Call(geometry, channels_last)


def _run_grad_weight(
    call: Call, input: Tensor, grad_output: Tensor, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor]:
    geometry, channels_last = call
    dtype, device = input.dtype, input.device
    shape_of_weight = geometry.weight_shape if want_weight else (0,)
    shape_of_bias = (geometry.out_channels if want_bias else 0,)
    of_weight = launch.allocate(shape_of_weight, dtype, device, channels_last and want_weight)
    of_bias = launch.allocate(shape_of_bias, dtype, device, False)
    if input.is_meta or not (want_weight or want_bias):
        return of_weight, of_bias
    if not grad_output.numel():
        return of_weight.zero_(), of_bias.zero_()
    launch.weight_gradient(
        geometry,
        input if want_weight else None,
        grad_output,
        of_weight if want_weight else None,
        of_bias if want_bias else None,
    )
    return of_weight, of_bias


def _register() -> None:
    primitives = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
    for name, primitive in primitives.items():
        # The last stands for every other kind of tensor, so that all are refused in our words.
        for key in ("CPU", "CUDA", "Meta", "CompositeExplicitAutograd"):
            LIBRARY.impl(name, primitive, key)


_register()


def _check_operands(**operands: Tensor | None) -> None:
    """Raises unless all operands have one supported dtype, one device, and their dimensions."""
    check_dtypes(**operands)
    for name, tensor in operands.items():
        if tensor is None:
            continue
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise RuntimeError(f"{name} is on {tensor.device}, but must be on a CPU or CUDA device")
        if name != "bias" and tensor.dim() != 5:
            raise RuntimeError(f"{name} has {tensor.dim()} dimensions, but must have 5")


def check_dtypes(**operands: Tensor | None) -> None:
    """Raises NotImplementedError unless the operands, which are all alike, have a dtype that kernels are for."""
    check_alike(**operands)
    for name, tensor in operands.items():
        if tensor is not None and tensor.dtype not in launch.DTYPE_NAMES:
            supported = ", ".join(str(dtype) for dtype in launch.DTYPE_NAMES)
            raise NotImplementedError(
                f"{name} has dtype {tensor.dtype}, but must have one of {supported}, or be complex in "
                "convt3d.conv_transpose3d"
            )


def check_alike(**operands: Tensor | None) -> None:
    """Raises RuntimeError unless all operands are strided and have one dtype and one device."""
    first_name, first = next(iter(operands.items()))
    assert first is not None
    for name, tensor in operands.items():
        if tensor is None:
            continue
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"{name} has layout {tensor.layout}, but must have torch.strided")
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


def _forward_geometry(input: Tensor, weight_shape: Any, parameters: tuple[Any, ...]) -> Geometry:
    find: Callable[..., Geometry] = _find_forward_geometry
    if input.is_meta:  # dynamic sizes cannot be looked up in a cache
        find = _find_forward_geometry.__wrapped__
    return find(tuple(input.shape), tuple(weight_shape), *as_tuples(parameters))


def _backward_geometry(
    grad_output: Tensor, weight: Tensor, parameters: tuple[Any, ...]
) -> Geometry:
    find: Callable[..., Geometry] = _find_backward_geometry
    if grad_output.is_meta:
        find = _find_backward_geometry.__wrapped__
    return find(tuple(grad_output.shape), tuple(weight.shape), *as_tuples(parameters))


def as_tuples(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns what an operator takes after its tensors with tuples in it: the dispatcher hands over lists."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in rest)


@functools.lru_cache(maxsize=4096)
def _find_forward_geometry(
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
def _find_backward_geometry(
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
