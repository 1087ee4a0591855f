"""How far from the exact answer a correct subject may be: one table, and its derivation.

Note [Bound]
An element is the sum of n terms: its products, and the bias. S is the sum of their absolute values
(reference.magnitude). A correct subject may add them in any order and through any number of partial
sums, may or may not fuse a product with its addition, and rounds once at the end:

    |got - exact| <= B + max(u_out * (|exact| + B), underflow of the output)
    B = ((1 + operands) * (1 + c(n) u_acc) - 1 + c(n) 2^-53) * S + n * underflow of the accumulator

- c(n) u_acc, the sum. A term passes its product's rounding and at most n - 1 additions, for the first
  addition is to zero, so it carries n factors (1 + delta), |delta| <= u_acc. Worst case: gamma_n =
  n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, lemma 3.1 and
  section 4.2). If the deltas are independent with mean zero: exp(lambda sqrt(n) u + n u^2 / (1 - u)) - 1,
  for each term, except with probability 2 exp(-lambda^2 (1 - u)^2 / 2) (Higham and Mary, A new approach
  to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019, theorem 2.4). lambda = 10
  makes that 3.9e-22 a term: 4e-7 in a campaign of 10^15 products. The smaller of the two holds; they
  cross near n = 100. Truncation has no mean of zero, so where the accumulator truncates (u_acc = 2^-23 on
  tensor cores: Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor cores, 2021)
  only the worst case does.
- Split-K only makes chains shorter, but a partial sum may pass through one more rounding each time it
  is stored or added: n grows by the number of partial sums that the plan's name states (".splitN").
- operands: both operands cut to TF32 by the tensor core, 2^-10 each: (1 + 2^-10)^2 - 1. (Rounded it would
  be 2^-11, but nothing says that native rounds.) The data hold no value that is subnormal, or
  finite, in one of float32 and TF32 only.
  In fp32 on the matrix units (plan "matrix...") each operand is the sum of two TF32 numbers, the second rounded: of
  its 12 bits the last is lost, 2^-23 of the operand. TF32 holds less of a subnormal, which therefore may count as zero
  (flushes).
- c(n) 2^-53 S: the reference's own error, as it sums in float64. On the int lane it has none.
- underflow, half the smallest subnormal eta: below the smallest normal, values are eta apart, so rounding to
  nearest errs by eta / 2 at most (Higham 2002, section 2.2); from there on by u times the value, which is more.
  So the last rounding of a value v errs by max(u_out |v|, eta / 2), and |v| <= |exact| + B. A product that
  underflows in the accumulator loses at most that too; sums do not underflow. In f64 it is eta: float64,
  in which bounds are computed, has no half of it.
- Which arithmetic: TABLE. The native op on 16-bit types may keep partial sums in that type (CPU without
  oneDNN, and cuDNN: measured, errors up to 1.0 in bf16 where the exact value cancels), and it rounds
  the result before it adds the bias; its u_acc is therefore that of the type.
- flushes: subnormals, as operands or results, may count as zero, so underflow is the smallest normal: AMX and
  AVX512_BF16 do that whatever MXCSR says (Intel SDM, TDPBF16PS, VDPBF16PS; measured), and cuDNN's fp32
  kernels do too (seen on an H200, cuDNN 9.19). What a flushed operand adds to the error is in fuzz.special.
- On the int lane every partial sum is an exact integer in an accumulator of at least float32, so
  that the bound is zero and the correctly rounded answer is demanded (exact_integers).

A GPU algorithm that is not a sum of products (FFT, Winograd) has no bound by element and fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import reference
from fuzz.case import Case
from fuzz.data import Inputs
from fuzz.number import largest_finite, smallest_normal, smallest_subnormal, unit_roundoff
from reference import Results

Values = NDArray[np.float64]
T = TypeVar("T")

LAMBDA = 10.0
CUT_TO_TF32 = (1 + 2.0**-10) ** 2 - 1
ROUNDED_TO_TF32 = (1 + 2.0**-11) ** 2 - 1
SPLIT_IN_TF32 = (1 + 2.0**-23) ** 2 - 1
# Larger than any useful c(n) u, and finite, so that an element whose magnitude is 0 keeps bound 0.
NO_BOUND = 1e200
MOST_EXPONENT = 400.0


@dataclass(frozen=True)
class Arithmetic:
    """How a leg computes one dtype: a row of the table.

    Args:
        output: dtype of the results.
        accumulator: dtype of the partial sums.
        unit: u_acc, largest relative error of one product or addition.
        operands: relative error of a product because its operands were rounded first.
        truncates: errors of additions do not have mean zero.
        flushes: subnormals may count as zero.
        exact_integers: the int lane demands the correctly rounded answer.
    """

    output: str
    accumulator: str
    unit: float
    operands: float = 0.0
    truncates: bool = False
    flushes: bool = False
    exact_integers: bool = True


_F64 = Arithmetic("f64", "f64", 2.0**-53)


TABLE = {
    ("convt3d", "f64"): _F64,
    ("convt3d", "f32"): Arithmetic("f32", "f32", 2.0**-24),
    # But on the matrix units tf32 cases are computed in plain fp32.
    ("convt3d", "tf32"): Arithmetic("f32", "f32", 2.0**-24),
    ("convt3d", "f16"): Arithmetic("f16", "f32", 2.0**-24),
    ("convt3d", "bf16"): Arithmetic("bf16", "f32", 2.0**-24),
    # Anybody's implementation, before fuzz.referee: sums in float32, in 16 bits and TF32 perhaps on tensor cores.
    ("candidate", "f64"): _F64,
    ("candidate", "f32"): Arithmetic("f32", "f32", 2.0**-24),
    ("candidate", "tf32"): Arithmetic(
        "f32", "f32", 2.0**-23, CUT_TO_TF32, truncates=True, flushes=True
    ),
    ("candidate", "f16"): Arithmetic("f16", "f32", 2.0**-23, truncates=True),
    ("candidate", "bf16"): Arithmetic("bf16", "f32", 2.0**-23, truncates=True),
    ("native", "f64"): _F64,
    ("native", "f32"): Arithmetic("f32", "f32", 2.0**-24, flushes=True),
    ("native", "tf32"): Arithmetic(
        "f32", "f32", 2.0**-23, CUT_TO_TF32, truncates=True, flushes=True
    ),
    ("native", "f16"): Arithmetic("f16", "f16", 2.0**-11, exact_integers=False),
    ("native", "bf16"): Arithmetic("bf16", "bf16", 2.0**-8, flushes=True, exact_integers=False),
    **{
        (leg, dtype): _F64
        for leg in ("oracle", "reference")  # the reference is judged too: fuzz.suspect
        for dtype in ("f64", "f32", "tf32", "f16", "bf16")
    },
}

# The rows of convt3d for results that the matrix units computed.
ON_MATRIX_UNITS = {
    "f32": Arithmetic("f32", "f32", 2.0**-23, SPLIT_IN_TF32, truncates=True, flushes=True),
    "tf32": Arithmetic("f32", "f32", 2.0**-23, ROUNDED_TO_TF32, truncates=True, flushes=True),
    **{dtype: Arithmetic(dtype, "f32", 2.0**-23, truncates=True) for dtype in ("f16", "bf16")},
}


def arithmetic_of(leg: str, dtype: str, plan: str) -> Arithmetic:
    """The row for a result.

    Args:
        leg: of TABLE.
        dtype: of the case.
        plan: name of the plan that computed the result; only those of convt3d matter.
    """
    if leg == "convt3d" and plan.startswith("matrix"):
        return ON_MATRIX_UNITS[dtype]
    return TABLE[leg, dtype]


def overflow_threshold(dtype: str) -> float:
    """The smallest value that rounds to infinity; infinity itself for f64, which cannot hold it."""
    largest = largest_finite(dtype)
    return largest + unit_roundoff(dtype) * 2.0 ** (math.frexp(largest)[1] - 1)


def underflow(dtype: str, flushes: bool) -> float:
    """Underflow of Note [Bound]: largest error of rounding a value below the smallest normal."""
    if flushes:
        return smallest_normal(dtype)
    return max(smallest_subnormal(dtype) / 2, smallest_subnormal("f64"))


def relative_error(terms: NDArray[Any], unit: float, truncates: bool = False) -> Values:
    """c(n) u of Note [Bound]; NO_BOUND where the theorems have none.

    Args:
        terms: n, any shape.
        unit: u.
        truncates: only the worst case holds.
    """
    spent = terms * unit
    worst = np.where(spent < 1, spent / np.maximum(1 - spent, unit), NO_BOUND)
    if truncates:
        return worst
    probable = LAMBDA * unit * np.sqrt(terms) + spent * (unit / (1 - unit))
    return np.minimum(worst, np.expm1(np.minimum(probable, MOST_EXPONENT)))


def accumulation_bound(terms: NDArray[Any], magnitude: Values, arithmetic: Arithmetic) -> Values:
    """B of Note [Bound]: the error before the last rounding.

    Args:
        terms: n, of a shape that broadcasts to magnitude's.
        magnitude: S.
        arithmetic: row of the table.
    """
    summing = relative_error(terms, arithmetic.unit, arithmetic.truncates)
    relative = arithmetic.operands + (1 + arithmetic.operands) * summing
    relative += relative_error(terms, unit_roundoff("f64"))
    return relative * magnitude + terms * underflow(arithmetic.accumulator, arithmetic.flushes)


def element_bound(accumulation: Values, exact: Values, arithmetic: Arithmetic) -> Values:
    """The whole bound of Note [Bound] from B and the exact values."""
    rounding = unit_roundoff(arithmetic.output) * (np.abs(exact) + accumulation)
    smallest = underflow(arithmetic.output, arithmetic.flushes)
    bound: Values = accumulation + np.maximum(rounding, smallest)
    return bound


@dataclass(frozen=True, eq=False)
class Expectation:
    """What the reference says about a case.

    Args:
        case: the case.
        inputs: its data, float64.
        exact: the four results; int64 on the int lane, where they are exact, else float64.
    """

    case: Case
    inputs: Inputs
    exact: Results
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def magnitude(self) -> Results:
        """Sum of absolute values behind each element, float64."""
        return reference.magnitude(*operands(self.inputs), self.case.parameters)

    @cached_property
    def products(self) -> Results:
        """Number of products behind each element, int64."""
        case = self.case
        return reference.products(case.input_shape, case.weight_shape, case.parameters)

    @cached_property
    def values(self) -> Results:
        """`exact` as float64; no integer of the int lane reaches 2^53."""
        if self.case.lane != "int":
            return self.exact
        return Results(
            **{name: array.astype(np.float64) for name, array in vars(self.exact).items()}
        )

    def terms(self, result: str, splits: int = 0) -> NDArray[Any]:
        """n of Note [Bound].

        Args:
            result: one of fuzz.outcome.RESULTS.
            splits: partial sums of a split-K plan.

        Returns:
            int64, of the result's shape but of length 1 along axes where n is the same throughout.
        """
        counts: NDArray[Any] = getattr(self.products, result)
        varying = tuple(slice(None) if step else slice(1) for step in counts.strides)
        has_bias = result == "output" and self.inputs.bias is not None
        return counts[varying] + (has_bias + splits)

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """compute(), once a key: what several legs need of one case."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value


def operands(inputs: Inputs) -> tuple[Values, Values, Values | None, Values]:
    """The tensors of a case in the order in which the reference takes them."""
    return inputs.input, inputs.weight, inputs.bias, inputs.grad_output


def expect(case: Case, inputs: Inputs) -> Expectation:
    """Runs the reference on a case.

    Args:
        case: the case.
        inputs: fuzz.data.generate(case), or other data of its shapes; integers on the int lane.
    """
    tensors = operands(inputs)
    if case.lane == "int":
        tensors = tuple(None if t is None else t.astype(np.int64) for t in tensors)  # type: ignore
    expectation = Expectation(case, inputs, reference.evaluate(*tensors, case.parameters))
    if case.lane != "int" or not TABLE["native", case.dtype].exact_integers:
        # Some leg will need them, and the subjects may still be running.
        expectation.magnitude, expectation.products  # noqa: B018
    return expectation
