"""The kill matrix: what became of every mutant, survivors first."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fuzz.mutation.mutant import Mutant, Result

# Automatic mutants, but for the equivalent ones, of which so many must be killed.
LEAST_SCORE = 0.95


class Score(NamedTuple):
    """How many of some mutants were killed; equivalent ones do not count."""

    killed: int
    counted: int

    @property
    def share(self) -> float:
        """Killed over counted; 1 if there is none."""
        return self.killed / self.counted if self.counted else 1.0

    def __str__(self) -> str:
        """As a percentage, rounded down: what is not reached must not look as if it were."""
        tenths = 1000 * self.killed // self.counted if self.counted else 1000
        return f"{tenths // 10}.{tenths % 10}%"


class Ran(NamedTuple):
    """What a run found out.

    Args:
        results: of the mutants that ran, by name.
        stillborn: automatic mutants that do not compile.
        command: as given, so that a reader can repeat it.
        machine: one line.
        seconds: of the clock, for all.
    """

    results: Mapping[str, Result]
    stillborn: Sequence[str] = ()
    command: str = ""
    machine: str = ""
    seconds: float = 0.0


def load(path: Path) -> Ran:
    """Returns what `as_json` has written to a file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        results = [Result(**result) for result in document["results"]]
        facts = (document[name] for name in ("stillborn", "command", "machine", "seconds"))
        return Ran({result.name: result for result in results}, *facts)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no results of mutants: {error!r}") from error


@dataclass(frozen=True)
class Outcomes:
    """Everything that the report says.

    Args:
        ran: what a run found out.
        automatic, by_hand: the mutants that were to run.
        equivalent: automatic mutants that are argued away, and why.
        explained: automatic mutants that are expected to survive, and why.
        stale: what is not true of equivalent.txt and survivors.txt, a sentence each.
        notes: what more there is to say, a sentence each.
        compile_time: places that no operator reaches, because the compiler must know them.
    """

    ran: Ran
    automatic: Sequence[Mutant]
    by_hand: Sequence[Mutant]
    equivalent: Mapping[str, str] = field(default_factory=dict)
    explained: Mapping[str, str] = field(default_factory=dict)
    stale: Sequence[str] = ()
    notes: Sequence[str] = ()
    compile_time: Sequence[str] = ()

    @property
    def results(self) -> Mapping[str, Result]:
        """Of the mutants that ran, by name."""
        return self.ran.results

    @property
    def score(self) -> Score:
        """Of the automatic mutants."""
        return self.score_of(self._ran(self.automatic))

    @property
    def surviving(self) -> list[Result]:
        """Survivors that nothing argues away, those by hand first."""
        ran = [*self._ran(self.by_hand), *self._ran(self.automatic)]
        results = [self.results[mutant.name] for mutant in ran]
        return [r for r in results if not r.is_killed and r.name not in self.equivalent]

    @property
    def unexplained(self) -> list[Result]:
        """Survivors that nothing explains."""
        return [result for result in self.surviving if result.name not in self.explained]

    @property
    def not_run(self) -> list[Mutant]:
        """Mutants by hand that this machine cannot show."""
        return [mutant for mutant in self.by_hand if mutant.needs]

    def score_of(self, mutants: Iterable[Mutant]) -> Score:
        """Of mutants that ran."""
        counted = [m for m in mutants if m.name not in self.equivalent]
        return Score(sum(self.results[m.name].is_killed for m in counted), len(counted))

    def problems(self) -> list[str]:
        """Why the run is red, a sentence each; empty when it is green."""
        names = {mutant.name for mutant in self.by_hand}
        problems = [f"survived: {r.name}" for r in self.surviving if r.name in names]
        if self.score.share < LEAST_SCORE:
            problems.append(
                f"{self.score} of the automatic mutants were killed, but must be {LEAST_SCORE:.0%}"
            )
        return [*problems, *self.stale]

    def _ran(self, mutants: Iterable[Mutant]) -> list[Mutant]:
        return [mutant for mutant in mutants if mutant.name in self.results]


def text(outcomes: Outcomes) -> str:
    """The report as Markdown."""
    parts = [
        "# Kill matrix\n",
        f"`{outcomes.ran.command}`, {len(outcomes.results):,} mutants in {outcomes.ran.seconds / 60:.1f} minutes.",
        f"Machine: {outcomes.ran.machine}.\n",
        *_summary(outcomes),
        *_survivors(outcomes),
    ]
    if outcomes.by_hand:
        why = {mutant.name: mutant.why for mutant in outcomes.by_hand}
        ran = [outcomes.results[m.name] for m in outcomes.by_hand if m.name in outcomes.results]
        parts += [
            "## By hand\n",
            *_table(
                ("mutant", "the bug", *_RESULT_HEAD),
                [(f"`{r.name}`", why[r.name], *_result_cells(r)) for r in _by_cases(ran)],
            ),
        ]
    for mutant in outcomes.not_run:
        parts.append(
            f"- `{mutant.name}` was not run: it needs {mutant.needs or 'another machine'}."
        )
    if outcomes.automatic:
        parts += _automatic(outcomes)
    return "\n".join(parts).rstrip() + "\n"


def as_json(outcomes: Outcomes) -> str:
    """The results for machines."""
    document: dict[str, Any] = {
        "command": outcomes.ran.command,
        "machine": outcomes.ran.machine,
        "seconds": outcomes.ran.seconds,
        "score": outcomes.score.share,
        "problems": outcomes.problems(),
        "results": [asdict(result) for result in outcomes.results.values()],
        "equivalent": dict(outcomes.equivalent),
        "explained": dict(outcomes.explained),
        "stillborn": list(outcomes.ran.stillborn),
        "not_run": [mutant.name for mutant in outcomes.not_run],
    }
    return json.dumps(document, indent=1)


def summary_line(outcomes: Outcomes) -> str:
    """One line for the end of a run."""
    killed = sum(result.is_killed for result in outcomes.results.values())
    line = f"{killed:,} of {len(outcomes.results):,} mutants killed"
    if outcomes.automatic:
        line += f"; automatic, without {len(outcomes.equivalent)} equivalent: {outcomes.score}"
    if outcomes.surviving:
        line += f"; {len(outcomes.surviving)} survived, {len(outcomes.unexplained)} not explained"
    return line


def _summary(outcomes: Outcomes) -> list[str]:
    rows = []
    groups = {"by hand": list(outcomes.by_hand)}
    for mutant in outcomes.automatic:
        groups.setdefault(mutant.why, []).append(mutant)
    groups["all automatic"] = list(outcomes.automatic)
    for name, members in groups.items():
        ran = [mutant for mutant in members if mutant.name in outcomes.results]
        if not ran:
            continue
        killed = [outcomes.results[m.name] for m in ran if outcomes.results[m.name].is_killed]
        score = outcomes.score_of(ran)
        rows.append(
            (
                name,
                f"{len(ran):,}",
                f"{len(killed):,}",
                str(len(ran) - score.counted),
                str(score.counted - score.killed),
                str(score) if score.counted else "",
                str(round(statistics.median(r.cases for r in killed))) if killed else "",
                str(max(r.cases for r in killed)) if killed else "",
                f"{statistics.median(r.seconds for r in killed):.2f}" if killed else "",
            )
        )
    head = ["operator", "mutants", "killed", "equivalent", "survived", "score"]
    head += ["median cases", "most cases", "median seconds"]
    checks = Counter(result.check for result in outcomes.results.values() if result.is_killed)
    return [
        *_table(head, rows),
        "Killed by: "
        + ", ".join(f"{name} {count:,}" for name, count in checks.most_common())
        + ".\n",
    ]


def _survivors(outcomes: Outcomes) -> list[str]:
    if not outcomes.surviving:
        return ["No mutant survived.\n"]
    rows = [
        (f"`{r.name}`", f"{r.cases:,}", outcomes.explained.get(r.name, "not explained"))
        for r in outcomes.surviving
    ]
    return [
        "## Survivors\n",
        f"{len(rows)}, of which {len(outcomes.unexplained)} are not explained.\n",
        *_table(("mutant", "cases", "why it survives"), rows),
    ]


def _automatic(outcomes: Outcomes) -> list[str]:
    ran = [outcomes.results[m.name] for m in outcomes.automatic if m.name in outcomes.results]
    killed = _by_cases([result for result in ran if result.is_killed])
    lines = [f"{r.cases:5} {r.seconds:7.2f} s  {r.check:26} {r.name}" for r in killed]
    equivalent = [result for result in ran if result.name in outcomes.equivalent]
    parts = [
        "## Automatic\n",
        f"{len(outcomes.ran.stillborn)} do not compile. {len(outcomes.compile_time)} places hold numbers that the",
        "compiler must know, which no switch can reach; each use of a named constant at run time is mutated instead.\n",
        "Killed, after so many cases and seconds, by which check:\n",
        *("```text", *lines, "```\n"),
    ]
    if equivalent:
        parts += ["Equivalent (the reasons are in fuzz/mutation/equivalent.txt):\n"]
        parts += ["```text", *(result.name for result in equivalent), "```\n"]
    return parts


_RESULT_HEAD = ("killed by", "cases", "seconds")


def _result_cells(result: Result) -> tuple[str, str, str]:
    return (result.check or "**survived**", f"{result.cases:,}", f"{result.seconds:.2f}")


def _by_cases(results: Iterable[Result]) -> list[Result]:
    """Survivors first, then what took most."""
    return sorted(results, key=lambda r: (r.is_killed, -r.cases, r.name))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {lines[0]} |", f"|{lines[1]}|", *(f"| {line} |" for line in lines[2:]), ""]
