"""Decides whether the reference, and not the legs, is wrong.

Note [Two against one]
The reference decides, unless convt3d and the oracle contradict it in the same way. They are different
programs (hand-written kernels; PyTorch in float64, without oneDNN) that share nothing but the case and
its data, so the reference is the suspect when on the same result

    the oracle contradicts it, convt3d contradicts it,
    and wherever the oracle does, convt3d says what the oracle says: on the int lane the oracle's value,
    correctly rounded; on the others, where the reference has a say in the bounds too, most elements of
    convt3d are nearer to the oracle than to the reference;

or when both refuse a case that the reference accepts, or when one is outside a bound that comes from a
sum of absolute values smaller than the value itself. What the legs returned then proves nothing about
them, and the verdict is on the reference alone. Where a special value or a bound excuses one of the two,
fuzz.inquiry has the same case run on the int lane, which excuses nothing. A leg that crashed, hung or did
damage has failed whatever is expected of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fuzz.bounds import TABLE, Expectation
from fuzz.checks import Mask, compare, judge
from fuzz.identities import violated_identities
from fuzz.number import decode, encode, storage
from fuzz.outcome import RESULTS, Judgement, Outcome, Verdict
from reference import Results

REFERENCE = "reference"
WITNESSES = ("convt3d", "oracle")


@dataclass(frozen=True)
class Accusation:
    """That the reference is wrong on a case, put as if it were a leg.

    Args:
        judgement: of the reference; verdict wrong.
        outcome: what it returned.
        expectation: what the oracle returned, which it is compared with.
    """

    judgement: Judgement
    outcome: Outcome
    expectation: Expectation


def accuse(expectation: Expectation, outcomes: Mapping[str, Outcome]) -> Accusation | None:
    """The accusation of the reference by convt3d and the oracle; None if it is not the suspect.

    Args:
        expectation: what the reference says about a case.
        outcomes: by leg, what its subject did; convt3d and the oracle must be there.
    """
    ours, oracle = (outcomes[leg] for leg in WITNESSES)
    own = Outcome("ok", results=_encoded(expectation))
    if ours.status == oracle.status == "refused":
        detail = f"convt3d and oracle refuse what the reference accepts: {oracle.message}"
        judgement = Judgement(REFERENCE, Verdict.WRONG, detail=detail, check="refusal")
        return Accusation(judgement, own, expectation)
    if any(outcome.status != "ok" or outcome.damage for outcome in (ours, oracle)):
        return None
    for result in RESULTS:
        if result in oracle.results and _is_suspect(expectation, ours, oracle, result):
            others = _as_expected(expectation, oracle)
            return Accusation(_judgement(expectation, others, own, result), own, others)
    if result := _impossible_magnitude(expectation):
        detail = f"a sum of absolute values in {result} is smaller than the value itself"
        judgement = Judgement(REFERENCE, Verdict.WRONG, result, detail, check="bound")
        return Accusation(judgement, own, expectation)
    return None


def _impossible_magnitude(expectation: Expectation) -> str:
    """The first result in which a sum of absolute values cannot be one; empty if there is none."""
    if expectation.case.lane == "int":
        return ""
    for result in RESULTS:
        exact = np.abs(getattr(expectation.values, result))
        magnitude = getattr(expectation.magnitude, result)
        # Both are rounded. Special values have none, or any.
        if exact.shape == magnitude.shape and (exact > magnitude * (1 + 2.0**-20)).any():
            return result
    return ""


def _is_suspect(expectation: Expectation, ours: Outcome, oracle: Outcome, result: str) -> bool:
    """Whether both contradict the reference on a result, and agree with each other where they do."""
    dtype = TABLE["convt3d", expectation.case.dtype].output
    raw, other = ours.results.get(result), oracle.results[result]
    if raw is None or raw.shape != other.shape:
        return False
    if (raw.dtype, other.dtype) != (storage(dtype), storage("f64")):
        return False
    own = getattr(expectation.values, result)
    if own.shape != other.shape:
        return True
    contradicted = compare(expectation, oracle, "oracle", result).wrong
    if contradicted is None or compare(expectation, ours, "convt3d", result).wrong is None:
        return False
    got = decode(raw, dtype)[contradicted]
    theirs = decode(encode(decode(other, "f64"), dtype), dtype)[contradicted]
    is_equal: Mask = (got == theirs) | (np.isnan(got) & np.isnan(theirs))
    if expectation.case.lane == "int":
        return bool(is_equal.all())
    with np.errstate(invalid="ignore", over="ignore"):
        is_nearer = np.abs(got - theirs) < np.abs(got - own[contradicted])
    return 2 * int(np.count_nonzero(is_equal | is_nearer)) > is_equal.size


def _judgement(
    expectation: Expectation, others: Expectation, own: Outcome, result: str
) -> Judgement:
    """The judgement of the reference, judged by what the oracle says."""
    why = "convt3d and oracle contradict the reference and agree with each other"
    judgement = judge(expectation.case, others, own, REFERENCE)
    if judgement.verdict is not Verdict.WRONG:
        # Its results are right, so what they are held to must be wrong: the bounds come from it too.
        return Judgement(REFERENCE, Verdict.WRONG, result, f"{why}: its bounds", check="bound")
    detail = f"{why}: {judgement.detail}{_violations(expectation)}"
    return replace(judgement, detail=detail)


def _violations(expectation: Expectation) -> str:
    """Which identities the results of the reference do not obey either."""
    if expectation.case.lane != "int":
        return ""
    try:
        violated = violated_identities(expectation.inputs, vars(expectation.exact))
    except ValueError:  # wrong shapes
        return ""
    return f"; {violated[0]}" if violated else ""


def _encoded(expectation: Expectation) -> dict[str, np.ndarray]:
    """The results of the reference as those of a leg."""
    return {
        result: encode(array, "f64")
        for result, array in vars(expectation.values).items()
        if result != "grad_bias" or expectation.case.bias
    }


def _as_expected(expectation: Expectation, oracle: Outcome) -> Expectation:
    """The expectation with the results of the oracle in the place of those of the reference."""
    results = {name: decode(raw, "f64") for name, raw in oracle.results.items()}
    exact = Results(**{**vars(expectation.exact), **results})
    return Expectation(expectation.case, expectation.inputs, exact)
