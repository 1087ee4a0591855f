"""Where a correct subject may differ from the reference when data or sums leave the normal range.

The reference multiplies the real contributions only, and never overflows in a narrow type. Three
things set correct subjects apart from it, each with a function that says which elements it excuses:

Note [Zero fill]
An implicit GEMM reads a literal zero where a tap reaches past its tensor and multiplies it all the
same. With finite data that adds zero; with an infinity or a NaN opposite it makes NaN. Any part of an
element's out-of-range products may be computed so, and a NaN stays, so an element is right if it has
the reference's class or is NaN where all of them together make NaN. All of them: extend input and
grad_output by so many zeros that every tap of an element's phase finds an element to meet, and run the
same reference on that. Tails of channels and of gemm_k multiply zero by zero: they do not matter. A
plan whose name starts with "direct" multiplies real contributions only. PyTorch's own op may go
further, and insert zeros between the elements of a strided input, so that taps of other phases meet
them too (every_tap). On a GPU it goes further still: cuDNN pads channels, groups and tiles with zeros and
multiplies operands of other groups or positions by them (seen on an H200, cuDNN 9.19), so that one NaN or
infinity in a tensor may spread to any element of a result: excuse_own_zeros, for native on a GPU only.

Note [Overflow]
Let P and M be the sums of the positive and of the negated negative terms of an element whose terms are
finite, as S = P + M and exact = P - M, each with the accumulation bound B on top. A partial sum is in
[-M, P], so +infinity can arise if P reaches the accumulator's overflow threshold, or exact + B the
output's; -infinity likewise; NaN if both can, or if one can and a term is the other infinity. Where S
overflows float64, which only f64 data can do, the reference knows nothing and accepts anything.

Note [Flush]
Arithmetic that flushes may read any subnormal operand as zero: the element may lose those products,
and an infinity opposite makes NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from fuzz.bounds import (
    Arithmetic,
    Expectation,
    Values,
    accumulation_bound,
    operands,
    overflow_threshold,
)
from fuzz.data import Inputs
from fuzz.number import smallest_normal
from reference import Parameters, Results

Mask = NDArray[np.bool_]


def zero_filled(inputs: Inputs, parameters: Parameters, every_tap: bool = False) -> Results:
    """The reference with every out-of-range product computed as one with a literal zero.

    Args:
        inputs: data of any shapes that go together.
        parameters: stride, padding, output_padding, dilation, groups.
        every_tap: taps of other phases too; see Note [Zero fill].

    Returns:
        Results of the usual shapes, equal to reference.evaluate where all data are finite.
    """
    x, weight, bias, g = operands(inputs)
    steps, shape_x, shape_g = [], list(x.shape), list(g.shape)
    own_x: list[Any] = [slice(None), slice(None)]  # where the tensors lie in the extended ones
    own_g: list[Any] = [slice(None), slice(None)]
    for axis in range(3):
        stride, padding = parameters.stride[axis], parameters.padding[axis]
        size, output = x.shape[2 + axis], g.shape[2 + axis]
        reach = parameters.dilation[axis] * (weight.shape[2 + axis] - 1)
        # Uncropped, output element o is at o + padding; it is met from o + padding - reach upwards.
        before = max(0, -((padding - reach) // stride))
        elements = before + max(size, (padding + output - 1) // stride + 1)
        step = stride if every_tap else 1
        steps.append(stride // step)
        shape_x[2 + axis] = elements * step  # the last ones are inserted zeros
        own_x.append(slice(before * step, (before + size - 1) * step + 1, step))
        # steps - 1 elements of output padding, for outputs behind the last element's first tap.
        shape_g[2 + axis] = (shape_x[2 + axis] - 1) * steps[axis] + reach + steps[axis]
        own_g.append(slice(before * stride + padding, before * stride + padding + output))
    extended_x, extended_g = np.zeros(shape_x, x.dtype), np.zeros(shape_g, g.dtype)
    extended_x[tuple(own_x)], extended_g[tuple(own_g)] = x, g
    depth, height, width = steps
    extended = Parameters(
        stride=(depth, height, width),
        output_padding=(depth - 1, height - 1, width - 1),
        dilation=parameters.dilation,
        groups=parameters.groups,
    )
    results = reference.evaluate(extended_x, weight, bias, extended_g, extended)
    return Results(
        results.output[tuple(own_g)],
        results.grad_input[tuple(own_x)],
        results.grad_weight,
        results.grad_bias,
    )


def excuse_zero_fill(
    expectation: Expectation, result: str, got: Values, *, every_tap: bool, flushes: bool
) -> Mask:
    """Which elements are NaN as Note [Zero fill], with Note [Flush], allows."""

    def compute() -> Results:
        inputs = _flushed(expectation) if flushes else expectation.inputs
        return zero_filled(_classes(inputs), expectation.case.parameters, every_tap)

    filled = expectation.cached(("zero fill", every_tap, flushes), compute)
    return np.isnan(got) & np.isnan(getattr(filled, result))


def excuse_own_zeros(expectation: Expectation, result: str, got: Values) -> Mask:
    """Which elements are NaN although only elsewhere in the result's operands something is not finite."""
    operands_of = {
        "output": ("input", "weight", "bias"),
        "grad_input": ("grad_output", "weight"),
        "grad_weight": ("input", "grad_output"),
        "grad_bias": ("grad_output",),
    }
    tensors = (getattr(expectation.inputs, name) for name in operands_of[result])
    is_tainted = any(t is not None and not np.isfinite(t).all() for t in tensors)
    return np.isnan(got) & is_tainted


def excuse_overflow(
    expectation: Expectation, result: str, got: Values, terms: NDArray[Any], arithmetic: Arithmetic
) -> Mask:
    """Which elements Note [Overflow] allows to be infinite, NaN, or whatever they are.

    Args:
        expectation: of the case.
        result: one of fuzz.outcome.RESULTS.
        got: what the subject returned.
        terms: number of terms behind each element.
        arithmetic: row of the table of bounds.
    """
    parameters = expectation.case.parameters
    classes, exact, magnitude = (
        getattr(results, result)
        for results in (
            expectation.cached("classes", lambda: _evaluate(_classes, expectation)),
            expectation.cached("finite", lambda: _evaluate(_finite, expectation)),
            expectation.cached(
                "finite magnitude",
                lambda: reference.magnitude(*operands(_finite(expectation.inputs)), parameters),
            ),
        )
    )
    with np.errstate(invalid="ignore", over="ignore"):
        error = accumulation_bound(terms, magnitude, arithmetic)
        unknown = np.isinf(magnitude)
        most = overflow_threshold(arithmetic.accumulator)
        # Halves first: the sum of two that float64 holds may be one that it does not.
        plus = unknown | (magnitude / 2 + exact / 2 + error >= most)
        minus = unknown | (magnitude / 2 - exact / 2 + error >= most)
        output_most = overflow_threshold(arithmetic.output)
        is_finite = np.isfinite(classes)
        plus_result = (classes == math.inf) | (plus | (exact + error >= output_most)) & is_finite
        minus_result = (classes == -math.inf) | (minus | (error - exact >= output_most)) & is_finite
        nan_result = np.isnan(classes) | (plus & minus & is_finite)
        nan_result |= (minus & (classes == math.inf)) | (plus & (classes == -math.inf))
        return np.select(
            [np.isnan(got), got == math.inf, got == -math.inf],
            [nan_result, plus_result, minus_result],
            unknown & is_finite,
        )


def excuse_flush(expectation: Expectation, result: str, error: Values, bound: Values) -> Mask:
    """Which elements are off by no more than their bound and all that Note [Flush] lets them lose.

    Args:
        expectation: of the case.
        result: one of fuzz.outcome.RESULTS.
        error: |got - exact|.
        bound: the bound without the flush.
    """

    def compute() -> Results:
        parameters = expectation.case.parameters
        kept = reference.magnitude(*operands(_finite(_flushed(expectation))), parameters)
        whole = reference.magnitude(*operands(_finite(expectation.inputs)), parameters)
        return Results(**{name: array - vars(kept)[name] for name, array in vars(whole).items()})

    lost = getattr(expectation.cached("lost in flush", compute), result)
    return (bound >= 0) & (error <= bound + lost)


def _evaluate(view: Any, expectation: Expectation) -> Results:
    return reference.evaluate(*operands(view(expectation.inputs)), expectation.case.parameters)


def _mapped(inputs: Inputs, function: Any) -> Inputs:
    x, weight, bias, g = operands(inputs)
    return Inputs(
        function(x), function(weight), None if bias is None else function(bias), function(g)
    )


def _classes(inputs: Inputs) -> Inputs:
    """Finite values become their sign, so that results show their class: no sum can overflow."""
    return _mapped(inputs, lambda t: np.where(np.isfinite(t), np.sign(t), t))


def _finite(inputs: Inputs) -> Inputs:
    """What is not finite becomes zero."""
    return _mapped(inputs, lambda t: np.where(np.isfinite(t), t, 0.0))


def _flushed(expectation: Expectation) -> Inputs:
    """Subnormals of the case's dtype become zero."""
    normal = smallest_normal(expectation.case.dtype)
    return _mapped(expectation.inputs, lambda t: np.where(np.abs(t) < normal, 0.0, t))
