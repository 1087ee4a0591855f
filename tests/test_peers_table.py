"""The bugs that the judges of other projects let through, on one layer: none may survive here.

One product missing at one voxel; the last tap missing on a border plane; sums kept in the output's
type; one voxel zero; bf16 by truncation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from fuzz.bounds import Expectation, Values
from fuzz.case import Case
from fuzz.number import RawBits, decode, encode
from tests.answers import exact_outcome, expectation_of, passes

LAYER = Case(
    n=2,
    in_channels=32,
    out_channels=32,
    input_size=(6, 6, 6),
    kernel_size=(3, 3, 3),
    stride=(2, 2, 2),
    padding=(1, 1, 1),
    output_padding=(1, 1, 1),
)
SEEDS = range(2)
VOXEL = (1, 7, 3, 4, 5)
Round = Callable[[Values], Values]


def to_float32(values: Values) -> Values:
    return values.astype(np.float32).astype(np.float64)


def rounding_to(dtype: str) -> Round:
    return lambda values: decode(encode(values, dtype), dtype)


@lru_cache(maxsize=4)
def expected(dtype: str, lane: str, seed: int) -> Expectation:
    fields = {**vars(LAYER), "dtype": dtype, "lane": lane, "seed": seed}
    return expectation_of(Case(**fields))


@lru_cache(maxsize=4)
def right_sums(dtype: str, lane: str, seed: int) -> Values:
    return add_up(expected(dtype, lane, seed), seed, to_float32)


def add_up(expectation: Expectation, seed: int, rounded: Round) -> Values:
    """output of LAYER, its products added one by one in random order, each sum rounded."""
    x, weight = expectation.inputs.input, expectation.inputs.weight
    uncropped = np.zeros((2, 32, 15, 15, 15))
    terms = list(itertools.product(range(3), range(3), range(3), range(32)))
    np.random.default_rng(seed).shuffle(terms)
    for d, h, w, ci in terms:
        target = (..., slice(d, d + 12, 2), slice(h, h + 12, 2), slice(w, w + 12, 2))
        product = to_float32(x[:, ci, None] * weight[ci, :, d, h, w, None, None, None])
        uncropped[target] = rounded(uncropped[target] + product)
    return uncropped[:, :, 1:13, 1:13, 1:13]


def is_accepted(expectation: Expectation, output: RawBits) -> bool:
    """Whether a forward with this output, and right gradients, passes."""
    outcome = exact_outcome(expectation)
    outcome.results["output"] = output
    return passes(expectation, outcome)


def drop_one_product(expectation: Expectation, sums: Values) -> RawBits:
    """Tap k = (o + padding) % 2 meets input element i = (o + padding) // 2 on each axis."""
    dropped, inputs = sums.copy(), expectation.inputs
    n, co, *o = VOXEL
    i, k = zip(*(divmod(position + 1, 2) for position in o))
    dropped[VOXEL] -= inputs.input[(n, 5, *i)] * inputs.weight[(5, co, *k)]
    return encode(dropped, expectation.case.dtype)


def drop_last_tap_on_border(expectation: Expectation, sums: Values) -> RawBits:
    """The last tap of i is at o = 2 * i + 1, on the border plane W = 11 for i = 5."""
    dropped, inputs = sums.copy(), expectation.inputs
    lost = np.einsum("nidh,io->nodh", inputs.input[..., 5], inputs.weight[:, :, 2, 2, 2])
    dropped[:, :, 1::2, 1::2, 11] -= lost
    return encode(dropped, expectation.case.dtype)


def zero_one_voxel(expectation: Expectation, sums: Values) -> RawBits:
    raw = encode(sums, expectation.case.dtype)
    raw[VOXEL] = 0
    return raw


def truncate(expectation: Expectation, sums: Values) -> RawBits:
    assert expectation.case.dtype == "bf16"
    return (sums.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def accumulate_in_output_type(expectation: Expectation, sums: Values) -> RawBits:
    dtype = expectation.case.dtype
    return encode(add_up(expectation, 0, rounding_to(dtype)), dtype)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lane", ["int", "normal"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_right_layer_passes(dtype: str, lane: str, seed: int) -> None:
    assert is_accepted(expected(dtype, lane, seed), encode(right_sums(dtype, lane, seed), dtype))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mutant", "dtype"),
    [
        (drop_one_product, "f16"),
        (drop_one_product, "bf16"),
        (drop_last_tap_on_border, "f16"),
        (drop_last_tap_on_border, "bf16"),
        (accumulate_in_output_type, "f16"),
        (accumulate_in_output_type, "bf16"),
        (zero_one_voxel, "f16"),
        (zero_one_voxel, "bf16"),
        (truncate, "bf16"),
    ],
)
def test_no_mutant_survives_both_lanes(
    mutant: Callable[[Expectation, Values], RawBits], dtype: str, seed: int
) -> None:
    survived = []
    for lane in ("int", "normal"):
        expectation = expected(dtype, lane, seed)
        survived.append(
            is_accepted(expectation, mutant(expectation, right_sums(dtype, lane, seed)))
        )
    assert not all(survived)
