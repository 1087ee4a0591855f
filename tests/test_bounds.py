"""The bounds: what they are made of, and that correct sums stay within them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fuzz.bounds import (
    LAMBDA,
    NO_BOUND,
    TABLE,
    accumulation_bound,
    element_bound,
    expect,
    overflow_threshold,
    relative_error,
    underflow,
)
from fuzz.case import Case
from fuzz.checks import judge
from fuzz.data import Inputs, generate
from fuzz.number import (
    DTYPES,
    decode,
    encode,
    largest_finite,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from fuzz.outcome import Outcome

U32 = 2.0**-24


def c(n: int, unit: float = U32, truncates: bool = False) -> float:
    """c(n) of Note [Bound]."""
    return float(relative_error(np.array([n]), unit, truncates)[0]) / unit


def sum_in_order(terms: NDArray[Any], dtype: Any) -> float:
    """Adds from left to right, each sum rounded to the dtype."""
    return float(np.add.accumulate(terms.astype(dtype))[-1])


@pytest.mark.parametrize("leg", ["convt3d", "oracle", "native"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_leg_has_a_row_for_every_dtype(leg: str, dtype: str) -> None:
    row = TABLE[leg, dtype]
    assert row.output == ("f64" if leg == "oracle" else dtype.removeprefix("t"))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_overflow_threshold_is_the_first_value_that_rounds_to_infinity(dtype: str) -> None:
    threshold = overflow_threshold(dtype)
    below = math.nextafter(threshold, 0)
    rounded = decode(encode(np.array([below, threshold]), dtype), dtype)
    assert rounded.tolist() == [largest_finite(dtype), math.inf]


def test_overflow_threshold_of_f64_is_infinity_itself() -> None:
    assert overflow_threshold("f64") == math.inf


def test_a_single_term_costs_one_rounding() -> None:
    assert c(1) == pytest.approx(1, rel=1e-6)


def test_no_term_costs_nothing() -> None:
    assert c(0) == 0


def test_short_sums_use_the_worst_case_and_long_ones_the_probable() -> None:
    assert c(50) == pytest.approx(50, rel=1e-4)
    assert c(10**6) == pytest.approx(LAMBDA * 1000, rel=1e-2)
    assert c(10**6, truncates=True) == pytest.approx(10**6, rel=0.1)


def test_lambda_fails_less_than_once_in_1e21_terms() -> None:
    assert 2 * math.exp(-(LAMBDA**2) / 2) < 1e-21


def test_sums_beyond_the_worst_case_theorem_still_have_the_probable_one() -> None:
    assert c(300, unit=2.0**-8, truncates=True) == NO_BOUND * 2**8
    assert c(300, unit=2.0**-8) < 300


@pytest.mark.parametrize("n", [1, 2, 10, 100, 1000, 100_000])
@pytest.mark.parametrize("positive", [True, False])
def test_sequential_float32_sums_of_random_reals_stay_within_the_bound(
    n: int, positive: bool
) -> None:
    row, random = TABLE["convt3d", "f32"], np.random.default_rng(n)
    for _ in range(20):
        factors = random.random((2, n)) - (0.0 if positive else 0.5)
        x, w = factors.astype(np.float32).astype(np.float64)
        magnitude = np.array(np.abs(x * w).sum())
        got = sum_in_order((x * w).astype(np.float32), np.float32)
        exact = np.array((x * w).sum())
        bound = element_bound(accumulation_bound(np.array(n), magnitude, row), exact, row)
        assert abs(got - exact) <= bound


@pytest.mark.parametrize("n", [2, 20, 80])
def test_a_chain_of_worst_roundings_is_within_the_worst_case_and_uses_most_of_it(n: int) -> None:
    row = TABLE["convt3d", "f32"]
    terms = np.array([1.0] + [U32] * (n - 1))  # each addition is a tie that rounds down to 1
    assert sum_in_order(terms, np.float32) == 1
    error = terms.sum() - 1
    bound = accumulation_bound(np.array(n), np.array(terms.sum()), row)
    assert 0.49 * bound <= error <= bound


@pytest.mark.parametrize("n", [10, 1000])
def test_truncated_sums_stay_within_the_bound_of_truncating_accumulators(n: int) -> None:
    row, random = TABLE["native", "tf32"], np.random.default_rng(n)
    terms = decode(encode(random.random(n), "f32"), "f32")
    total = 0.0
    for term in terms:
        single = np.float32(total + term)
        total = float(single if single <= total + term else np.nextafter(single, np.float32(0)))
    error = abs(terms.sum() - total)
    assert error <= accumulation_bound(np.array(n), np.array(terms.sum()), row)
    assert error > relative_error(np.array([n]), U32)[0] * terms.sum() or n < 1000


def test_operands_rounded_to_tf32_fit_the_row_of_tf32_and_not_that_of_f32() -> None:
    x = 1 + 2.0**-11  # a tie: TF32 has 10 bits after the point
    error = x * x - 1
    n, magnitude = np.array(1), np.array(x * x)
    assert error <= accumulation_bound(n, magnitude, TABLE["native", "tf32"])
    assert error > accumulation_bound(n, magnitude, TABLE["convt3d", "f32"])


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_a_correct_rounding_of_one_exact_value_needs_no_accumulation_error(dtype: str) -> None:
    row = TABLE["convt3d", dtype]
    exact = np.random.default_rng(0).random(1000) + 0.5
    error = np.abs(decode(encode(exact, dtype), dtype) - exact)
    bound = element_bound(np.zeros(1000), exact, row)
    assert (error <= bound).all()
    assert (bound <= 1.01 * unit_roundoff(dtype) * exact).all()


def test_the_bound_depends_on_the_reduction_and_not_on_the_size_of_the_tensor() -> None:
    small = Case(lane="normal", in_channels=3, input_size=(1, 1, 2), kernel_size=(1, 1, 2))
    large = Case(lane="normal", in_channels=3, input_size=(5, 6, 40), kernel_size=(1, 1, 2))
    terms = [expect(case, generate(case)).terms("output").max() for case in (small, large)]
    assert terms[0] == terms[1] == 6


def test_bias_and_split_k_lengthen_the_chain() -> None:
    case = Case(bias=True, in_channels=3, lane="normal")
    expectation = expect(case, generate(case))
    assert expectation.terms("output").item() == 4
    assert expectation.terms("grad_weight", splits=7).max() == 8
    assert expectation.terms("grad_input").max() == 1


def test_terms_broadcast_to_the_shape_of_their_result() -> None:
    case = Case(n=2, in_channels=3, out_channels=2, input_size=(2, 3, 4), kernel_size=(2, 2, 2))
    expectation = expect(case, generate(case))
    for result, counts in vars(expectation.products).items():
        terms = np.broadcast_to(expectation.terms(result), counts.shape)
        assert (terms == counts).all()


def test_the_integer_lane_is_expected_in_int64_and_others_in_float64() -> None:
    for lane, dtype in (("int", np.int64), ("normal", np.float64), ("special", np.float64)):
        case = Case(lane=lane, bias=True, in_channels=2, input_size=(2, 2, 2))
        expectation = expect(case, generate(case))
        assert all(array.dtype == dtype for array in vars(expectation.exact).values())
        assert all(array.dtype == np.float64 for array in vars(expectation.values).values())


def test_an_element_without_products_is_bound_to_its_bias() -> None:
    row = TABLE["convt3d", "f32"]
    nothing = accumulation_bound(np.array(0), np.array(0.0), row)
    assert element_bound(nothing, np.array(0.0), row) == 2.0**-150


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_subnormal_that_is_rounded_passes_and_one_that_is_truncated_does_not(dtype: str) -> None:
    smallest, normal = smallest_subnormal(dtype), smallest_normal(dtype)
    exact = np.random.default_rng(0).random(1000) * normal
    bound = element_bound(np.zeros(1000), exact, TABLE["convt3d", dtype])
    rounded = decode(encode(exact, dtype), dtype)
    assert (np.abs(rounded - exact) <= bound).all()
    assert np.abs(rounded - exact).max() > 0.99 * bound.max()
    truncated = np.floor(exact / smallest) * smallest
    assert 0.4 < (np.abs(truncated - exact) <= bound).mean() < 0.6


def test_a_subject_that_truncates_subnormals_fails() -> None:
    """2^-17 times 1023/1024 is 127.875 subnormals: truncated it errs by seven eighths of one."""
    values = {"input": 2.0**-17, "weight": 1023 / 1024, "grad_output": 1.0}
    case = Case(dtype="f16", lane="normal")
    tensors = {name: np.full((1, 1, 1, 1, 1), value) for name, value in values.items()}
    expectation = expect(case, Inputs(bias=None, **tensors))
    exact = expectation.exact.output
    assert 0 < exact.item() < smallest_normal("f16")
    results = {
        name: encode(getattr(expectation.exact, name), "f16")
        for name in ("output", "grad_input", "grad_weight")
    }
    assert judge(case, expectation, Outcome("ok", results=results), "convt3d").verdict == "pass"
    truncated = np.floor(exact / smallest_subnormal("f16")) * smallest_subnormal("f16")
    results["output"] = encode(truncated, "f16")
    judgement = judge(case, expectation, Outcome("ok", results=results), "convt3d")
    assert (judgement.verdict, judgement.result) == ("wrong", "output")


def test_a_tie_between_subnormals_is_within_the_bound_and_no_more() -> None:
    row, smallest = TABLE["convt3d", "f16"], smallest_subnormal("f16")
    bound = element_bound(np.zeros(()), np.array(0.5 * smallest), row)
    assert bound == 0.5 * smallest


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_where_subnormals_end_both_kinds_of_rounding_err_alike(dtype: str) -> None:
    least = unit_roundoff(dtype) * smallest_normal(dtype)
    assert underflow(dtype, flushes=False) == (least or smallest_subnormal("f64"))
    assert underflow(dtype, flushes=True) == smallest_normal(dtype)
