"""The integers of a transposed convolution: sizes, phases and the checks on arguments. No torch.

Along one axis, with size I, kernel_size K, stride s, padding p, output_padding op and dilation d, input element i and
tap k contribute to output element o = i*s - p + k*d.

Note [Phases]
    Output o is reached by tap k only if o + p - k*d is a multiple of s. With g = gcd(s, d) and q = s/g, the taps that
    solve k*d = r (mod s) for a residue r are k0, k0 + q, k0 + 2q, ..., or none when g does not divide r. The outputs of
    one residue form a phase: they share their taps, and tap k0 + j*q of the phase's t-th output reads input
    t + base - j*(d/g). A phase without a tap holds the bias alone.

Note [Empty tensors]
    What may be empty is what PyTorch's op takes on a GPU with cuDNN, on every device: the batch, with it any spatial
    axis of the input; the output channels, unless the batch is empty too; any axis of the output. Its CPU op takes no
    empty output channels, and empty outputs only in some dtypes. Gradients to which nothing contributes are zero. An
    argument that is wrong stays wrong on an empty batch, where PyTorch's op does not look at dtypes, devices,
    output_padding or dilation.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property

Triple = tuple[int, int, int]

# Native keeps them in 32 bits. The kernels rely on it: products of two of them stay below 2^63.
LARGEST_PARAMETER = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a geometry; every field in elements of that axis."""

    input_size: int
    output_size: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int

    @property
    def stride_dilation_gcd(self) -> int:
        """g of Note [Phases]."""
        return math.gcd(self.stride, self.dilation)

    @property
    def tap_step(self) -> int:
        """q of Note [Phases]: the distance between two taps of a phase."""
        return self.stride // self.stride_dilation_gcd

    @property
    def dilation_inverse(self) -> int:
        """The inverse of d/g modulo q, so that residue r starts at tap (r/g) * inverse mod q."""
        return pow(self.dilation // self.stride_dilation_gcd, -1, self.tap_step)

    @property
    def largest_coordinate(self) -> int:
        """An upper bound on every coordinate, before cropping, that a kernel computes on this axis."""
        reach = (self.input_size - 1) * self.stride + (self.kernel_size - 1) * self.dilation + 1
        return max(reach, self.output_size) + 2 * self.padding + self.stride


@dataclass(frozen=True)
class Geometry:
    """All of a call but its dtype, memory layout and device.

    Args:
        batch: N.
        in_channels: C_in, divisible by groups.
        out_channels: C_out, divisible by groups.
        groups: number of groups.
        input_size: (D, H, W) of the input.
        kernel_size: (kD, kH, kW).
        stride, padding, output_padding, dilation: per axis, as in PyTorch's ConvTranspose3d.
    """

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input_size: Triple
    kernel_size: Triple
    stride: Triple
    padding: Triple
    output_padding: Triple
    dilation: Triple

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all fields: caches are asked for a geometry at every call."""
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    @cached_property
    def output_size(self) -> Triple:
        """(D, H, W) of the output."""
        return output_size(
            self.input_size,
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
        )

    @property
    def in_channels_per_group(self) -> int:
        return self.in_channels // self.groups

    @property
    def out_channels_per_group(self) -> int:
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        return math.prod(self.kernel_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels_per_group, *self.kernel_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output_size)

    def axis(self, index: int) -> Axis:
        """Axis 0, 1 or 2: D, H or W."""
        return Axis(
            self.input_size[index],
            self.output_size[index],
            self.kernel_size[index],
            self.stride[index],
            self.padding[index],
            self.dilation[index],
        )


def output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> Triple:
    """Returns (D, H, W) of the output; may be negative, which `check_geometry` refuses.

    Source: the Shape section of PyTorch's ConvTranspose3d.
    """
    depth, height, width = (
        (i - 1) * s - 2 * p + d * (k - 1) + op + 1
        for i, k, s, p, op, d in zip(
            input_size, kernel_size, stride, padding, output_padding, dilation, strict=True
        )
    )
    return depth, height, width


def triple(name: str, value: object) -> Triple:
    """Returns value as three integers, one an axis.

    Raises:
        TypeError: value is neither an integer nor a sequence of integers.
        ValueError: an integer does not fit 64 bits.
        RuntimeError: the sequence has neither one nor three integers.
    """
    if type(value) is tuple and len(value) == 3:  # the usual case, and quick
        depth, height, width = value
        are_ints = type(depth) is type(height) is type(width) is int
        if are_ints and abs(depth) | abs(height) | abs(width) < 2**63:
            return value
    single = _as_int(name, value)
    if single is not None:
        return (single, single, single)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}={value!r}, but must be an int or three ints (D, H, W)")
    # PyTorch's own parser looks for a bool in the first place alone.
    first, rest = value[:1], [int(item) if isinstance(item, bool) else item for item in value[1:]]
    items = [_as_int(name, item) for item in (*first, *rest)]
    if None in items:
        wrong = value[items.index(None)]
        raise TypeError(f"{name}={value!r}, but {wrong!r} in it is not an int")
    integers = [item for item in items if item is not None]
    if len(integers) == 1:
        integers *= 3
    if len(integers) != 3:
        raise RuntimeError(f"{name}={value!r} has {len(integers)} values, but must have 1 or 3")
    return (integers[0], integers[1], integers[2])


def integer(name: str, value: object) -> int:
    """Returns value as an int.

    Raises:
        TypeError: it is not an integer; a bool is none.
        ValueError: it does not fit 64 bits.
    """
    result = _as_int(name, value)
    if result is None:
        raise TypeError(f"{name}={value!r}, but must be an int")
    return result


def _as_int(name: str, value: object) -> int | None:
    """Any integer, NumPy's too, as an int; None for anything else, and for a bool."""
    result = None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        result = value
    elif type(value).__name__ == "SymInt":
        return value  # type: ignore[return-value]  # torch's, while a graph of dynamic shapes is traced
    elif hasattr(value, "__index__"):
        with suppress(TypeError):  # a tensor that is no integer
            result = operator.index(value)
    if result is not None and not -(2**63) <= result < 2**63:
        raise ValueError(f"{name}={result}, but must fit 64 bits")
    return result


def grad_input_geometry(
    grad_output_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Triple,
    padding: Triple,
    output_padding: Triple,
    dilation: Triple,
    groups: int,
) -> Geometry:
    """Returns the geometry whose output has the shape of grad_output.

    The output size determines the input size exactly, because output_padding is known.

    Raises:
        RuntimeError: no input size gives that output size.
    """
    input_size = []
    for axis in range(3):
        if stride[axis] < 1:
            raise RuntimeError(f"stride[{axis}]={stride[axis]}, but must be at least 1")
        reach = (
            grad_output_shape[2 + axis]
            + 2 * padding[axis]
            - dilation[axis] * (weight_shape[2 + axis] - 1)
            - output_padding[axis]
            - 1
        )
        if reach % stride[axis]:
            raise RuntimeError(
                f"grad_output has size {grad_output_shape[2 + axis]} on axis {axis}, which no input "
                f"size gives with kernel_size={weight_shape[2 + axis]}, stride={stride[axis]}, "
                f"padding={padding[axis]}, output_padding={output_padding[axis]}, "
                f"dilation={dilation[axis]}"
            )
        input_size.append(reach // stride[axis] + 1)
    return Geometry(
        batch=grad_output_shape[0],
        in_channels=weight_shape[0],
        out_channels=grad_output_shape[1],
        groups=groups,
        input_size=(input_size[0], input_size[1], input_size[2]),
        kernel_size=(weight_shape[2], weight_shape[3], weight_shape[4]),
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )


def check_geometry(geometry: Geometry) -> None:
    """Raises, naming argument and value, unless this geometry can be run. See Note [Empty tensors].

    Raises:
        IndexError: batch and weight are both empty.
        RuntimeError: anything else is wrong.
    """
    _check_channels(geometry)
    for axis in range(3):
        _check_axis(geometry, axis)
    # Not min(): what is traced would depend on the order of the sizes.
    if any(size < 0 for size in geometry.output_size):
        raise RuntimeError(
            f"output size {geometry.output_size} is negative for input size "
            f"{geometry.input_size}, kernel_size={geometry.kernel_size}, stride={geometry.stride}, "
            f"padding={geometry.padding}, output_padding={geometry.output_padding}, "
            f"dilation={geometry.dilation}; use a smaller padding"
        )


def _check_channels(geometry: Geometry) -> None:
    groups = geometry.groups
    if groups < 1:
        raise RuntimeError(f"groups={groups}, but must be at least 1")
    if geometry.in_channels < 1:
        raise RuntimeError(f"in_channels={geometry.in_channels}, but must be at least 1")
    for name in ("in_channels", "out_channels"):
        channels = getattr(geometry, name)
        if channels % groups:
            raise RuntimeError(f"{name}={channels} is not divisible by groups={groups}")
    if 0 in geometry.weight_shape and geometry.batch == 0:
        raise IndexError(
            f"weight has shape {geometry.weight_shape}, but must not be empty when the batch is"
        )


def _check_axis(geometry: Geometry, axis: int) -> None:
    smallest = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0, "output_padding": 0}
    smallest["input_size"] = 1
    if geometry.input_size[axis] == 0 and geometry.batch == 0:
        smallest["input_size"] = 0
    for name, least in smallest.items():
        value = getattr(geometry, name)[axis]
        if value < least:
            raise RuntimeError(f"{name}[{axis}]={value}, but must be at least {least}")
        if name != "input_size" and value > LARGEST_PARAMETER:  # no bound on a symbolic size
            raise RuntimeError(f"{name}[{axis}]={value}, but must be below 2^31")
    extra, stride, dilation = (
        geometry.output_padding[axis],
        geometry.stride[axis],
        geometry.dilation[axis],
    )
    if extra >= stride and extra >= dilation:
        raise RuntimeError(
            f"output_padding[{axis}]={extra}, but must be less than stride[{axis}]={stride} or "
            f"dilation[{axis}]={dilation}"
        )
