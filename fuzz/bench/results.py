"""What a benchmark has measured, as data: rows, runs, and their JSON. No torch."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz.bench.floor import Ceilings

FORMAT = 1  # of the JSON
OURS = "ours"
# Native with cudnn.benchmark on, and with it off; the ratio is to the better.
NATIVE = {"native_on": "on", "native_off": "off"}


class ResultsError(ValueError):
    """A file that holds no results."""


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of some runs.

    Args:
        median, first_quartile, third_quartile: in ms.
        runs: how many there were.
    """

    median: float
    first_quartile: float
    third_quartile: float
    runs: int


def timing(times_ms: Sequence[float]) -> Timing:
    """Returns median and quartiles of at least one time."""
    if len(times_ms) == 1:
        return Timing(times_ms[0], times_ms[0], times_ms[0], 1)
    first, median, third = statistics.quantiles(times_ms, n=4, method="inclusive")
    return Timing(median, first, third, len(times_ms))


@dataclass
class Row:
    """One point, measured.

    Args:
        shape: the layer's name.
        case: case string that measures it again.
        dtype, layout, direction: of the point.
        floor_ms: see floor.py.
        plan: of ours; "" where it did not run.
        times, graph: OURS and NATIVE -> timing, by calls and by graph replay; graph is empty for rows that take long.
        host_us: OURS and "native" -> host time of one call of a tiny layer of the same kind, microseconds.
        exact: dtype of the native result that both are compared with, "f64" or "f32".
        error, native_error: largest difference from that result over its largest element.
        allowed_error: what `error` may be.
        rms_error, native_rms_error: norm of the differences over the norm of that result; of the better native.
        problem, native_problem: why a result is wrong or missing; "" if all is well.
    """

    shape: str
    case: str
    dtype: str
    layout: str
    direction: str
    floor_ms: float
    plan: str = ""
    times: dict[str, Timing] = field(default_factory=dict)
    graph: dict[str, Timing] = field(default_factory=dict)
    host_us: dict[str, float] = field(default_factory=dict)
    exact: str = ""
    error: float | None = None
    native_error: float | None = None
    allowed_error: float | None = None
    rms_error: float | None = None
    native_rms_error: float | None = None
    problem: str = ""
    native_problem: str = ""

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype} {self.layout} {self.direction}"

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows that share a geometric mean."""
        return (self.dtype, self.layout, self.direction)

    @property
    def ours_ms(self) -> float | None:
        return self.times[OURS].median if OURS in self.times else None

    @property
    def best_native(self) -> str | None:
        """The key of NATIVE that was faster; None if native did not run."""
        ran = [name for name in NATIVE if name in self.times]
        return min(ran, key=lambda name: self.times[name].median, default=None)

    @property
    def native_ms(self) -> float | None:
        best = self.best_native
        return self.times[best].median if best else None

    @property
    def ratio(self) -> float | None:
        """Native's time over ours, above 1 where we are faster; None where ours is wrong or one is missing."""
        return None if self.problem else _quotient(self.native_ms, self.ours_ms)

    @property
    def graph_ratio(self) -> float | None:
        """The same by graph replay."""
        native = min(
            (self.graph[name].median for name in NATIVE if name in self.graph), default=None
        )
        ours = self.graph[OURS].median if OURS in self.graph else None
        return None if self.problem else _quotient(native, ours)

    @property
    def floor_share(self) -> float | None:
        """The floor's part of our time: 1 is as fast as the card allows."""
        return None if self.problem else _quotient(self.floor_ms, self.ours_ms)

    @property
    def rms_ratio(self) -> float | None:
        """Our error over native's."""
        return _quotient(self.rms_error, self.native_rms_error)

    @property
    def mark(self) -> str:
        """What stands before the row: LOST below 1x, WRONG or FAILED for ours, NATIVE where only native failed."""
        if self.problem:
            return "WRONG" if self.problem.startswith("wrong") else "FAILED"
        if self.ratio is None:
            return "NATIVE"
        return "LOST" if self.ratio < 1 else ""


def _quotient(above: float | None, below: float | None) -> float | None:
    if above is None or not below:
        return None
    quotient = above / below
    return quotient if math.isfinite(quotient) else None


@dataclass
class Run:
    """A whole benchmark.

    Args:
        kind: "suite" for named layers and case strings, "sample" for random ones.
        facts: name -> text of card, versions, clocks, architecture and settings.
        ceilings: of the card, in the same run.
        rows: in the order of measuring.
        unmeasured: points that the run did not come to.
        stopped: why it did not; "" if it came to all.
    """

    kind: str
    facts: dict[str, str]
    ceilings: Ceilings
    rows: list[Row] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    stopped: str = ""


def save(run: Run, path: Path) -> None:
    """Writes the run as JSON; a reader sees the old file or the new one, never half of it."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(json.dumps({"format": FORMAT, **asdict(run)}, indent=1) + "\n")
    os.replace(scratch, path)


def load(path: Path) -> Run:
    """Returns the run that `save` wrote.

    Raises:
        ResultsError: there is no such file, or it holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ResultsError(f"{path} holds no results of format {FORMAT}")
    try:
        rows = [_row(values) for values in data.pop("rows")]
        return Run(ceilings=Ceilings(**data.pop("ceilings")), rows=rows, **data)
    except (TypeError, KeyError) as error:
        raise ResultsError(f"{path} holds no results: {error}") from error


def _row(values: dict[str, Any]) -> Row:
    for name in ("times", "graph"):
        values[name] = {subject: Timing(**of) for subject, of in values[name].items()}
    return Row(**values)
