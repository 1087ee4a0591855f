"""The judge: compares what a leg returned with what the reference expects.

int lane: the correctly rounded exact integer, bit for bit but for the sign of zero, wherever the
table of fuzz.bounds says that the leg's sums are exact. Elsewhere: each element within its bound; NaN
where NaN must be and infinities of the right sign where they must be, but for what fuzz.special
excuses. Passing is decided by few vectorised operations; the excuses are looked at on failure only.
What passes on the int lane must obey the identities of fuzz.identities too, which no reference decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz import special
from fuzz.bounds import (
    TABLE,
    Arithmetic,
    Expectation,
    Values,
    accumulation_bound,
    arithmetic_of,
    element_bound,
    expect,
    overflow_threshold,
)
from fuzz.case import Case
from fuzz.identities import violated_identities
from fuzz.number import RawBits, decode, encode, smallest_subnormal, storage
from fuzz.outcome import RESULTS, Judgement, Outcome, Verdict
from fuzz.plans import stands_for

__all__ = ["Comparison", "Expectation", "compare", "expect", "judge", "proves_nothing"]

Mask = NDArray[np.bool_]

# A case is mistrusted if a subject that returns nothing but zeros would be right on more than this
# share of the elements of output, of grad_input and of grad_weight: nine wrong elements in ten would
# then go unseen. One of the three below it is enough to show the subject at work. Elements without a
# product do not count: they are zero, or the bias, by the shape of the case and not by its data.
LARGEST_SHARE_OF_ZEROS = 0.9

_PLAN_OF = {
    "output": "forward",
    "grad_input": "grad_input",
    "grad_weight": "grad_weight",
    "grad_bias": "grad_weight",  # computed in the same pass
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """One result of one leg beside what was expected of it.

    Args:
        result: one of RESULTS.
        dtype: of the result.
        raw: what the leg returned.
        exact: exact values, not yet rounded to the dtype.
        bound: largest error allowed, negative where no finite value is right; None where the
            correctly rounded answer is demanded.
        wrong: which elements are wrong; None if none is.
        share: largest share of the bound used by an element that is right.
    """

    result: str
    dtype: str
    raw: RawBits
    exact: Values
    bound: Values | None
    wrong: Mask | None
    share: float = 0.0

    @property
    def got(self) -> Values:
        """Values of raw."""
        return decode(self.raw, self.dtype)

    @property
    def expected_raw(self) -> RawBits:
        """The exact values, correctly rounded to the dtype."""
        return encode(self.exact, self.dtype)

    @property
    def expected(self) -> Values:
        """Values of expected_raw."""
        return decode(self.expected_raw, self.dtype)

    @property
    def first_wrong(self) -> tuple[int, ...]:
        """Index of the first wrong element; there must be one."""
        assert self.wrong is not None
        return tuple(int(i) for i in np.unravel_index(self.wrong.argmax(), self.wrong.shape))


def judge(case: Case, expectation: Expectation, outcome: Outcome, leg: str) -> Judgement:
    """Judges what one leg did with a case.

    Args:
        case: the case.
        expectation: expect(case, inputs).
        outcome: what the leg's subject did.
        leg: "convt3d", "oracle" or "native".
    """
    if outcome.status != "ok":
        return _judge_failed(leg, outcome)
    if outcome.damage:
        check, detail = _check_of_damage(outcome.damage[0]), "; ".join(outcome.damage)
        return Judgement(leg, Verdict.WRONG, detail=detail, check=check)
    for check, result, fault in _faults(case, expectation, outcome, leg):
        return Judgement(leg, Verdict.WRONG, result, fault, check=check)
    comparisons = [
        compare(expectation, outcome, leg, result)
        for result in RESULTS
        if result in outcome.results
    ]
    wrong = [comparison for comparison in comparisons if comparison.wrong is not None]
    shares = {comparison.result: comparison.share for comparison in comparisons}
    if wrong:
        return _judge_wrong(leg, wrong, shares)
    if violated := _violated_identities(expectation, leg, comparisons):
        detail = f"{violated}; the reference gives the same results, so it is wrong too"
        return Judgement(leg, Verdict.WRONG, detail=detail, shares=shares, check="identity")
    if proves_nothing(expectation):
        detail = "the expected results are almost all zeros, so that a pass would prove nothing"
        return Judgement(leg, Verdict.MISTRUSTED, detail=detail, shares=shares)
    return Judgement(leg, Verdict.PASS, shares=shares)


def compare(expectation: Expectation, outcome: Outcome, leg: str, result: str) -> Comparison:
    """Compares one result, whose shape and dtype are right, element by element.

    Args:
        expectation: of the case.
        outcome: with that result in it.
        leg: "convt3d", "oracle" or "native".
        result: one of RESULTS.
    """
    case, raw = expectation.case, outcome.results[result]
    plan = _plan(case, outcome, leg, result)
    arithmetic = arithmetic_of(leg, case.dtype, plan)
    exact = getattr(expectation.values, result)
    if case.lane == "int" and arithmetic.exact_integers:
        wrong = _wrong_integers(expectation, raw, arithmetic.output, result)
        return Comparison(result, arithmetic.output, raw, exact, None, wrong)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = _bound(expectation, arithmetic, _splits(plan), result)
        got = decode(raw, arithmetic.output)
        error = np.abs(got - exact)
        right = error <= bound
        if right.all():
            share = _largest(error / bound)
            return Comparison(result, arithmetic.output, raw, exact, bound, None, share)
        share = _largest(error[right] / bound[right])
        wrong = ~(right | (got == exact) | (np.isnan(got) & np.isnan(exact)))
    owns_zeros = leg == "native" and outcome.has_gpu
    for excused in _excuses(expectation, arithmetic, owns_zeros, plan, result, got, error, bound):
        if not wrong.any():
            break
        wrong &= ~excused()
    wrong = wrong if wrong.any() else None
    return Comparison(result, arithmetic.output, raw, exact, bound, wrong, share)


def proves_nothing(expectation: Expectation) -> bool:
    """Whether a subject that returns zeros would be almost right: see LARGEST_SHARE_OF_ZEROS."""
    vanishing = smallest_subnormal(expectation.case.dtype) / 2  # and below rounds to zero
    least = 1 - LARGEST_SHARE_OF_ZEROS
    nonzero: dict[str, Mask] = {}
    for result in ("grad_weight", "grad_input", "output"):
        is_nonzero = ~(np.abs(getattr(expectation.values, result)) <= vanishing)
        # A gradient that is not zero has products, so all elements may stand for those that have.
        if result != "output" and np.count_nonzero(is_nonzero) >= least * is_nonzero.size:
            return False
        nonzero[result] = is_nonzero
    has_products = False
    for result, is_nonzero in nonzero.items():
        counts: Mask = getattr(expectation.products, result) > 0
        if counts.any():
            has_products = True
            if np.count_nonzero(is_nonzero & counts) >= least * np.count_nonzero(counts):
                return False
    return has_products


def _judge_failed(leg: str, outcome: Outcome) -> Judgement:
    """The judgement on a subject that returned nothing."""
    checks = {"hung": "hang", "refused": "refusal", "crashed": _check_of_crash(outcome)}
    detail, where = outcome.message, f"in {outcome.stage}"
    if outcome.stage and where not in detail:
        detail = f"{where}: {detail}"
    return Judgement(leg, Verdict(outcome.status), detail=detail, check=checks[outcome.status])


def _check_of_crash(outcome: Outcome) -> str:
    if outcome.tool:
        return outcome.tool
    if outcome.cause:
        return "cuda" if outcome.cause == "CUDA error" else "signal"
    return "exit" if outcome.message.startswith("ended with exit code") else "exception"


def _check_of_damage(sentence: str) -> str:
    """The check behind a sentence of fuzz.arena and its like."""
    if "was overwritten" in sentence:
        return "input"
    if "asked for alone" in sentence:
        return "subset"
    return "poison" if "still hold the poison" in sentence else "guard"


def _faults(
    case: Case, expectation: Expectation, outcome: Outcome, leg: str
) -> Iterator[tuple[str, str, str]]:
    """What is wrong before a value is looked at: check, result and sentence."""
    if leg == "convt3d":
        for primitive in dict.fromkeys(_PLAN_OF.values()):
            named = getattr(case, f"{primitive}_plan")
            ran = outcome.plans.get(primitive, "none")
            if not stands_for(named, ran):
                yield "plan", "", f"{primitive} ran plan {ran}, but the case names {named}"
    dtype = storage(TABLE[leg, case.dtype].output)
    for result in outcome.results.keys() - set(RESULTS):
        yield "shape", result, f"{result} is no result, but must be one of {', '.join(RESULTS)}"
    for result in RESULTS:
        raw = outcome.results.get(result)
        if raw is None:
            if result != "grad_bias" or case.bias:
                yield "shape", result, f"{result} is missing"
            continue
        shape = getattr(expectation.exact, result).shape
        if raw.shape != shape:
            yield "shape", result, f"{result} has shape {raw.shape}, but must have {shape}"
        elif raw.dtype != dtype:
            yield "shape", result, f"{result} has bits of dtype {raw.dtype}, but must have {dtype}"


def _violated_identities(expectation: Expectation, leg: str, comparisons: list[Comparison]) -> str:
    """Which identities results do not obey that are exact integers; empty if they do."""
    is_exact = TABLE[leg, expectation.case.dtype].output in ("f64", "f32")
    if expectation.case.lane != "int" or not is_exact:
        return ""
    results = {comparison.result: comparison.got for comparison in comparisons}
    return "; ".join(violated_identities(expectation.inputs, results))


def _judge_wrong(leg: str, wrong: list[Comparison], shares: dict[str, float]) -> Judgement:
    first = wrong[0]
    assert first.wrong is not None
    index, count = first.first_wrong, int(np.count_nonzero(first.wrong))
    place = ", ".join(map(str, index))
    detail = (
        f"{count} of {first.wrong.size} elements of {first.result}, first at [{place}]: "
        f"got {first.got[index]:.9g}, expected {first.expected[index]:.9g}"
    )
    if len(wrong) > 1:
        detail += f"; also wrong: {', '.join(other.result for other in wrong[1:])}"
    check = "value" if first.bound is None else "bound"
    return Judgement(leg, Verdict.WRONG, first.result, detail, index, count, shares, check)


def _largest(shares: Values) -> float:
    """The largest of them; NaN, from an infinite bound, does not count."""
    return float(np.fmax.reduce(shares, axis=None, initial=0.0))


def _wrong_integers(expectation: Expectation, raw: RawBits, dtype: str, result: str) -> Mask | None:
    def compute() -> RawBits:
        return encode(getattr(expectation.values, result), dtype)

    expected = expectation.cached(("integers", dtype, result), compute)
    wrong: Mask = raw != expected
    if wrong.any():
        wrong &= decode(raw, dtype) != decode(expected, dtype)  # signs of zero aside
    return wrong if wrong.any() else None


def _bound(expectation: Expectation, arithmetic: Arithmetic, splits: int, result: str) -> Values:
    """Note [Bound] for each element; -1 where no finite value is right."""

    def compute() -> Values:
        exact = getattr(expectation.values, result)
        magnitude = getattr(expectation.magnitude, result)
        error = accumulation_bound(expectation.terms(result, splits), magnitude, arithmetic)
        bound = element_bound(error, exact, arithmetic)
        overflows = np.abs(exact) - error >= overflow_threshold(arithmetic.output)
        bound[overflows | ~np.isfinite(exact)] = -1.0
        return bound

    return expectation.cached(("bound", arithmetic, splits, result), compute)


def _excuses(
    expectation: Expectation,
    arithmetic: Arithmetic,
    owns_zeros: bool,
    plan: str,
    result: str,
    got: Values,
    error: Values,
    bound: Values,
) -> Iterator[Callable[[], Mask]]:
    """The excuses of fuzz.special that hold for the plan, cheapest first."""
    is_special = expectation.case.lane == "special"
    if is_special and not plan.startswith("direct"):
        yield lambda: special.excuse_zero_fill(
            expectation, result, got, every_tap=plan == "native", flushes=arithmetic.flushes
        )
    if is_special and owns_zeros:
        yield lambda: special.excuse_own_zeros(expectation, result, got)
    terms = expectation.terms(result, _splits(plan))
    yield lambda: special.excuse_overflow(expectation, result, got, terms, arithmetic)
    if is_special and arithmetic.flushes:
        yield lambda: special.excuse_flush(expectation, result, error, bound)


def _plan(case: Case, outcome: Outcome, leg: str, result: str) -> str:
    """Name of the plan that computed a result; PyTorch's own op has the plan "native"."""
    if leg != "convt3d":
        return "native"
    primitive = _PLAN_OF[result]
    plan: Any = outcome.plans.get(primitive) or getattr(case, f"{primitive}_plan")
    return str(plan)


def _splits(plan: str) -> int:
    """Number of partial sums that a plan's name states."""
    match = re.search(r"\.split(\d+)$", plan)
    return int(match.group(1)) if match else 0
