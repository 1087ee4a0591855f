"""The command: python -m fuzz judge path/to/file.py[:Name]."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from fuzz.arguments import names, positive_float, positive_int
from fuzz.case import Case, CaseError, parse_case
from fuzz.number import DTYPES
from fuzz.referee.judging import Options, judge
from fuzz.referee.properties import ROWS
from fuzz.referee.report import HEADING, Report, Row, format_end, format_row
from fuzz.referee.verdicts import LEG
from fuzz.worker import SubjectError

DESCRIPTION = """\
Judges an implementation of conv_transpose3d, ours or not: a function with its signature, or a class like ModelNew, in
a Python file. Each property is a row with pass, wrong, crashed, hung or refused, and the smallest case that fails.
Exit status: 0 if every row passed, 1 if one failed, 2 if the file could not be judged at all.

It is no sandbox. Replaced functions of the referee's, NumPy's or the clock's are noticed, but code that attacks its own
process past Python is not held off. Not seen: a library called past PyTorch's dispatcher, work that another process
does, a kernel that writes to an input and puts it back, and what an implementation does only where it finds no trace of
being judged."""


def add_command(commands: Any) -> None:
    """Adds the parser of `judge`."""
    command = commands.add_parser(
        "judge",
        help="judge an implementation in any Python file",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    defaults = Options(seed=0)
    add = command.add_argument
    add("file", metavar="FILE[:NAME]", help="Python file, and the function or class in it to judge")
    add(
        "--cases",
        nargs="+",
        default=[],
        type=_case,
        metavar="CASE",
        help="judge on these case strings, and on other data of their shapes, in the place of drawn cases: for an "
        "implementation that is made for a few configurations",
    )
    add(
        "--allow-refused",
        action="store_true",
        help="a refused row is no failure, unless it is `forward`",
    )
    add(
        "--accumulate-in-output-dtype",
        action="store_true",
        help="hold 16-bit results to sums that are rounded to 16 bits at every step, as PyTorch's own op is, "
        "and not to sums in float32",
    )
    add(
        "--examples",
        type=positive_int,
        default=defaults.examples,
        metavar="N",
        help="cases a row; default: %(default)s",
    )
    add(
        "--duration",
        type=positive_float,
        metavar="S",
        help="after so many seconds, be content with one case a row",
    )
    add("--seed", type=int, metavar="N", help="of the cases; default: random, printed")
    add(
        "--dtypes",
        type=names(DTYPES),
        default=defaults.dtypes,
        metavar="A,B",
        help="to judge; the first is that of the rows that are not about a dtype; default: "
        + ",".join(defaults.dtypes),
    )
    add(
        "--rows",
        type=names(ROWS),
        default=(),
        metavar="A,B",
        help=f"judge these only, of {', '.join(ROWS)}",
    )
    add("--json", type=Path, metavar="FILE", help="write the report there too, as JSON")
    add(
        "--time-limit",
        type=positive_float,
        default=defaults.time_limit_s,
        metavar="S",
        help="seconds a case may take; default: %(default)g",
    )
    add(
        "--start-limit",
        type=positive_float,
        default=defaults.start_limit_s,
        metavar="S",
        help="seconds that loading the file and its first calls may take, builds included; default: %(default)g",
    )


def run(arguments: argparse.Namespace) -> int:
    """Judges a file and prints the table; returns the exit code."""
    path, name = _split(arguments.file)
    options = Options(
        seed=random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed,
        examples=arguments.examples,
        duration_s=arguments.duration,
        dtypes=arguments.dtypes,
        rows=arguments.rows,
        cases=tuple(arguments.cases),
        time_limit_s=arguments.time_limit,
        start_limit_s=arguments.start_limit,
        leg="native" if arguments.accumulate_in_output_dtype else LEG,
    )
    print(f"loading {path} (a first build may take minutes)", flush=True)
    try:
        report = judge(path, name, options, _show)
    except OSError as error:
        raise SubjectError(f"{path} cannot be read: {error}") from error
    print(f"\n{format_end(report, arguments.allow_refused)}")
    if arguments.json:
        arguments.json.write_text(report.to_json(arguments.allow_refused) + "\n")
    return report.exit_code(arguments.allow_refused)


def _show(report: Report, row: Row) -> None:
    """Prints a row as soon as it is known; before the first, what is judged and where."""
    if len(report.rows) == 1:
        for name in ("cpu", "card", "torch", "cuda", "cudnn"):
            if name in report.machine:
                print(f"{name:<10} {report.machine[name]}")
        print(
            f"judging    {report.judged or report.name or 'nothing'}, sha256 {report.sha256[:16]}"
        )
        print(f"seed       {report.seed}\n\n{HEADING}")
    print(format_row(row), flush=True)


def _split(text: str) -> tuple[Path, str]:
    """Path and name of FILE[:NAME]; a file whose own name has a colon is found too."""
    file, colon, name = text.rpartition(":")
    if colon and not Path(text).exists():
        return Path(file), name
    return Path(text), ""


def _case(text: str) -> Case:
    try:
        return parse_case(text)
    except CaseError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
