"""NaN, infinities, overflow and literal zeros: where a correct subject may differ, and where not."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import reference
from fuzz.bounds import Expectation, Values, operands
from fuzz.case import Case
from fuzz.data import Inputs, generate
from fuzz.number import DTYPES, encode, largest_finite
from fuzz.special import zero_filled
from tests.answers import (
    DIRECT,
    changed,
    draw_case,
    exact_outcome,
    expectation_of,
    outcome_of,
    passes,
)

# ---- NaN, infinities, overflow --------------------------------------------------------------------

ORIGIN = (0, 0, 0, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("expected", [math.nan, math.inf, -math.inf, 1.5])
def test_on_the_special_lane_each_class_of_value_stands_for_itself_only(
    dtype: str, expected: float
) -> None:
    case = Case(dtype=dtype, lane="special")
    expectation = expectation_of(case, input=expected, weight=1.0, grad_output=1.0)
    right = exact_outcome(expectation, plans=DIRECT)
    for value in (math.nan, math.inf, -math.inf, 1.5, 1.6):
        raw = encode(np.array(value), dtype)
        is_right = value == expected or (math.isnan(value) and math.isnan(expected))
        assert (
            passes(expectation, changed(right, "output", ORIGIN, raw, plans=right.plans))
            is is_right
        )


def special_sum(dtype: str, *terms: float) -> Expectation:
    """A case whose single output element is the sum of these terms."""
    case = Case(dtype=dtype, lane="special", in_channels=len(terms))
    return expectation_of(
        case, input=np.reshape(terms, (1, -1, 1, 1, 1)), weight=1.0, grad_output=1.0
    )


def accepted(expectation: Expectation, leg: str = "convt3d") -> set[str]:
    """Which of these answers pass for the single output element."""
    dtype = "f64" if leg == "oracle" else expectation.case.dtype
    candidates = {"nan": math.nan, "+inf": math.inf, "-inf": -math.inf}
    candidates["far"] = largest_finite(dtype) / 8
    if np.isfinite(expectation.exact.output[ORIGIN]):
        most = largest_finite(dtype)
        candidates["exact"] = float(np.clip(expectation.exact.output[ORIGIN], -most, most))
    right = exact_outcome(expectation, leg)
    return {
        name
        for name, value in candidates.items()
        if passes(
            expectation, changed(right, "output", ORIGIN, encode(np.array(value), dtype)), leg
        )
    }


@pytest.mark.parametrize(
    ("dtype", "terms", "names"),
    [
        # The output overflows: 65520 is the first value that rounds to infinity in f16.
        ("f16", (65504.0, 8.0), {"exact"}),
        ("f16", (65504.0, 15.99609375), {"+inf", "exact"}),  # within the error of one sum of it
        ("f16", (65504.0, 64.0), {"+inf"}),
        ("f16", (-65504.0, -64.0), {"-inf"}),
        ("f16", (65504.0, 65504.0, -65504.0), {"exact"}),  # a float32 accumulator holds it all
        # The accumulator overflows, in some orders.
        ("f32", (2.0**127, 2.0**127, -(2.0**127)), {"+inf", "exact"}),
        ("f32", (2.0**127, 2.0**127, -(2.0**127), -(2.0**127)), {"nan", "+inf", "-inf", "exact"}),
        ("f32", (2.0**127, -(2.0**127)), {"exact"}),
        ("f32", (math.inf, -(2.0**127)), {"+inf"}),
        ("f32", (math.inf, -(2.0**127), -(2.0**127)), {"+inf", "nan"}),
        ("f32", (-math.inf, 2.0**127, 2.0**127), {"-inf", "nan"}),
        ("f32", (math.inf, -math.inf), {"nan"}),
        # Beyond float64 the reference knows nothing.
        ("f64", (2.0**1023, 2.0**1023, -(2.0**1023)), {"nan", "+inf", "-inf", "far"}),
        ("f64", (math.inf, 2.0**1023, 2.0**1023), {"+inf", "nan"}),
        ("f64", (2.0**1023, 1.0), {"exact"}),
    ],
)
def test_overflow_is_accepted_where_a_partial_sum_can_reach_it(
    dtype: str, terms: tuple[float, ...], names: set[str]
) -> None:
    expectation = special_sum(dtype, *terms)
    assert accepted(expectation) == names


def test_native_partial_sums_in_f16_overflow_sooner() -> None:
    expectation = special_sum("f16", 60000.0, 60000.0, -60000.0)
    assert accepted(expectation, "native") == {"+inf", "exact"}
    assert accepted(expectation, "convt3d") == {"exact"}


def test_the_oracle_computes_in_float64_and_so_has_no_excuse() -> None:
    assert accepted(special_sum("f32", 2.0**127, 2.0**127, -(2.0**127)), "oracle") == {"exact"}


def test_subnormals_may_count_as_zero_for_native_bf16_only() -> None:
    case = Case(dtype="bf16", lane="special")
    expectation = expectation_of(case, input=2.0**-130, weight=2.0**100, grad_output=1.0)
    flushed = {**vars(expectation.values), "output": np.zeros((1, 1, 1, 1, 1))}
    flushed["grad_weight"] = flushed["output"]
    for leg, is_right in (("native", True), ("convt3d", False)):
        assert passes(expectation, outcome_of(case, leg, flushed), leg) is is_right
    half = {**vars(expectation.values), "output": expectation.values.output * 3}
    assert not passes(expectation, outcome_of(case, "native", half), "native")


def test_a_flushed_subnormal_beside_an_infinity_may_make_nan_for_native_bf16_only() -> None:
    case = Case(dtype="bf16", lane="special")
    expectation = expectation_of(case, input=2.0**-130, weight=math.inf, grad_output=1.0)
    assert accepted(expectation, "native") == {"+inf", "nan"}
    assert accepted(expectation, "convt3d") == {"+inf"}


# ---- literal zeros of padding ---------------------------------------------------------------------


def padded_case() -> Expectation:
    """Kernel 2 on two voxels: output[0] meets tap 0 only, and tap 1 only past the border."""
    case = Case(lane="special", input_size=(1, 1, 2), kernel_size=(1, 1, 2))
    return expectation_of(case, input=1.0, weight=[1.0, math.inf], grad_output=1.0)


@pytest.mark.parametrize(
    ("leg", "plan", "is_right"),
    [
        ("convt3d", "tiled.i32", True),
        ("convt3d", "auto", True),
        ("convt3d", "direct.i32", False),
        ("native", "", True),
        ("oracle", "", True),
    ],
)
def test_nan_from_a_literal_zero_of_the_padding_passes_unless_the_plan_is_direct(
    leg: str, plan: str, is_right: bool
) -> None:
    expectation = padded_case()
    plans = dict.fromkeys(DIRECT, plan) if plan else {}
    right = exact_outcome(expectation, leg, plans=plans)
    assert expectation.exact.output.ravel().tolist() == [1.0, math.inf, math.inf]
    nan = encode(np.array(math.nan), "f64" if leg == "oracle" else "f32")
    assert passes(expectation, right, leg)
    assert passes(expectation, changed(right, "output", ORIGIN, nan, plans=plans), leg) is is_right


def test_the_plan_that_ran_decides_and_not_the_one_asked_for() -> None:
    expectation = padded_case()
    right = exact_outcome(expectation)
    nan = encode(np.array(math.nan), "f32")
    for plans, is_right in (
        ({"forward": "direct.i32"}, False),
        ({"forward": "tiled.i32", "grad_input": "direct.i32"}, True),
    ):
        outcome = changed(right, "output", ORIGIN, nan, plans=plans)
        assert passes(expectation, outcome) is is_right


def test_nan_where_every_tap_meets_an_element_is_wrong_for_any_plan() -> None:
    expectation = padded_case()
    for index in ((0, 0, 0, 0, 1), (0, 0, 0, 0, 2)):
        outcome = changed(exact_outcome(expectation), "output", index, 0x7FC00000)
        # The middle meets both taps; the last meets tap 0, which is finite, past the border.
        assert not passes(expectation, outcome)


def test_only_nan_comes_from_a_literal_zero() -> None:
    expectation = padded_case()
    for value in (math.inf, 2.0):
        raw = encode(np.array(value), "f32")
        assert not passes(expectation, changed(exact_outcome(expectation), "output", ORIGIN, raw))


def test_taps_of_another_phase_excuse_native_only() -> None:
    case = Case(lane="special", input_size=(1, 1, 2), kernel_size=(1, 1, 2), stride=(1, 1, 2))
    expectation = expectation_of(case, input=1.0, weight=[1.0, math.inf], grad_output=1.0)
    nan = encode(np.array(math.nan), "f32")
    for leg, is_right in (("native", True), ("convt3d", False)):
        outcome = changed(exact_outcome(expectation, leg), "output", ORIGIN, nan)
        assert passes(expectation, outcome, leg) is is_right


@pytest.mark.parametrize(
    ("leg", "has_gpu", "infinite", "is_right"),
    [
        ("native", True, True, True),
        ("native", True, False, False),
        ("native", False, True, False),
        ("convt3d", True, True, False),
        ("oracle", True, True, False),
    ],
)
def test_an_infinity_of_another_group_excuses_native_on_a_gpu_only(
    leg: str, has_gpu: bool, infinite: bool, is_right: bool
) -> None:
    case = Case(lane="special", groups=2, in_channels=2, out_channels=2)
    second = math.inf if infinite else 2.0
    expectation = expectation_of(
        case, input=1.0, weight=np.reshape([1.0, second], (2, 1, 1, 1, 1)), grad_output=1.0
    )
    nan = encode(np.array(math.nan), "f64" if leg == "oracle" else "f32")
    outcome = changed(exact_outcome(expectation, leg), "output", ORIGIN, nan, has_gpu=has_gpu)
    assert passes(expectation, outcome, leg) is is_right


@pytest.mark.parametrize(("leg", "is_right"), [("native", True), ("convt3d", False)])
def test_native_alone_may_flush_a_subnormal_to_zero(leg: str, is_right: bool) -> None:
    case = Case(lane="special")
    expectation = expectation_of(case, input=1.0, weight=2.0**-130, grad_output=1.0)
    outcome = changed(exact_outcome(expectation, leg), "output", ORIGIN, 0)
    assert passes(expectation, outcome, leg) is is_right


def test_the_normal_lane_excuses_no_nan() -> None:
    expectation = expectation_of(Case(lane="normal", input_size=(2, 2, 2), kernel_size=(2, 2, 2)))
    assert not passes(
        expectation, changed(exact_outcome(expectation), "output", ORIGIN, 0x7FC00000)
    )


# ---- zero_filled itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("every_tap", [False, True])
def test_zero_filled_changes_nothing_where_data_are_finite(every_tap: bool) -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        case = draw_case(random)
        inputs = generate(case)
        filled = zero_filled(inputs, case.parameters, every_tap)
        exact = reference.evaluate(*operands(inputs), case.parameters)
        for name, array in vars(exact).items():
            assert np.array_equal(array, getattr(filled, name)), f"{case}: {name}"


@pytest.mark.parametrize("every_tap", [False, True])
def test_zero_filled_has_nan_where_a_gather_that_multiplies_zeros_has(every_tap: bool) -> None:
    random = np.random.default_rng(2)
    for _ in range(60):
        case = draw_case(random, n=1, groups=1, in_channels=1, out_channels=1, bias=False)
        tensors = [np.ones(s) for s in (case.input_shape, case.weight_shape, case.output_shape)]
        place = tensors[random.integers(3)]
        place[np.unravel_index(random.integers(place.size), place.shape)] = math.inf
        x, weight, g = tensors
        filled = zero_filled(Inputs(x, weight, None, g), case.parameters, every_tap)
        for name, expected in gather_with_zeros(case, x, weight, g, every_tap).items():
            got = np.isnan(getattr(filled, name)[0, 0])
            assert np.array_equal(got, np.isnan(expected)), f"{case}: {name}"


@np.errstate(invalid="ignore")
def gather_with_zeros(
    case: Case, x: Values, weight: Values, g: Values, every_tap: bool
) -> dict[str, Values]:
    """output, grad_input and grad_weight of one channel, out-of-range operands read as zeros.

    One triple of positions at a time, over all (i, k, o) that meet on an unbounded grid.
    """
    output, grad_input, grad_weight = (np.zeros(a.shape[2:]) for a in (g, x, weight))
    axes = [axis_meetings(case, axis, every_tap) for axis in range(3)]
    for meeting in itertools.product(*axes):
        i, k, o = zip(*meeting)
        x_value, g_value = read(x, i), read(g, o)
        if has(g, o):
            output[o] += x_value * weight[0, 0][k]
        if has(x, i):
            grad_input[i] += g_value * weight[0, 0][k]
        if has(x, i) or has(g, o):
            grad_weight[k] += x_value * g_value
    return {"output": output, "grad_input": grad_input, "grad_weight": grad_weight}


def axis_meetings(case: Case, axis: int, every_tap: bool) -> list[tuple[Any, int, int]]:
    """Meetings (i, k, o) with i or o in range; i is None for an inserted zero of another phase."""
    size, output = case.input_size[axis], case.output_size[axis]
    stride, padding, dilation = case.stride[axis], case.padding[axis], case.dilation[axis]
    found: list[tuple[Any, int, int]] = []
    for k in range(case.kernel_size[axis]):
        for o in range(-20, 40):
            i, rest = divmod(o + padding - k * dilation, stride)
            if rest == 0 and (0 <= i < size or 0 <= o < output):
                found.append((i, k, o))
            elif rest and every_tap and 0 <= o < output:
                found.append((None, k, o))
    return found


def has(tensor: Values, place: tuple[Any, ...]) -> bool:
    return all(p is not None and 0 <= p < n for p, n in zip(place, tensor.shape[2:]))


def read(tensor: Values, place: tuple[Any, ...]) -> float:
    return float(tensor[0, 0][place]) if has(tensor, place) else 0.0
