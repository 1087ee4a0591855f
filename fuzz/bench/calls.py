"""What is timed: operands, the calls of ours and of native, the settings they run under, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from convt3d import conv_transpose3d, launch
from convt3d.geometry import Geometry, Triple, output_size
from fuzz.bench.suite import Layer, Point

T = TypeVar("T")
Call = Callable[[], tuple[Tensor, ...]]

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "tf32": torch.float32,
    "f32": torch.float32,
}
# Input size of the layer by which host time is told, at most: what runs on the GPU is short.
TINY_SIZE = 4


@dataclass(frozen=True)
class Subject:
    """A call and where it runs.

    Args:
        call: runs the op once; returns its results.
        place: runs a function, which calls `call` as often as it likes, under the subject's settings.
    """

    call: Call
    place: Callable[[Callable[[], Any]], Any]

    def __call__(self) -> tuple[Tensor, ...]:
        """Runs the call once, in its place."""
        results: tuple[Tensor, ...] = self.place(self.call)
        return results


@dataclass(frozen=True)
class Operands:
    """Operands of one direction.

    Args:
        input: (N, C_in, D, H, W).
        weight: (C_in, C_out/groups, kD, kH, kW).
        bias: (C_out,), or None.
        grad_output: (N, C_out, oD, oH, oW), or None for forward.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor | None

    def to(self, dtype: torch.dtype) -> Operands:
        """The same values in another dtype."""
        return Operands(
            self.input.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            None if self.grad_output is None else self.grad_output.to(dtype),
        )


def make_operands(point: Point, device: str, seed: int = 0) -> Operands:
    """Returns normal random operands in the point's dtype and layout; their values do not depend on the layout."""
    geometry, forward = point.layer.geometry, point.direction == "forward"
    generator = torch.Generator(device).manual_seed(seed)
    is_last = point.layout == "channels_last"
    memory_format = torch.channels_last_3d if is_last else torch.contiguous_format

    def normal(shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(tuple(shape), generator=generator, device=device)
        drawn = drawn.to(TORCH_DTYPES[point.dtype])
        return drawn.contiguous(memory_format=memory_format) if len(shape) == 5 else drawn

    return Operands(
        normal(geometry.input_shape),
        normal(geometry.weight_shape),
        normal((geometry.out_channels,)) if point.layer.bias else None,
        None if forward else normal(geometry.output_shape),
    )


def our_call(point: Point, operands: Operands) -> Call:
    """Returns the call of convt3d: the public function, for a gradient the operator that its backward runs."""
    shape, o = point.layer.geometry, operands
    rest = (shape.stride, shape.padding, shape.output_padding, shape.dilation, shape.groups)
    is_last = point.layout == "channels_last"
    operators = torch.ops.convt3d
    if point.direction == "forward":
        return lambda: (
            conv_transpose3d(
                *(o.input, o.weight, o.bias, shape.stride, shape.padding, shape.output_padding),
                *(shape.groups, shape.dilation),
            ),
        )
    if point.direction == "grad_input":
        return lambda: (operators.grad_input(o.grad_output, o.weight, *rest, is_last),)
    has_bias = point.layer.bias
    return lambda: _wanted(
        operators.grad_weight(
            *(o.input, o.grad_output, shape.kernel_size, *rest, is_last, True, has_bias)
        ),
        1 + has_bias,
    )


def native_call(point: Point, operands: Operands) -> Call:
    """Returns PyTorch's call: the public function, for a gradient the operator that its backward runs."""
    shape, o = point.layer.geometry, operands
    if point.direction == "forward":
        return lambda: (
            torch.nn.functional.conv_transpose3d(
                *(o.input, o.weight, o.bias, shape.stride, shape.padding, shape.output_padding),
                *(shape.groups, shape.dilation),
            ),
        )
    backward = torch.ops.aten.convolution_backward
    has_bias, for_input = point.layer.bias, point.direction == "grad_input"
    mask = [for_input, not for_input, has_bias and not for_input]
    arguments = (
        *(o.grad_output, o.input, o.weight, [shape.out_channels] if has_bias else None),
        *(shape.stride, shape.padding, shape.dilation, True, shape.output_padding),
        *(shape.groups, mask),
    )
    if for_input:
        return lambda: (backward(*arguments)[0],)
    return lambda: _wanted(backward(*arguments)[1:], 1 + has_bias)


def _wanted(results: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    return tuple(results[:count])


def placed(executor: Executor | None, benchmark: bool, strict: bool) -> Callable[[Any], Any]:
    """Returns a `place` of a Subject.

    PyTorch keeps the algorithm that cuDNN was first asked for, by shape, in a cache of each thread, and looks there
    before it looks at cudnn.benchmark: with it on and off in one thread, the second would run what the first has found.
    So each has a thread of its own. Source: thread_local benchmark_cache in aten/src/ATen/native/cudnn/Conv_v8.cpp.

    Args:
        executor: whose only thread runs the functions; None for the caller's.
        benchmark: cudnn.benchmark.
        strict: without TF32.
    """

    def under_settings(function: Callable[[], T]) -> T:
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=not strict)
        with flags:
            return function()

    if executor is None:
        return under_settings
    return lambda function: executor.submit(under_settings, function).result()


@contextmanager
def noting_parts() -> Iterator[set[str]]:
    """Notes which compiled parts calls would need, and launches none: results hold whatever memory held."""
    parts: set[str] = set()
    original = launch._launch

    def note(part: str, *_: Any) -> None:
        parts.add(part)

    launch._launch = note  # type: ignore[assignment]
    try:
        yield parts
    finally:
        launch._launch = original


def errors(results: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the largest error over the largest exact element, and the errors' norm over the exact norm.

    Args:
        results: of one call; what is not finite makes the errors NaN or infinite.
        exact: their values, in more precision; the worst of several results counts.

    Raises:
        RuntimeError: a shape is not the exact one's.
    """
    largest, rms = 0.0, 0.0
    for got, wanted in zip(results, exact, strict=True):
        if got.shape != wanted.shape:
            raise RuntimeError(f"shape {tuple(got.shape)}, but must be {tuple(wanted.shape)}")
        difference = got.to(wanted.dtype) - wanted
        pair = [
            float(
                torch.linalg.vector_norm(difference, order)
                / (torch.linalg.vector_norm(wanted, order) or 1.0)
            )
            for order in (math.inf, 2)
        ]
        largest, rms = _worse(largest, pair[0]), _worse(rms, pair[1])
    return largest, rms


def _worse(one: float, other: float) -> float:
    """The larger; NaN is the worst of all."""
    return other if math.isnan(other) or other > one else one


def tiny(layer: Layer) -> Layer:
    """Returns the layer with a batch of 1 and as small an input as has an output, from TINY_SIZE on."""
    shape = layer.geometry
    sizes = [_tiny_size(shape, axis) for axis in range(3)]
    small = replace(shape, batch=1, input_size=(sizes[0], sizes[1], sizes[2]))
    return replace(layer, geometry=small)


def _tiny_size(shape: Geometry, axis: int) -> int:
    parameters = (shape.kernel_size, shape.stride, shape.padding, shape.output_padding)
    for size in range(min(TINY_SIZE, shape.input_size[axis]), shape.input_size[axis]):
        same: Triple = (size, size, size)
        if output_size(same, *parameters, shape.dilation)[axis] >= 1:
            return size
    return shape.input_size[axis]
