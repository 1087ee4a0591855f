"""Counts of a campaign, its live progress line and its closing summary."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

from fuzz.case import Case
from fuzz.coverage import pairs_of
from fuzz.legs import LEGS, Examination
from fuzz.outcome import RESULTS, Verdict

LINE_EVERY_S = 10.0  # where the line cannot be rewritten


@dataclass
class Tally:
    """What has been examined so far; shards send theirs and the campaign adds them up.

    Args:
        device: "emulator" or "cuda": a case counts in the mode and the layout that it has there.
    """

    device: str = "emulator"
    dtypes: Counter[str] = field(default_factory=Counter)
    lanes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (leg, verdict)
    # (dtype, result) -> largest share of the bound used by convt3d
    shares: dict[tuple[str, str], float] = field(default_factory=dict)
    met: int = 0  # pairs of features, as in Note [Pairs] of fuzz.coverage
    corpus_cases: int = 0
    shrink_cases: int = 0
    covering: int = 0  # cases of the covering set
    batches: int = 0  # of Hypothesis, begun
    draws: int = 0
    discarded: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # leg -> failures, repeats too
    unconfirmed: Counter[str] = field(default_factory=Counter)  # leg -> failures seen only once
    incidents: Counter[str] = field(default_factory=Counter)  # leg and what was done to its process
    known_native: int = 0  # corpus entries on which native failed as expected
    fixed_native: int = 0  # and those on which it did not

    @property
    def cases(self) -> int:
        """Cases judged on all legs, corpus and shrinking included."""
        return sum(self.dtypes.values())

    @property
    def generated(self) -> int:
        """Cases that count as examples of the campaign."""
        return self.cases - self.corpus_cases - self.shrink_cases

    def add(self, examination: Examination) -> None:
        """Counts one examined case."""
        case = examination.case.on(self.device)
        self.incidents.update(examination.incidents)
        self.dtypes[case.dtype] += 1
        self.lanes[case.lane] += 1
        self.modes[case.mode] += 1
        for leg, judgement in examination.judgements.items():
            self.verdicts[leg, judgement.verdict.value] += 1
        ours = examination.judgements[LEGS[0]]
        if ours.verdict is not Verdict.MISTRUSTED:
            self.met |= pairs_of(case)
        if ours.verdict is Verdict.PASS:
            self._note_shares(((case.dtype, name), share) for name, share in ours.shares.items())

    def _note_shares(self, shares: Iterable[tuple[tuple[str, str], float]]) -> None:
        for key, share in shares:
            self.shares[key] = max(self.shares.get(key, 0.0), share)


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of several tallies."""
    result = Tally()
    for tally in tallies:
        for name in (
            "dtypes",
            "lanes",
            "modes",
            "verdicts",
            "failures",
            "unconfirmed",
            "incidents",
        ):
            getattr(result, name).update(getattr(tally, name))
        result._note_shares(tally.shares.items())
        result.met |= tally.met
        for name in ("corpus_cases", "shrink_cases", "covering", "batches", "draws", "discarded"):
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
    lines = [
        f"cases      {tally.cases:,} in {running_s:.1f} s, {rate:.0f} cases/s "
        f"({tally.corpus_cases} from the corpus, {tally.shrink_cases} while shrinking)",
        f"  dtype    {_counts(tally.dtypes)}",
        f"  lane     {_counts(tally.lanes)}",
        f"  mode     {_counts(tally.modes)}",
        f"  draws    {tally.draws:,}, discarded {discarded:.2%}",
        *_shares(tally),
        "verdicts",
        *(f"  {leg:8} {_verdicts(tally, leg)}" for leg in (*LEGS, *_suspects(tally))),
    ]
    if tally.incidents:
        lines.append(
            f"incidents  {_counts(tally.incidents)}: no deeds of cases, which ran again in a fresh process"
        )
    if tally.known_native or tally.fixed_native:
        lines.append(
            f"known      native defects of the corpus: {tally.known_native} seen here, "
            f"{tally.fixed_native} not"
        )
    return "\n".join(lines)


def _shares(tally: Tally) -> list[str]:
    """How tight the bounds are: a row a dtype, a column a result."""
    if not tally.shares:
        return ["  bound    no share of it was used by convt3d"]
    rows = [("bound    largest share used by convt3d:", RESULTS)]
    for dtype in sorted({dtype for dtype, _ in tally.shares}):
        shares = [tally.shares.get((dtype, name)) for name in RESULTS]
        rows.append((f"{'':9}{dtype}", tuple("-" if s is None else f"{s:.2f}" for s in shares)))
    return [f"  {name:39}" + "".join(f"{cell:>13}" for cell in cells) for name, cells in rows]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counter.items())) or "none"


def _suspects(tally: Tally) -> list[str]:
    """The reference, if a case said that it is wrong."""
    return sorted({leg for leg, _ in tally.verdicts} - set(LEGS))


def _verdicts(tally: Tally, leg: str) -> str:
    counts = ((verdict.value, tally.verdicts[leg, verdict.value]) for verdict in Verdict)
    text = ", ".join(f"{name} {count:,}" for name, count in counts if count)
    unconfirmed = tally.unconfirmed[leg]
    return (text or "none") + (f" ({unconfirmed} not in a fresh process)" if unconfirmed else "")


def case_counts(cases: Iterable[Case]) -> str:
    """Cases a dtype, for the list of the corpus."""
    return _counts(Counter(case.dtype for case in cases))
