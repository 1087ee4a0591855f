"""Subjects in NumPy whose answers are known to be right, for tests of the judge. Small cases only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz.bounds import TABLE, Expectation, Values, expect
from fuzz.card import contributions
from fuzz.case import Case, CaseError
from fuzz.checks import judge
from fuzz.data import Inputs, generate
from fuzz.number import encode
from fuzz.outcome import RESULTS, Judgement, Outcome, Verdict

DIRECT = {"forward": "direct.i32", "grad_input": "direct.i32", "grad_weight": "direct.i32"}

# What a float32 accumulator is in NumPy; tf32 differs in its operands.
ACCUMULATORS = {"f64": np.float64, "f32": np.float32}


def expectation_of(case: Case, **tensors: Any) -> Expectation:
    """expect() on the case's own data, some of them replaced, or filled with one value."""
    inputs = generate(case)
    arrays = {
        name: np.broadcast_to(np.asarray(value, np.float64), getattr(inputs, name).shape).copy()
        for name, value in tensors.items()
    }
    return expect(case, Inputs(**{**vars(inputs), **arrays}))


def draw_case(random: np.random.Generator, **fixed: Any) -> Case:
    """A small random legal case with the given fields."""
    while True:

        def triple(low: int, high: int) -> tuple[int, int, int]:
            d, h, w = (int(v) for v in random.integers(low, high + 1, 3))
            return d, h, w

        groups = int(random.integers(1, 3))
        drawn: dict[str, Any] = {
            "n": int(random.integers(1, 3)),
            "groups": groups,
            "in_channels": groups * int(random.integers(1, 3)),
            "out_channels": groups * int(random.integers(1, 3)),
            "input_size": triple(1, 3),
            "kernel_size": triple(1, 3),
            "stride": triple(1, 3),
            "padding": triple(0, 2),
            "output_padding": triple(0, 1),
            "dilation": triple(1, 3),
            "bias": bool(random.integers(2)),
            "seed": int(random.integers(2**31)),
        }
        try:
            return Case(**{**drawn, **fixed})
        except CaseError:
            continue


def outcome_of(case: Case, leg: str, values: dict[str, Values], **fields: Any) -> Outcome:
    """The outcome of a leg that rounds these values correctly."""
    dtype = TABLE[leg, case.dtype].output
    return Outcome(
        "ok", results={name: encode(array, dtype) for name, array in values.items()}, **fields
    )


def exact_outcome(expectation: Expectation, leg: str = "convt3d", **fields: Any) -> Outcome:
    """The outcome of a leg that returns the correctly rounded exact values."""
    return outcome_of(expectation.case, leg, dict(vars(expectation.values)), **fields)


def summed_outcome(expectation: Expectation, random: np.random.Generator, leg: str) -> Outcome:
    """The outcome of a leg that adds rounded products in random order and rounds once at the end."""
    case, inputs = expectation.case, expectation.inputs
    accumulator = ACCUMULATORS[TABLE[leg, case.dtype].accumulator]
    tensors = {
        name: (to_tf32(array) if (case.dtype, leg) == ("tf32", "native") else array)
        for name, array in vars(inputs).items()
        if array is not None
    }
    values = {name: np.empty(getattr(expectation.exact, name).shape) for name in RESULTS}
    with np.errstate(all="ignore"):
        for name, array in values.items():
            for index in np.ndindex(array.shape):
                terms: list[Any] = [
                    math.prod(accumulator(tensors[tensor][place]) for tensor, place in factors)  # type: ignore
                    for factors in contributions(case, name, index)
                ]
                if name == "output" and case.bias:
                    terms.append(accumulator(tensors["bias"][index[1]]))
                order = random.permutation(np.array([0.0, *terms], accumulator))
                array[index] = np.add.accumulate(order)[-1]
    return outcome_of(case, leg, values)


def to_tf32(values: Values) -> Values:
    """Rounds to the 11 significant bits of TF32, ties to even."""
    fraction, exponent = np.frexp(values)
    rounded: Values = np.ldexp(np.rint(fraction * 2.0**11) / 2.0**11, exponent)
    return rounded


def changed(outcome: Outcome, result: str, index: Any, raw: Any, **fields: Any) -> Outcome:
    """The outcome with other raw bits in some elements of one result."""
    results = {name: array.copy() for name, array in outcome.results.items()}
    results[result][index] = raw
    return Outcome("ok", results=results, **fields)


def neighbour(raw: NDArray[Any], steps: int) -> NDArray[Any]:
    """Raw bits of the value so many ulps farther from zero; nearer if negative."""
    return (raw.astype(np.int64) + steps).astype(raw.dtype)


def verdict(expectation: Expectation, outcome: Outcome, leg: str = "convt3d") -> Judgement:
    """judge() for convt3d."""
    return judge(expectation.case, expectation, outcome, leg)


def passes(expectation: Expectation, outcome: Outcome, leg: str = "convt3d") -> bool:
    """Whether the judge says pass, and not wrong."""
    judgement = verdict(expectation, outcome, leg)
    assert judgement.verdict in (Verdict.PASS, Verdict.WRONG), judgement
    return judgement.verdict is Verdict.PASS
