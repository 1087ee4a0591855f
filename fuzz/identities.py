"""Identities between the results, which need no reference and can be afforded at any size.

    <forward(input, weight), grad_output> = <input, grad_input> = <weight, grad_weight>
    grad_bias = sum of grad_output over all but the channels

All three inner products are the same sum over all contributions, input * weight * grad_output. On the
int lane each result is an exact integer in f64, f32 and tf32 (in f16 and bf16 it is rounded, and the
identities do not hold), so they hold exactly.

The inner products themselves may pass 2^63, so they are compared modulo 2^64, which int64 arithmetic
computes without loss: one wrong element changes its inner product by its error times an operand that
is not zero on the int lane, and both together are far below 2^64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz.data import Inputs

# Elements converted to int64 at a time: 32 MiB.
CHUNK_ELEMENTS = 1 << 22


def violated_identities(inputs: Inputs, results: Mapping[str, NDArray[Any]]) -> list[str]:
    """Which identities do not hold, a sentence each; empty when all do.

    Args:
        inputs: data of the int lane; arrays of any real dtype.
        results: values (not raw bits) of some of output, grad_input, grad_weight and grad_bias, of
            any dtype that holds them exactly. Fewer than two of the first three are not compared.

    Raises:
        ValueError: a result of another shape than the reference gives it.
    """
    fractional = [
        f"{name} has {count} elements that are no integers of at most 2^53, but must have none"
        for name, array in results.items()
        if (count := _count_non_integers(array))
    ]
    if fractional:
        return fractional
    sums = _channel_sums(inputs.grad_output)
    violated = _violated_products(inputs, results, sums)
    if "grad_bias" in results:
        got = results["grad_bias"].astype(np.int64)
        violated += [
            f"grad_bias[{channel}]={got[channel]}, but grad_output sums to {sums[channel]} there"
            for channel in np.flatnonzero(got != sums)
        ]
    return violated


def _violated_products(
    inputs: Inputs, results: Mapping[str, NDArray[Any]], channel_sums: NDArray[np.int64]
) -> list[str]:
    products: dict[str, int] = {}
    if "output" in results:
        product = _inner(results["output"], inputs.grad_output)
        if inputs.bias is None:
            products["<output, grad_output>"] = product
        else:
            products["<output - bias, grad_output>"] = product - _inner(inputs.bias, channel_sums)
    if "grad_input" in results:
        products["<input, grad_input>"] = _inner(results["grad_input"], inputs.input)
    if "grad_weight" in results:
        products["<weight, grad_weight>"] = _inner(results["grad_weight"], inputs.weight)
    return [
        f"{first} - {second} = {_signed(products[first] - products[second])}, but must be 0"
        for first, second in zip(products, list(products)[1:])
        if (products[first] - products[second]) % 2**64
    ]


def _inner(a: NDArray[Any], b: NDArray[Any]) -> int:
    """Inner product of two arrays of integers of one shape, modulo 2^64."""
    if a.shape != b.shape:
        raise ValueError(f"a result has shape {a.shape}, but must have {b.shape}")
    total = 0
    for x, y in zip(_chunks(a), _chunks(b)):
        total += int(np.dot(x.astype(np.int64), y.astype(np.int64)))
    return total % 2**64


def _channel_sums(grad_output: NDArray[Any]) -> NDArray[np.int64]:
    """Sum of each channel: |grad_output| is below 2^24 or 2^53 a channel, so nothing overflows."""
    sums = np.zeros(grad_output.shape[1], np.int64)
    step = max(1, CHUNK_ELEMENTS // len(sums))
    for sample in grad_output:
        planes = sample.reshape(len(sums), -1)
        for i in range(0, planes.shape[1], step):
            sums += planes[:, i : i + step].astype(np.int64).sum(axis=1)
    return sums


def _count_non_integers(array: NDArray[Any]) -> int:
    """How many elements are NaN, infinite, fractional, or too large for float64 to be exact."""
    count = 0
    for chunk in _chunks(array):
        with np.errstate(invalid="ignore"):  # NaN
            count += int(np.count_nonzero(~((np.rint(chunk) == chunk) & (np.abs(chunk) <= 2**53))))
    return count


def _chunks(array: NDArray[Any]) -> list[NDArray[Any]]:
    flat = array.reshape(-1)
    return [flat[i : i + CHUNK_ELEMENTS] for i in range(0, flat.size, CHUNK_ELEMENTS)]


def _signed(difference: int) -> int:
    """The representative of a number modulo 2^64 that is nearest to zero."""
    return (difference + 2**63) % 2**64 - 2**63
