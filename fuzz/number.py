"""The five dtypes of a case: their limits, and conversions between float64 values and raw bits.

tf32 is stored as f32; the inputs of a tf32 case need not be representable in TF32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RawBits = NDArray[Any]
Values = NDArray[np.float64]


class _Format(NamedTuple):
    storage: type[np.unsignedinteger[Any]]
    precision: int  # bits of the significand, the hidden one included
    largest_exponent: int  # the largest finite value is in [2^largest_exponent, 2^(it + 1))


_FORMATS = {
    "f64": _Format(np.uint64, 53, 1023),
    "f32": _Format(np.uint32, 24, 127),
    "tf32": _Format(np.uint32, 24, 127),
    "f16": _Format(np.uint16, 11, 15),
    "bf16": _Format(np.uint16, 8, 127),
}
DTYPES = tuple(_FORMATS)


def _format(dtype: str) -> _Format:
    if dtype not in _FORMATS:
        raise ValueError(f"dtype={dtype!r}, but must be one of {', '.join(DTYPES)}")
    return _FORMATS[dtype]


def storage(dtype: str) -> np.dtype[Any]:
    """The unsigned integer dtype that holds the raw bits of one value."""
    return np.dtype(_format(dtype).storage)


def unit_roundoff(dtype: str) -> float:
    """Largest relative error of one rounding to nearest, outside the subnormals: 2^-precision."""
    return math.ldexp(1.0, -_format(dtype).precision)


def smallest_subnormal(dtype: str) -> float:
    """The smallest positive value."""
    _, precision, largest_exponent = _format(dtype)
    return math.ldexp(1.0, 2 - largest_exponent - precision)


def smallest_normal(dtype: str) -> float:
    """The smallest positive value that has full precision."""
    return math.ldexp(1.0, 1 - _format(dtype).largest_exponent)


def largest_finite(dtype: str) -> float:
    """The largest value below infinity."""
    _, precision, largest_exponent = _format(dtype)
    return math.ldexp(2.0 - math.ldexp(1.0, 1 - precision), largest_exponent)


@np.errstate(all="ignore")  # NaN, overflow and underflow are data here
def encode(values: ArrayLike, dtype: str) -> RawBits:
    """Rounds to the nearest value of the dtype, ties to even, in one rounding.

    Args:
        values: float64, any shape.
        dtype: one of DTYPES.

    Returns:
        Raw bits, same shape; NaN stays NaN, beyond the largest finite value is infinity.
    """
    bits = storage(dtype)
    exact = np.array(values, np.float64).ravel()  # a copy: the result shares nothing with values
    if dtype == "f64":
        raw = exact.view(bits)
    elif dtype == "f16":
        raw = exact.astype(np.float16).view(bits)
    elif dtype == "bf16":
        raw = _encode_bf16(exact)
    else:
        raw = exact.astype(np.float32).view(bits)
    return raw.reshape(np.shape(values))


def _encode_bf16(exact: Values) -> NDArray[np.uint16]:
    """Goes through float32 rounded to odd, which makes the second rounding harmless.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd, 2008; float32 has the exponent range of bf16 and 16 more bits.
    """
    single = exact.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.uint32)
    bits -= (np.abs(back) > np.abs(exact)).astype(np.uint32)  # towards zero
    bits |= (back != exact).astype(np.uint32)  # an inexact significand becomes odd
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
    raw = (bits >> np.uint32(16)).astype(np.uint16)
    raw[np.isnan(exact)] = 0x7FC0
    return raw


@np.errstate(all="ignore")
def decode(raw: RawBits, dtype: str) -> Values:
    """Exact values of raw bits.

    Args:
        raw: raw bits of `storage(dtype)`, any shape.
        dtype: one of DTYPES.

    Returns:
        float64, same shape, sharing nothing with raw.

    Raises:
        TypeError: raw is not of `storage(dtype)`.
    """
    if raw.dtype != storage(dtype):
        raise TypeError(f"raw has dtype {raw.dtype}, but must be {storage(dtype)} for {dtype}")
    bits = np.array(raw).ravel()
    if dtype == "f64":
        values = bits.view(np.float64)
    elif dtype == "f16":
        values = bits.view(np.float16).astype(np.float64)
    elif dtype == "bf16":
        values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    else:
        values = bits.view(np.float32).astype(np.float64)
    return values.reshape(raw.shape)
