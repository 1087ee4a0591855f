"""The identities accept right results and reject a single wrong element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fuzz import identities
from fuzz.bounds import Expectation
from fuzz.case import Case
from fuzz.data import Inputs
from fuzz.identities import violated_identities
from fuzz.outcome import RESULTS
from tests.answers import draw_case, expectation_of

LAYER = Case(
    n=2,
    groups=2,
    in_channels=4,
    out_channels=2,
    input_size=(2, 3, 4),
    kernel_size=(3, 2, 3),
    stride=(2, 1, 2),
    padding=(1, 0, 1),
    bias=True,
    seed=3,
)


def results_of(expectation: Expectation, dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    return {name: array.astype(dtype) for name, array in vars(expectation.exact).items()}


@pytest.mark.parametrize("dtype", ["f64", "f32", "tf32"])
def test_right_results_violate_nothing(dtype: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        expectation = expectation_of(draw_case(random, dtype=dtype))
        values = results_of(expectation, np.float64 if dtype == "f64" else np.float32)
        assert violated_identities(expectation.inputs, values) == []


@pytest.mark.parametrize("result", RESULTS)
def test_one_element_off_by_one_is_seen(result: str) -> None:
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    values[result][(-1,) * values[result].ndim] += 1
    assert violated_identities(expectation.inputs, values) != []


def test_sentences_say_which_identity_and_by_how_much() -> None:
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    values["grad_weight"][0, 0, 0, 0, 0] += 1
    values["grad_bias"][1] = 7
    difference = -int(expectation.inputs.weight[0, 0, 0, 0, 0])
    true_sum = int(expectation.exact.grad_bias[1])
    assert violated_identities(expectation.inputs, values) == [
        f"<input, grad_input> - <weight, grad_weight> = {difference}, but must be 0",
        f"grad_bias[1]=7, but grad_output sums to {true_sum} there",
    ]


def test_the_bias_is_left_out_of_the_inner_product() -> None:
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    assert expectation.inputs.bias is not None
    values["output"] -= expectation.inputs.bias.astype(np.float32)[:, None, None, None]
    (sentence,) = violated_identities(expectation.inputs, values)
    assert sentence.startswith("<output - bias, grad_output> - <input, grad_input> = ")


def test_any_two_results_can_be_compared() -> None:
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    for first, second in (("output", "grad_weight"), ("grad_input", "grad_weight")):
        two = {first: values[first], second: values[second]}
        assert violated_identities(expectation.inputs, two) == []
        two[second] = two[second] + 1
        assert violated_identities(expectation.inputs, two) != []
    assert violated_identities(expectation.inputs, {"output": values["output"]}) == []


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 2.0**54])
def test_results_that_are_no_integers_violate_all(value: float) -> None:
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    values["grad_input"][0, 0, 0, 0, :2] = value
    assert violated_identities(expectation.inputs, values) == [
        "grad_input has 2 elements that are no integers of at most 2^53, but must have none"
    ]


def test_a_result_of_another_shape_is_an_error() -> None:
    expectation = expectation_of(LAYER)
    values = {**results_of(expectation), "output": np.zeros((1, 1, 1, 1, 1))}
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1, 1, 1\), but must have \(2, 2,"):
        violated_identities(expectation.inputs, values)


def test_inner_products_beyond_int64_are_still_exact() -> None:
    ones, x, w, g = np.ones((1, 1, 1, 1, 8000)), 2.0**12 + 1, 2.0**26 - 1, 2.0**26 - 3
    inputs = Inputs(ones * x, np.full((1, 1, 1, 1, 1), w), None, ones * g)
    values = {
        "output": ones * (x * w),
        "grad_input": ones * (w * g),
        "grad_weight": np.full((1, 1, 1, 1, 1), 8000 * x * g),
    }
    assert 8000 * int(x) * int(w) * int(g) > 2**64
    assert violated_identities(inputs, values) == []
    values["output"][..., 17] += 1
    assert len(violated_identities(inputs, values)) == 1


def test_large_tensors_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "CHUNK_ELEMENTS", 7)
    expectation = expectation_of(LAYER)
    values = results_of(expectation)
    assert violated_identities(expectation.inputs, values) == []
    values["output"][1, 1, 0, 0, 0] += 1
    assert len(violated_identities(expectation.inputs, values)) == 1
