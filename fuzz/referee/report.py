"""What a judgement says: a table for people, JSON for machines, an exit code for CI.

The JSON object, schema 1:

    schema          1
    file, name      what was judged; name is empty if none was given
    sha256          of the file's bytes, hexadecimal
    judged          "class ModelNew" or "function conv_transpose3d"; empty if nothing could be loaded
    seed            of the cases
    machine         fact -> text: cpu, card, torch, cuda and so on
    rows            list of objects: row (its name), asserts (a sentence), verdict (pass, wrong, crashed, hung or
                    refused), cases (how many ran), reason (empty on a pass), case (case string of the failure,
                    shrunk if a fresh process confirmed it; empty if there is none), confirmed (by a fresh process)
    not_judged      row -> why it says nothing
    library_calls   PyTorch operators that did part of the work, such as aten::mm
    speed           null, or an object: case; forward_s and all_s (forward with the gradients), of the
                    implementation; native_forward_s and native_all_s, of PyTorch's own op
    exit            0, 1 or 2
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fuzz.outcome import Verdict
from fuzz.referee.properties import BUILDS, EVERY_RUN, FORWARD, PROPERTIES, SPEED

SCHEMA = 1
PASSED, FAILED, NOT_JUDGED = 0, 1, 2

ASSERTS = {
    BUILDS: "the file can be loaded, and the first calls do not end the process",
    **{property.name: property.asserts for property in PROPERTIES},
    **EVERY_RUN,
    SPEED: "a large case is right, also while it is timed on data that change from call to call; how long it takes "
    "is a figure, and never a failure",
}


@dataclass
class Row:
    """The verdict on one property.

    Args:
        name: of the property.
        verdict: what became of it.
        cases: how many ran.
        reason: of a failure; for speed, the figures.
        case: case string of a failure.
        confirmed: a fresh process failed in the same way.
    """

    name: str
    verdict: Verdict = Verdict.PASS
    cases: int = 0
    reason: str = ""
    case: str = ""
    confirmed: bool = False


@dataclass
class Speed:
    """Seconds of forward, and of forward with the gradients."""

    case: str
    forward_s: float
    all_s: float
    native_forward_s: float
    native_all_s: float

    def __str__(self) -> str:
        return (
            f"forward {_milliseconds(self.forward_s)}, native {_milliseconds(self.native_forward_s)}; "
            f"with gradients {_milliseconds(self.all_s)}, native {_milliseconds(self.native_all_s)}"
        )


@dataclass
class Report:
    """The whole judgement."""

    file: str
    name: str
    sha256: str
    seed: int
    judged: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    not_judged: dict[str, str] = field(default_factory=dict)
    library_calls: list[str] = field(default_factory=list)
    speed: Speed | None = None

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def put(self, row: Row) -> None:
        """Adds a row, in the place of the one of its name if there is one: evidence may come late."""
        self.not_judged.pop(row.name, None)
        for index, other in enumerate(self.rows):
            if other.name == row.name:
                self.rows[index] = row
                return
        self.rows.append(row)

    def exit_code(self, allow_refused: bool = False) -> int:
        """0 if every row passed, 1 if one failed, 2 if there was nothing to judge.

        Args:
            allow_refused: a refused row is no failure, unless it is `forward`: then there is nothing to pass.
        """
        passed = [row for row in self.rows if row.verdict is Verdict.PASS and row.name != BUILDS]
        allowed = {Verdict.PASS, Verdict.REFUSED} if allow_refused else {Verdict.PASS}
        for row in self.rows:
            if row.name == FORWARD and row.verdict is not Verdict.PASS:
                return FAILED
            if row.name != BUILDS and row.verdict not in allowed:
                return FAILED
        return PASSED if passed else NOT_JUDGED

    def to_json(self, allow_refused: bool = False) -> str:
        """The JSON object of the module's docstring."""
        rows: list[dict[str, Any]] = [
            {
                "row": row.name,
                "asserts": ASSERTS[row.name],
                "verdict": str(row.verdict),
                "cases": row.cases,
                "reason": row.reason,
                "case": row.case,
                "confirmed": row.confirmed,
            }
            for row in self.rows
        ]
        values = {
            "schema": SCHEMA,
            **vars(self),
            "rows": rows,
            "speed": vars(self.speed) if self.speed else None,
            "exit": self.exit_code(allow_refused),
        }
        return json.dumps(values, indent=2)


def format_row(row: Row) -> str:
    """The lines of a row in the table."""
    count = f"{row.cases:>5}" if row.cases else " " * 5
    line = f"{row.name:<18}  {row.verdict!s:<7}  {count}  {row.reason}".rstrip()
    return f"{line}\n{'':36}{row.case}" if row.case else line


HEADING = f"{'row':<18}  {'verdict':<7}  {'cases':>5}  reason"


def format_end(report: Report, allow_refused: bool) -> str:
    """What stands under the table."""
    lines = []
    by_reason: dict[str, list[str]] = {}
    for name, why in report.not_judged.items():
        by_reason.setdefault(why, []).append(name)
    lines += [f"not judged: {', '.join(names)}: {why}" for why, names in by_reason.items()]
    if report.library_calls:
        lines.append(f"calls of PyTorch's library: {', '.join(report.library_calls)}")
    failed = [row.name for row in report.rows if row.verdict is not Verdict.PASS]
    code = report.exit_code(allow_refused)
    if code == NOT_JUDGED:
        lines.append("exit 2: could not be judged")
    elif failed and code == PASSED:
        lines.append(
            f"exit 0: {len(report.rows) - len(failed)} rows passed, refused: {', '.join(failed)}"
        )
    elif failed:
        if report.exit_code(allow_refused=True) == PASSED:
            lines.append("refused rows are no failure with --allow-refused")
        lines.append(
            f"exit {code}: {len(failed)} of {len(report.rows)} rows failed: {', '.join(failed)}"
        )
    else:
        lines.append(f"exit 0: all {len(report.rows)} rows passed")
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
