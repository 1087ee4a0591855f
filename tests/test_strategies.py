"""The strategy for cases: only legal cases, no discards, every edge in reach, and what it shrinks to."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from fuzz.case import LANES, LAYOUTS, MODES, Case, parse_case
from fuzz.coverage import features_of
from fuzz.number import DTYPES
from fuzz.plans import candidate_plans
from fuzz.strategies import (
    LONG,
    LONG_MULTIPLY_ADDS,
    MAX_MULTIPLY_ADDS,
    MAX_SEED,
    MODE_MULTIPLY_ADDS,
    VAST,
    Space,
    cases,
    draw_case,
    draw_geometry,
    is_within,
)

Predicate = Callable[[Case], bool]
AXES = ("input_size", "kernel_size", "stride", "padding", "output_padding", "dilation")
CHANNEL_EDGES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
PLANS = {"forward": ("tiled.i32", "direct.i32"), "grad_weight": ("tiled.i32", "tiled.i32.split2")}

ALL_CASES = cases(dtypes=DTYPES, plans=lambda case: PLANS)


def draw_many(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Examples as a campaign draws them, from a fixed seed; duplicates are kept."""
    drawn: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(value=strategy)
    def collect(value: Any) -> None:
        drawn.append(value)

    collect()
    return drawn


FINDING = settings(max_examples=5_000, database=None, deadline=None, derandomize=True)


def some_axis(predicate: Callable[..., bool]) -> Predicate:
    """Whether i, k, s, p, op, d of some axis satisfy the predicate."""
    return lambda case: any(predicate(*axis) for axis in zip(*(getattr(case, a) for a in AXES)))


def in_axis_order(case: Case, order: Sequence[int]) -> Case:
    axes: dict[str, Any] = {a: tuple(getattr(case, a)[axis] for axis in order) for a in AXES}
    return replace(case, **axes)


def is_largest(output_padding: int, stride: int, dilation: int) -> bool:
    return 0 < output_padding == max(stride, dilation) - 1


@pytest.mark.parametrize(
    ("predicate", "minimal"),
    [
        (lambda case: True, "f32_int"),
        (lambda case: math.prod(case.kernel_size) > 1, "f32_k1x1x2_int"),
        (lambda case: max(case.input_size) >= 70, "f32_i1x1x70_int"),
        (lambda case: case.n > 1, "f32_n2_int"),
        (lambda case: case.out_channels > 32, "f32_co33_int"),
        (lambda case: min(case.weight_shape[:2]) > 8, "f32_ci9_co9_int"),
        (lambda case: case.groups > 1, "f32_g2_ci2_co2_int"),
        (lambda case: case.groups == 3 and case.in_channels == 12, "f32_g3_ci12_co3_int"),
        (some_axis(lambda i, k, s, p, op, d: s > k > 1), "f32_k1x1x2_s1x1x3_int"),
        (some_axis(lambda i, k, s, p, op, d: p >= 2), None),
        (
            some_axis(lambda i, k, s, p, op, d: i > 1 and p == k - 1 > 0),
            "f32_i1x1x2_k1x1x2_p0x0x1_int",
        ),
        (lambda case: case.bias and case.layout == "cl", "f32_bias_cl_int"),
        (lambda case: case.dtype == "bf16", "bf16_int"),
        (lambda case: case.lane == "special", "f32_special"),
        (lambda case: case.seed >= 5, "f32_int_seed5"),
        (lambda case: case.mode == "hostile", "f32_int_hostile"),
        (lambda case: case.schedule >= 3, "f32_int_hostile_sched3"),
        (lambda case: case.forward_plan == "direct.i32", "f32_int_fwd=direct.i32"),
        (lambda case: "split" in case.grad_weight_plan, "f32_int_gwt=tiled.i32.split2"),
    ],
)
def test_cases_shrink_to_the_smallest_that_fails(predicate: Predicate, minimal: str | None) -> None:
    got = find(ALL_CASES, predicate, settings=FINDING)
    if minimal is None:
        assert got.multiply_adds <= 5, got
    else:
        assert parse_case(minimal) in {
            in_axis_order(got, order) for order in permutations(range(3))
        }


# Each edge of the draws, and how many of 1,000 cases have it at least.
EDGES: Mapping[str, tuple[Predicate, int]] = {
    "size 1, kernel above 1": (some_axis(lambda i, k, s, p, op, d: i == 1 < k), 300),
    "padding k - 1": (some_axis(lambda i, k, s, p, op, d: p == k - 1 > 0), 150),
    "padding k": (some_axis(lambda i, k, s, p, op, d: p == k > 1), 50),
    "padding crops the dilated kernel": (
        some_axis(lambda i, k, s, p, op, d: p == d * (k - 1) > k > 1),
        25,
    ),
    "padding leaves one output": (
        lambda case: any(p and o == 1 for p, o in zip(case.padding, case.output_size)),
        150,
    ),
    "largest output_padding": (some_axis(lambda i, k, s, p, op, d: is_largest(op, s, d)), 300),
    "output_padding above stride": (some_axis(lambda i, k, s, p, op, d: op >= s > 1), 30),
    "output_padding above dilation": (some_axis(lambda i, k, s, p, op, d: op >= d > 1), 30),
    "stride above kernel": (some_axis(lambda i, k, s, p, op, d: s > k > 1), 150),
    "stride above kernel 1": (some_axis(lambda i, k, s, p, op, d: s > k == 1), 100),
    "reach above input": (some_axis(lambda i, k, s, p, op, d: d > 1 and d * (k - 1) >= i > 1), 200),
    "stride and dilation share a factor": (
        some_axis(lambda i, k, s, p, op, d: k > 1 and math.gcd(s, d) > 1),
        100,
    ),
    "phases without a tap": (some_axis(lambda i, k, s, p, op, d: s > k and d == 1), 200),
    "depthwise": (lambda case: case.groups == case.in_channels > 1, 80),
    "depthwise with a multiplier": (
        lambda case: case.groups == case.in_channels > 1 and case.out_channels > case.groups,
        20,
    ),
    "groups of several channels": (lambda case: 1 < case.groups < case.in_channels, 40),
    "channels next to a multiple of 8": (
        lambda case: case.in_channels in CHANNEL_EDGES or case.out_channels in CHANNEL_EDGES,
        100,
    ),
    "a cubic kernel": (lambda case: case.kernel_size in [(k, k, k) for k in range(2, 8)], 30),
    "several channel tiles": (lambda case: case.out_channels // case.groups > 32, 20),
    "several reduction steps": (lambda case: case.in_channels // case.groups > 16, 50),
    "a wide axis": (lambda case: max(case.input_size) > 64, 20),
    "a very wide axis": (lambda case: max(case.input_size) > 128, 1),
    "several position tiles": (lambda case: math.prod(case.output_size) > 256, 70),
    "several tiles of positions and of channels": (
        lambda case: max(case.input_size) > 64 and case.out_channels // case.groups > 32,
        1,
    ),
    "several tiles of channels and of rows": (
        lambda case: features_of(case)["size"] == "gather tiles",
        3,
    ),
    "several tiles of grad_weight on all sides": (
        lambda case: features_of(case)["size"] == "weight tiles",
        3,
    ),
    "many terms in grad_weight": (lambda case: case.n * math.prod(case.input_size) > 256, 20),
    # The classes of known defects in other implementations.
    "A: size 3, kernel 4, padding 3": (
        some_axis(lambda i, k, s, p, op, d: i > 1 and k > i and s > 1 and p == k - 1),
        20,
    ),
    "A': padded, strided, dilated": (
        lambda case: (
            case.bias
            and any(case.output_padding)
            and max(case.dilation) > 1 < max(case.stride)
            and any(p >= k - 1 > 0 for p, k in zip(case.padding, case.kernel_size))
        ),
        50,
    ),
    "B: stride without a kernel": (
        lambda case: sum(s > 1 == k for s, k in zip(case.stride, case.kernel_size)) > 1,
        10,
    ),
    "C: one long row": (
        lambda case: case.input_size[:2] == (1, 1) and case.input_size[2] >= 4 == case.stride[2],
        3,
    ),
    "D: one voxel, dilated": (
        lambda case: (
            case.input_size == (1, 1, 1)
            and max(case.dilation) > 1 < max(case.kernel_size)
            and any(case.padding)
        ),
        10,
    ),
    "E: padding above the kernel": (
        some_axis(lambda i, k, s, p, op, d: p > k and d > 1 < s),
        30,
    ),
    "F: small groups, channels last": (
        lambda case: case.layout == "cl" and 2 < case.groups < case.in_channels,
        10,
    ),
}


@pytest.fixture(scope="module")
def thousand() -> list[Case]:
    return draw_many(ALL_CASES, 1000)


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_is_common(edge: str, thousand: list[Case]) -> None:
    predicate, least = EDGES[edge]
    assert sum(map(predicate, thousand)) >= least


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_is_in_reach_of_the_search(edge: str) -> None:
    predicate, _ = EDGES[edge]
    without_shrinking = settings(FINDING, phases=[Phase.generate])
    assert predicate(find(ALL_CASES, predicate, settings=without_shrinking))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dtype", DTYPES),
        ("lane", LANES),
        ("mode", ("fast", "hostile")),
        ("layout", ("ncdhw", "cl")),
    ],
)
def test_every_value_of_a_listed_field_is_common(
    field: str, values: Sequence[str], thousand: list[Case]
) -> None:
    drawn = [getattr(case, field) for case in thousand]
    assert all(drawn.count(value) > 600 / len(values) for value in values)


@settings(max_examples=150, database=None, deadline=None)
@given(case=cases(dtypes=["f64"], max_multiply_adds=5_000))
def test_the_native_op_accepts_every_case(case: Case) -> None:
    assert case == parse_case(str(case))
    with torch.backends.mkldnn.flags(enabled=False):
        output = torch.nn.functional.conv_transpose3d(
            torch.zeros(case.input_shape, dtype=torch.float64),
            torch.zeros(case.weight_shape, dtype=torch.float64),
            torch.zeros(case.out_channels, dtype=torch.float64) if case.bias else None,
            case.stride,
            case.padding,
            case.output_padding,
            case.groups,
            case.dilation,
        )
    assert output.shape == case.output_shape and output.numel() > 0


@pytest.mark.parametrize("limit", [1, 2, 30, 1_000, 200_000])
def test_no_case_has_more_work_than_allowed(limit: int) -> None:
    drawn = draw_many(cases(dtypes=DTYPES, max_multiply_adds=limit), 300)
    assert max(case.multiply_adds for case in drawn) <= limit
    assert max(math.prod(case.output_shape) for case in drawn) <= limit


def test_a_typical_case_is_small_and_some_are_large(thousand: list[Case]) -> None:
    work = sorted(case.multiply_adds for case in thousand)
    print(f"multiply-adds: median {work[500]}, 90 % {work[900]}, mean {sum(work) / len(work):.0f}")
    assert work[500] < 3_000
    assert sum(work) / len(work) < 30_000
    assert work[990] > 100_000


def test_cases_hardly_repeat(thousand: list[Case]) -> None:
    # Nearly none do where Note [Draws] holds; Hypothesis 6.100 copies numbers over one another, too.
    assert len(set(thousand)) > 0.75 * len(thousand)


def test_less_than_one_percent_is_discarded() -> None:
    attempts = 0

    def attempt(_: None) -> None:
        nonlocal attempts
        attempts += 1

    kept = draw_many(st.tuples(st.none().map(attempt), ALL_CASES), 2_000)
    print(f"{attempts} draws for {len(kept)} cases")
    assert len(kept) >= 2_000 and attempts - len(kept) < 0.01 * attempts


def test_drawing_is_quick() -> None:
    start = time.process_time()  # which busy cores hardly change
    draw_many(ALL_CASES, 1_000)
    whole = time.process_time() - start
    start = time.process_time()
    draw_many(st.integers(0, 2**60), 1_000)
    engine = time.process_time() - start
    print(f"{whole:.2f} ms a case, of which {engine:.2f} ms would draw a single integer")
    assert whole < 5, "six times what it takes on an idle core"


def test_plans_are_drawn_from_the_candidates_of_the_finished_case(thousand: list[Case]) -> None:
    for field, names in (
        ("forward_plan", {"auto", *PLANS["forward"]}),
        ("grad_input_plan", {"auto"}),
        ("grad_weight_plan", {"auto", *PLANS["grad_weight"]}),
    ):
        assert {getattr(case, field) for case in thousand} == names

    seen: set[Case] = set()

    def candidates(case: Case) -> dict[str, list[str]]:
        seen.add(case)
        return {"grad_input": [f"n{case.n}"]}

    for case in draw_many(cases(dtypes=["f32"], plans=candidates), 50):
        assert replace(case, grad_input_plan="auto") in seen
        assert case.grad_input_plan in ("auto", f"n{case.n}")


def test_only_what_is_asked_for_is_drawn() -> None:
    asked = cases(dtypes=("f16",), lanes=("normal",), modes=("fast",))
    for case in draw_many(asked, 50):
        assert (case.dtype, case.lane, case.mode, case.schedule) == ("f16", "normal", "fast", 0)
        assert case.seed <= MAX_SEED
    assert {case.mode for case in draw_many(cases(dtypes=DTYPES, modes=["hostile"]), 20)} == {
        "hostile"
    }


def test_repeats_are_weights() -> None:
    often = cases(dtypes=DTYPES, modes=("fast",) * 9 + ("hostile",), layouts=("cl", "cl", "ncdhw"))
    drawn = draw_many(often, 600)
    assert 20 < sum(case.mode == "hostile" for case in drawn) < 110
    assert 340 < sum(case.layout == "cl" for case in drawn) < 460


@pytest.mark.parametrize("mode", MODES)
def test_a_case_of_an_expensive_mode_is_small_and_a_schedule_has_a_seed(mode: str) -> None:
    drawn = draw_many(cases(dtypes=DTYPES, modes=[mode], layouts=LAYOUTS[:2]), 300)
    limit = MODE_MULTIPLY_ADDS.get(mode, MAX_MULTIPLY_ADDS)
    assert limit / 4 < max(case.multiply_adds for case in drawn) <= limit
    assert any(case.schedule for case in drawn) == (mode in ("hostile", "asan", "tsan"))


def test_a_layout_is_drawn_in_the_modes_that_have_it_only() -> None:
    drawn = draw_many(cases(dtypes=DTYPES, modes=("fast", "asan"), layouts=LAYOUTS), 300)
    assert {case.layout for case in drawn if case.mode == "fast"} == set(LAYOUTS)
    assert {case.layout for case in drawn if case.mode == "asan"} == {"ncdhw", "cl"}


def test_the_simplest_choice_does_not_depend_on_the_order_of_the_arguments() -> None:
    backwards = cases(dtypes=DTYPES[::-1], lanes=LANES[::-1], modes=MODES[::-1])
    minimal = find(backwards, lambda case: True, settings=settings(database=None, deadline=None))
    assert minimal == Case()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtypes": []}, "dtypes=(), but must be one or more of ('f32', "),
        ({"dtypes": ["f32", "f8"]}, "dtypes=('f32', 'f8'), but must be one or more of"),
        ({"lanes": ["real"]}, "lanes=('real',), but must be one or more of ('int', "),
        ({"layouts": ["nhwc"]}, "layouts=('nhwc',), but must be one or more of ('ncdhw', "),
        ({"modes": ()}, "modes=(), but must be one or more of ('fast', 'hostile', "),
        ({"modes": ["fast", "asan"], "layouts": ["far"]}, "but far is of the modes"),
        ({"max_multiply_adds": 0}, "max_multiply_adds=0, but must be at least 1"),
    ],
)
def test_arguments_are_checked_when_the_strategy_is_made(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cases(**{"dtypes": DTYPES, **arguments})


def test_each_number_of_a_case_is_long_at_times_where_there_is_room() -> None:
    random = Random(1)
    drawn = [draw_geometry(random, MAX_MULTIPLY_ADDS) for _ in range(10_000)]
    for name in ("n", "in_channels", "out_channels"):
        assert sum(getattr(case, name) > LONG for case in drawn) >= 3, name
    for axis in range(3):
        assert sum(case.input_size[axis] > LONG for case in drawn) >= 3, axis
    assert any(max(case.input_size) > 2**16 for case in drawn)
    assert all(is_within(case, MAX_MULTIPLY_ADDS) for case in drawn)
    small = [draw_geometry(random, LONG_MULTIPLY_ADDS - 1) for _ in range(2_000)]
    assert not any(features_of(case)["size"] == "long" for case in small)


def test_vast_dilations_come_with_64_bit_plans_and_lanes_that_can_be_judged() -> None:
    random = Random(1)
    space = Space(("f32",), plans=candidate_plans, has_vast=True)
    drawn = [draw_case(random, space) for _ in range(2_000)]
    vast = [case for case in drawn if max(case.dilation) >= VAST]
    assert len(vast) >= 10
    assert not any(case.is_beyond_torch for case in drawn)
    assert all(max(case.padding) >= VAST for case in vast)
    assert {case.lane for case in vast} == {"int", "normal"}
    assert not any("i32" in str(case) for case in vast)
    only_special = Space(("f32",), lanes=("special",), has_vast=True)
    assert all(max(draw_case(random, only_special).dilation) < VAST for _ in range(500))
