"""What a subject did with a case, and what the judge says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from numpy.typing import NDArray

RESULTS: tuple[str, ...] = ("output", "grad_input", "grad_weight", "grad_bias")

# What watches a subject from inside; the message of a crash that one of them reports starts with its name.
TOOLS = ("asan", "ubsan", "tsan", "memcheck", "racecheck", "initcheck", "synccheck", "emulator")
_TOOL = re.compile(rf"({'|'.join(TOOLS)}): ")
_ACCESS = re.compile(r"Invalid __\w+__ (read|write) ")  # of memcheck
_SIGNAL = re.compile(r"\bSIG[A-Z]+\b")
_CUDA_ERROR = re.compile(r"CUDA error|CUDNN_STATUS_\w+")


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
        stage: what the subject was at when it crashed or hung (fuzz.worker.enter_stage); may be empty.
    """

    status: str
    message: str = ""
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    plans: dict[str, str] = field(default_factory=dict)
    has_gpu: bool = False
    stage: str = ""

    @property
    def tool(self) -> str:
        """Which of TOOLS reported a crash; empty if none did."""
        tool = _TOOL.match(self.message) if self.status == "crashed" else None
        return tool.group(1) if tool else ""

    @property
    def cause(self) -> str:
        """What a crash is told by: one of TOOLS, a signal's name, "CUDA error", or nothing.

        Behind "memcheck" stands " read" or " write" where it says which.
        """
        if tool := self.tool:
            access = _ACCESS.search(self.message)
            return f"{tool} {access.group(1)}" if access else tool
        if self.status != "crashed":
            return ""
        if signal := _SIGNAL.search(self.message):
            return signal.group()
        return "CUDA error" if _CUDA_ERROR.search(self.message) else ""


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
        leg: "convt3d", "oracle" or "native"; "reference" where those tell that it is wrong.
        verdict: the verdict.
        result: the first wrong one of RESULTS; empty when none is.
        detail: one sentence; empty on a pass.
        first_wrong: index of the first wrong element of that result, or None.
        wrong_elements: how many elements of that result are wrong.
        shares: result -> largest share of the bound used by any element that is right; 0 where answers
            are exact, empty where none was compared.
        check: the check that failed, one word; empty when none did. Of a wrong result: "value" (not the
            correctly rounded integer), "bound", "identity", "shape" (or dtype, or missing), "plan", "guard"
            (written out of bounds), "input" (overwritten), "poison" (never written), "subset" (a gradient is
            another when it is asked for alone). Of a crash: one of TOOLS, "signal", "cuda", "exit" or "exception".
            Else "hang" or "refusal".
    """

    leg: str
    verdict: Verdict
    result: str = ""
    detail: str = ""
    first_wrong: tuple[int, ...] | None = None
    wrong_elements: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    check: str = ""

    @property
    def share_of_bound(self) -> float:
        """Largest share of the bound used by any element of any result."""
        return max(self.shares.values(), default=0.0)
