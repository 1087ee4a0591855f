"""Why automatic mutants live: equivalent.txt has those that no test can kill, survivors.txt others that survive.

A reason, as lines that start with "#", stands above the names of the mutants that it holds for, one a line:

    # thread is never negative, and neither is its remainder
    weight.py sum_bias: relational: thread % kWarpSize == 0 -> thread % kWarpSize <= 0

What equivalent.txt names computes the same for every legal case, or the same with more work, and does not count. What
survivors.txt names could be killed, and counts as surviving: its reason says which case would do it, and why the
campaign does not draw one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from fuzz.mutation.mutant import Result

EQUIVALENT = Path(__file__).with_name("equivalent.txt")
SURVIVORS = Path(__file__).with_name("survivors.txt")


class ReasonsError(ValueError):
    """A file of reasons cannot be used; the message names file and line."""


def load(path: Path) -> dict[str, str]:
    """Returns the reason of every mutant that a file names, by name.

    Raises:
        ReasonsError: a name without a reason, or one that is there twice.
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
            raise ReasonsError(f"{path}:{number}: no comment above {text} says why")
        elif text in reasons:
            raise ReasonsError(f"{path}:{number}: {text} is there already")
        else:
            reasons[text] = " ".join(filter(None, why))
    return reasons


def unknown(path: Path, reasons: Iterable[str], names: Collection[str]) -> list[str]:
    """Returns which mutants of a file there are not, a sentence each.

    Args:
        path: of the file.
        reasons: as `load` returns them.
        names: of all automatic mutants that compile.
    """
    known = set(names)
    gone = [name for name in reasons if name not in known]
    return [f"{path.name} is stale: no mutant has the name {name!r}" for name in gone]


def killed(path: Path, reasons: Collection[str], results: Iterable[Result]) -> list[str]:
    """Returns which mutants of a file were killed, a sentence each.

    Args:
        path: of the file.
        reasons: as `load` returns them.
        results: of those that ran.
    """
    dead = [result for result in results if result.is_killed and result.name in reasons]
    return [f"{path.name} has {r.name!r}, killed: {r.check} on {r.case}" for r in dead]


def in_both(equivalent: Collection[str], survivors: Collection[str]) -> list[str]:
    """Returns what the two files contradict each other in, a sentence each."""
    return [
        f"{EQUIVALENT.name} and {SURVIVORS.name} both name {name!r}"
        for name in survivors
        if name in equivalent
    ]
