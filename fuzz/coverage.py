"""Which pairs of features cases have met, which they could meet, and few cases that meet them all.

A feature of a case is one of few classes that kernels or native code may tell apart: its dtype, its stride class,
the plan of a primitive. Defects sit in the interplay of two of them far more often than of three (Kuhn, Wallace and
Gallo, Software fault interactions and implications for software testing, IEEE TSE 30, 2004), so a run accounts for
the pairs. Those that no case can have are named in `impossibilities`, each with its reason.

Note [Pairs]: each value of each feature has a number below VALUES. A set of pairs is one integer: bit u * VALUES + v
with u < v stands for the pair of values u and v. It takes microseconds to make, is joined by "or", and small to send.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from convt3d.lines import MOST_CHANNELS
from convt3d.plan import PRIMITIVES, gather_tile
from fuzz.case import FAR_MODES, LANES, LAYOUTS, MODES, Case
from fuzz.number import DTYPES
from fuzz.plans import candidate_plans
from fuzz.strategies import LONG, LONG_MULTIPLY_ADDS, Space

# The tiles of the kernels: see kernels/gather.py and kernels/weight.py.
TILE_CHANNELS = 32  # output channels of forward, input channels of grad_input and of grad_weight
WEIGHT_TILE_COLUMNS = 64  # output channels times taps, of grad_weight
WEIGHT_TILE_POSITIONS = 32  # input positions that grad_weight sums up at a time
WIDE = 64

_AXIS_CLASSES = ("1", "2", "above 2", "mixed")
_PADDINGS = ("0", "below k-1", "k-1", "k and more", "crops all")
_OUTPUT_PADDINGS = ("0", "between", "largest")
_SIZES = ("small", "voxel", "wide", "channels", "gather tiles", "weight tiles", "long")

# Multiply-adds, or output elements, of the smallest case of a size; gather_tile has at most 128 positions.
_LEAST_WORK = {
    "wide": WIDE + 1,
    "channels": TILE_CHANNELS + 1,
    "gather tiles": (TILE_CHANNELS + 1) * 129,
    "weight tiles": (TILE_CHANNELS + 1) * (WEIGHT_TILE_COLUMNS + 1) * (WEIGHT_TILE_POSITIONS + 1),
    "long": LONG_MULTIPLY_ADDS,
}
# Batch size from which grad_weight has every split even for a single voxel.
_MOST_SPLITS = 7


@dataclass(frozen=True)
class Feature:
    """One feature of a case.

    Args:
        name: for people; `short` where there is little room.
        values: its classes.
        of: the class of a case; one that is none of the values (a plan of the corpus) is not counted.
        is_geometry: it follows from sizes and parameters alone.
    """

    name: str
    short: str
    values: tuple[str, ...]
    of: Callable[[Case], str]
    is_geometry: bool = True


def _axis_class(field: str) -> Callable[[Case], str]:
    """1, 2 or more along all axes, or not the same along all."""

    def classify(case: Case) -> str:
        classes = {min(value, 3) for value in getattr(case, field)}
        return _AXIS_CLASSES[classes.pop() - 1] if len(classes) == 1 else "mixed"

    return classify


def _padding_class(case: Case) -> str:
    """Of the axis where padding goes furthest; "crops all": the reach of a dilated kernel and more."""
    axes = zip(case.padding, case.kernel_size, case.dilation)
    return _PADDINGS[max(_padding_rank(*axis) for axis in axes)]


def _padding_rank(padding: int, kernel: int, dilation: int) -> int:
    if padding == 0:
        return 0
    if kernel > 1 and dilation > 1 and padding >= dilation * (kernel - 1):
        return 4
    return 1 if padding < kernel - 1 else 2 if padding == kernel - 1 else 3


def _output_padding_class(case: Case) -> str:
    """Of the axis where it goes furthest."""
    ranks = (
        0 if extra == 0 else 2 if extra == max(stride, dilation) - 1 else 1
        for extra, stride, dilation in zip(case.output_padding, case.stride, case.dilation)
    )
    return _OUTPUT_PADDINGS[max(ranks)]


def _groups_class(case: Case) -> str:
    if case.groups == 1:
        return "dense"
    return "depthwise" if case.groups == case.in_channels else "grouped"


def _size_class(case: Case) -> str:
    """The first that holds, the rarest first."""
    if max(case.n, case.in_channels, case.out_channels, *case.input_size) > LONG:
        return "long"
    if _has_weight_tiles(case):
        return "weight tiles"
    if _has_gather_tiles(case):
        return "gather tiles"
    if max(case.in_channels, case.out_channels) > TILE_CHANNELS:
        return "channels"
    if max(case.input_size) > WIDE:
        return "wide"
    return "voxel" if case.input_size == (1, 1, 1) else "small"


def _has_weight_tiles(case: Case) -> bool:
    """Whether grad_weight has several tiles of rows, several of columns, and several stages."""
    return (
        case.in_channels // case.groups > TILE_CHANNELS
        and case.out_channels // case.groups * math.prod(case.kernel_size) > WEIGHT_TILE_COLUMNS
        and case.n * math.prod(case.input_size) > WEIGHT_TILE_POSITIONS
    )


def _has_gather_tiles(case: Case) -> bool:
    """Whether forward or grad_input has several tiles of channels with several of rows in one phase."""
    return (
        case.out_channels // case.groups > TILE_CHANNELS
        and _has_row_tiles(case.n, case.output_size, case.stride)
    ) or (
        case.in_channels // case.groups > TILE_CHANNELS
        and _has_row_tiles(case.n, case.input_size, (1, 1, 1))
    )


def _has_row_tiles(n: int, size: Sequence[int], step: Sequence[int]) -> bool:
    tile_rows, _ = _gather_tile(size[2], step[2])
    return n * -(-size[0] // step[0]) * -(-size[1] // step[1]) > tile_rows


_gather_tile = functools.cache(gather_tile)
_ANY_PLAN = Case(n=_MOST_SPLITS)  # a case that every plan can run
_PLAN_NAMES = candidate_plans(_ANY_PLAN)


def _field(name: str) -> Callable[[Case], str]:
    return lambda case: str(getattr(case, name))


FEATURES = (
    Feature("dtype", "dtype", DTYPES, _field("dtype"), False),
    Feature("lane", "lane", LANES, _field("lane"), False),
    Feature("mode", "mode", MODES, _field("mode"), False),
    Feature("layout", "layout", LAYOUTS, _field("layout"), False),
    Feature("bias", "bias", ("bias", "nobias"), lambda c: "bias" if c.bias else "nobias", False),
    *(
        Feature(
            f"{primitive} plan",
            short,
            ("auto", *_PLAN_NAMES[primitive]),
            _field(f"{primitive}_plan"),
            False,
        )
        for primitive, short in zip(PRIMITIVES, ("fwd", "gin", "gwt"))
    ),
    Feature("stride", "stride", _AXIS_CLASSES, _axis_class("stride")),
    Feature("dilation", "dil", _AXIS_CLASSES, _axis_class("dilation")),
    Feature("padding", "pad", _PADDINGS, _padding_class),
    Feature("output_padding", "op", _OUTPUT_PADDINGS, _output_padding_class),
    Feature(
        "kernel",
        "kernel",
        ("1", "above 1"),
        lambda c: "1" if c.kernel_size == (1, 1, 1) else "above 1",
    ),
    Feature("groups", "groups", ("dense", "grouped", "depthwise"), _groups_class),
    Feature("batch", "batch", ("1", "2", "above 2"), lambda c: _AXIS_CLASSES[min(c.n, 3) - 1]),
    Feature("size", "size", _SIZES, _size_class),
)

# Numbers of the values, see Note [Pairs].
NAMES = tuple((feature.name, value) for feature in FEATURES for value in feature.values)
NUMBERS = {name: number for number, name in enumerate(NAMES)}
VALUES = len(NAMES)
ROWS = {
    feature.name: sum(1 << NUMBERS[feature.name, value] for value in feature.values)
    for feature in FEATURES
}

PLAN_VALUES = sum(ROWS[f"{primitive} plan"] for primitive in PRIMITIVES)
GEOMETRY = sum(ROWS[feature.name] for feature in FEATURES if feature.is_geometry)


def features_of(case: Case) -> dict[str, str]:
    """The features of a case: name -> value, without those whose value is none of the feature's."""
    pairs = ((feature, feature.of(case)) for feature in FEATURES)
    return {feature.name: value for feature, value in pairs if value in feature.values}


def values_of(case: Case) -> int:
    """The values of a case's features, a bit each."""
    return sum(1 << NUMBERS[item] for item in features_of(case).items())


def pairs_of(case: Case) -> int:
    """The pairs of features that a case has, as in Note [Pairs]."""
    return _pairs(NUMBERS[item] for item in features_of(case).items())


def _pairs(numbers: Iterable[int]) -> int:
    """All pairs among these values."""
    ascending = sorted(numbers)
    others = sum(1 << number for number in ascending)
    pairs = 0
    for number in ascending:
        others ^= 1 << number
        pairs |= others << number * VALUES
    return pairs


@dataclass(frozen=True)
class Impossibility:
    """Pairs that no case has: any of some values of one feature with any of some of another."""

    reason: str
    feature: str
    values: tuple[str, ...]
    other_feature: str
    other_values: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """As in Note [Pairs]."""
        return union(
            _pairs((NUMBERS[self.feature, value], NUMBERS[self.other_feature, other]))
            for value in self.values
            for other in self.other_values
        )


def impossibilities(space: Space) -> list[Impossibility]:
    """Every pair of values drawn from this space that no case of it has, and why."""
    narrow = tuple(name for primitive in PRIMITIVES for name in _PLAN_NAMES[primitive])
    narrow = tuple(dict.fromkeys(name for name in narrow if ".i32" in name))
    matrix = tuple(name for name in _PLAN_NAMES["forward"] if name.startswith("matrix"))
    lines = tuple(name for name in _PLAN_NAMES["forward"] if name.startswith("lines"))
    fixed = tuple(name for name in (*matrix, *lines) if ".fixed" in name)
    most_splits = tuple(
        name for name in _PLAN_NAMES["grad_weight"] if name.endswith(f".split{_MOST_SPLITS}")
    )
    rules = [
        Impossibility(
            "with a kernel of 1, k-1 is no padding and a dilation changes nothing",
            *("kernel", ("1",), "padding", ("below k-1", "k-1", "crops all")),
        ),
        Impossibility(
            "without a dilation, k-1 and more crops all and is called so",
            *("dilation", ("1",), "padding", ("crops all",)),
        ),
        Impossibility(
            "a group of a depthwise case has one input channel",
            *("groups", ("depthwise",), "size", ("weight tiles",)),
        ),
        Impossibility(
            f"a split is a product at least; a single voxel has the batch's, drawn below {_MOST_SPLITS}",
            *("size", ("voxel",), "grad_weight plan", most_splits),
        ),
        Impossibility(
            "a sanitizer copies what lies between the first element and the last",
            *("layout", ("far",), "mode", tuple(mode for mode in MODES if mode not in FAR_MODES)),
        ),
    ]
    reason = "matrix units have no fp64"
    rules.append(Impossibility(reason, "forward plan", matrix, "dtype", ("f64",)))
    reason = "the emulator would be busy with it for a minute"
    rules.append(Impossibility(reason, "forward plan", (*matrix, *lines), "size", ("long",)))
    reason = "the kernel for few channels has no pattern in fp64"
    rules.append(Impossibility(reason, "forward plan", ("lines.fixed",), "dtype", ("f64",)))
    reason = f"the kernel for few channels takes {MOST_CHANNELS} a group at most"
    many = ("gather tiles", "weight tiles")
    rules.append(Impossibility(reason, "forward plan", lines, "size", many))
    reason = "offsets in a plane have 32 bits on matrix units"
    rules.append(Impossibility(reason, "forward plan", matrix, "layout", ("far",)))
    reason = "kernels that know their taps have a stride of 1 or 2 along W"
    rules.append(Impossibility(reason, "forward plan", fixed, "stride", ("above 2",)))
    reason = "kernels that know their taps and a dilation along W are not drawn"
    rules.append(Impossibility(reason, "forward plan", fixed, "dilation", ("2", "above 2")))
    for primitive in PRIMITIVES:
        names = tuple(name for name in narrow if name in _PLAN_NAMES[primitive])
        reason = "offsets of a layout above 2^31 elements need 64 bits"
        rules.append(Impossibility(reason, "layout", ("far",), f"{primitive} plan", names))
    for mode in dict.fromkeys(space.modes):
        most = space.multiply_adds_of(mode)
        sizes = tuple(size for size, least in _LEAST_WORK.items() if least > most)
        reason = f"a case of mode {mode} has at most {most:,} multiply-adds"
        rules.append(Impossibility(reason, "mode", (mode,), "size", sizes))
    return rules


def drawn_values(space: Space) -> dict[str, tuple[str, ...]]:
    """What a space has of each feature: name -> values."""
    plans = {} if space.plans is None else space.plans(_ANY_PLAN)
    chosen: dict[str, Sequence[str]] = {
        "dtype": space.dtypes,
        "lane": space.lanes,
        "mode": space.modes,
        "layout": space.layouts,
        **{f"{primitive} plan": ("auto", *plans.get(primitive, ())) for primitive in PRIMITIVES},
    }
    return {
        feature.name: tuple(
            value for value in feature.values if value in chosen.get(feature.name, feature.values)
        )
        for feature in FEATURES
    }


def possible_pairs(space: Space) -> int:
    """All pairs that cases of a space can have, as in Note [Pairs]."""
    values = drawn_values(space)
    rows = [sum(1 << NUMBERS[name, value] for value in values[name]) for name in values]
    possible = 0
    for index, name in enumerate(values):
        later = sum(rows[index + 1 :])
        for value in values[name]:
            possible |= later << NUMBERS[name, value] * VALUES
    return possible & ~union(rule.pairs for rule in impossibilities(space))


def named_pairs(pairs: int) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """The pairs in words: ((feature, value), (other feature, value))."""
    for first in range(VALUES):
        row = pairs >> first * VALUES & (1 << VALUES) - 1
        for second in numbers_in(row):
            yield NAMES[first], NAMES[second]


def report(met: int, possible: int) -> str:
    """A table of features by features, each entry met/possible, and below it the pairs that are missing."""
    names = [feature.short for feature in FEATURES]
    width = max(map(len, names))
    lines = ["  met/possible pairs of features:"]
    for index, feature in enumerate(FEATURES):
        cells = []
        for earlier in FEATURES[:index]:
            between = _between(earlier, feature)
            counts = (met & possible & between).bit_count(), (possible & between).bit_count()
            cells.append(f"{counts[0]}/{counts[1]}".rjust(7))
        lines.append(f"  {feature.short:{width}}{''.join(cells)}")
    lines.append(f"  {'':{width}}{''.join(name.rjust(7) for name in names[:-1])}")
    missing = possible & ~met
    lines.append(f"  missing: {missing.bit_count() or 'none'}")
    grouped: dict[str, list[str]] = {}
    for (name, value), (other_name, other) in named_pairs(missing):
        grouped.setdefault(f"{name} x {other_name}", []).append(f"{value} x {other}")
    lines += [f"    {features}: {', '.join(pairs)}" for features, pairs in grouped.items()]
    return "\n".join(lines)


def _between(feature: Feature, other: Feature) -> int:
    """All pairs of a value of one feature and one of a later one."""
    row = ROWS[other.name]
    return union(row << NUMBERS[feature.name, value] * VALUES for value in feature.values)


def union(sets: Iterable[int]) -> int:
    return functools.reduce(int.__or__, sets, 0)


def numbers_in(row: int) -> Iterator[int]:
    """The numbers of the bits that are set, ascending."""
    while row:
        lowest = row & -row
        yield lowest.bit_length() - 1
        row ^= lowest
