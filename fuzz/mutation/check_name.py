"""Which check killed a mutant, in a few words."""

from __future__ import annotations

import re

from convt3d.emulator import runtime
from fuzz.case import Case
from fuzz.outcome import Judgement, Verdict


def check_name(judgement: Judgement, case: Case) -> str:
    """A short name of the check that a failed case failed."""
    detail = judgement.detail
    if "emulator: " in detail:
        return "emulator: " + _EMULATOR_CHECKS.get(
            next((words for words in _EMULATOR_CHECKS if words in detail), ""), "other"
        )
    finder = re.match(rf"(?:\w+: )?({'|'.join(runtime.FINDERS)}): (?:[\w.]*Error: )?", detail)
    if finder:
        return finder[1]
    if judgement.verdict is not Verdict.WRONG:
        return str(judgement.verdict)
    for words, name in _WRONG_CHECKS.items():
        if words in detail:
            return name
    return f"wrong {judgement.result} ({case.lane})" if judgement.result else "identity"


# What the judge and the emulator say -> short name.
_WRONG_CHECKS = {
    "written out of bounds": "guard bands",
    "never written": "never written",
    "was overwritten": "input overwritten",
    "ran plan": "wrong plan",
    "has shape": "wrong shape",
    "is missing": "result missing",
    "has bits of dtype": "wrong dtype",
}
_EMULATOR_CHECKS = {
    "a barrier was reached": "barrier",
    "a shuffle was reached": "shuffle",
    "without a wait": "wait",
    "past the end of its shared memory": "shared memory",
    "is not aligned": "alignment",
}
