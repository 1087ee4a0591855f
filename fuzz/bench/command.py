"""The command: python -m fuzz bench [CASE]."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fuzz.arguments import names, positive_float, positive_int
from fuzz.bench import picture, report
from fuzz.bench.results import ResultsError, Row, Run, load, save
from fuzz.bench.sample import sample
from fuzz.bench.suite import (
    DIRECTIONS,
    DTYPES,
    LAYOUTS,
    NAMES,
    SUITE,
    Point,
    case_string,
    points_of,
    points_of_case,
)
from fuzz.campaign import BROKEN, FAILED, PASSED
from fuzz.case import parse_case
from fuzz.plans import check_plans
from fuzz.progress import Display

DESCRIPTION = """\
Times convt3d beside PyTorch's own op, in one run and taken in turn: medians by CUDA events, the L2 flushed before each
call, random data, and each result checked first. Native runs with cudnn.benchmark on and off; the ratio is to the
faster. Beside each time stands the floor: what the card's own copy and matrix rates, measured in the same run, allow.
Exit status: 0 if every row was right, lost ones included, 1 if one of ours was wrong or failed, 2 if nothing could be
measured."""
DEFAULT_RUNS = 30
# An argument -> those that have no meaning beside it, and why.
_EXCLUDED = {
    "source": (
        *("case", "shapes", "dtypes", "layouts", "directions"),
        *("runs", "arch", "sample", "seed", "budget", "json"),
    ),
    "case": ("shapes", "dtypes", "layouts", "sample"),
    "sample": ("shapes",),
}
_WHY = {
    "source": "earlier results are shown as they are",
    "case": "the case string says what is measured",
    "sample": "the layers are drawn",
}


def add_command(commands: Any) -> None:
    """Adds the parser of `bench`."""
    command = commands.add_parser(
        "bench",
        help="time the kernels beside PyTorch's op, on a GPU",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    add = command.add_argument
    add("case", nargs="?", metavar="CASE", help="case string to measure, in the place of the suite")
    add("--shapes", type=names(NAMES), metavar="A,B", help=f"of {', '.join(NAMES)}")
    add("--dtypes", type=names(DTYPES), metavar="A,B", help=f"of {', '.join(DTYPES)}")
    add("--layouts", type=names(tuple(LAYOUTS)), metavar="A,B", help=f"of {', '.join(LAYOUTS)}")
    add(
        "--directions",
        type=names(DIRECTIONS),
        metavar="A,B",
        help=f"of {', '.join(DIRECTIONS)}; default: forward",
    )
    add(
        "--runs",
        type=positive_int,
        metavar="N",
        help=f"timed calls a row; default: {DEFAULT_RUNS}",
    )
    add("--arch", type=_arch, metavar="X.Y", help="run the PTX of that architecture, as 8.0")
    add("--sample", type=positive_int, metavar="N", help="measure N random layers, to find cliffs")
    add("--seed", type=int, metavar="N", help="of the sample; default: random, printed")
    add("--budget", type=positive_float, metavar="S", help="begin no row after so many seconds")
    add("--json", type=Path, metavar="FILE", help="write everything measured, after each row")
    add("--svg", type=Path, metavar="FILE", help="draw the ratios, of a sample a scatter")
    add("--from", dest="source", type=Path, metavar="FILE", help="show what --json wrote; no GPU")


def run(arguments: argparse.Namespace) -> int:
    """Measures, or shows what was measured. Returns the exit status."""
    if problem := problem_of(arguments):
        return _refuse(problem)
    if arguments.source:
        return show(arguments.source, arguments.svg)
    if arguments.arch:
        os.environ["CONVT3D_ARCH"] = arguments.arch  # read when kernels are planned and built
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    points = points_to_measure(arguments, seed)
    deadline_s = time.monotonic() + (arguments.budget or float("inf"))
    # It imports torch, which the other commands of this process must not.
    from fuzz.bench import measure, timer

    if problem := measure.device_problem():
        return _refuse(f"bench needs a GPU, but {problem}; --from FILE shows earlier results")
    display = Display()
    runs = arguments.runs or DEFAULT_RUNS
    settings = {"arch": _arch_in_use(), "runs": f"{runs} a row"}
    if arguments.sample:
        settings["sample"] = f"{arguments.sample} layers, --seed {seed}"
    ceilings = timer.measure_ceilings()
    facts = {**measure.facts(), "clocks": measure.clocks(), **settings}
    result = Run("sample" if arguments.sample else "suite", facts, ceilings)
    display.print(report.header(result) + "\n")
    try:
        measure.build_parts(points, display.print)
    except RuntimeError as error:
        return _refuse(f"the kernels cannot be built: {error}")
    bench = measure.Bench(timer.CudaTimer(), ceilings, runs)
    measure_all(result, points, bench, display, deadline_s, arguments.budget, arguments.json)
    bench.close()
    result.facts["clocks after"] = measure.clocks()
    display.print(f"\nclocks after  {result.facts['clocks after']}")
    return _finish(result, display, arguments.json, arguments.svg)


class Measures(Protocol):
    """What `measure_all` needs of measure.Bench."""

    def measure(self, point: Point) -> Row:
        """Returns the row of a point."""

    def is_alive(self) -> bool:
        """Whether another row can be measured after one that failed."""


def measure_all(
    run: Run,
    points: Sequence[Point],
    bench: Measures,
    display: Display,
    deadline_s: float = float("inf"),
    budget_s: float | None = None,
    file: Path | None = None,
) -> None:
    """Measures one point after the other into the run, until time is up or the GPU is lost.

    Args:
        run: gets the rows, and the names of the points that were not measured.
        points: in this order.
        bench: measures one.
        display: shows each row, of a sample the progress alone.
        deadline_s: no row begins after it, by time.monotonic.
        budget_s: what to say the budget was.
        file: is written after each row; None for nowhere.
    """
    width = report.name_width(points)
    if run.kind != "sample":
        display.print(report.heading(width))
    for index, point in enumerate(points):
        if time.monotonic() >= deadline_s:
            _stop(run, points[index:], f"the budget of {budget_s or 0:g} s is used up")
            break
        lost = sum(report.is_lost(row) for row in run.rows)
        display.progress(f"row {index + 1} of {len(points)}, {lost} lost, now {point}")
        row = bench.measure(point)
        run.rows.append(row)
        if run.kind != "sample":
            display.print(report.line(row, width))
        if row.problem and not bench.is_alive():
            _stop(run, points[index + 1 :], f"the GPU no longer answers after {point}")
            break
        if file:
            save(run, file)


def _stop(run: Run, left: Sequence[Point], why: str) -> None:
    run.unmeasured = [f"{point}  {case_string(point)}" for point in left]
    run.stopped = why


def _finish(result: Run, display: Display, json: Path | None, svg: Path | None) -> int:
    """Prints what follows the rows, writes the files. Returns the exit status."""
    if result.kind == "sample":
        display.print(report.lost_rows(result))
    display.print("\n" + report.summary(result))
    if json:
        save(result, json)
    if svg:
        svg.write_text(picture.draw(result))
    return _status(result)


def _status(result: Run) -> int:
    if not result.rows:
        return BROKEN
    return FAILED if any(row.problem for row in result.rows) else PASSED


def show(source: Path, svg: Path | None) -> int:
    """Prints earlier results and draws them. Returns the exit status that they had."""
    try:
        result = load(source)
    except ResultsError as error:
        return _refuse(f"--from {error}")
    print(report.text(result))
    if svg:
        svg.write_text(picture.draw(result))
    return _status(result)


def points_to_measure(arguments: argparse.Namespace, seed: int) -> list[Point]:
    """Returns the points that the arguments ask for.

    Raises:
        CaseError: the case string is none, or is not one that is measured.
    """
    directions = arguments.directions or DIRECTIONS[:1]
    if arguments.case is not None:
        case = parse_case(arguments.case)
        check_plans(case)
        return points_of_case(case, directions)
    dtypes, layouts = arguments.dtypes or DTYPES, arguments.layouts or tuple(LAYOUTS)
    if arguments.sample:
        return sample(arguments.sample, seed, dtypes, layouts, directions)
    shapes = arguments.shapes or NAMES
    layers = [layer for layer in SUITE if layer.name in shapes]
    return points_of(layers, dtypes, layouts, directions)


def problem_of(arguments: argparse.Namespace) -> str:
    """Returns why the arguments do not go together; "" if they do."""
    given = {name for name, value in vars(arguments).items() if value is not None}
    for main, others in _EXCLUDED.items():
        for other in others:
            if main in given and other in given:
                return f"{_flag(other)} is given with {_flag(main)}, but must not be: {_WHY[main]}"
    if "seed" in given and "sample" not in given:
        return f"--seed {arguments.seed} is given without --sample N, but must be with it"
    for name in ("json", "svg"):
        path = getattr(arguments, name)
        if path and not path.absolute().parent.is_dir():
            return f"--{name} {path}: there is no directory {path.parent}"
    return ""


def _flag(name: str) -> str:
    return {"case": "CASE", "source": "--from"}.get(name, f"--{name}")


def _arch(text: str) -> str:
    """A compute capability as CONVT3D_ARCH has it."""
    number = text.replace(".", "")
    if not number.isdigit() or int(number) < 80:
        raise argparse.ArgumentTypeError(f"{text!r}, but must be like 8.0, and at least 8.0")
    return text


def _arch_in_use() -> str:
    asked = os.environ.get("CONVT3D_ARCH", "")
    return f"PTX of {asked} (CONVT3D_ARCH)" if asked else "the card's own"


def _refuse(problem: str) -> int:
    print(f"fuzz: {problem}", file=sys.stderr)
    return BROKEN
