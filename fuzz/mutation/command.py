"""python -m fuzz mutants: plants bugs in the kernels and counts which ones the harness catches."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from fuzz import machine
from fuzz.arguments import positive_int
from fuzz.campaign import BROKEN, FAILED, PASSED
from fuzz.mutation import operators, reasons, report
from fuzz.mutation.kernel_text import MODULES
from fuzz.mutation.mutant import Mutant, Result
from fuzz.mutation.runner import Run
from fuzz.mutation.server import MutationError, Options

# How often progress is printed where it cannot overwrite itself.
_PROGRESS_S = 15.0


def add_command(commands: Any) -> None:
    """Adds the command to those of `python -m fuzz`."""
    command = commands.add_parser(
        "mutants", help="plant bugs in the kernels, count which are caught"
    )
    command.set_defaults(command=mutants)
    add = command.add_argument
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--by-hand", action="store_true", help="only those written by hand")
    kind.add_argument("--automatic", action="store_true", help="only those of the operators")
    add(
        "--cases",
        type=positive_int,
        default=2000,
        metavar="N",
        help="that each must survive; 2000",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the cases; default 0")
    add("--doubt", action="store_true", help="run all cases on those that are argued away, too")
    add("--only", default="", metavar="TEXT", help="only those with this text in their name")
    add("--jobs", type=positive_int, metavar="N", help="processes at a time; default: one a core")
    add("--report", type=Path, metavar="FILE", help="write the kill matrix, as Markdown")
    add("--json", type=Path, metavar="FILE", help="write the results for machines")
    add("--results", type=Path, metavar="FILE", help="run nothing, take what --json has written")


def mutants(arguments: argparse.Namespace) -> int:
    """Runs mutants, or takes what a run has written down, and prints what became of them."""
    try:
        ran = report.load(arguments.results) if arguments.results else _run(arguments)
        outcomes = _explain(arguments, ran)
    except (MutationError, OSError, RuntimeError, ValueError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return BROKEN
    if arguments.report:
        arguments.report.write_text(report.text(outcomes), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(report.as_json(outcomes), encoding="utf-8")
    for result in outcomes.surviving:
        print(f"survived   {result.name}")
    print(report.summary_line(outcomes))
    for note in outcomes.notes:
        print(f"  note: {note}")
    problems = outcomes.problems()
    for problem in problems:
        print(f"  {problem}")
    return FAILED if problems else PASSED


def all_automatic() -> list[Mutant]:
    """Every automatic mutant, compiling or not."""
    return [mutant for file in MODULES for mutant in operators.automatic_mutants(file)]


def all_by_hand() -> list[Mutant]:
    """Every mutant that was written by hand; imports torch, which costs seconds."""
    from fuzz.mutation.by_hand import MUTANTS

    return [*MUTANTS]


def _run(arguments: argparse.Namespace) -> report.Ran:
    started_s = time.monotonic()
    jobs = arguments.jobs or machine.usable_cores()
    options = Options(cases=arguments.cases, seed=arguments.seed, jobs=jobs)
    automatic: list[Mutant] = [] if arguments.by_hand else all_automatic()
    by_hand: list[Mutant] = [] if arguments.automatic else all_by_hand()
    if not any(arguments.only in m.name and not m.needs for m in (*by_hand, *automatic)):
        raise MutationError(
            f"--only={arguments.only!r}, but no mutant that can run here has that in its name"
        )
    brief = frozenset(() if arguments.doubt else reasons.load(reasons.EQUIVALENT))
    results: dict[str, Result] = {}
    stillborn: list[str] = []
    # Apart, so that the sources of the automatic ones, which take long to compile, are the same in every run.
    for kind, members in (("by hand", by_hand), ("automatic", automatic)):
        names = [m.name for m in members if arguments.only in m.name and not m.needs]
        if not names:
            continue
        run = Run(members, options, brief)
        progress = _Progress(kind, len(names))
        for result in run.results(names):
            results[result.name] = result
            progress.show(result)
        progress.end()
        stillborn += run.stillborn
    facts = {"device": "emulator", **machine.own_facts(), "torch": metadata.version("torch")}
    return report.Ran(
        results,
        stillborn,
        _command(arguments, options),
        machine.one_line(facts),
        round(time.monotonic() - started_s, 1),
    )


def _explain(arguments: argparse.Namespace, ran: report.Ran) -> report.Outcomes:
    """What ran, with the reasons why some mutants live."""
    automatic = [] if arguments.by_hand else all_automatic()
    by_hand = [] if arguments.automatic else all_by_hand()
    equivalent = reasons.load(reasons.EQUIVALENT) if automatic else {}
    explained = reasons.load(reasons.SURVIVORS) if automatic else {}
    living = {mutant.name for mutant in automatic} - set(ran.stillborn)
    chosen = [m for m in (*by_hand, *automatic) if arguments.only in m.name]
    names = {mutant.name for mutant in chosen if not mutant.needs} - set(ran.stillborn)
    missing, unknown = names - {*ran.results}, {*ran.results} - {m.name for m in chosen}
    ran = ran._replace(results={n: r for n, r in ran.results.items() if n in names})
    results = ran.results.values()
    return report.Outcomes(
        ran,
        automatic=[mutant for mutant in automatic if mutant.name in ran.results],
        by_hand=[mutant for mutant in by_hand if arguments.only in mutant.name],
        equivalent=equivalent,
        explained=explained,
        stale=[
            *(f"of {name!r} there is no result" for name in sorted(missing)),
            *(f"no mutant that was asked for has the name {name!r}" for name in sorted(unknown)),
            *reasons.unknown(reasons.EQUIVALENT, equivalent, living),
            *reasons.unknown(reasons.SURVIVORS, explained, living),
            *reasons.killed(reasons.EQUIVALENT, equivalent, results),
            *reasons.in_both(equivalent, explained),
        ],
        # Other cases may kill what these did not.
        notes=reasons.killed(reasons.SURVIVORS, explained, results),
        compile_time=[place for file in MODULES for place in operators.compile_time_places(file)]
        if automatic
        else [],
    )


def _command(arguments: argparse.Namespace, options: Options) -> str:
    words = ["python -m fuzz mutants"]
    words += [
        f"--{kind.replace('_', '-')}"
        for kind in ("by_hand", "automatic")
        if getattr(arguments, kind)
    ]
    words += ["--doubt"] if arguments.doubt else []
    words += [f"--cases {options.cases}", f"--seed {options.seed}", f"--jobs {options.jobs}"]
    return " ".join([*words, *([f"--only {arguments.only!r}"] if arguments.only else [])])


class _Progress:
    """One line that says how far a run is."""

    def __init__(self, kind: str, total: int) -> None:
        self._kind, self._total = kind, total
        self._done = self._killed = 0
        self._started_s = self._shown_s = time.monotonic()
        print(f"{kind}: {total:,} mutants (the first start builds them)", flush=True)

    def show(self, result: Result) -> None:
        """Counts a result; prints where that may be seen."""
        self._done += 1
        self._killed += result.is_killed
        now_s = time.monotonic()
        is_live = sys.stdout.isatty()
        if is_live or now_s - self._shown_s > _PROGRESS_S:
            self._shown_s = now_s
            print(self._line(), end="\r" if is_live else "\n", flush=True)

    def end(self) -> None:
        print(self._line(), flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started_s
        return (
            f"{seconds:6.0f} s  {self._kind}: {self._done:,} of {self._total:,} done, "
            f"{self._killed:,} killed"
        )


__all__: Sequence[str] = ("add_command", "all_automatic", "mutants")
