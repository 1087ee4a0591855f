"""The automatic mutants that no test can kill, each argued away in equivalent.txt.

A reason, as lines that start with "#", stands above the names of the mutants that it holds for, one a line:

    # thread is never negative, and neither is its remainder
    weight.py sum_bias: relational: thread % kWarpSize == 0 -> thread % kWarpSize <= 0
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fuzz.mutation.mutant import Result

PATH = Path(__file__).with_name("equivalent.txt")


class EquivalentError(ValueError):
    """equivalent.txt cannot be used; the message names file and line."""


def load(path: Path = PATH) -> dict[str, str]:
    """Returns the reason of every mutant that is argued away, by name.

    Raises:
        EquivalentError: a name without a reason, or one that is there twice.
    """
    reasons: dict[str, str] = {}
    why: list[str] = []
    is_reason = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if text.startswith("#"):
            why = [*why, text.lstrip("#").strip()] if is_reason else [text.lstrip("#").strip()]
            is_reason = True
            continue
        is_reason = False
        if not text:
            why = []
        elif not any(why):
            raise EquivalentError(f"{path}:{number}: no comment above {text} says why")
        elif text in reasons:
            raise EquivalentError(f"{path}:{number}: {text} is there already")
        else:
            reasons[text] = " ".join(filter(None, why))
    return reasons


def stale(
    reasons: Mapping[str, str], names: Collection[str], results: Iterable[Result]
) -> list[str]:
    """Returns what is no longer true of the file, a sentence each.

    Args:
        reasons: as `load` returns them.
        names: of all automatic mutants that compile.
        results: of those that ran.
    """
    known = set(names)
    problems = [f"no mutant has the name {name!r}" for name in reasons if name not in known]
    for result in results:
        if result.is_killed and result.name in reasons:
            problems.append(
                f"{result.name!r} is argued away, but was killed: {result.check} on {result.case}"
            )
    return problems
