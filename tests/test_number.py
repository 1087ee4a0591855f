"""Dtype limits and bit conversions, against NumPy, torch and the definition of rounding to nearest even."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import number

TORCH_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "tf32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
SIGNED = {8: np.int64, 4: np.int32, 2: np.int16}
ALL_16_BITS = np.arange(2**16, dtype=np.uint16)


def torch_decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    signed = raw.view(SIGNED[raw.dtype.itemsize])
    return torch.from_numpy(signed).view(TORCH_DTYPES[dtype]).double().numpy()


def torch_encode(values: np.ndarray, dtype: str) -> np.ndarray:
    cast = torch.from_numpy(values).to(TORCH_DTYPES[dtype])
    signed = {8: torch.int64, 4: torch.int32, 2: torch.int16}[cast.element_size()]
    return cast.view(signed).numpy().view(number.storage(dtype))


def neighbours(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every two neighbouring values of a 16-bit dtype, positive, and the raw bits of the lower one.

    The last upper one is what would follow the largest finite value.
    """
    infinity = int(number.encode(np.inf, dtype))
    raw = np.arange(infinity, dtype=np.uint16)
    lower = number.decode(raw, dtype)
    beyond = 2 * lower[-1] - lower[-2]
    return lower, np.append(lower[1:], beyond), raw


@pytest.mark.parametrize("dtype", number.DTYPES)
def test_limits_are_those_of_torch(dtype: str) -> None:
    limits = torch.finfo(TORCH_DTYPES[dtype])
    assert number.largest_finite(dtype) == limits.max
    assert number.smallest_normal(dtype) == limits.tiny
    assert number.smallest_subnormal(dtype) == limits.tiny * limits.eps
    assert number.unit_roundoff(dtype) == limits.eps / 2
    assert number.storage(dtype).itemsize * 8 == limits.bits


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_decode_is_torchs_on_all_16_bit_patterns(dtype: str) -> None:
    ours, theirs = number.decode(ALL_16_BITS, dtype), torch_decode(ALL_16_BITS, dtype)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_encode_inverts_decode_on_all_16_bit_patterns(dtype: str) -> None:
    values = number.decode(ALL_16_BITS, dtype)
    raw = number.encode(values, dtype)
    is_number = ~np.isnan(values)
    np.testing.assert_array_equal(raw[is_number], ALL_16_BITS[is_number])
    assert np.isnan(number.decode(raw[~is_number], dtype)).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_ties_go_to_even_on_every_16_bit_midpoint(dtype: str, sign: float) -> None:
    lower, upper, raw = neighbours(dtype)
    got = number.encode(sign * (lower + upper) / 2, dtype)
    np.testing.assert_array_equal(got & 0x7FFF, raw + (raw & 1))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_one_float64_ulp_off_a_midpoint_decides_the_rounding(dtype: str) -> None:
    # The trap of rounding twice: float32 would take these for the midpoint itself.
    lower, upper, raw = neighbours(dtype)
    middle = (lower + upper) / 2
    assert (np.nextafter(middle, np.inf).astype(np.float32) == middle.astype(np.float32)).all()
    below, above = np.nextafter(middle, -np.inf), np.nextafter(middle, np.inf)
    np.testing.assert_array_equal(number.encode(below, dtype), raw)
    np.testing.assert_array_equal(number.encode(above, dtype), raw + 1)
    np.testing.assert_array_equal(number.encode(-below, dtype), raw | 0x8000)
    np.testing.assert_array_equal(number.encode(-above, dtype), (raw + 1) | 0x8000)


@pytest.mark.parametrize("dtype", number.DTYPES)
def test_overflow_starts_half_an_ulp_above_the_largest_finite_value(dtype: str) -> None:
    largest = number.largest_finite(dtype)
    if dtype != "f64":
        limit = largest * (1 + number.unit_roundoff(dtype) / (2 - 2 * number.unit_roundoff(dtype)))
        assert number.decode(number.encode(limit, dtype), dtype) == np.inf
        assert number.decode(number.encode(np.nextafter(limit, 0), dtype), dtype) == largest
        assert number.decode(number.encode(-1e300, dtype), dtype) == -np.inf
    assert number.decode(number.encode(largest, dtype), dtype) == largest
    assert number.decode(number.encode(np.inf, dtype), dtype) == np.inf


@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16", "bf16"])
def test_underflow_ends_half_way_to_the_smallest_subnormal(dtype: str) -> None:
    smallest = number.smallest_subnormal(dtype)
    values = [smallest, smallest / 2, np.nextafter(smallest / 2, 1), 1.5 * smallest, -5e-324]
    got = number.decode(number.encode(values, dtype), dtype)
    np.testing.assert_array_equal(got / smallest, [1, 0, 1, 2, 0])
    assert np.signbit(got[-1])


@pytest.mark.parametrize("dtype", number.DTYPES)
def test_encode_is_torchs_on_float32_values(dtype: str) -> None:
    # torch casts float64 to 16 bits through float32; from float32 it rounds once, as encode does.
    bits = np.random.PCG64(1).random_raw(20_000).astype(np.uint32)
    singles = bits.view(np.float32)
    values = singles[~np.isnan(singles)].astype(np.float64)
    np.testing.assert_array_equal(number.encode(values, dtype), torch_encode(values, dtype))


@settings(database=None, deadline=None, max_examples=300)
@given(value=st.floats())
def test_f32_and_f64_are_torchs_casts(value: float) -> None:
    values = np.array([value])
    for dtype in ("f64", "f32", "tf32"):
        raw = number.encode(values, dtype)
        if np.isnan(value):
            assert np.isnan(number.decode(raw, dtype)).all()
        else:
            np.testing.assert_array_equal(raw, torch_encode(values, dtype))
            np.testing.assert_array_equal(number.decode(raw, dtype), torch_decode(raw, dtype))


@settings(database=None, deadline=None, max_examples=300)
@given(value=st.floats(allow_nan=False), dtype=st.sampled_from(["f32", "f16", "bf16"]))
def test_no_value_of_the_dtype_is_closer_than_the_encoded_one(value: float, dtype: str) -> None:
    raw = int(number.encode(value, dtype))
    magnitude = raw & (2 ** (8 * number.storage(dtype).itemsize - 1) - 1)
    infinity = int(number.encode(np.inf, dtype))
    got = number.decode(number.encode(abs(value), dtype), dtype)
    for other in (magnitude - 1, magnitude + 1):
        if 0 <= other < infinity and magnitude < infinity:
            near = number.decode(np.array(other, number.storage(dtype)), dtype)
            assert abs(got - abs(value)) <= abs(near - abs(value))


@pytest.mark.parametrize("dtype", number.DTYPES)
def test_nan_of_any_payload_stays_nan(dtype: str) -> None:
    payloads = [0x7FF0000000000001, 0x7FF8000000000000, 0xFFFFFFFFFFFFFFFF, 0x7FF0000000002000]
    values = np.array(payloads, np.uint64).view(np.float64)
    assert np.isnan(number.decode(number.encode(values, dtype), dtype)).all()


@pytest.mark.parametrize("dtype", number.DTYPES)
def test_conversions_keep_shapes_share_no_memory_and_never_warn(dtype: str) -> None:
    grid = np.arange(24.0).reshape(2, 3, 4)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for values in (grid, grid[:, ::2], grid.T, grid[0, 0, 0], grid[:0], 1e306 * grid, -np.inf):
            raw = number.encode(values, dtype)
            back = number.decode(raw, dtype)
            assert raw.shape == back.shape == np.shape(values)
            assert raw.dtype == number.storage(dtype) and back.dtype == np.float64
            assert not np.shares_memory(raw, values) and not np.shares_memory(raw, back)
    np.testing.assert_array_equal(number.decode(number.encode(grid.T, dtype), dtype), grid.T)


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(
        ValueError, match="dtype='f8', but must be one of f64, f32, tf32, f16, bf16"
    ):
        number.storage("f8")


def test_decode_rejects_bits_of_another_width() -> None:
    with pytest.raises(TypeError, match="raw has dtype uint32, but must be uint16 for bf16"):
        number.decode(np.zeros(3, np.uint32), "bf16")
