"""The reference is the suspect when convt3d and the oracle contradict it in the same way, and only then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import reference
from fuzz.bounds import Expectation
from fuzz.case import Case
from fuzz.failure import SHRUNK, Failure, kind_of
from fuzz.legs import LEGS, Legs
from fuzz.number import encode
from fuzz.outcome import RESULTS, Judgement, Outcome, Verdict
from fuzz.progress import Tally, summary
from fuzz.search import Search
from fuzz.strategies import cases
from fuzz.suspect import accuse
from fuzz.worker import preload
from reference import Results
from tests.answers import changed, exact_outcome, expectation_of

SHAPE: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "input_size": (2, 3, 4),
    "kernel_size": (3, 2, 3),
    "stride": (2, 1, 2),
    "padding": (1, 0, 1),
    "bias": True,
}


def faulty(expectation: Expectation, result: str, array: Any) -> Expectation:
    """What a reference with a fault in one result says."""
    exact = replace(expectation.exact, **{result: array})
    return Expectation(expectation.case, expectation.inputs, exact)


def right_outcomes(expectation: Expectation) -> dict[str, Outcome]:
    return {leg: exact_outcome(expectation, leg) for leg in LEGS}


@pytest.mark.parametrize("lane", ["int", "normal", "special"])
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("result", RESULTS)
def test_a_reference_that_both_contradict_is_the_suspect(
    result: str, dtype: str, lane: str
) -> None:
    right = expectation_of(Case(dtype=dtype, lane=lane, seed=3, **SHAPE))
    wrong = faulty(right, result, np.roll(getattr(right.exact, result), 1))
    accusation = accuse(wrong, right_outcomes(right))
    assert accusation is not None
    judgement = accusation.judgement
    assert (judgement.leg, judgement.verdict) == ("reference", Verdict.WRONG)
    assert (judgement.result, judgement.check) == (result, "value" if lane == "int" else "bound")
    assert judgement.detail.startswith("convt3d and oracle contradict the reference and agree")


def test_on_the_integer_lane_the_identities_tell_too() -> None:
    right = expectation_of(Case(**SHAPE))
    accusation = accuse(faulty(right, "output", right.exact.output + 1), right_outcomes(right))
    assert accusation is not None
    assert "<output - bias, grad_output> - <input, grad_input> =" in accusation.judgement.detail


def test_a_reference_of_the_wrong_shape_is_the_suspect() -> None:
    right = expectation_of(Case(**SHAPE))
    wrong = faulty(right, "grad_weight", right.exact.grad_weight.swapaxes(0, 1))
    accusation = accuse(wrong, right_outcomes(right))
    assert accusation is not None
    assert (accusation.judgement.result, accusation.judgement.check) == ("grad_weight", "shape")


def test_a_reference_whose_bounds_alone_are_wrong_is_the_suspect() -> None:
    right = expectation_of(Case(lane="normal", **SHAPE))
    right.__dict__["magnitude"] = Results(**{n: np.abs(a) for n, a in vars(right.exact).items()})
    outcomes = right_outcomes(right)
    # The oracle is a little off, and convt3d says the same: both are outside the bounds.
    value = right.values.output * (1 + 2.0**-20)
    for leg, dtype in (("convt3d", "f32"), ("oracle", "f64")):
        outcomes[leg] = changed(outcomes[leg], "output", ..., encode(value, dtype))
    accusation = accuse(right, outcomes)
    assert accusation is not None
    assert (accusation.judgement.result, accusation.judgement.check) == ("output", "bound")


def test_a_sum_of_absolute_values_below_the_value_is_the_fault_of_the_reference() -> None:
    right = expectation_of(Case(lane="normal", **SHAPE))
    halves = {name: np.abs(array) / 2 for name, array in vars(right.exact).items()}
    wrong = Expectation(right.case, right.inputs, right.exact)
    wrong.__dict__["magnitude"] = Results(**halves)
    accusation = accuse(wrong, right_outcomes(right))
    assert accusation is not None
    assert (accusation.judgement.result, accusation.judgement.check) == ("output", "bound")
    assert accuse(right, right_outcomes(right)) is None


def test_a_reference_that_accepts_what_both_refuse_is_the_suspect() -> None:
    right = expectation_of(Case(**SHAPE))
    refused = {leg: Outcome("refused", "RuntimeError: mismatch in shape") for leg in LEGS}
    accusation = accuse(right, refused)
    assert accusation is not None
    assert accusation.judgement.check == "refusal"
    assert "mismatch in shape" in accusation.judgement.detail
    assert accuse(right, {**refused, "oracle": exact_outcome(right, "oracle")}) is None


@pytest.mark.parametrize("lane", ["int", "normal"])
def test_one_leg_alone_does_not_make_the_reference_a_suspect(lane: str) -> None:
    right = expectation_of(Case(lane=lane, **SHAPE))
    for leg, one in (("convt3d", 0x3F800000), ("oracle", 0x3FF0000000000000)):
        outcomes = right_outcomes(right)
        outcomes[leg] = changed(outcomes[leg], "output", (0, 0, 1, 1, 1), one)
        assert accuse(right, outcomes) is None


@pytest.mark.parametrize("lane", ["int", "normal"])
def test_two_legs_that_are_wrong_in_their_own_ways_do_not_accuse_the_reference(lane: str) -> None:
    right = expectation_of(Case(lane=lane, **SHAPE))
    for ours, theirs in (((0, 0, 1, 1, 1), (0, 0, 1, 1, 2)), (..., ...)):
        outcomes = right_outcomes(right)
        zero = np.uint32(0)
        outcomes["convt3d"] = changed(outcomes["convt3d"], "output", ours, zero)
        twice = encode(-2 * right.values.output, "f64")[theirs]
        outcomes["oracle"] = changed(outcomes["oracle"], "output", theirs, twice)
        assert accuse(right, outcomes) is None


def test_a_leg_that_crashed_or_did_damage_is_no_witness() -> None:
    right = expectation_of(Case(**SHAPE))
    wrong = faulty(right, "output", right.exact.output + 1)
    for leg in ("convt3d", "oracle"):
        for bad in (Outcome("crashed", "SIGSEGV"), exact_outcome(right, leg, damage=("guard",))):
            assert accuse(wrong, {**right_outcomes(right), leg: bad}) is None


# ---- on processes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_legs() -> Iterator[Legs]:
    preload(["tests.fake_subjects", "pytest"])
    with Legs("tests.fake_subjects") as legs:
        legs.await_ready()
        yield legs


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the reference of this process, and not in that of the fake subjects."""
    evaluate = reference.evaluate

    def loses_the_bias(x: Any, weight: Any, bias: Any, *others: Any) -> Results:
        return evaluate(x, weight, None, *others)

    monkeypatch.setattr(reference, "evaluate", loses_the_bias)


@pytest.mark.parametrize("lane", ["int", "normal"])
def test_the_verdict_names_the_reference_and_nobody_else(
    three_legs: Legs, fault: None, lane: str
) -> None:
    case = Case(lane=lane, **SHAPE)
    examination = three_legs.examine(case)
    assert examination.failing_legs() == ("reference",)
    assert {examination.judgements[leg].verdict for leg in LEGS} == {Verdict.MISTRUSTED}
    assert str(kind_of(examination, "reference")) == "reference f32 wrong output"
    lines = examination.card("here", "reference").splitlines()
    assert lines[0] == "WRONG      reference output"
    assert lines[7] == (
        "others     convt3d and oracle contradict the reference and agree with each other; native mistrusted"
    )
    confirmed = three_legs.confirm(examination, "reference")
    assert confirmed.failing_legs() == ("reference",)


def test_what_crashes_is_no_fault_of_the_reference(three_legs: Legs, fault: None) -> None:
    case = Case(grad_weight_plan="segfault", **SHAPE)
    assert three_legs.examine(case).failing_legs() == ("reference", "native")


def test_where_the_reference_is_right_it_is_no_suspect(three_legs: Legs, fault: None) -> None:
    examination = three_legs.examine(Case(**{**SHAPE, "bias": False}))
    assert examination.failing_legs() == ()
    assert "reference" not in examination.judgements


def test_a_leg_that_the_reference_wrongs_on_special_values_is_cleared_on_integers(
    three_legs: Legs, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = reference.evaluate

    def negates(*operands: Any) -> Results:
        results = evaluate(*operands)
        return replace(results, grad_input=-results.grad_input)

    monkeypatch.setattr(reference, "evaluate", negates)
    failures, tally = list[Failure](), Tally()
    search = Search(three_legs, cases(dtypes=("f32",)), tally, failures.append, lambda: 1e9)
    examination = three_legs.examine(Case(lane="special", **SHAPE))
    judgements = {
        **examination.judgements,
        "convt3d": Judgement("convt3d", Verdict.WRONG, "grad_input", check="bound"),
    }
    del judgements["reference"]
    alone = replace(examination, judgements=judgements)
    tally.add(alone)
    assert search._inquiry.confirm(alone, "convt3d") is None
    search._inquiry.look()
    assert [failure.kind.leg for failure in failures] == ["reference"]
    assert tally.verdicts["convt3d", "wrong"] == 0
    assert tally.failures["convt3d"] == 0


def test_a_search_reports_the_reference_with_the_smallest_case(
    three_legs: Legs, fault: None
) -> None:
    failures, tally = list[Failure](), Tally()
    search = Search(three_legs, cases(dtypes=("f32",)), tally, failures.append, lambda: 1e9)
    search.examine(Case(dtype="bf16", lane="normal", **SHAPE))
    assert [str(failure.kind) for failure in failures] == ["reference f32 wrong output"]
    assert failures[0].status == SHRUNK
    assert str(failures[0].examination.case) == "f32_bias_int"
    assert tally.failures == {"reference": 1}
    assert tally.verdicts["reference", "wrong"] > 0
    assert re.search(r"^  reference wrong \d+$", summary(tally, 1.0), re.MULTILINE)
