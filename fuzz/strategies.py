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
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from fuzz.case import FAR_MODES, LANES, LAYOUTS, MODES, Case
from fuzz.number import DTYPES

Plans = Callable[[Case], Mapping[str, Sequence[str]]]
Table = tuple[Any, ...]

MAX_SEED = 9_999
MAX_MULTIPLY_ADDS = 200_000
# A hostile schedule makes a case dearer, a sanitizer much dearer; mode -> the most that it is given to do.
MODE_MULTIPLY_ADDS = {
    "hostile": 100_000,
    "asan": 20_000,
    "tsan": 3_000,
    "memcheck": 20_000,
    "racecheck": 20_000,
    "initcheck": 20_000,
    "synccheck": 20_000,
}
# Modes in which the emulator's schedule follows from a seed.
SCHEDULED_MODES = ("hostile", "asan", "tsan")

# Around the tiles of the kernels: 64 to 256 positions, 32 channels, reductions in steps of 8 to 32.
_WIDE_EDGES = (63, 64, 65, 95, 96, 97, 127, 128, 129)
_CHANNEL_EDGES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)

_SIZES = (1, 1, 1, 2, 2, 3, 4, 5)
_POINTS = (1, 1, 1, 2)
_LARGER_SIZES = tuple(range(1, 11))
_SMALLER_SIZES = (1, 1, 1, 2, 2, 3)
_WIDE_SIZES = tuple(range(1, 141)) + 10 * _WIDE_EDGES
_CHANNELS = (1, 1, 2, 2, 3, 4, 5, 6)
_MANY_CHANNELS = tuple(range(1, 67)) + 10 * _CHANNEL_EDGES
_BATCHES = (1, 1, 1, 1, 2, 2, 3, 5)
_GROUPS = (2, 2, 3, 3, 4, 5, 6, 8)
_KERNELS = (1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 7)
# Just above a tile, nearly always; the rest is there to shrink to.
_TILED_SIZES = tuple(range(1, 33)) + 50 * (11, 17, 33, 33, 34, 40)
_TILED_CHANNELS = tuple(range(1, 33)) + 100 * (33, 33, 34, 48)
_TILED_COLUMNS = tuple(range(1, 65)) + 100 * (65, 65, 66, 96, 128, 129)
_TILED_KERNELS = (1, 1, 2, 3)
# Coordinates that need more than 32 bits, cropped by a padding as large. PyTorch's op computes 2 * padding and
# dilation * 2 in 32 bits: only if both overflow does it get the size right.
_VAST_DILATIONS = (2**30, 2**30 + 7, 2**31 - 9)
# A vast stride alone has PyTorch's op hang.
_VAST_PADDING = 2**30  # at least
_MOST_PADDING = 2**31 - 1
VAST = 2**20  # a dilation from here on: none else is as large, and shrinking may make it smaller
# More than 16 bits hold, signed or not, which is what a narrow index has, and a CUDA grid along y and z.
LONG = 2**15  # a size above is long
_LONG_SIZES = (1, 2, 3, 4, 5, 6) + 50 * (LONG + 1, LONG + 33) + 50 * (2**16 + 1,)
_STRIDES = (1, 1, 1, 2, 2, 2, 3, 4, 5, 6)
_DILATIONS = (1, 1, 1, 1, 2, 2, 3, 4)


class _Scale(NamedTuple):
    """What kind of case: how large its parts are."""

    sizes: Table
    wide_sizes: Table  # of one axis, the wide one
    channels: Table
    share: int  # the spatial part of the work is at most max_multiply_adds / share
    kernels: Table = _KERNELS
    batches: Table = _BATCHES
    kinds: Table = ("dense", "dense", "dense", "grouped", "depthwise")
    output_work: float = 1.0  # of an output element, in multiply-adds


_SMALL = _Scale(_SIZES, _SIZES, _CHANNELS, 40)
_DEEP = _Scale(_SMALLER_SIZES, _SIZES, _MANY_CHANNELS, 2500)  # leaves 50 x 50 channels
_WIDE = _Scale(_SMALLER_SIZES, _WIDE_SIZES, _CHANNELS, 10)
_BULKY = _Scale(_LARGER_SIZES, _LARGER_SIZES, _CHANNELS, 10)
_BROAD = _Scale(_SMALLER_SIZES, _WIDE_SIZES, _MANY_CHANNELS, 300)
# Several tiles of grad_weight along all three of its sizes: nearly all of the work that a case may have.
_TILED = _Scale(_POINTS, _TILED_SIZES, _TILED_CHANNELS, 1_000, _TILED_KERNELS, output_work=1 / 16)
_TILED_MULTIPLY_ADDS = 33 * 65 * 33  # at least
# Like small, but for one axis.
_VASTLY = _Scale(_SMALLER_SIZES, _SMALLER_SIZES, _CHANNELS, 40)
# One number of a case is long, which is all the work that it may have. Neither the number of groups is nor a kernel:
# with a tile for each, or one after the other, they take the emulator seconds.
_LONG_AXIS = _Scale(_POINTS, _LONG_SIZES, _POINTS, 1, _TILED_KERNELS)
_LONG_CHANNELS = _Scale(
    *(_POINTS, _POINTS, _LONG_SIZES, 2**16, _POINTS), kinds=("dense", "dense", "grouped")
)
_LONG_BATCH = _Scale(_POINTS, _POINTS, _POINTS, 2**16, _POINTS, batches=_LONG_SIZES)
_LONG = 3 * (_LONG_AXIS,) + 2 * (_LONG_CHANNELS,) + (_LONG_BATCH,)
LONG_MULTIPLY_ADDS = 2**17  # at least
_SCALES = (
    *((_SMALL,) * 35 + (_DEEP,) * 9 + (_WIDE,) * 6 + (_BULKY,) * 3 + (_BROAD,) * 6),
    *(_TILED, _VASTLY, _LONG, _LONG),
)


class _Axis(NamedTuple):
    input_size: int = 1
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1


@dataclass(frozen=True)
class Space:
    """What cases are drawn from.

    Args:
        dtypes, lanes, layouts, modes: what to draw from, each at least one; one that is there twice is drawn
            twice as often. Layout far is drawn in the modes that have it only.
        plans: candidate plan names of a case that lacks only its plans, by primitive ("forward",
            "grad_input", "grad_weight"); None leaves all plans auto.
        max_multiply_adds: largest Case.multiply_adds, and largest number of output elements; less in
            the modes of MODE_MULTIPLY_ADDS.
        has_vast: whether some cases have coordinates above 32 bits, for which PyTorch's op is not made: on a
            GPU it ends in CUDA errors.

    Raises:
        ValueError: an argument out of range.
    """

    dtypes: tuple[str, ...]
    lanes: tuple[str, ...] = LANES
    layouts: tuple[str, ...] = ("ncdhw", "cl")
    modes: tuple[str, ...] = ("fast", "hostile")
    plans: Plans | None = None
    max_multiply_adds: int = MAX_MULTIPLY_ADDS
    has_vast: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("dtypes", tuple(sorted(DTYPES, key=lambda dtype: dtype != "f32"))),
            ("lanes", LANES),
            ("layouts", LAYOUTS),
            ("modes", MODES),
        ):
            given = getattr(self, name)
            if not given or not set(given) <= set(allowed):
                raise ValueError(f"{name}={given!r}, but must be one or more of {allowed}")
            # See Note [Tables]: the simplest goes first.
            object.__setattr__(self, name, tuple(sorted(given, key=allowed.index)))
        if self.max_multiply_adds < 1:
            raise ValueError(f"max_multiply_adds={self.max_multiply_adds}, but must be at least 1")
        if not all(map(self.layouts_of, self.modes)):
            raise ValueError(f"layouts={self.layouts!r}, but far is of the modes {FAR_MODES} only")

    def layouts_of(self, mode: str) -> tuple[str, ...]:
        """The layouts that a mode has."""
        return tuple(name for name in self.layouts if name != "far" or mode in FAR_MODES)

    @property
    def draws_vast(self) -> bool:
        """Whether there is a vast dilation, and a lane for it."""
        return self.has_vast and set(self.lanes) != {"special"}

    def lanes_of(self, geometry: Case) -> tuple[str, ...]:
        """The lanes that can be judged: what special data excuse is computed on the uncropped output."""
        is_vast = max(geometry.dilation) >= VAST
        return tuple(lane for lane in self.lanes if lane != "special" or not is_vast)

    def biases_of(self, geometry: Case) -> tuple[bool, ...]:
        """Whether there may be a bias: a block of threads sums its gradient, for each channel one."""
        return (False, True) if geometry.out_channels <= LONG else (False,)

    def multiply_adds_of(self, mode: str) -> int:
        """The largest Case.multiply_adds of a mode."""
        return min(self.max_multiply_adds, MODE_MULTIPLY_ADDS.get(mode, self.max_multiply_adds))


def cases(
    *,
    dtypes: Sequence[str],
    lanes: Sequence[str] = LANES,
    layouts: Sequence[str] = ("ncdhw", "cl"),
    modes: Sequence[str] = ("fast", "hostile"),
    plans: Plans | None = None,
    max_multiply_adds: int = MAX_MULTIPLY_ADDS,
) -> st.SearchStrategy[Case]:
    """Returns a strategy for legal cases, often at an edge of what is legal.

    Args:
        dtypes, lanes, layouts, modes, plans, max_multiply_adds: as for Space.

    Examples from this strategy shrink towards one tap, one channel and one voxel, f32 (or the first of
    dtypes), the int lane, seed 0, fast mode and auto plans.

    Raises:
        ValueError: an argument out of range.
    """
    return cases_of(
        Space(tuple(dtypes), tuple(lanes), tuple(layouts), tuple(modes), plans, max_multiply_adds)
    )


@st.composite
def cases_of(draw: Callable[[st.SearchStrategy[Random]], Random], space: Space) -> Case:
    """The strategy `cases` for a space."""
    return draw_case(draw(st.randoms(use_true_random=False)), space)


def draw_case(random: Random, space: Space) -> Case:
    """Draws a legal case; the same from the same state of the generator."""
    mode = _pick(random, space.modes)
    geometry = draw_geometry(random, space.multiply_adds_of(mode), space.draws_vast)
    case = replace(
        geometry,
        dtype=_pick(random, space.dtypes),
        bias=_pick(random, space.biases_of(geometry)),
        layout=_pick(random, space.layouts_of(mode)),
        lane=_pick(random, space.lanes_of(geometry)),
        seed=random.randint(0, MAX_SEED),
        mode=mode,
        schedule=draw_schedule(random, mode),
    )
    return case if space.plans is None else _with_plans(random, case, space.plans(case))


def draw_geometry(random: Random, max_multiply_adds: int, may_be_vast: bool = False) -> Case:
    """Draws batch, groups, channels, sizes and parameters; all else has its default value."""
    scale = _pick(random, _SCALES)
    if scale is _VASTLY and not may_be_vast:
        scale = _SMALL
    if scale is _LONG:
        scale = _pick(random, _LONG) if max_multiply_adds >= LONG_MULTIPLY_ADDS else _SMALL
    if scale is _TILED and max_multiply_adds < _TILED_MULTIPLY_ADDS:
        scale = _DEEP
    wide = _pick(random, (2, 2, 1, 0)) if scale.wide_sizes != scale.sizes else None
    axes = _fit(_axes(random, scale, wide), wide, scale, max_multiply_adds // scale.share)
    extra = [_output_padding(random, axis) for axis in axes]
    padding = [_padding(random, axis, more) for axis, more in zip(axes, extra)]
    n, groups, in_channels, out_channels = _channels(random, scale, axes, max_multiply_adds)
    case = Case(
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
    )
    # An axis that was drawn first, so that it takes less to draw, and to shrink to, one that is not vast.
    drawn = tuple(index for index in (2, 1, 0) if axes[index] != _Axis())
    if scale is _VASTLY and drawn:
        indices = drawn if _pick(random, (False, True)) else (_pick(random, drawn),)
        vast = _with_vast_axes(random, case, indices)
        return vast if is_within(vast, max_multiply_adds) else case
    return case


def is_within(case: Case, max_multiply_adds: int) -> bool:
    """Whether a case has no more multiply-adds, and no more output elements."""
    return max(case.multiply_adds, math.prod(case.output_shape)) <= max_multiply_adds


def draw_schedule(random: Random, mode: str) -> int:
    """Draws the seed of the schedule; 0 in a mode that has none."""
    return random.randint(0, MAX_SEED) if mode in SCHEDULED_MODES else 0


def _with_plans(random: Random, case: Case, names: Mapping[str, Sequence[str]]) -> Case:
    forward, grad_input, grad_weight = (
        _pick_plan(random, names.get(primitive, ()))
        for primitive in ("forward", "grad_input", "grad_weight")
    )
    return replace(
        case, forward_plan=forward, grad_input_plan=grad_input, grad_weight_plan=grad_weight
    )


def _pick_plan(random: Random, names: Sequence[str]) -> str:
    """A plan or auto; the styles of the matrix units count as one, for the emulator takes long over them."""
    matrix = [name for name in names if name.startswith("matrix")]
    others = [name for name in names if not name.startswith("matrix")]
    name: str = _pick(random, ("auto", *others, *matrix[:1]))
    return str(_pick(random, tuple(matrix))) if name in matrix else name


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
                _pick(random, scale.kernels),
                _pick(random, _STRIDES),
                _pick(random, _DILATIONS),
            )
            model = model or axes[index]
    return axes


def _fit(axes: list[_Axis], wide: int | None, scale: _Scale, limit: int) -> list[_Axis]:
    """Makes the largest axis smaller until the work is within the limit, the wide axis last."""
    axes = list(axes)
    while _work(axes, scale) > max(1, limit):
        index = max(
            (index for index in range(3) if axes[index] != _Axis()),
            key=lambda index: (index != wide, _work([axes[index]], scale)),
        )
        size, kernel, stride, dilation = axes[index]
        if size > 1:
            axes[index] = _Axis(size - (size + 3) // 4, kernel, stride, dilation)
        elif kernel > 1:
            axes[index] = _Axis(size, kernel - 1, stride, dilation)
        else:
            axes[index] = _Axis()
    return axes


def _work(axes: Sequence[_Axis], scale: _Scale) -> int:
    """Work of a pair of channels, in multiply-adds."""
    multiply_adds = math.prod(axis.input_size * axis.kernel_size for axis in axes)
    return max(multiply_adds, math.ceil(_outputs(axes) * scale.output_work))


def _outputs(axes: Sequence[_Axis]) -> int:
    """Output elements of a channel, which padding can only make fewer."""
    return math.prod(_reach(axis) + max(axis.stride, axis.dilation) for axis in axes)


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


def _with_vast_axes(random: Random, case: Case, indices: Sequence[int]) -> Case:
    """Gives axes a dilation far above any size, but an output of a few elements."""
    names = ("input_size", "kernel_size", "stride", "padding", "output_padding", "dilation")
    fields = {name: list(getattr(case, name)) for name in names}
    for index in indices:
        for name, value in zip(names, _vast_axis(random)):
            fields[name][index] = value
    triples: dict[str, Any] = {name: _triple(values) for name, values in fields.items()}
    return replace(case, **triples)


def _vast_axis(random: Random) -> tuple[int, int, int, int, int, int]:
    """Input size, kernel size, stride, padding, output padding and dilation."""
    dilation, extra = _pick(random, _VAST_DILATIONS), _pick(random, (0, 0, 1, 2))
    size, kernel = _pick(random, (1, 2, 3, 3)), 3
    strides: Table = (1, 2, dilation) if size == 1 else (1, 2)
    if dilation == _VAST_DILATIONS[0]:  # as far as the padding may crop, one of these can be more
        kernel = _pick(random, (3, 3, 5))
        strides = (1, 2, dilation, dilation) if kernel == 3 else (1, 2, 3)
    axis = _Axis(size, kernel, _pick(random, strides), dilation)
    padding = max(_VAST_PADDING, (_reach(axis) + extra - _pick(random, (0, 1, 2))) // 2)
    return size, kernel, axis.stride, min(padding, _MOST_PADDING), extra, dilation


def _channels(
    random: Random, scale: _Scale, axes: Sequence[_Axis], most: int
) -> tuple[int, int, int, int]:
    """Returns N, groups, C_in, C_out with no more multiply-adds and output elements than `most`."""
    pairs, outputs = most // _work(axes, scale), most // _outputs(axes)  # budgets
    if scale is _TILED:
        return _tiled_channels(random, scale, axes, pairs)
    n = min(_pick(random, scale.batches), pairs, outputs)
    kind = _pick(random, scale.kinds)
    groups = 1
    if kind != "dense":
        table = scale.channels if kind == "depthwise" else _GROUPS
        groups = min(_pick(random, table), pairs // n, outputs // n)
    pairs, outputs = pairs // (n * groups), outputs // (n * groups)
    if kind == "depthwise":
        ins, outs = 1, min(_pick(random, (1, 1, 1, 2, 3)), pairs, outputs)
    else:
        ins = min(_pick(random, scale.channels), pairs)
        outs = min(_pick(random, scale.channels), pairs, outputs)
        if ins < outs:  # the larger one stays as drawn, likely at an edge
            ins = min(ins, pairs // outs)
        else:
            outs = min(outs, pairs // ins)
    return n, groups, groups * ins, groups * outs


def _tiled_channels(
    random: Random, scale: _Scale, axes: Sequence[_Axis], budget: int
) -> tuple[int, int, int, int]:
    """More input channels than a tile has, output channels for several tiles of columns, and a batch for stages."""
    taps = math.prod(axis.kernel_size for axis in axes)
    batch = min(
        5, -(-33 // math.prod(axis.input_size for axis in axes))
    )  # for 33 positions, if it can be
    ins = min(_pick(random, scale.channels), budget)
    outs = min(-(-_pick(random, _TILED_COLUMNS) // taps), budget // ins)
    n = min(_pick(random, (1, batch, batch, batch, 5)), budget // (ins * outs))
    groups = min(_pick(random, (1, 1, 1, 2)), budget // (ins * outs * n))
    return n, groups, groups * ins, groups * outs
