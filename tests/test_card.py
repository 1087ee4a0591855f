"""The failure card, word for word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fuzz.bounds import Expectation
from fuzz.card import card, contributions
from fuzz.case import Case, parse_case
from fuzz.checks import judge
from fuzz.number import encode
from fuzz.outcome import RESULTS, Outcome
from tests.answers import changed, draw_case, exact_outcome, expectation_of

TINY = "f16_ci2_i1x1x3_k1x1x3_s1x1x2_p0x0x1_bias_int_seed7"


def written(expectation: Expectation, outcomes: dict[str, Outcome]) -> str:
    case = expectation.case
    judgements = [judge(case, expectation, outcome, leg) for leg, outcome in outcomes.items()]
    return card(case, judgements, expectation, outcomes, "Xeon, torch 2.13.0")


def line(text: str, label: str) -> str:
    """The line of the card with that label, without it."""
    (found,) = (line for line in text.splitlines() if line.startswith(f"{label} "))
    return found[len(label) :].strip()


def test_card_of_a_wrong_result_on_the_integer_lane() -> None:
    expectation = expectation_of(
        parse_case(TINY),
        input=np.array([3.0, 5, -7, 11, 13, -17]).reshape(1, 2, 1, 1, 3),
        weight=np.array([1.0, -2, 3, 4, 5, -6]).reshape(2, 1, 1, 1, 3),
        bias=9.0,
    )
    right = exact_outcome(expectation)
    wrong = changed(
        right,
        "output",
        (0, 0, 0, 0, 1),
        encode(np.array(16.0), "f16"),
        plans={"forward": "direct.i32"},
    )
    outcomes = {
        "convt3d": wrong,
        "oracle": exact_outcome(expectation, "oracle"),
        "native": Outcome("crashed", "SIGSEGV"),
    }
    assert written(expectation, outcomes) == "\n".join(
        [
            "WRONG      convt3d output (plans: forward direct.i32)",
            f"case       {TINY}",
            "wrong      1 of 5 elements; first output[0, 0, 0, 0, 1]",
            "expected   9  0x4880",
            "actual     16  0x4c00",
            "error      7 = 896 ulp; the correctly rounded answer is demanded",
            "sum of     4 products: bias[0]=9 + input[0,0,0,0,1]=5 * weight[0,0,0,0,0]=1"
            " + input[0,1,0,0,1]=13 * weight[1,0,0,0,0]=4"
            " + input[0,0,0,0,0]=3 * weight[0,0,0,0,2]=3"
            " + input[0,1,0,0,0]=11 * weight[1,0,0,0,2]=-6",
            "others     oracle agrees with the reference; native crashed",
            "machine    Xeon, torch 2.13.0",
            f"reproduce  make repro CASE={TINY}",
            f'keep       make keep CASE={TINY} WHY="convt3d wrong output"',
        ]
    )


def test_card_of_a_result_outside_its_bound() -> None:
    case = parse_case("f32_ci6_normal")
    expectation = expectation_of(case, input=1.0, weight=0.5)
    wrong = changed(exact_outcome(expectation), "output", (0, 0, 0, 0, 0), 0x40400008)
    text = written(expectation, {"convt3d": wrong})
    assert line(text, "expected") == "3  0x40400000"
    assert line(text, "actual") == "3.00000191  0x40400008"
    assert line(text, "error") == "1.90735e-06 = 8 ulp = 1.524 times the bound 1.2517e-06"
    assert line(text, "sum of").startswith(
        "6 products: input[0,0,0,0,0]=1 * weight[0,0,0,0,0]=0.5 + "
    )
    assert line(text, "sum of").endswith("weight[3,0,0,0,0]=0.5, and 2 more")
    assert line(text, "others") == "no other leg ran"


@pytest.mark.parametrize("status", ["crashed", "hung", "refused"])
def test_card_of_a_subject_that_returned_nothing(status: str) -> None:
    expectation = expectation_of(Case())
    outcomes = {"convt3d": exact_outcome(expectation), "native": Outcome(status, "what it said")}
    assert written(expectation, outcomes) == "\n".join(
        [
            f"{status.upper():<10} native",
            "case       f32_int",
            "because    what it said",
            "others     convt3d agrees with the reference",
            "machine    Xeon, torch 2.13.0",
            "reproduce  make repro CASE=f32_int",
            f'keep       make keep CASE=f32_int WHY="native {status}; seen on Xeon, torch 2.13.0"'
            ' ARGS="--file native"',
        ]
    )


def test_card_of_damage_says_what_was_damaged() -> None:
    expectation = expectation_of(Case())
    text = written(
        expectation, {"convt3d": exact_outcome(expectation, damage=("guard of output",))}
    )
    assert text.splitlines()[0] == "WRONG      convt3d"
    assert line(text, "because") == "guard of output"


def test_a_message_of_several_lines_is_indented() -> None:
    text = written(expectation_of(Case()), {"convt3d": Outcome("crashed", "SIGABRT\nfree()")})
    assert text.splitlines()[2:4] == ["because    SIGABRT", "           free()"]


def test_card_of_a_case_that_all_legs_pass() -> None:
    expectation = expectation_of(Case())
    legs = {leg: exact_outcome(expectation, leg) for leg in ("convt3d", "oracle", "native")}
    assert written(expectation, legs) == "\n".join(
        [
            "PASS       convt3d, oracle, native agree with the reference",
            "case       f32_int",
            "bound      largest share used: convt3d 0, oracle 0, native 0",
            "machine    Xeon, torch 2.13.0",
            "reproduce  make repro CASE=f32_int",
            'keep       make keep CASE=f32_int WHY="..."',
        ]
    )


def test_card_of_a_mistrusted_case_says_why() -> None:
    expectation = expectation_of(Case(lane="normal"), input=0.0, weight=0.0)
    text = written(expectation, {"convt3d": exact_outcome(expectation)})
    assert text.startswith("MISTRUSTED convt3d\n")
    assert "almost all zeros" in line(text, "because")


def test_the_first_failing_leg_is_shown_and_a_pass_before_it_is_not() -> None:
    expectation = expectation_of(Case())
    wrong = changed(exact_outcome(expectation), "grad_weight", (0, 0, 0, 0, 0), 0)
    text = written(
        expectation,
        {"convt3d": exact_outcome(expectation), "native": wrong, "oracle": Outcome("hung")},
    )
    assert text.startswith("WRONG      native grad_weight\n")
    assert line(text, "keep").endswith('ARGS="--file native"')
    assert line(text, "others") == "convt3d agrees with the reference; oracle hung"


LAYER: dict[str, Any] = {
    "n": 2,
    "in_channels": 2,
    "out_channels": 3,
    "input_size": (2, 3, 4),
    "kernel_size": (2, 2, 3),
    "stride": (2, 1, 2),
    "bias": True,
}


@pytest.mark.parametrize(
    ("result", "index", "raw", "pattern"),
    [
        ("output", (slice(None), 2), 0, "288 of 864 elements, all zero, all at co=2, the last;"),
        ("output", (slice(None), 1), 0x7FC00000, "all NaN, all at co=1"),
        ("output", (..., -1), 0, "all zero, all at x=8, the last"),
        ("output", (..., slice(1, None, 2)), 0, "all zero, all in phase 1 of 2 along x"),
        ("grad_input", (0,), 0, "all zero, all at n=0;"),
        ("grad_weight", (..., 2), 0, "all zero, all at kx=2, the last"),
        ("grad_bias", slice(1, 3), 0, "2 of 3 elements, all zero; first grad_bias[1]"),
    ],
)
def test_the_card_names_what_the_wrong_elements_have_in_common(
    result: str, index: Any, raw: int, pattern: str
) -> None:
    expectation = expectation_of(Case(**LAYER))
    wrong = changed(exact_outcome(expectation), result, index, raw)
    text = line(written(expectation, {"convt3d": wrong}), "wrong")
    assert pattern in text


def test_the_card_names_every_wrong_result() -> None:
    expectation = expectation_of(Case(**LAYER))
    wrong = changed(exact_outcome(expectation), "output", (0, 0, 0, 0, 0), 0)
    wrong = changed(wrong, "grad_bias", 0, 0)
    text = line(written(expectation, {"convt3d": wrong}), "wrong")
    assert text.endswith("; also wrong: grad_bias")


@pytest.mark.parametrize(
    ("expected", "got", "sentence"),
    [
        (1.0, math.nan, "nan does not belong here"),
        (1.0, -math.inf, "-inf does not belong here"),
        (math.inf, 1.0, "no finite value belongs here"),
        (math.nan, math.inf, "inf does not belong here"),
    ],
)
def test_the_error_of_values_that_are_not_finite_is_said_in_words(
    expected: float, got: float, sentence: str
) -> None:
    expectation = expectation_of(Case(lane="special"), input=expected, weight=1.0, grad_output=1.0)
    raw = encode(np.array(got), "f32")
    wrong = changed(exact_outcome(expectation), "output", (0, 0, 0, 0, 0), raw)
    assert line(written(expectation, {"convt3d": wrong}), "error") == sentence


def test_expected_shows_the_exact_value_that_was_rounded() -> None:
    case = parse_case("bf16_ci2_normal")
    expectation = expectation_of(
        case, input=np.reshape([1.0, 0.001953125], (1, 2, 1, 1, 1)), weight=1.0
    )
    wrong = changed(exact_outcome(expectation), "output", (0, 0, 0, 0, 0), 0)
    text = written(expectation, {"convt3d": wrong})
    assert line(text, "expected") == "1  0x3f80  rounded from 1.001953125"


def test_contributions_add_up_to_the_exact_result_and_are_as_many_as_the_products() -> None:
    random = np.random.default_rng(5)
    for _ in range(25):
        case = draw_case(random)
        expectation = expectation_of(case)
        for result in RESULTS:
            exact = getattr(expectation.exact, result)
            for index in np.ndindex(exact.shape):
                found = list(contributions(case, result, index))
                total = sum(
                    math.prod(int(getattr(expectation.inputs, name)[at]) for name, at in factors)
                    for factors in found
                )
                if result == "output" and expectation.inputs.bias is not None:
                    total += int(expectation.inputs.bias[index[1]])
                assert total == exact[index], f"{case}: {result}{index}"
                assert len(found) == getattr(expectation.products, result)[index]
