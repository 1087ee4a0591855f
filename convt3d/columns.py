"""Columns: how outputs and inputs of an axis meet, and what a kernel may know of it at compile time. No torch.

Note [Columns] is in kernels/columns.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from convt3d.geometry import Axis, Geometry


class Pattern(NamedTuple):
    """What a kernel may know of the taps along W; padding is that of the call modulo stride."""

    stride: int
    taps: int
    padding: int
    dilation: int = 1

    def __str__(self) -> str:
        dilation = f"d{self.dilation}" if self.dilation > 1 else ""
        return f"s{self.stride}k{self.taps}p{self.padding}{dilation}"


# Those for which there are kernels that know the taps.
PATTERNS = tuple(
    Pattern(*numbers)
    for numbers in (
        *((1, 1, 0), (1, 3, 0), (1, 3, 0, 2), (1, 5, 0), (1, 7, 0)),
        *(
            (2, 2, 0),
            (2, 3, 0),
            (2, 3, 1),
            (2, 3, 1, 2),
            (2, 4, 0),
            (2, 4, 1),
            (2, 5, 0),
            (2, 7, 1),
        ),
    )
)
# A pattern's name, or that of none, as a regular expression without groups.
PATTERN_NAME = r"any|s\d+k\d+p\d+(?:d\d+)?"
# Columns of a thread, or of one lane of a product, along W.
RUN = 8
LARGEST_STRIDE = 4
LARGEST_KERNEL = 1024
LARGEST_COORDINATE = 2**30  # the kernels have 32 bits for them


def pattern_of(axis: Axis) -> Pattern | None:
    """The pattern of PATTERNS that an axis follows, or None."""
    wanted = Pattern(axis.stride, axis.kernel_size, axis.padding % axis.stride, axis.dilation)
    return wanted if wanted in PATTERNS else None


def pattern_name(pattern: Pattern | None) -> str:
    """`s2k3p1`, or `any`."""
    return str(pattern) if pattern else "any"


def parse_pattern(name: str) -> Pattern | None:
    """Returns what pattern_name has named; there need be no kernels for it."""
    return None if name == "any" else Pattern(*map(int, re.findall(r"\d+", name)))


def has_column_form(geometry: Geometry) -> bool:
    """Whether a kernel that works in columns can run a call at all."""
    if 0 in geometry.output_shape or 0 in geometry.input_shape:
        return False
    if max(geometry.stride) > LARGEST_STRIDE or max(geometry.kernel_size) > LARGEST_KERNEL:
        return False
    return all(geometry.axis(index).largest_coordinate < LARGEST_COORDINATE for index in range(3))


class AxisColumns:
    """One axis as columns and phases. See Note [Columns].

    Args:
        axis: the axis; its stride and kernel_size must be small, and some tap must reach some phase.

    Attributes:
        taps: of each phase, in order.
        count: of columns: outputs u * stride to u * stride + stride - 1.
        low, high: the smallest and the largest shift.
        span: their distance.
    """

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self.count = -(-axis.output_size // axis.stride)
        self.taps: list[list[int]] = [[] for _ in range(axis.stride)]
        found = []
        for tap in range(axis.kernel_size):
            phase = (tap * axis.dilation - axis.padding) % axis.stride
            self.taps[phase].append(tap)
            found.append(self.shift(phase, tap))
        self.low, self.high = min(found), max(found)
        self.span = self.high - self.low

    def phase_taps(self, phase: int) -> tuple[int, int, int, int, int]:
        """PhaseTaps of kernels/columns.py: count, first, step, base, shift."""
        taps = self.taps[phase]
        shifts = [self.shift(phase, tap) - self.low for tap in taps]
        if not taps:
            return 0, 0, 1, 0, 0
        if len(taps) == 1:
            return 1, taps[0], 1, shifts[0], 0
        return len(taps), taps[0], taps[1] - taps[0], shifts[0], shifts[1] - shifts[0]

    def shift(self, phase: int, tap: int) -> int:
        """Column u of the phase meets input u + shift through the tap."""
        axis = self.axis
        return (phase + axis.padding - tap * axis.dilation) // axis.stride
