"""The judge: every check accepts right answers and rejects wrong ones, just outside the bound too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fuzz.bounds import Expectation
from fuzz.case import Case
from fuzz.checks import compare, proves_nothing
from fuzz.number import DTYPES, decode, encode
from fuzz.outcome import RESULTS, Outcome, Verdict
from tests.answers import (
    DIRECT,
    changed,
    draw_case,
    exact_outcome,
    expectation_of,
    neighbour,
    passes,
    summed_outcome,
    verdict,
)

LEGS = ("convt3d", "oracle", "native")
SMALL: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "input_size": (2, 3, 4),
    "kernel_size": (3, 2, 3),
    "stride": (2, 1, 2),
    "padding": (1, 0, 1),
    "bias": True,
}


# ---- right answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", ["int", "normal", "special"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leg", LEGS)
def test_correctly_rounded_exact_values_pass(leg: str, dtype: str, lane: str) -> None:
    expectation = expectation_of(Case(dtype=dtype, lane=lane, seed=3, **SMALL))
    assert passes(expectation, exact_outcome(expectation, leg), leg)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_in_the_accumulator_in_any_order_pass(dtype: str) -> None:
    """On the special lane too, where sums overflow on the way, in some orders only."""
    random = np.random.default_rng(DTYPES.index(dtype))
    for lane, cases in (("int", 6), ("normal", 6), ("special", 30)):
        for _ in range(cases):
            expectation = expectation_of(draw_case(random, dtype=dtype, lane=lane))
            outcome = summed_outcome(expectation, random, "convt3d")
            strict = Outcome("ok", results=outcome.results, plans=DIRECT)
            judgement = verdict(expectation, strict)
            assert judgement.verdict in (Verdict.PASS, Verdict.MISTRUSTED), (
                f"{expectation.case}: {judgement}"
            )


def test_the_share_of_the_bound_is_that_of_the_worst_element() -> None:
    expectation = expectation_of(Case(lane="normal", seed=1, **SMALL))
    outcome = exact_outcome(expectation)
    comparison = compare(expectation, outcome, "convt3d", "output")
    assert comparison.bound is not None
    shares = np.abs(comparison.got - comparison.exact) / comparison.bound
    judgement = verdict(expectation, outcome)
    assert 0 < shares.max() == comparison.share <= judgement.share_of_bound < 1
    assert judgement.shares.keys() == set(RESULTS)
    assert judgement.shares["output"] == comparison.share


# ---- just outside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leg", LEGS)
def test_an_element_passes_up_to_its_bound_and_fails_one_value_beyond(
    leg: str, dtype: str, result: str
) -> None:
    expectation = expectation_of(Case(dtype=dtype, lane="normal", seed=11, **SMALL))
    right = exact_outcome(expectation, leg)
    comparison = compare(expectation, right, leg, result)
    assert comparison.bound is not None
    index = tuple(int(size) - 1 for size in comparison.exact.shape)
    last, bound = comparison.exact[index], comparison.bound[index]
    towards = 1.0 if last > 0 else -1.0  # away from zero
    raw = encode(last + towards * bound, comparison.dtype)
    while abs(decode(raw, comparison.dtype) - last) <= bound:
        raw = neighbour(raw, 1)
    while abs(decode(raw, comparison.dtype) - last) > bound:
        raw = neighbour(raw, -1)
    assert passes(expectation, changed(right, result, index, raw), leg)
    judgement = verdict(expectation, changed(right, result, index, neighbour(raw, 1)), leg)
    assert judgement.verdict is Verdict.WRONG
    assert (judgement.result, judgement.first_wrong) == (result, index)
    assert judgement.wrong_elements == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("steps", [1, -1])
def test_the_integer_lane_demands_every_bit_except_of_native_16_bit_types(
    leg: str, dtype: str, steps: int
) -> None:
    expectation = expectation_of(Case(dtype=dtype, seed=4, **SMALL))
    right = exact_outcome(expectation, leg)
    index = (0, 1, 1, 0, 2)
    raw = neighbour(right.results["output"][index], steps)
    exempt = leg == "native" and dtype in ("f16", "bf16")
    assert passes(expectation, changed(right, "output", index, raw), leg) is exempt


def test_native_16_bit_results_far_off_are_wrong_on_the_integer_lane_too() -> None:
    expectation = expectation_of(Case(dtype="bf16", seed=4, **SMALL))
    right = exact_outcome(expectation, "native")
    twice = encode(2 * expectation.values.grad_input, "bf16")
    wrong = Outcome("ok", results={**right.results, "grad_input": twice})
    assert verdict(expectation, wrong, "native").result == "grad_input"


@pytest.mark.parametrize("lane", ["int", "normal"])
def test_the_sign_of_zero_is_free(lane: str) -> None:
    case = Case(lane=lane, in_channels=2, out_channels=2)
    expectation = expectation_of(
        case,
        input=np.array([1.0, 1.0]).reshape(1, 2, 1, 1, 1),
        weight=[[[[[1.0]]], [[[2.0]]]], [[[[-1.0]]], [[[3.0]]]]],
    )
    right = exact_outcome(expectation)
    assert expectation.values.output.ravel()[0] == 0
    assert passes(expectation, changed(right, "output", (0, 0, 0, 0, 0), 0x80000000))


def test_an_integer_sum_beyond_the_output_format_must_be_infinite() -> None:
    case = Case(dtype="f16", in_channels=2)
    expectation = expectation_of(case, input=300.0, weight=200.0)
    right = exact_outcome(expectation)
    index = (0, 0, 0, 0, 0)
    assert right.results["output"][index] == 0x7C00
    assert passes(expectation, right)
    assert not passes(expectation, changed(right, "output", index, 0x7BFF))
    assert not passes(expectation, changed(right, "output", index, 0xFC00))


# ---- identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("dtype", ["f64", "f32", "tf32"])
def test_a_wrong_reference_is_seen_even_where_every_leg_is_wrong_in_the_same_way(
    dtype: str, result: str, leg: str
) -> None:
    right = expectation_of(Case(dtype=dtype, seed=4, **SMALL))
    exact = replace(right.exact, **{result: getattr(right.exact, result) + 1})
    expectation = Expectation(right.case, right.inputs, exact)
    judgement = verdict(expectation, exact_outcome(expectation, leg), leg)
    assert (judgement.verdict, judgement.check) == (Verdict.WRONG, "identity")
    assert judgement.detail.endswith("the reference gives the same results, so it is wrong too"), (
        judgement.detail
    )


# ---- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "check"),
    [
        ("refused", "ValueError: padding=5", "refusal"),
        ("hung", "no answer within 20 s", "hang"),
        ("crashed", "killed by signal 11 (SIGSEGV)", "signal"),
        ("crashed", "ended with exit code 3", "exit"),
        ("crashed", "RuntimeError: CUDA error: an illegal memory access", "cuda"),
        ("crashed", "KeyError: 'a'", "exception"),
        ("crashed", "tsan: data race: SIGSEGV is not what it is", "tsan"),
        ("crashed", "memcheck: Invalid __global__ write of size 16 bytes", "memcheck"),
        ("crashed", "emulator: barrier that only part of the block reaches", "emulator"),
    ],
)
def test_a_status_that_is_not_ok_is_the_verdict(status: str, message: str, check: str) -> None:
    judgement = verdict(expectation_of(Case()), Outcome(status, message))
    assert (judgement.verdict.value, judgement.detail) == (status, message)
    assert judgement.check == check


def test_the_stage_of_a_crash_is_told() -> None:
    outcome = Outcome("crashed", "KeyError: 'a'", stage="backward")
    assert verdict(expectation_of(Case()), outcome).detail == "in backward: KeyError: 'a'"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("12 bytes written out of bounds, first 0 bytes after the end of input", "guard"),
        ("input was overwritten", "input"),
        ("1 of 8 elements of output still hold the poison: never written", "poison"),
    ],
)
def test_the_check_that_a_kind_of_damage_fails(damage: str, check: str) -> None:
    expectation = expectation_of(Case(**SMALL))
    judgement = verdict(expectation, exact_outcome(expectation, damage=(damage,)))
    assert (judgement.verdict, judgement.check) == (Verdict.WRONG, check)


@pytest.mark.parametrize(("lane", "check"), [("int", "value"), ("normal", "bound")])
def test_a_wrong_element_fails_the_check_of_its_lane(lane: str, check: str) -> None:
    expectation = expectation_of(Case(lane=lane, **SMALL))
    judgement = verdict(expectation, changed(exact_outcome(expectation), "output", 0, 0x3F800000))
    assert judgement.check == check
    assert verdict(expectation, exact_outcome(expectation)).check == ""


def test_damage_is_wrong_even_if_the_results_are_right() -> None:
    expectation = expectation_of(Case(**SMALL))
    judgement = verdict(expectation, exact_outcome(expectation, damage=("input changed", "guard")))
    assert judgement.verdict is Verdict.WRONG
    assert judgement.detail == "input changed; guard"


@pytest.mark.parametrize(
    ("result", "array", "sentence"),
    [
        ("output", None, "output is missing"),
        ("grad_bias", None, "grad_bias is missing"),
        ("output", np.zeros((1, 3, 3), np.uint32), "output has shape (1, 3, 3), but must have"),
        ("grad_bias", np.zeros(3, np.uint16), "grad_bias has bits of dtype uint16, but must have"),
        ("grad_alpha", np.zeros(3, np.uint32), "grad_alpha is no result, but must be one of"),
    ],
)
def test_results_of_the_wrong_form_are_wrong(result: str, array: Any, sentence: str) -> None:
    expectation = expectation_of(Case(**SMALL))
    results = {**exact_outcome(expectation).results, result: array}
    outcome = Outcome("ok", results={n: a for n, a in results.items() if a is not None})
    judgement = verdict(expectation, outcome)
    assert (judgement.verdict, judgement.result) == (Verdict.WRONG, result)
    assert judgement.detail.startswith(sentence)
    assert judgement.check == "shape"


NAMED: dict[str, Any] = {
    **SMALL,
    "grad_input_plan": "tiled.i32",
    "grad_weight_plan": "tiled.i32.split2",
}
RAN = {"forward": "direct.i64", "grad_input": "tiled.i32", "grad_weight": "tiled.i32.split2"}


def test_the_plans_that_the_case_names_must_have_run_and_auto_is_free() -> None:
    expectation = expectation_of(Case(**NAMED))
    assert passes(expectation, exact_outcome(expectation, plans=RAN))


@pytest.mark.parametrize(
    ("ran", "sentence"),
    [
        ({**RAN, "grad_input": "tiled.i64"}, "grad_input ran plan tiled.i64, but the case names"),
        ({**RAN, "grad_weight": "tiled.i32"}, "but the case names tiled.i32.split2"),
        ({"forward": "tiled.i32"}, "grad_input ran plan none, but the case names tiled.i32"),
    ],
)
def test_a_plan_that_ran_in_place_of_the_named_one_is_wrong_for_convt3d(
    ran: dict[str, str], sentence: str
) -> None:
    expectation = expectation_of(Case(**NAMED))
    judgement = verdict(expectation, exact_outcome(expectation, plans=ran))
    assert (judgement.verdict, judgement.check) == (Verdict.WRONG, "plan")
    assert sentence in judgement.detail
    assert passes(expectation, exact_outcome(expectation, "native"), "native")


def test_grad_bias_is_not_asked_for_without_a_bias_but_judged_if_given() -> None:
    expectation = expectation_of(Case(**{**SMALL, "bias": False}))
    right = exact_outcome(expectation)
    without = {name: raw for name, raw in right.results.items() if name != "grad_bias"}
    assert passes(expectation, Outcome("ok", results=without))
    assert not passes(expectation, changed(right, "grad_bias", 0, 0))


def test_all_wrong_results_are_named() -> None:
    expectation = expectation_of(Case(**SMALL))
    zeros = {name: np.zeros_like(raw) for name, raw in exact_outcome(expectation).results.items()}
    judgement = verdict(expectation, Outcome("ok", results=zeros))
    assert judgement.result == "output"
    assert judgement.detail.endswith("also wrong: grad_input, grad_weight, grad_bias")


# ---- mistrust -------------------------------------------------------------------------------------


def test_a_right_answer_of_nothing_but_zeros_is_mistrusted() -> None:
    expectation = expectation_of(
        Case(lane="normal", input_size=(2, 2, 2)), input=0.0, weight=0.0, grad_output=1.0
    )
    assert proves_nothing(expectation)
    assert verdict(expectation, exact_outcome(expectation)).verdict is Verdict.MISTRUSTED


def test_a_wrong_answer_is_wrong_however_many_zeros_were_expected() -> None:
    expectation = expectation_of(
        Case(lane="normal", input_size=(2, 2, 2)), input=0.0, weight=0.0, grad_output=1.0
    )
    wrong = changed(exact_outcome(expectation), "output", (0, 0, 1, 1, 1), 0x3F800000)
    assert verdict(expectation, wrong).verdict is Verdict.WRONG


def test_results_that_underflow_to_zero_count_as_zeros() -> None:
    case = Case(dtype="bf16", lane="special", input_size=(2, 2, 2))
    assert proves_nothing(
        expectation_of(case, input=2.0**-70, weight=2.0**-70, grad_output=2.0**-70)
    )


@pytest.mark.parametrize("nonzero", ["input", "weight", "grad_output"])
def test_one_telling_result_is_trusted(nonzero: str) -> None:
    tensors = {"input": 1.0, "weight": 1.0, "grad_output": 1.0, nonzero: 0.0}
    expectation = expectation_of(Case(lane="normal", input_size=(2, 2, 2)), **tensors)
    assert not proves_nothing(expectation)


def test_a_tenth_of_the_elements_is_the_limit() -> None:
    case = Case(lane="normal", input_size=(1, 1, 20))
    x, g = np.zeros(20), np.zeros(20)
    x[0], g[1] = 1, 1  # grad_weight = sum of x * g = 0
    assert proves_nothing(expectation_of(case, input=x, weight=1.0, grad_output=g))
    x[2] = 1
    assert not proves_nothing(expectation_of(case, input=x, weight=1.0, grad_output=g))


def test_elements_without_products_do_not_count() -> None:
    """Stride 2 with dilation 2: seven of eight phases have no tap and are bias only."""
    case = Case(input_size=(2, 2, 2), kernel_size=(2, 2, 2), stride=(2, 2, 2), dilation=(2, 2, 2))
    expectation = expectation_of(case)
    assert (expectation.values.output == 0).mean() > 0.7
    assert not proves_nothing(expectation)
    # All of the output cropped away but for a voxel that no tap reaches.
    nothing = Case(
        input_size=(1, 1, 1), stride=(3, 3, 3), padding=(1, 1, 1), output_padding=(2, 2, 2)
    )
    assert not proves_nothing(expectation_of(nothing))


def test_mistrust_is_rare() -> None:
    random = np.random.default_rng(0)
    mistrusted = sum(
        proves_nothing(expectation_of(draw_case(random, lane=lane, dtype=dtype)))
        for lane in ("int", "normal", "special")
        for dtype in DTYPES
        for _ in range(40)
    )
    assert mistrusted <= 3  # of 600
