"""Calls that the checks of PyTorch's features share: convt3d's and, beside each, native's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import launch
from tests import operator_checks as checks

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# Every parameter at work, no two shapes alike, and few elements: Jacobians have a row for each.
GEOMETRY = checks.geometry(
    (2, 1, 2),
    (2, 2, 1),
    batch=2,
    channels=(2, 4),
    groups=2,
    stride=(2, 1, 1),
    padding=(1, 0, 0),
    output_padding=(1, 0, 0),
    dilation=(1, 2, 1),
)
STRIDE, PADDING, OUTPUT_PADDING, DILATION, GROUPS = checks.parameters(GEOMETRY)
# What the functions take after their tensors, and what the operators take.
OPTIONS = (STRIDE, PADDING, OUTPUT_PADDING, GROUPS, DILATION)
PARAMETERS = (STRIDE, PADDING, OUTPUT_PADDING, DILATION, GROUPS)
SHAPES = {
    "input": GEOMETRY.input_shape,
    "weight": GEOMETRY.weight_shape,
    "bias": (GEOMETRY.out_channels,),
    "grad_output": GEOMETRY.output_shape,
}
LEAVES = ("input", "weight", "bias")


def ours(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Calls convt3d.conv_transpose3d with the parameters of GEOMETRY."""
    return convt3d.conv_transpose3d(input, weight, bias, *OPTIONS)


def native(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Calls PyTorch's own."""
    return torch.nn.functional.conv_transpose3d(input, weight, bias, *OPTIONS)


def _native_grad_input(grad_output: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.conv3d(grad_output, weight, None, STRIDE, PADDING, DILATION, GROUPS)


def _native_grad_weight(input: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    weight = input.new_zeros(GEOMETRY.weight_shape)  # no gradient of it depends on its values
    _, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *(grad_output, input, weight, [GEOMETRY.out_channels], STRIDE, PADDING, DILATION, True),
        *(OUTPUT_PADDING, GROUPS, [False, True, True]),
    )
    return of_weight, of_bias


def _forward(*operands: Tensor) -> Tensor:
    return torch.ops.convt3d.forward(*operands, *PARAMETERS)


def _grad_input(*operands: Tensor) -> Tensor:
    return torch.ops.convt3d.grad_input(*operands, *PARAMETERS, False)


def _grad_weight(*operands: Tensor) -> tuple[Tensor, Tensor]:
    rest = (*PARAMETERS, False, True, True)
    return torch.ops.convt3d.grad_weight(*operands, GEOMETRY.kernel_size, *rest)


@dataclass(frozen=True)
class Primitive:
    """An operator as a function of its tensors alone, with the parameters of GEOMETRY, and native's."""

    operands: tuple[str, ...]
    ours: Callable[..., Any]
    native: Callable[..., Any]


PRIMITIVES = {
    "forward": Primitive(LEAVES, _forward, native),
    "grad_input": Primitive(("grad_output", "weight"), _grad_input, _native_grad_input),
    "grad_weight": Primitive(("input", "grad_output"), _grad_weight, _native_grad_weight),
}


def reals(*names: str, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Returns random operands of GEOMETRY, the same ones for every device and dtype."""
    tensors = []
    for seed, name in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)
        tensors.append((name, tensor.to(device, dtype)))
    return tuple(dict(tensors)[name] for name in names)


def leaves(*names: str, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Returns the same operands, requiring gradients."""
    return tuple(tensor.requires_grad_() for tensor in reals(*names, device=device, dtype=dtype))


def layers(
    *arguments: Any, device: str, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[convt3d.ConvTranspose3d, torch.nn.ConvTranspose3d]:
    """Returns a module of convt3d and the same one of PyTorch."""
    torch.manual_seed(0)
    one = convt3d.ConvTranspose3d(*arguments, **options).to(device, dtype)
    other = torch.nn.ConvTranspose3d(*arguments, **options).to(device, dtype)
    other.load_state_dict(one.state_dict())
    return one, other


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns one result or several as several."""
    return (results,) if isinstance(results, Tensor) else tuple(results)


@dataclass(frozen=True)
class Work:
    """What was launched, as the names of the primitives, and the shapes that were allocated."""

    launched: list[str]
    allocated: list[tuple[int, ...]]


@contextmanager
def recorded() -> Iterator[Work]:
    """Within it the work of convt3d is written down."""
    work = Work([], [])
    real_launch, real_allocate = launch._launch, launch.allocate

    def recording_launch(*arguments: Any) -> None:
        work.launched.append(arguments[-1].partition(" ")[0])
        real_launch(*arguments)

    def recording_allocate(shape: Any, *rest: Any) -> Tensor:
        work.allocated.append(tuple(shape))
        return real_allocate(shape, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_launch", recording_launch)
        patch.setattr(launch, "allocate", recording_allocate)
        yield work


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[type, str]:
    """Returns the type and the message of what a call raises.

    Raises:
        AssertionError: it raises nothing.
    """
    try:
        result = function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    raise AssertionError(f"nothing was raised, but {result!r} returned")
