"""Counts of a campaign, its live progress line and its closing summary."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

from fuzz.case import Case
from fuzz.legs import LEGS, Examination
from fuzz.outcome import Verdict

LINE_EVERY_S = 10.0  # where the line cannot be rewritten


@dataclass
class Tally:
    """What has been examined so far; shards send theirs and the campaign adds them up."""

    dtypes: Counter[str] = field(default_factory=Counter)
    lanes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (leg, verdict)
    shares_of_bound: dict[str, float] = field(default_factory=dict)  # dtype -> largest, convt3d
    corpus_cases: int = 0
    shrink_cases: int = 0
    draws: int = 0
    discarded: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # leg -> failures, repeats too
    unconfirmed: Counter[str] = field(default_factory=Counter)  # leg -> failures seen only once
    known_native: int = 0  # corpus entries on which native failed as expected
    fixed_native: int = 0  # and those on which it did not

    @property
    def cases(self) -> int:
        """Cases judged on all legs, corpus and shrinking included."""
        return sum(self.dtypes.values())

    def add(self, examination: Examination) -> None:
        """Counts one examined case."""
        case = examination.case
        self.dtypes[case.dtype] += 1
        self.lanes[case.lane] += 1
        self.modes[case.mode] += 1
        for leg, judgement in examination.judgements.items():
            self.verdicts[leg, judgement.verdict.value] += 1
        ours = examination.judgements[LEGS[0]]
        if ours.verdict is Verdict.PASS:
            largest = max(self.shares_of_bound.get(case.dtype, 0.0), ours.share_of_bound)
            self.shares_of_bound[case.dtype] = largest


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of several tallies."""
    result = Tally()
    for tally in tallies:
        for name in ("dtypes", "lanes", "modes", "verdicts", "failures", "unconfirmed"):
            getattr(result, name).update(getattr(tally, name))
        for dtype, share in tally.shares_of_bound.items():
            result.shares_of_bound[dtype] = max(result.shares_of_bound.get(dtype, 0.0), share)
        for name in ("corpus_cases", "shrink_cases", "draws", "discarded"):
            setattr(result, name, getattr(result, name) + getattr(tally, name))
        result.known_native += tally.known_native
        result.fixed_native += tally.fixed_native
    return result


class Display:
    """Prints text above a progress line, which a terminal rewrites and a log repeats rarely."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._is_line_shown = False
        self._last_line_s = time.monotonic()

    def print(self, text: str = "") -> None:
        """Prints text for good."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def progress(self, line: str) -> None:
        """Shows where the campaign stands."""
        if self._is_terminal:
            self._clear()
            print(line, end="", file=self._stream, flush=True)
            self._is_line_shown = True
        elif time.monotonic() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            print(line, file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._is_line_shown:
            print("\r\033[K", end="", file=self._stream)
            self._is_line_shown = False


def progress_line(
    tally: Tally, running_s: float, failures: int, native_findings: int, left: str
) -> str:
    """One line: time, cases, cases a second, findings, what is left."""
    rate = tally.cases / running_s if running_s > 0 else 0.0
    return (
        f"{running_s:6.0f} s  {tally.cases:,} cases  {rate:.0f} cases/s  "
        f"{failures} failures, {native_findings} native findings  {left}"
    )


def summary(tally: Tally, running_s: float) -> str:
    """The closing account of a campaign, without its findings."""
    rate = tally.cases / running_s if running_s > 0 else 0.0
    discarded = tally.discarded / tally.draws if tally.draws else 0.0
    shares = (
        f"{dtype} {tally.shares_of_bound[dtype]:.2f}" for dtype in sorted(tally.shares_of_bound)
    )
    lines = [
        f"cases      {tally.cases:,} in {running_s:.1f} s, {rate:.0f} cases/s "
        f"({tally.corpus_cases} from the corpus, {tally.shrink_cases} while shrinking)",
        f"  dtype    {_counts(tally.dtypes)}",
        f"  lane     {_counts(tally.lanes)}",
        f"  mode     {_counts(tally.modes)}",
        f"  draws    {tally.draws:,}, discarded {discarded:.2%}",
        f"  bound    largest share used by convt3d: {', '.join(shares) or 'none'}",
        "verdicts",
        *(f"  {leg:8} {_verdicts(tally, leg)}" for leg in LEGS),
    ]
    if tally.known_native or tally.fixed_native:
        lines.append(
            f"known      native defects of the corpus: {tally.known_native} seen here, "
            f"{tally.fixed_native} not"
        )
    return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counter.items())) or "none"


def _verdicts(tally: Tally, leg: str) -> str:
    counts = ((verdict.value, tally.verdicts[leg, verdict.value]) for verdict in Verdict)
    text = ", ".join(f"{name} {count:,}" for name, count in counts if count)
    unconfirmed = tally.unconfirmed[leg]
    return (text or "none") + (f" ({unconfirmed} not in a fresh process)" if unconfirmed else "")


def case_counts(cases: Iterable[Case]) -> str:
    """Cases a dtype, for the list of the corpus."""
    return _counts(Counter(case.dtype for case in cases))
