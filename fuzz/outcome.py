"""What a subject did with a case, and what the judge says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from numpy.typing import NDArray

RESULTS = ("output", "grad_input", "grad_weight", "grad_bias")


@dataclass(frozen=True)
class Outcome:
    """What a subject did with a case.

    Args:
        status: "ok", "refused", "crashed" or "hung".
        message: exception text, signal name or time limit; empty when ok.
        results: raw bits of each result (fuzz.number.storage), C-contiguous; empty unless ok.
        damage: broken guard bands, changed inputs, elements that still hold the poison.
        plans: the plan that ran each primitive; of convt3d only.
        has_gpu: whether the subject's process has a GPU, which convt3d and native then run on.
    """

    status: str
    message: str = ""
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    plans: dict[str, str] = field(default_factory=dict)
    has_gpu: bool = False


class Verdict(str, Enum):
    """What became of one leg of a case. MISTRUSTED: the expected answer proves nothing."""

    PASS = "pass"
    WRONG = "wrong"
    CRASHED = "crashed"
    HUNG = "hung"
    REFUSED = "refused"
    MISTRUSTED = "mistrusted"

    def __str__(self) -> str:
        return self.value


FAILURES = frozenset({Verdict.WRONG, Verdict.CRASHED, Verdict.HUNG, Verdict.REFUSED})


@dataclass(frozen=True)
class Judgement:
    """The verdict on one leg of one case.

    Args:
        leg: "convt3d", "oracle" or "native".
        verdict: the verdict.
        result: the first wrong one of RESULTS; empty when none is.
        detail: one sentence; empty on a pass.
        first_wrong: index of the first wrong element of that result, or None.
        wrong_elements: how many elements of that result are wrong.
        share_of_bound: largest share of the bound used by any element; 0 where answers are exact.
    """

    leg: str
    verdict: Verdict
    result: str = ""
    detail: str = ""
    first_wrong: tuple[int, ...] | None = None
    wrong_elements: int = 0
    share_of_bound: float = 0.0
