"""Shrinks a failing case where Hypothesis cannot: one that it did not draw.

Note [Few tries]: a try may cost ten seconds, for a subject that hangs or runs under a sanitizer. So a case
is changed as a whole, by rules that know what its fields mean: bold leaps first (all fields but one to their
defaults, all strides to 1), then each number to the least that still fails, by bisection. A number that is
changed drags along what it makes illegal: output_padding and padding become the largest that are left.
A rule that worked is tried again at once; when no rule works any more the case is minimal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from fuzz.case import EMULATOR_MODES, LANES, LAYOUTS, MODES, Case, CaseError, Triple

Rule = Callable[[Case], Iterator["Case | None"]]

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Case)}
_AXES = ("input_size", "kernel_size", "stride", "padding", "output_padding", "dilation")
_PLANS = ("forward_plan", "grad_input_plan", "grad_weight_plan")
# Fields that say something together; an axis is a part too.
_PARTS: tuple[Any, ...] = (
    0,
    1,
    2,
    ("groups", "in_channels", "out_channels"),
    ("n",),
    ("bias",),
    ("layout",),
    ("lane",),
    _PLANS,
    ("mode", "schedule"),
    ("seed",),
)
LEAST_WORK = 10_000  # multiply-adds or output elements that are always allowed
# Seeds that are tried: any will do for most failures, so these are few.
_SMALL_SEEDS = (0, 1, 2, 3)


def smallness(case: Case) -> tuple[int, ...]:
    """What shrinking makes smaller: numbers that are compared in their order.

    Returns:
        Elements of input and weight together; how far the other numbers are above their least values, in sum;
        how many of dtype, bias, layout, lane, mode and plans stand how far from their defaults; data seed;
        schedule seed.
    """
    numbers = sum(
        number - least
        for name in _AXES[1:]
        for number, least in zip(getattr(case, name), _DEFAULTS[name])
    )
    choices = (
        (case.dtype != "f32")
        + case.bias
        + LAYOUTS.index(case.layout)
        + LANES.index(case.lane)
        + MODES.index(case.mode)
        + sum(getattr(case, plan) != "auto" for plan in _PLANS)
    )
    return case.elements, numbers + case.groups - 1, choices, case.seed, case.schedule


def with_fields(case: Case, **changes: Any) -> Case | None:
    """The case with these fields, and paddings no larger than they allow; None if that is illegal."""
    values = {name: changes.get(name, getattr(case, name)) for name in _AXES}
    extra, padding = [], []
    for i, k, s, p, more, d in zip(*values.values()):
        extra.append(min(more, max(s, d) - 1))
        padding.append(max(0, min(p, ((i - 1) * s + (k - 1) * d + extra[-1]) // 2)))
    changes |= {"output_padding": tuple(extra), "padding": tuple(padding)}
    try:
        return replace(case, **changes)
    except CaseError:
        return None


def shrink(
    case: Case,
    fails: Callable[[Case], bool],
    budget_s: float,
    max_tries: int = 200,
    any_dtype: bool = False,
) -> Case:
    """Returns a smaller case that still fails; the case itself if there is none within the budget.

    Args:
        case: one that fails; it is not tried again.
        fails: whether a smaller case fails in the same way; called once a case, its exceptions come out.
        budget_s: seconds after which no new case is tried.
        max_tries: calls of fails.
        any_dtype: the failure may change its dtype to f32.
    """
    end_s = time.monotonic() + budget_s
    most = _work(case)  # with less padding a vast dilation would make a vast output
    rules = (*_RULES, _to_f32) if any_dtype else _RULES
    tried = {case}
    smallest = case
    idle = 0  # rules in a row that found nothing
    position = 0
    while idle < len(rules):
        found = None
        for candidate in rules[position % len(rules)](smallest):
            if candidate is None or candidate in tried:
                continue
            if smallness(candidate) >= smallness(smallest) or _work(candidate) > most:
                continue
            if candidate.is_beyond_torch:  # a refusal by the oracle would be a failure of its own
                continue
            if len(tried) > max_tries or time.monotonic() >= end_s:
                return smallest
            tried.add(candidate)
            if fails(candidate):
                found = candidate
                break
        if found is None:
            idle, position = idle + 1, position + 1
        else:
            idle, smallest = 0, found
    return smallest


def _work(case: Case) -> int:
    """Multiply-adds or output elements, whichever is more; what costs next to nothing is all the same."""
    return max(case.multiply_adds, math.prod(case.output_shape), LEAST_WORK)


def _defaults(case: Case, part: Any) -> dict[str, Any]:
    """The fields of a part with their default values."""
    if isinstance(part, int):
        return {
            name: _with_axis(getattr(case, name), part, _DEFAULTS[name][part]) for name in _AXES
        }
    return {name: _DEFAULTS[name] for name in part}


def _with_axis(triple: Triple, axis: int, value: int) -> Triple:
    values = list(triple)
    values[axis] = value
    return values[0], values[1], values[2]


def _one_part_left(case: Case) -> Iterator[Case | None]:
    for kept in _PARTS:
        changed: Case | None = case
        for part in _PARTS:
            if part != kept and changed is not None:
                changed = with_fields(changed, **_defaults(changed, part))
        yield changed


def _one_part_less(case: Case) -> Iterator[Case | None]:
    for part in _PARTS:
        yield with_fields(case, **_defaults(case, part))


def _one_parameter_less(case: Case) -> Iterator[Case | None]:
    """Stride and the like at their defaults along all axes."""
    for name in ("dilation", "stride", "output_padding", "padding", "kernel_size", "input_size"):
        yield with_fields(case, **{name: _DEFAULTS[name]})


def _fewer_groups(case: Case) -> Iterator[Case | None]:
    ins, outs = case.in_channels // case.groups, case.out_channels // case.groups
    for groups in _descent(case.groups, 1):
        yield with_fields(case, groups=groups, in_channels=groups * ins, out_channels=groups * outs)


def _fewer_channels(case: Case) -> Iterator[Case | None]:
    groups = case.groups
    yield with_fields(case, in_channels=groups, out_channels=groups)
    for name in ("in_channels", "out_channels"):
        for channels in _descent(getattr(case, name) // groups, 1):
            yield with_fields(case, **{name: groups * channels})


def _smaller_batch(case: Case) -> Iterator[Case | None]:
    for n in _descent(case.n, 1):
        yield with_fields(case, n=n)


def _half_the_sizes(case: Case) -> Iterator[Case | None]:
    for names in (("input_size", "kernel_size"), ("input_size",), ("kernel_size",)):
        yield with_fields(
            case, **{name: tuple((size + 1) // 2 for size in getattr(case, name)) for name in names}
        )


def _smaller_number(name: str, axis: int) -> Rule:
    def rule(case: Case) -> Iterator[Case | None]:
        triple = getattr(case, name)
        for value in _descent(triple[axis], _DEFAULTS[name][axis]):
            yield with_fields(case, **{name: _with_axis(triple, axis, value)})

    return rule


def _numbers_together(axis: int) -> Rule:
    """What fails may need padding just below, at or above the kernel size, or the reach of the dilated kernel."""

    def rule(case: Case) -> Iterator[Case | None]:
        i, k, p, d = (
            getattr(case, name)[axis]
            for name in ("input_size", "kernel_size", "padding", "dilation")
        )
        for changes in (
            {"kernel_size": k - 1, "padding": p - 1},
            {"kernel_size": k - 1, "padding": p - d},
            {"dilation": d - 1, "padding": p - k + 1},
            {"input_size": i - 1, "kernel_size": k - 1, "padding": p - 1},
        ):
            if all(value >= _DEFAULTS[name][axis] for name, value in changes.items()):
                yield with_fields(
                    case,
                    **{
                        name: _with_axis(getattr(case, name), axis, value)
                        for name, value in changes.items()
                    },
                )

    return rule


def _simpler_choices(case: Case) -> Iterator[Case | None]:
    for name in _PLANS:
        yield with_fields(case, **{name: "auto"})
    for lane in LANES[: LANES.index(case.lane)]:
        yield with_fields(case, lane=lane)
    for layout in LAYOUTS[: LAYOUTS.index(case.layout)]:
        yield with_fields(case, layout=layout)
    if case.mode in EMULATOR_MODES:
        for mode in EMULATOR_MODES[: EMULATOR_MODES.index(case.mode)]:
            yield with_fields(case, mode=mode)


def _small_seeds(case: Case) -> Iterator[Case | None]:
    for name in ("seed", "schedule"):
        for seed in _SMALL_SEEDS:
            yield with_fields(case, **{name: seed})


def _to_f32(case: Case) -> Iterator[Case | None]:
    yield with_fields(case, dtype="f32")


def _descent(value: int, least: int) -> Iterator[int]:
    """Values below one, from the least upwards, each half way to it."""
    while least < value:
        yield least
        least += (value - least + 1) // 2


_RULES: tuple[Rule, ...] = (
    _one_part_left,
    _one_part_less,
    _one_parameter_less,
    _fewer_groups,
    _fewer_channels,
    _smaller_batch,
    _half_the_sizes,
    *(_smaller_number(name, axis) for axis in range(3) for name in _AXES),
    *(_numbers_together(axis) for axis in range(3)),
    _simpler_choices,
    _small_seeds,
)
