"""A failure of a leg, and what makes two of them the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fuzz.case import Case
from fuzz.legs import Examination
from fuzz.strategies import VAST

SHRUNK = "shrunk"
UNSHRUNK = "unshrunk"
# Seen once, but not by a fresh process: it depends on what ran before, or on chance.
UNCONFIRMED = "unconfirmed"
# A case whose failure is known is looked at again if it has at most this share of the elements of the known one.
BETTER_SPECIMEN = 0.5
# Fields that a failure may need to be other than simple, and those of which it may need one value.
_PARAMETERS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "bias")
_CHOICES = ("layout", "lane", "mode", "forward_plan", "grad_input_plan", "grad_weight_plan")


class Kind(NamedTuple):
    """What makes two failures the same one, as far as one can tell from outside.

    Args:
        leg: whose failure it is.
        dtype: of the case.
        verdict: what became of the leg.
        result: the first wrong result; empty if the leg returned none.
        signal: of a crash: signal, sanitizer or the like (Outcome.cause).
        stage: of a crash or a hang: "forward", "backward" or nothing.
        is_vast: of PyTorch's op: the case has a dilation for which it is not made.
    """

    leg: str
    dtype: str
    verdict: str
    result: str
    signal: str
    stage: str = ""
    is_vast: bool = False

    def __str__(self) -> str:
        *words, stage, is_vast = self
        where = (stage and f"in {stage}", "with a vast dilation" if is_vast else "")
        return " ".join(filter(None, (*words, *where)))


@dataclass(frozen=True)
class Failure:
    """A leg that failed on a case, as last examined."""

    kind: Kind
    examination: Examination
    status: str


def kind_of(examination: Examination, leg: str) -> Kind:
    """The kind of failure of a leg."""
    judgement, outcome = examination.judgements[leg], examination.outcomes[leg]
    verdict, result = judgement.verdict.value, judgement.result
    case = examination.case
    is_vast = leg == "native" and max(case.dilation) >= VAST
    return Kind(leg, case.dtype, verdict, result, outcome.cause, outcome.stage, is_vast)


def is_same(kind: Kind, target: Kind) -> bool:
    """Whether a smaller case shows the failure that is being shrunk.

    A failure of ours may change its dtype, for it should shrink to the simplest; PyTorch's
    defects depend on it, and are told apart by it.
    """
    if target.leg == "native":
        return kind == target
    return kind._replace(dtype=target.dtype) == target


def ingredients(case: Case) -> frozenset[str]:
    """What of a case is not as simple as can be, sizes and seeds aside: parameters, and choices with their values."""
    plain = Case()
    parameters = (name for name in _PARAMETERS if getattr(case, name) != getattr(plain, name))
    choices = (
        f"{name}={_kernel(getattr(case, name))}"
        for name in _CHOICES
        if getattr(case, name) != getattr(plain, name)
    )
    return frozenset((*parameters, *choices))


def _kernel(choice: str) -> str:
    """Of a plan, without the width of its indices and its splits."""
    return choice.partition(".")[0]


def is_explained(case: Case, specimen: Case) -> bool:
    """Whether a failure may well be the one that a specimen of its kind shows, and is no better specimen.

    A shrunk specimen has only the ingredients that its defect needs, so a case that lacks one of them has another. One
    that is not shrunk explains little.
    """
    is_much_smaller = case.elements <= BETTER_SPECIMEN * specimen.elements
    return ingredients(specimen) <= ingredients(case) and not is_much_smaller
