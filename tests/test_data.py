"""The tensors of a case: exact in its dtype, in the range of its lane, and the same ones for ever."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings

from fuzz import number
from fuzz.case import LANES, Case, parse_case
from fuzz.data import Inputs, amplitude, generate
from fuzz.number import DTYPES
from fuzz.strategies import cases
from reference import evaluate, magnitude

TYPICAL = parse_case("f32_n2_g2_ci4_co6_i3x4x5_k3_s2_p1_op1_bias_int_seed7")


def tensors(inputs: Inputs) -> list[np.ndarray]:
    arrays = [getattr(inputs, field.name) for field in fields(inputs)]
    return [array for array in arrays if array is not None]


def flat(case: Case) -> np.ndarray:
    return np.concatenate([array.ravel() for array in tensors(generate(case))])


def reference_arguments(
    case: Case,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    data = generate(case)
    bias = None if data.bias is None else data.bias.astype(np.int64)
    tensors = (array.astype(np.int64) for array in (data.input, data.weight, data.grad_output))
    input, weight, grad_output = tensors
    return input, weight, bias, grad_output


def largest_sum(case: Case) -> int:
    """The largest sum of absolute products behind an element of any result."""
    sums = magnitude(*reference_arguments(case), case.parameters)
    return max(int(getattr(sums, field.name).max()) for field in fields(sums))


@settings(database=None, deadline=None, max_examples=200)
@given(case=cases(dtypes=DTYPES, max_multiply_adds=20_000))
def test_tensors_have_the_cases_shapes_and_only_values_of_its_dtype(case: Case) -> None:
    data = generate(case)
    assert data.input.shape == case.input_shape
    assert data.weight.shape == case.weight_shape
    assert data.grad_output.shape == case.output_shape
    assert (data.bias is not None) == case.bias
    assert data.bias is None or data.bias.shape == (case.out_channels,)
    for array in tensors(data):
        assert array.dtype == np.float64 and array.flags.c_contiguous
        back = number.decode(number.encode(array, case.dtype), case.dtype)
        np.testing.assert_array_equal(back, array)
        np.testing.assert_array_equal(np.signbit(back), np.signbit(array))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_data_depend_on_seed_and_shapes_but_not_on_layout_plan_or_mode(
    dtype: str, lane: str
) -> None:
    case = replace(TYPICAL, dtype=dtype, lane=lane)
    same = replace(case, layout="cl", forward_plan="a", mode="hostile", schedule=3, groups=2)
    np.testing.assert_array_equal(flat(case), flat(case))
    np.testing.assert_array_equal(flat(same), flat(case))
    other = flat(replace(case, seed=case.seed + 1))
    assert np.mean(other == flat(case)) < 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "f16_n2_ci3_co2_i2x3x2_k3_s2_p1_bias_int_seed7",
            [[19, 58, 41], [55, 24, -54], [-50, -70, 23], [-13, 29]],
        ),
        (
            "f64_n2_ci3_co2_i2x3x2_k3_s2_p1_bias_int_seed9999",
            [
                [7100563, 5492151, -4981183],
                [-1687953, 3475159, 9987268],
                [10087021, 3714942, 3771889],
                [9120526, 2797964],
            ],
        ),
        (
            "bf16_co2_i3_k3_bias_normal_seed1",
            [
                [1.078125, 1.6484375, -1.8671875],
                [-0.3046875, 0.55859375, -0.62890625],
                [-1.3203125, 0.76171875, -0.75390625],
                [0.93359375, 1.171875],
            ],
        ),
        (
            "f64_co2_i3_k3_bias_normal_seed1",
            [
                [1.0765191577041517, 1.649341258583788, -1.870102678194732],
                [-0.3049245634815356, 0.5581936505318981, -0.6288383619673169],
                [-1.319031642601796, 0.762833381412724, -0.7551689720164385],
                [0.9321639710747999, 1.167989919499133],
            ],
        ),
    ],
)
def test_data_are_the_same_for_ever(text: str, expected: list[list[float]]) -> None:
    data = generate(parse_case(text))
    assert data.bias is not None
    arrays = [data.input, data.weight, data.grad_output, data.bias]
    assert [array.ravel()[:3].tolist() for array in arrays] == expected


def test_special_data_are_the_same_for_ever() -> None:
    inf, nan = math.inf, math.nan
    expected = np.array(
        [
            1.6396484375,
            -65504.0,
            -0.693359375,
            nan,
            -1.7041015625,
            -inf,
            -0.57763671875,
            1.9365234375,
        ]
    )
    data = generate(parse_case("f16_i2_special_seed273")).input.ravel()
    np.testing.assert_array_equal(data, expected)
    np.testing.assert_array_equal(np.signbit(data), np.signbit(expected))


@settings(database=None, deadline=None, max_examples=200)
@given(case=cases(dtypes=DTYPES, lanes=["int"], max_multiply_adds=20_000))
def test_every_sum_of_the_int_lane_is_exact_in_the_accumulator(case: Case) -> None:
    values = flat(case)
    assert np.abs(values).min() >= 1 and np.abs(values).max() <= amplitude(case)
    np.testing.assert_array_equal(values, np.rint(values))
    assert largest_sum(case) < (2**53 if case.dtype == "f64" else 2**24)
    exactly_held = {"f64": 2**53, "f32": 2**24, "tf32": 2**11, "f16": 2**11, "bf16": 2**8}
    assert amplitude(case) <= exactly_held[case.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_amplitude_is_the_largest_that_keeps_sums_exact(dtype: str) -> None:
    case = replace(TYPICAL, dtype=dtype)
    limit = 2**53 if dtype == "f64" else 2**24
    products = 2 * 3 * 4 * 5 + 1
    if dtype in ("f64", "f32", "tf32"):
        assert products * amplitude(case) ** 2 < limit <= products * (amplitude(case) + 1) ** 2
    elif dtype == "bf16":
        assert amplitude(case) == 2**8


def test_grad_bias_bounds_the_amplitude_too() -> None:
    # One product behind an element, but 2^20 of grad_output behind grad_bias.
    case = parse_case("f32_s512x512x4_op511x511x3_int")
    assert math.prod(case.output_size) == 2**20
    assert amplitude(case) == 15


@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16", "bf16"])
def test_many_sums_of_the_int_lane_pass_the_integers_of_a_16_bit_type(dtype: str) -> None:
    case = replace(TYPICAL, dtype=dtype)
    exact = evaluate(*reference_arguments(case), case.parameters)
    for field in ("output", "grad_input", "grad_weight"):
        assert np.mean(np.abs(getattr(exact, field)) > 2**11) > 0.3


@pytest.mark.parametrize(
    "text", ["f16_int", "f16_ci3_co5_i4_k3_s2_int", "f16_n4_ci8_co8_i6_k2_int"]
)
def test_few_sums_of_the_int_lane_overflow_f16(text: str) -> None:
    overflows = []
    for seed in range(20):
        case = replace(parse_case(text), seed=seed)
        exact = evaluate(*reference_arguments(case), case.parameters)
        overflows.append(np.mean(np.abs(exact.output) >= 65520))
    assert np.mean(overflows) < 0.001


def test_the_int_lane_refuses_more_products_than_can_be_exact() -> None:
    assert amplitude(Case(n=2**24 - 1)) == 1
    with pytest.raises(ValueError, match="lane 'int' has up to 16777216 terms behind an element"):
        amplitude(Case(n=2**24))
    assert amplitude(Case(dtype="f64", n=2**24)) > 1


def test_the_int_lane_is_uniform_over_both_signs() -> None:
    values = flat(replace(TYPICAL, dtype="bf16", input_size=(20, 20, 20)))
    largest = amplitude(replace(TYPICAL, dtype="bf16", input_size=(20, 20, 20)))
    counts = np.bincount((values + largest).astype(int), minlength=2 * largest + 1)
    assert counts[largest] == 0
    expected = values.size / (2 * largest)
    assert abs(np.delete(counts, largest) - expected).max() < 6 * math.sqrt(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_normal_lane_is_near_normal_without_zeros(dtype: str) -> None:
    values = flat(replace(TYPICAL, dtype=dtype, lane="normal", input_size=(20, 20, 20)))
    assert abs(values.mean()) < 0.01 and abs(values.var() - 1) < 0.01
    assert abs(np.mean(values**4) - 2.7) < 0.05  # of a sum of four uniform numbers; 3 if normal
    assert 3 < np.abs(values).max() <= 3.5
    assert np.count_nonzero(values) == values.size


def test_all_bits_of_normal_values_vary() -> None:
    significands = np.frexp(flat(replace(TYPICAL, dtype="f64", lane="normal")))[0]
    bits = np.ldexp(np.abs(significands), 53).astype(np.int64)
    for position in range(52):
        assert 0.3 < np.mean(bits >> position & 1) < 0.7


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_special_value_shows_up_and_nothing_else_is_extreme(dtype: str) -> None:
    case = parse_case(f"{dtype}_ci2_co2_i2_k2_bias_special")
    raw = np.concatenate(
        [number.encode(flat(replace(case, seed=seed)), dtype) for seed in range(60)]
    )
    values = number.decode(raw, dtype)
    tiny = np.abs(values) <= number.smallest_normal(dtype)
    huge = np.abs(values) > 4
    assert np.isnan(values).any()
    extremes = {(abs(value), bool(np.signbit(value))) for value in values[tiny | huge]}
    smallest, largest = number.smallest_subnormal(dtype), number.largest_finite(dtype)
    if dtype == "tf32":  # its own, not those of f32
        smallest, largest = 2.0**-136, 2.0**127 * (2 - 2.0**-10)
    magnitudes = (0.0, smallest, number.smallest_normal(dtype), largest, math.inf)
    assert extremes == {(size, sign) for size in magnitudes for sign in (False, True)}


def test_specials_are_an_eighth_of_the_tensors_that_carry_them() -> None:
    shares = []
    for seed in range(200):
        data = generate(parse_case(f"f32_ci2_co2_i2_k2_bias_special_seed{seed}"))
        for array in tensors(data):
            size = np.abs(array)
            shares.append(float(np.mean(~((size > 1e-6) & (size < 4)))))
    carriers = [share for share in shares if share > 0]
    assert 0.3 < len(carriers) / len(shares) < 0.6
    assert 0.1 < np.mean(shares) / (8 / 15) < 0.15


def test_some_special_cases_are_finite_and_long_sums_meet_few_specials() -> None:
    seeds = [flat(parse_case(f"f32_ci2_co2_i2_k2_special_seed{seed}")) for seed in range(60)]
    finite = np.mean([np.isfinite(values).all() for values in seeds])
    assert 0.3 < finite < 0.8
    long = [flat(parse_case(f"f32_ci32_co32_i4_k3_special_seed{seed}")) for seed in range(10)]
    assert 0 < np.mean([~np.isfinite(values) for values in long]) < 0.01


def test_without_its_bias_a_case_keeps_its_other_data() -> None:
    case = replace(TYPICAL, lane="normal")
    without = generate(replace(case, bias=False))
    for name in ("input", "weight", "grad_output"):
        np.testing.assert_array_equal(getattr(without, name), getattr(generate(case), name))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_data_take_less_than_0_3_milliseconds(dtype: str, lane: str) -> None:
    case = replace(TYPICAL, dtype=dtype, lane=lane)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        generate(case)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3e-3
