"""Hypothesis strategies that draw cases, every one of them legal.

Note [Draws]: all numbers of a case come from one st.randoms(), whose `choice` draws an index straight from
Hypothesis and shrinks it towards the first entry. It is as quick as a draw can be, takes tables built
from the values drawn before (so that nothing needs assume or filter), and leaves recent versions of
Hypothesis no parts with equal labels: they spend up to five runs of six on copying such parts over one
another, which for cases means repeats and near neighbours.

Note [Tables]: a table is ascending, with some entries more than once. Repeats make small values and
edges likelier; ascending order makes a case shrink to the smallest value that fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fuzz.case import LANES, LAYOUTS, MODES, Case
from fuzz.number import DTYPES

Plans = Callable[[Case], Mapping[str, Sequence[str]]]
Table = tuple[Any, ...]

MAX_SEED = 9_999

# Around the tiles of the kernels: 64 to 256 positions, 32 channels, reductions in steps of 8 to 32.
_WIDE_EDGES = (63, 64, 65, 95, 96, 97, 127, 128, 129)
_CHANNEL_EDGES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)

_SIZES = (1, 1, 1, 2, 2, 3, 4, 5)
_LARGER_SIZES = tuple(range(1, 11))
_SMALLER_SIZES = (1, 1, 1, 2, 2, 3)
_WIDE_SIZES = tuple(range(1, 141)) + 10 * _WIDE_EDGES
_CHANNELS = (1, 1, 2, 2, 3, 4, 5, 6)
_MANY_CHANNELS = tuple(range(1, 67)) + 10 * _CHANNEL_EDGES
_BATCHES = (1, 1, 1, 1, 2, 2, 3, 5)
_GROUPS = (2, 2, 3, 3, 4, 5, 6, 8)
_KERNELS = (1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 7)
_STRIDES = (1, 1, 1, 2, 2, 2, 3, 4, 5)
_DILATIONS = (1, 1, 1, 1, 2, 2, 3, 4)


class _Scale(NamedTuple):
    """What kind of case: how large its parts are."""

    sizes: Table
    wide_sizes: Table  # of one axis, the wide one
    channels: Table
    share: int  # the spatial part of the work is at most max_multiply_adds / share


_SMALL = _Scale(_SIZES, _SIZES, _CHANNELS, 40)
_DEEP = _Scale(_SMALLER_SIZES, _SIZES, _MANY_CHANNELS, 2500)  # leaves 50 x 50 channels
_WIDE = _Scale(_SMALLER_SIZES, _WIDE_SIZES, _CHANNELS, 10)
_BULKY = _Scale(_LARGER_SIZES, _LARGER_SIZES, _CHANNELS, 10)
_BROAD = _Scale(_SMALLER_SIZES, _WIDE_SIZES, _MANY_CHANNELS, 300)
_SCALES = (_SMALL,) * 12 + (_DEEP,) * 3 + (_WIDE,) * 2 + (_BULKY,) + (_BROAD,) * 2


class _Axis(NamedTuple):
    input_size: int = 1
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1


def cases(
    *,
    dtypes: Sequence[str],
    lanes: Sequence[str] = LANES,
    modes: Sequence[str] = MODES,
    plans: Plans | None = None,
    max_multiply_adds: int = 200_000,
) -> st.SearchStrategy[Case]:
    """Returns a strategy for legal cases, often at an edge of what is legal.

    Args:
        dtypes, lanes, modes: what to draw from, each at least one.
        plans: candidate plan names of a case that lacks only its plans, by primitive ("forward",
            "grad_input", "grad_weight"); None leaves all plans auto.
        max_multiply_adds: largest Case.multiply_adds, and largest number of output elements.

    Examples from this strategy shrink towards one tap, one channel and one voxel, f32 (or the first of
    dtypes), the int lane, seed 0, fast mode and auto plans.

    Raises:
        ValueError: an argument out of range.
    """
    for name, given, allowed in (
        ("dtypes", dtypes, DTYPES),
        ("lanes", lanes, LANES),
        ("modes", modes, MODES),
    ):
        if not given or not set(given) <= set(allowed):
            raise ValueError(f"{name}={given!r}, but must be one or more of {allowed}")
    if max_multiply_adds < 1:
        raise ValueError(f"max_multiply_adds={max_multiply_adds}, but must be at least 1")
    return _cases(
        dtypes=tuple(sorted(dtypes, key=lambda dtype: dtype != "f32")),
        lanes=tuple(sorted(lanes, key=LANES.index)),
        modes=tuple(sorted(modes, key=MODES.index)),
        plans=plans,
        max_multiply_adds=max_multiply_adds,
    )


@st.composite
def _cases(
    draw: Callable[[st.SearchStrategy[Random]], Random],
    *,
    dtypes: Table,
    lanes: Table,
    modes: Table,
    plans: Plans | None,
    max_multiply_adds: int,
) -> Case:
    random = draw(st.randoms(use_true_random=False))
    scale = _pick(random, _SCALES)
    wide = _pick(random, (2, 2, 1, 0)) if scale.wide_sizes != scale.sizes else None
    axes = _fit(_axes(random, scale, wide), wide, max_multiply_adds // scale.share)
    extra = [_output_padding(random, axis) for axis in axes]
    padding = [_padding(random, axis, more) for axis, more in zip(axes, extra)]
    n, groups, in_channels, out_channels = _channels(
        random, scale, max_multiply_adds // _positions(axes)
    )
    mode = _pick(random, modes)
    case = Case(
        dtype=_pick(random, dtypes),
        n=n,
        groups=groups,
        in_channels=in_channels,
        out_channels=out_channels,
        input_size=_triple(axis.input_size for axis in axes),
        kernel_size=_triple(axis.kernel_size for axis in axes),
        stride=_triple(axis.stride for axis in axes),
        padding=_triple(padding),
        output_padding=_triple(extra),
        dilation=_triple(axis.dilation for axis in axes),
        bias=_pick(random, (False, True)),
        layout=_pick(random, LAYOUTS),
        lane=_pick(random, lanes),
        seed=random.randint(0, MAX_SEED),
        mode=mode,
        schedule=random.randint(0, MAX_SEED) if mode == "hostile" else 0,
    )
    return case if plans is None else _with_plans(random, case, plans(case))


def _with_plans(random: Random, case: Case, names: Mapping[str, Sequence[str]]) -> Case:
    forward, grad_input, grad_weight = (
        _pick(random, ("auto", *names.get(primitive, ())))
        for primitive in ("forward", "grad_input", "grad_weight")
    )
    return replace(
        case, forward_plan=forward, grad_input_plan=grad_input, grad_weight_plan=grad_weight
    )


def _pick(random: Random, table: Table) -> Any:
    return table[0] if len(table) == 1 else random.choice(table)


def _triple(values: Any) -> tuple[int, int, int]:
    depth, height, width = values
    return depth, height, width


def _axes(random: Random, scale: _Scale, wide: int | None) -> list[_Axis]:
    """Depth, height and width: each a single point, or like the first that is not, or by itself."""
    axes = [_Axis()] * 3
    model = None
    for index in (2, 1, 0):
        kind = _pick(random, ("point", "alike", "free", "free", "free"))
        if kind == "alike" and model is not None:
            axes[index] = model
        elif kind != "point":
            axes[index] = _Axis(
                _pick(random, scale.wide_sizes if index == wide else scale.sizes),
                _pick(random, _KERNELS),
                _pick(random, _STRIDES),
                _pick(random, _DILATIONS),
            )
            model = model or axes[index]
    return axes


def _fit(axes: list[_Axis], wide: int | None, limit: int) -> list[_Axis]:
    """Makes the largest axis smaller until the positions are within the limit, the wide axis last."""
    axes = list(axes)
    while _positions(axes) > max(1, limit):
        index = max(
            (index for index in range(3) if axes[index] != _Axis()),
            key=lambda index: (index != wide, _positions([axes[index]])),
        )
        size, kernel, stride, dilation = axes[index]
        if size > 1:
            axes[index] = _Axis(size - (size + 3) // 4, kernel, stride, dilation)
        elif kernel > 1:
            axes[index] = _Axis(size, kernel - 1, stride, dilation)
        else:
            axes[index] = _Axis()
    return axes


def _positions(axes: Sequence[_Axis]) -> int:
    """Work of a channel: multiply-adds or output elements, which padding can only make fewer."""
    multiply_adds = math.prod(axis.input_size * axis.kernel_size for axis in axes)
    return max(
        multiply_adds, math.prod(_reach(axis) + max(axis.stride, axis.dilation) for axis in axes)
    )


def _reach(axis: _Axis) -> int:
    """Distance from the first output element to the last, without paddings."""
    return (axis.input_size - 1) * axis.stride + (axis.kernel_size - 1) * axis.dilation


def _output_padding(random: Random, axis: _Axis) -> int:
    most = max(axis.stride, axis.dilation) - 1
    return int(_pick(random, (0,) * most + tuple(range(most + 1)) + (most,) * (most > 1)))


def _padding(random: Random, axis: _Axis, output_padding: int) -> int:
    """Often 0, kernel_size - 1, kernel_size, what crops the whole dilated kernel, the largest legal."""
    most = (_reach(axis) + output_padding) // 2
    return int(_pick(random, _padding_table(most, axis.kernel_size, axis.dilation)))


def _padding_table(most: int, kernel: int, dilation: int) -> Table:
    edges = [edge for edge in (kernel - 1, kernel, dilation * (kernel - 1)) if edge <= most]
    edges = [*edges, *edges, most]
    return (0, 0, *sorted({*range(min(kernel, most) + 1), *edges}), *edges)


def _channels(random: Random, scale: _Scale, budget: int) -> tuple[int, int, int, int]:
    """Returns N, groups, C_in, C_out with N * C_in * C_out / groups no more than the budget."""
    n = min(_pick(random, _BATCHES), budget)
    budget //= n
    kind = _pick(random, ("dense", "dense", "dense", "grouped", "depthwise"))
    if kind == "depthwise":
        groups = min(_pick(random, scale.channels), budget)
        ins, outs = 1, min(_pick(random, (1, 1, 1, 2, 3)), budget // groups)
    else:
        groups = min(_pick(random, _GROUPS), budget) if kind == "grouped" else 1
        budget //= groups
        ins = min(_pick(random, scale.channels), budget)
        outs = min(_pick(random, scale.channels), budget)
        if ins < outs:  # the larger one stays as drawn, likely at an edge
            ins = min(ins, budget // outs)
        else:
            outs = min(outs, budget // ins)
    return n, groups, groups * ins, groups * outs
