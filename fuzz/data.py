"""The tensors of a case, from its seed.

Only raw bits of PCG64 and exact or single-rounded arithmetic are used, so that a case string gives the
same data on every machine and with every version of NumPy, which promises no such thing for the
streams of its Generator, nor for the last bit of its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz import number
from fuzz.case import Case

Values = NDArray[np.float64]
RawBits = NDArray[np.uint64]

# Largest integer up to which the dtype, as the kernels multiply it, holds every integer. For tf32
# that is TF32's: the products are then the same whether inputs are rounded or truncated to it.
_LARGEST_INTEGER = {"f64": 2**53, "f32": 2**24, "tf32": 2**11, "f16": 2**11, "bf16": 2**8}
_LARGEST_F16_TYPICAL = 2**14  # a quarter of f16's largest finite value, about


@dataclass(frozen=True, eq=False)
class Inputs:
    """float64, C-contiguous, in NCDHW order whatever the layout; each value is one of the dtype's.

    Args:
        input: (N, C_in, D, H, W).
        weight: (C_in, C_out / groups, kD, kH, kW).
        bias: (C_out,), or None.
        grad_output: (N, C_out, oD, oH, oW).
    """

    input: Values
    weight: Values
    bias: Values | None
    grad_output: Values


def generate(case: Case) -> Inputs:
    """Returns the tensors of a case, the same ones for ever.

    They depend on dtype, lane, seed and the shapes only.

    Raises:
        ValueError: the int lane on a case with too many products behind an element.
    """
    # The bias is last: the other tensors hardly change when a case loses its bias.
    shapes = [case.input_shape, case.weight_shape, case.output_shape]
    shapes += [(case.out_channels,)] if case.bias else []
    sizes = [math.prod(shape) for shape in shapes]
    values = _LANES[case.lane](case, sizes)
    arrays, start = [], 0
    for shape, size in zip(shapes, sizes):
        arrays.append(values[start : start + size].reshape(shape))
        start += size
    input, weight, grad_output = arrays[:3]
    return Inputs(input, weight, arrays[3] if case.bias else None, grad_output)


def amplitude(case: Case) -> int:
    """Largest absolute value of the int lane.

    With n the largest number of products behind an element of any result, n * amplitude^2 is below
    2^24 (2^53 in f64), and so is the sum of all of grad_output: any partial sum is exact in the
    accumulator, in any order.

    Raises:
        ValueError: not even amplitude 1 makes it so.
    """
    exact = 2**53 if case.dtype == "f64" else 2**24
    products = _most_products(case)
    summed = case.n * math.prod(case.output_size)  # behind an element of grad_bias
    if max(products, summed) >= exact:
        raise ValueError(
            f"lane 'int' has up to {max(products, summed)} terms behind an element, but must have "
            f"fewer than {exact} to be exact; use lane 'normal' for case {case}"
        )
    square = (exact - 1) // products
    if case.dtype == "f16":
        # A sum of n products of uniform integers has standard deviation sqrt(n) * amplitude^2 / 3.
        square = min(square, int(3 * _LARGEST_F16_TYPICAL / math.sqrt(products)))
    return max(1, min(math.isqrt(square), (exact - 1) // summed, _LARGEST_INTEGER[case.dtype]))


def _most_products(case: Case) -> int:
    """Upper bound of the products behind an element of any result, the bias counted as one."""
    taps = math.prod(case.kernel_size)
    channels = max(case.in_channels, case.out_channels) // case.groups
    return max(taps * channels, case.n * math.prod(case.input_size)) + case.bias


def _integers(case: Case, sizes: list[int]) -> Values:
    """Uniform in [-amplitude, amplitude] without 0."""
    largest = amplitude(case)
    bits = np.random.PCG64(case.seed).random_raw(sum(sizes))
    values = _below(2 * largest, bits).astype(np.float64)
    values -= largest
    values += values >= 0
    return values


def _normals(case: Case, sizes: list[int]) -> Values:
    """Near-normal reals of variance 1, within 3.5, rounded to the dtype."""
    return _round(_near_normal(np.random.PCG64(case.seed).random_raw(sum(sizes))), case.dtype)


def _specials(case: Case, sizes: list[int]) -> Values:
    """Near-normal reals, and among them, in some of the tensors, the special values of the dtype."""
    bits = np.random.PCG64(case.seed).random_raw(1 + 2 * sum(sizes))
    first, choices = int(bits[0]), bits[1 : 1 + sum(sizes)]
    values = _round(_near_normal(bits[1 + sum(sizes) :]), case.dtype)
    table = _special_values(case.dtype, nonfinite=first >> 32 & 1 == 1)
    # About two specials behind an element: with more, long sums would be NaN and nothing else.
    rarity = max(8, _most_products(case) // 2)
    chosen = _below(rarity, choices << np.uint64(32)) == 0
    carriers, start = first % (2 ** len(sizes) - 1) + 1, 0  # a bit a tensor, at least one set
    for index, size in enumerate(sizes):
        if not carriers >> index & 1:
            chosen[start : start + size] = False
        start += size
    values[chosen] = table[_below(len(table), choices[chosen])]
    return values


_LANES: dict[str, Callable[[Case, list[int]], Values]] = {
    "int": _integers,
    "normal": _normals,
    "special": _specials,
}


def _special_values(dtype: str, nonfinite: bool) -> Values:
    smallest, largest = number.smallest_subnormal(dtype), number.largest_finite(dtype)
    if dtype == "tf32":  # f32's own would turn to 0 and infinity where inputs are rounded to TF32
        smallest, largest = smallest * 2.0**13, (1 - 2.0**-11) * 2.0**127 * 2.0
    magnitudes = [0.0, smallest, number.smallest_normal(dtype), largest] + [math.inf] * nonfinite
    values = [sign * magnitude for magnitude in magnitudes for sign in (1.0, -1.0)]
    return np.array(values + [math.nan] * nonfinite)


def _below(limit: int, bits: RawBits) -> NDArray[np.int64]:
    """Uniform integers in [0, limit) from the upper halves of the bits; limit is up to 2^31."""
    return ((bits >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def _near_normal(bits: RawBits) -> Values:
    """Sum of the four 16-bit quarters of each raw number, centred and scaled to variance 1.

    The sum is made odd before it is scaled, so no value is 0; the scale is irrational, so that all 53
    bits of the values vary.
    """
    mask = np.uint64(0xFFFF)
    total: NDArray[Any] = bits & mask
    for shift in (16, 32, 48):
        total += bits >> np.uint64(shift) & mask
    centred = 2.0 * total.astype(np.float64) - (4 * 0xFFFF - 1)
    return centred * (math.sqrt(3) * 2.0**-17)


def _round(values: Values, dtype: str) -> Values:
    return number.decode(number.encode(values, dtype), dtype)
