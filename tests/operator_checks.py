"""What a call of the op must give on any device: calls to try, their operands, and PyTorch's own answer.

The data are small integers without 0, so that every sum is exact in fp32 in any order, and the answer is the exact sum
rounded once, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import convt3d
from convt3d import launch, plan
from convt3d import ops as _ops  # noqa: F401  registers torch.ops.convt3d
from convt3d.geometry import Geometry, Triple
from convt3d.launch import allocate

DTYPES = tuple(launch.DTYPE_NAMES)
BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
RESULTS = ("output", "grad_input", "grad_weight", "grad_bias")
LARGEST_INTEGER = 8
MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last_3d,
}


def name_of(value: object) -> str:
    """Returns how a dtype is called in the id of a test."""
    return str(value).removeprefix("torch.")


def geometry(
    input_size: Triple,
    kernel_size: Triple,
    *,
    batch: int = 1,
    channels: tuple[int, int] = (1, 1),
    groups: int = 1,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    output_padding: Triple = (0, 0, 0),
    dilation: Triple = (1, 1, 1),
) -> Geometry:
    """Returns a geometry with torch's defaults; channels are (C_in, C_out)."""
    return Geometry(
        batch=batch,
        in_channels=channels[0],
        out_channels=channels[1],
        groups=groups,
        input_size=input_size,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )


GEOMETRIES = {
    "one_element": geometry((1, 1, 1), (1, 1, 1)),
    "plain": geometry((3, 2, 4), (3, 3, 2), batch=2, channels=(3, 4)),
    "upsampling": geometry(
        (3, 4, 3),
        (3, 3, 3),
        batch=2,
        channels=(4, 3),
        stride=(2, 2, 2),
        padding=(1, 1, 1),
        output_padding=(1, 1, 1),
    ),
    "stride_above_kernel": geometry((2, 3, 2), (2, 1, 2), channels=(2, 3), stride=(3, 4, 3)),
    "phases_without_a_tap": geometry(
        (3, 2, 3),
        (3, 2, 3),
        channels=(2, 2),
        stride=(2, 2, 2),
        dilation=(2, 2, 2),
        output_padding=(1, 1, 1),
    ),
    "stride_and_dilation_share_a_factor": geometry(
        (3, 2, 2), (4, 3, 4), channels=(2, 2), stride=(6, 4, 3), dilation=(4, 6, 2)
    ),
    "every_axis_of_its_own": geometry(
        (2, 3, 4),
        (3, 2, 4),
        batch=2,
        channels=(2, 3),
        stride=(2, 1, 3),
        padding=(1, 0, 2),
        output_padding=(0, 1, 2),
        dilation=(1, 2, 2),
    ),
    "padding_of_the_whole_kernel": geometry(
        (4, 3, 5), (3, 2, 4), channels=(2, 2), padding=(2, 1, 3)
    ),
    "dilated_past_the_input": geometry(
        (2, 1, 2), (3, 2, 3), batch=3, channels=(2, 2), padding=(3, 0, 2), dilation=(3, 5, 2)
    ),
    "groups": geometry((2, 3, 2), (2, 2, 2), batch=2, channels=(6, 9), groups=3),
    "depthwise": geometry((3, 2, 3), (2, 3, 2), channels=(5, 10), groups=5, stride=(1, 2, 1)),
    "channels_past_a_tile": geometry(
        (1, 2, 3), (1, 1, 2), batch=2, channels=(17, 33), stride=(1, 1, 2)
    ),
    "row_past_a_tile": geometry((1, 1, 70), (1, 1, 3), stride=(1, 1, 2), padding=(0, 0, 1)),
    "positions_past_a_tile": geometry(
        (3, 5, 6), (2, 2, 1), batch=3, channels=(2, 2), stride=(2, 1, 1)
    ),
}


@dataclass(frozen=True)
class Operands:
    """Input, weight, bias or None, and grad_output; as design.md shapes them."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """Returns the operands with `change` applied to each."""
        bias = None if self.bias is None else change(self.bias)
        return Operands(change(self.input), change(self.weight), bias, change(self.grad_output))


@dataclass(frozen=True)
class Results:
    """The four results of a call; grad_bias is None without a bias."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None


def integers(shape: Sequence[int], seed: int) -> Tensor:
    """Returns float64 integers in [-LARGEST_INTEGER, LARGEST_INTEGER] without 0."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, LARGEST_INTEGER + 1, tuple(shape), generator=generator)
    sign = torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1
    return (magnitude * sign).double()


def operands(
    geometry: Geometry,
    dtype: torch.dtype,
    device: str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
    bias: bool = True,
) -> Operands:
    """Returns integer operands of a geometry, the same ones for every dtype, device and format."""

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, dtype)
        return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 5 else tensor

    return Operands(
        integers(geometry.input_shape, 1),
        integers(geometry.weight_shape, 2),
        integers((geometry.out_channels,), 3) if bias else None,
        integers(geometry.output_shape, 4),
    ).map(place)


def reals(geometry: Geometry, dtype: torch.dtype, device: str = "cpu") -> Operands:
    """Returns operands whose sums depend on the order of summation."""
    generator = torch.Generator().manual_seed(5)

    def real(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(device, dtype)

    return operands(geometry, dtype).map(real)


def poisoned_allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool
) -> Tensor:
    """Takes the place of launch.allocate: the same memory, filled with NaN."""
    return allocate(shape, dtype, device, channels_last).fill_(float("nan"))


def parameters(geometry: Geometry) -> tuple[Any, ...]:
    """Returns what the forward operator takes after its tensors; grad_input and grad_weight take one more."""
    return (
        geometry.stride,
        geometry.padding,
        geometry.output_padding,
        geometry.dilation,
        geometry.groups,
    )


def differentiated(
    function: Callable[..., Tensor], geometry: Geometry, operands: Operands
) -> Results:
    """Calls a conv_transpose3d on the operands as they lie, and differentiates it."""
    leaves = operands.map(lambda tensor: tensor.detach().requires_grad_())
    output = function(
        leaves.input,
        leaves.weight,
        leaves.bias,
        geometry.stride,
        geometry.padding,
        geometry.output_padding,
        geometry.groups,
        geometry.dilation,
    )
    wanted = [leaf for leaf in (leaves.input, leaves.weight, leaves.bias) if leaf is not None]
    gradients = torch.autograd.grad(output, wanted, operands.grad_output)
    return Results(
        output.detach(), gradients[0], gradients[1], gradients[2] if len(gradients) == 3 else None
    )


def call(geometry: Geometry, operands: Operands) -> Tensor:
    """Calls the public function on the operands as they lie."""
    stride, padding, output_padding, dilation, groups = parameters(geometry)
    return convt3d.conv_transpose3d(
        operands.input,
        operands.weight,
        operands.bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )


def ours(geometry: Geometry, operands: Operands) -> Results:
    """Returns what convt3d makes of the operands."""
    return differentiated(convt3d.conv_transpose3d, geometry, operands)


def native(geometry: Geometry, operands: Operands) -> Results:
    """Returns PyTorch's answer in float64 on the CPU, without oneDNN, which verification has caught wrong."""
    exact = operands.map(lambda tensor: tensor.detach().cpu().double().contiguous())
    with torch.backends.mkldnn.flags(enabled=False):
        return differentiated(torch.nn.functional.conv_transpose3d, geometry, exact)


def assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    """Asserts that two tensors of one dtype agree in shape and in every bit; strides may differ."""
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    got, expected = got.cpu().contiguous(), expected.cpu().contiguous()
    different = got.view(BITS[got.dtype]) != expected.view(BITS[got.dtype])
    if different.any():
        at = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {got.numel()} elements differ, first at {at}: "
            f"{got[at].item()}, but must be {expected[at].item()}"
        )


def assert_right(got: Results, expected: Results, what: str = "") -> None:
    """Asserts that results are the expected float64 ones, rounded once to their dtype."""
    for name in RESULTS:
        tensor, exact = getattr(got, name), getattr(expected, name)
        if exact is None:
            assert tensor is None
        else:
            assert_same_bits(tensor, exact.to(tensor.dtype), f"{name} {what}")


def assert_same_results(got: Results, expected: Results, what: str = "") -> None:
    """Asserts that two answers agree in every bit."""
    for name in RESULTS:
        if getattr(expected, name) is not None:
            assert_same_bits(getattr(got, name), getattr(expected, name), f"{name} {what}")


def plan_sets(geometry: Geometry, fits_32_bits: bool = True) -> Iterator[dict[str, str]]:
    """Yields plans for the three primitives, until each candidate has had a turn."""
    names = [
        [str(one) for one in plan.candidates(primitive, geometry, fits_32_bits)]
        for primitive in plan.PRIMITIVES
    ]
    for turn in range(max(len(each) for each in names)):
        chosen = [each[turn % len(each)] for each in names]
        yield dict(zip(plan.PRIMITIVES, chosen))


def every_other(tensor: Tensor) -> Tensor:
    """Returns the same values, two elements apart along every axis, with something else between."""
    spaced = torch.full([2 * size for size in tensor.shape], -99.0).to(tensor)
    view = spaced[(slice(1, None, 2),) * tensor.dim()]
    return view.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """Returns the same values with the axes in memory in reverse order."""
    reversed_axes = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(reversed_axes).contiguous().permute(reversed_axes)


def at_an_odd_address(tensor: Tensor) -> Tensor:
    """Returns the same values, one element after the start of their memory."""
    shifted = torch.full([tensor.numel() + 1], -99.0).to(tensor)[1:].view(tensor.shape)
    return shifted.copy_(tensor)


def cut_out(tensor: Tensor) -> Tensor:
    """Returns the same values as the middle of a larger tensor, in channels_last_3d where it has 5 axes."""
    larger = torch.full([size + 3 for size in tensor.shape], -99.0).to(tensor)
    if tensor.dim() == 5:
        larger = larger.contiguous(memory_format=torch.channels_last_3d)
    return larger[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """Returns other values of the same shape: one element along the first axis and the last, repeated."""
    first = tensor[:1] if tensor.dim() == 1 else tensor[:1, ..., :1]
    return first.expand(tensor.shape)


VIEWS = {
    view.__name__: view for view in (every_other, transposed, at_an_odd_address, cut_out, expanded)
}


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns every non-empty subset."""
    sizes = range(1, len(names) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(names, size)]
