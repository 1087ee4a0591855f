"""Shrinking a given case: few tries, never an illegal case, and as small as what fails can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from fuzz.case import Case, parse_case
from fuzz.reduce import shrink, smallness, with_fields
from fuzz.strategies import Space, draw_case

Predicate = Callable[[Case], bool]
AXES = ("input_size", "kernel_size", "stride", "padding", "output_padding", "dilation")
PLANS = {"forward": ("tiled.i32", "direct.i32"), "grad_weight": ("tiled.i32", "tiled.i32.split2")}
SPACE = Space(("f32", "f16"), plans=lambda case: PLANS)


def some_axis(predicate: Callable[..., bool]) -> Predicate:
    """Whether i, k, s, p, op, d of some axis satisfy the predicate."""
    return lambda case: any(predicate(*axis) for axis in zip(*(getattr(case, a) for a in AXES)))


def elements(case: Case) -> int:
    return math.prod(case.input_shape) + math.prod(case.weight_shape)


def failing_cases(fails: Predicate, count: int) -> list[Case]:
    random = Random(0)
    cases: list[Case] = []
    while len(cases) < count:
        case = draw_case(random, SPACE)
        if fails(case):
            cases.append(case)
    return cases


class Counting:
    """A predicate that notes what it was asked."""

    def __init__(self, fails: Predicate) -> None:
        self.fails = fails
        self.tried: list[Case] = []

    def __call__(self, case: Case) -> bool:
        self.tried.append(case)
        return self.fails(case)


# What fails, the smallest case up to the order of the axes, and how many tries may be needed.
MINIMA: list[tuple[Predicate, str, int]] = [
    (lambda case: True, "f32_int", 5),
    (lambda case: math.prod(case.kernel_size) > 1, "f32_k1x1x2_int", 15),
    (lambda case: max(case.input_size) >= 70, "f32_i1x1x70_int", 40),
    (lambda case: case.n > 1 and max(case.stride) > 2, "f32_n2_s1x1x3_int", 60),
    (
        lambda case: case.groups > 2 and case.in_channels > 3 * case.groups,
        "f32_g3_ci12_co3_int",
        40,
    ),
    (lambda case: case.bias and case.layout == "cl", "f32_bias_cl_int", 45),
    (lambda case: case.lane == "special" and case.seed % 2 == 1, "f32_special_seed1", 40),
    (
        lambda case: case.mode == "hostile" and case.schedule > 2,
        "f32_int_hostile_sched3",
        30,
    ),
    (lambda case: case.forward_plan == "tiled.i32", "f32_int_fwd=tiled.i32", 30),
    (lambda case: "split" in case.grad_weight_plan, "f32_int_gwt=tiled.i32.split2", 30),
    (some_axis(lambda i, k, s, p, op, d: s > k > 1), "f32_k1x1x2_s1x1x3_int", 30),
    (
        lambda c: c.kernel_size[0] > 1 and c.stride[1] > 1 and c.dilation[2] > 2 and c.bias,
        "f32_k2x1x1_s1x2x1_d1x1x3_bias_int",
        100,
    ),
]


@pytest.mark.parametrize(("fails", "minimal", "most_tries"), MINIMA)
def test_a_case_shrinks_to_the_smallest_that_fails_in_few_tries(
    fails: Predicate, minimal: str, most_tries: int
) -> None:
    for case in failing_cases(fails, 20):
        counting = Counting(fails)
        got = shrink(case, counting, 1e9, any_dtype=True)
        assert fails(got)
        assert len(counting.tried) <= most_tries
        orders = [
            with_fields(got, **{a: tuple(getattr(got, a)[i] for i in order) for a in AXES})
            for order in permutations(range(3))
        ]
        assert parse_case(minimal) in orders, got


@pytest.mark.parametrize(
    ("fails", "most_elements"),
    [
        # The classes of known defects of other implementations, and edges of padding.
        (some_axis(lambda i, k, s, p, op, d: i > 1 and k > i and s > 1 and p == k - 1), 5),
        (some_axis(lambda i, k, s, p, op, d: p == k > 1), 8),
        (some_axis(lambda i, k, s, p, op, d: p == d * (k - 1) > k > 1), 9),
        (some_axis(lambda i, k, s, p, op, d: p > k and d > 1 < s), 6),
        (lambda case: case.layout == "cl" and 2 < case.groups < case.in_channels, 18),
        (some_axis(lambda i, k, s, p, op, d: i > 1 and p > d > 1), 8),
        (lambda case: math.prod(case.output_size) > 256, 270),
    ],
)
def test_a_case_shrinks_to_few_elements(fails: Predicate, most_elements: int) -> None:
    for case in failing_cases(fails, 20):
        got = shrink(case, fails, 1e9)
        assert fails(got) and elements(got) <= most_elements, got


def test_each_case_is_tried_once_and_smaller_than_what_failed_last() -> None:
    for case in failing_cases(lambda case: max(case.stride) > 1, 20):
        smallest = [case]

        def fails(candidate: Case, smallest: list[Case] = smallest) -> bool:
            assert smallness(candidate) < smallness(smallest[-1])
            if max(candidate.stride) > 1:
                smallest.append(candidate)
            return max(candidate.stride) > 1

        counting = Counting(fails)
        assert shrink(case, counting, 1e9) == smallest[-1]
        assert len(set(counting.tried)) == len(counting.tried) and case not in counting.tried


def test_the_same_case_is_shrunk_by_the_same_tries() -> None:
    for case in failing_cases(lambda case: case.out_channels > 4, 5):
        runs = [Counting(lambda case: case.out_channels > 4) for _ in range(2)]
        assert shrink(case, runs[0], 1e9) == shrink(case, runs[1], 1e9)
        assert runs[0].tried == runs[1].tried


def test_the_dtype_stays_unless_any_will_do() -> None:
    for case in failing_cases(lambda case: case.dtype == "f16", 5):
        assert shrink(case, lambda case: True, 1e9) == Case(dtype="f16")
        assert shrink(case, lambda case: True, 1e9, any_dtype=True) == Case()


def test_a_failure_that_needs_its_mode_or_its_layout_keeps_it() -> None:
    case = parse_case("f16_n2_i3x4x5_k3_s2_cl_special_tsan_sched9")
    assert str(shrink(case, lambda case: case.mode == "tsan", 1e9)) == "f16_int_tsan"
    case = parse_case("f16_n2_i3x4x5_k3_s2_special_memcheck")
    assert str(shrink(case, lambda case: case.mode == "memcheck", 1e9)) == "f16_int_memcheck"
    assert str(shrink(case, lambda case: True, 1e9)) == "f16_int"
    case = parse_case("f16_n2_i3x4x5_k3_s2_far_int_hostile")
    assert str(shrink(case, lambda case: case.layout == "far", 1e9)) == "f16_far_int"


def test_nothing_is_tried_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    case = parse_case("f32_n5_ci6_co6_i4_k3_s2_p1_special_seed7")
    counting = Counting(lambda case: False)
    assert shrink(case, counting, 0.0) is case
    assert shrink(case, counting, 1e9, max_tries=0) is case
    assert not counting.tried
    assert shrink(case, counting, 1e9, max_tries=7) is case
    assert len(counting.tried) == 7

    now_s = 0.0

    def slow(case: Case) -> bool:
        nonlocal now_s
        now_s += 10
        return False

    counting = Counting(slow)
    monkeypatch.setattr("fuzz.reduce.time", SimpleNamespace(monotonic=lambda: now_s))
    assert shrink(case, counting, 25.0) is case
    assert len(counting.tried) == 3


def test_what_the_predicate_raises_comes_out() -> None:
    def interrupt(case: Case) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(parse_case("f32_n2_int"), interrupt, 1e9)


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("f32_i1x1x4_p0x0x1_int", {"input_size": (1, 1, 1)}, "f32_int"),
        ("f32_s1x1x3_op0x0x2_int", {"stride": (1, 1, 2)}, "f32_s1x1x2_op0x0x1_int"),
        ("f32_k5_p2_int", {"kernel_size": (5, 3, 1)}, "f32_k5x3x1_p2x1x0_int"),
        ("f32_g2_ci4_co4_int", {"groups": 3}, None),
    ],
)
def test_a_change_drags_the_paddings_along(
    text: str, changes: dict[str, Any], expected: str | None
) -> None:
    got = with_fields(parse_case(text), **changes)
    assert got == (None if expected is None else parse_case(expected))


def test_smallness_counts_elements_first_then_parameters_then_choices_then_seeds() -> None:
    ascending = ["f32_int", "f32_int_sched1", "f32_int_seed1", "f32_bias_int", "f32_special"]
    ascending += ["f32_s1x1x2_int", "f32_k1x1x2_int", "f32_n9_int"]
    sizes = [smallness(parse_case(text)) for text in ascending]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_a_vast_case_shrinks_to_no_case_that_torch_cannot_take_and_to_no_more_work() -> None:
    tried: list[Case] = []

    def fails(case: Case) -> bool:
        tried.append(case)
        return max(case.dilation) > 2**20

    shrink(parse_case("f32_n2_k3x2x1_d2147483639x1x1_p2147483638x0x0_bias_int"), fails, 10.0)
    assert tried
    assert not any(case.is_beyond_torch for case in tried)
    assert max(math.prod(case.output_shape) for case in tried) <= 10_000
