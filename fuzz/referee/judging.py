"""Judges one file: runs the tasks of each row in a worker, confirms and shrinks what fails, and fills the report."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fuzz import machine
from fuzz.case import Case
from fuzz.legs import HarnessError
from fuzz.number import DTYPES
from fuzz.outcome import RESULTS, Outcome, Verdict
from fuzz.reduce import shrink
from fuzz.referee.pool import FEATURES, drawn_cases, given_cases, restrict
from fuzz.referee.properties import (
    EVERY_RUN,
    FORWARD,
    PROPERTIES,
    ROWS,
    SPEED,
    SPEED_CASES,
    Property,
)
from fuzz.referee.report import Report, Row, Speed
from fuzz.referee.starting import start
from fuzz.referee.task import SUBJECT, Spec, Task
from fuzz.referee.verdicts import LEG, Examined, examine
from fuzz.worker import DEFAULT_TIME_LIMIT_S, SubjectError, Worker, preload

# A hang is looked for with this limit while its case is made smaller: each smaller one that hangs costs it twice.
HUNG_SHRINK_LIMIT_S = 1.0


@dataclass(frozen=True)
class Options:
    """How to judge.

    Args:
        seed: of the cases.
        examples: cases a row.
        duration_s: seconds after which rows content themselves with one case; None for no limit.
        dtypes: to judge; the first is that of the rows that are not about a dtype.
        rows: names of those to judge; empty for all.
        cases: judged in the place of drawn ones, with their own and with other data.
        leg: the row of fuzz.bounds.TABLE that the implementation is held to.
        time_limit_s: seconds a case may take.
        start_limit_s: seconds that loading and the first calls may take, builds included.
        shrink_s: seconds spent on making a failing case smaller.
    """

    seed: int
    examples: int = 12
    duration_s: float | None = None
    dtypes: tuple[str, ...] = ("f32", *(dtype for dtype in DTYPES if dtype != "f32"))
    rows: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    leg: str = LEG
    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    start_limit_s: float = 300.0
    shrink_s: float = 10.0


def judge(
    file: Path, name: str, options: Options, show: Callable[[Report, Row], None] = lambda *_: None
) -> Report:
    """Judges an implementation.

    Args:
        file: path of the Python file.
        name: of the function or class in it; empty for the only one.
        options: how.
        show: called with each row when it is known, `builds` first.

    Raises:
        OSError: the file cannot be read.
        HarnessError: the referee itself broke down.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    report = Report(str(file), name, digest, options.seed)
    preload(["fuzz.referee.subject"])
    with tempfile.TemporaryDirectory(prefix="referee-") as directory:
        referee = _Referee(file.resolve(), name, options, report, show, directory)
        try:
            referee.run()
        finally:
            referee.close()
    return report


class _Referee:
    """One judgement under way."""

    def __init__(
        self,
        file: Path,
        name: str,
        options: Options,
        report: Report,
        show: Callable[[Report, Row], None],
        directory: str,
    ) -> None:
        self._options = options
        self._report = report
        self._show = show
        self._spec = Spec(str(file), name, directory, options.dtypes, options.start_limit_s)
        self._worker: Worker | None = None
        self._failed: dict[str, Verdict] = {}  # rows
        self._counted = 0  # cases of all rows in which something was returned
        # A row that every run has a say in -> the first run that failed it.
        self._found: dict[str, tuple[Task, Examined]] = {}
        self._library: dict[str, None] = {}
        self._end_s = time.monotonic() + options.duration_s if options.duration_s else float("inf")

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.close()

    def run(self) -> None:
        """Judges every row."""
        if not self._judge_build():
            return
        for property in PROPERTIES:
            if self._is_asked_for(property.name):
                self._judge_property(property)
        if self._is_asked_for(SPEED) and FORWARD not in self._failed:
            self._judge_speed()
        # Evidence may have come after the row that it is about.
        late = [name for name in self._found if name not in EVERY_RUN and name not in self._failed]
        for name in (*late, *EVERY_RUN):
            if self._is_asked_for(name):
                self._judge_every_run(name)
        self._report.library_calls = sorted(self._library)

    def _is_asked_for(self, name: str) -> bool:
        return not self._options.rows or name in self._options.rows

    # The worker.

    def _judge_build(self) -> bool:
        self._worker, row = start(self._spec, self._options.time_limit_s)
        if self._worker is not None:
            facts = {**machine.own_facts(), **self._worker.await_facts()}
            if problem := machine.gpu_problem(facts):
                raise SubjectError(problem)
            self._report.machine = facts
            self._report.judged = self._send(Task(Case(), "name")).message
        self._add(row)
        return self._worker is not None

    def _send(self, task: Task) -> Outcome:
        assert self._worker is not None
        sent: Any = task  # a Worker asks a case for its mode only, and a task has one
        return self._worker.run(sent)

    def _examine(self, task: Task) -> Examined:
        outcome = self._send(task)
        try:
            return examine(task, outcome, self._options.leg)
        except Exception as error:
            raise HarnessError(f"no verdict on {task.probe} for {task.case}: {error!r}") from error

    def _replace_worker(self) -> None:
        assert self._worker is not None
        if not self._worker.is_fresh:
            self._worker.replace()

    @property
    def _has_gpu(self) -> bool:
        return self._report.machine["device"] == "cuda"

    @property
    def _dtypes(self) -> tuple[str, ...]:
        """Those asked for that this machine has."""
        return tuple(dtype for dtype in self._options.dtypes if dtype != "tf32" or self._has_gpu)

    @property
    def _right_gradients(self) -> tuple[str, ...]:
        """Those whose own row has not failed: what it showed need not be shown again."""
        return tuple(name for name in RESULTS[1:] if name not in self._failed)

    # Rows.

    def _judge_property(self, property: Property) -> None:
        if why := self._why_not(property):
            self._report.not_judged[property.name] = why
            return
        if property.name in self._found:
            self._judge_every_run(property.name)
            return
        row = Row(property.name)
        for task in self._tasks(property):
            if row.cases and time.monotonic() >= self._end_s:
                break
            examined = self._examine(task)
            self._note(task, examined)  # what it did counts, even where its values prove nothing
            if examined.verdict is Verdict.MISTRUSTED:
                continue
            row.cases += 1
            if not self._is_fine(property, examined):
                self._fail(row, property, task, examined)
                break
        if not row.cases:
            self._report.not_judged[property.name] = "no case has what it is about"
            return
        self._add(row)

    def _is_fine(self, property: Property, examined: Examined) -> bool:
        if property.name == "native_op" and FORWARD in self._failed:
            return "native_op" not in examined.found  # values that are wrong anyway do not count
        return examined.verdict is Verdict.PASS

    def _why_not(self, property: Property) -> str:
        """Why a row says nothing; empty if it can be judged."""
        if property.needs_gpu and not self._has_gpu:
            return "needs a GPU"
        if property.dtype and property.dtype not in self._options.dtypes:
            return "the dtype was not asked for"
        verdict = self._failed.get(FORWARD)
        if verdict and (property.needs_right_output or verdict is not Verdict.WRONG):
            return "forward failed already"
        return ""

    def _tasks(self, property: Property) -> Iterator[Task]:
        options = self._options
        base = options.cases[0].dtype if options.cases else options.dtypes[0]
        dtypes: Sequence[str] = (property.dtype or base,)
        allowed = set(property.mixes) - self._failed.keys()
        if property.all_dtypes:
            dtypes = [dtype for dtype in self._dtypes if dtype not in self._failed] or dtypes
        required = property.features
        if options.cases:
            cases = given_cases(options.seed, property.name, options.cases, dtypes, required)
        else:
            required = (*required, *property.drawn_with)
            cases = drawn_cases(options.seed, property.name, dtypes, required, allowed)
        wants = property.wants
        if wants is None:
            wants = self._right_gradients
        for case, placement in zip(islice(cases, options.examples), cycle(property.placements)):
            if property.lane:
                case = replace(case, lane=property.lane)
            yield Task(case, property.probe, wants, placement)

    def _judge_every_run(self, name: str) -> None:
        """A row in which every run has a say, whatever the run was about."""
        row = Row(name, cases=self._counted)
        if name in self._found:
            task, examined = self._found[name]

            def shows(other: Task) -> str:
                return self._examine(other).found.get(name, "")

            self._confirm(row, task, examined.found[name], Verdict.WRONG, shows, lambda case: True)
        if row.cases or name in self._found:
            self._add(row)

    def _fail(self, row: Row, property: Property, task: Task, examined: Examined) -> None:
        def shows(other: Task) -> str:
            again = self._examine(other)
            return (again.detail or " ") if again.verdict is examined.verdict else ""

        def fits(case: Case) -> bool:
            if not all(FEATURES[feature](case) for feature in property.features):
                return False
            # A smaller case may have one axis unlike the others, and be refused for that.
            is_refused = examined.verdict is Verdict.REFUSED
            return not is_refused or restrict(case, {*property.features, *property.mixes}) == case

        self._confirm(row, task, examined.detail, examined.verdict, shows, fits)

    def _confirm(
        self,
        row: Row,
        task: Task,
        detail: str,
        verdict: Verdict,
        shows: Callable[[Task], str],
        fits: Callable[[Case], bool],
    ) -> None:
        """Fills the row of a failure: its case made smaller, if a fresh process confirms it.

        Args:
            row: to be filled.
            task: that failed.
            detail: what was wrong.
            verdict: on the row.
            shows: how a task fails in the same way; empty if it does not.
            fits: whether a case is still what the row is about.
        """
        assert self._worker is not None
        row.verdict, row.reason, row.case = verdict, detail, str(task.case)
        if verdict is not Verdict.REFUSED:  # which is no matter of state, and may be common
            self._replace_worker()
        if not (again := shows(task)):
            row.reason = f"{detail} (not in a fresh process: it depends on what ran before)"
            return
        row.confirmed, row.reason = True, again
        limit_s = self._worker.time_limit_s
        if verdict is Verdict.HUNG:
            self._worker.time_limit_s = min(limit_s, HUNG_SHRINK_LIMIT_S)
        try:
            smaller = shrink(
                task.case,
                lambda case: fits(case) and bool(shows(replace(task, case=case))),
                self._options.shrink_s,
            )
        finally:
            self._worker.time_limit_s = limit_s
        if smaller != task.case:
            if verdict is not Verdict.REFUSED:
                self._replace_worker()
            if again := shows(replace(task, case=smaller)):
                row.case, row.reason = str(smaller), again

    def _note(self, task: Task, examined: Examined) -> None:
        """Counts a run, and keeps what it showed of rows that every run has a say in."""
        self._counted += examined.verdict in (Verdict.PASS, Verdict.WRONG, Verdict.MISTRUSTED)
        self._library |= dict.fromkeys(examined.library)
        for name in examined.found:
            self._found.setdefault(name, (task, examined))

    def _add(self, row: Row) -> None:
        if row.verdict is not Verdict.PASS:
            self._failed[row.name] = row.verdict
        self._report.put(row)
        self._show(self._report, row)

    # Speed.

    def _judge_speed(self) -> None:
        """Runs a large case, and PyTorch's own op on it in another process."""
        options = self._options
        large = SPEED_CASES["cuda" if self._has_gpu else "cpu"]
        case = restrict(replace(large, dtype=options.dtypes[0]), FEATURES.keys() - self._failed)
        if options.cases:
            case = replace(options.cases[0], lane="int")
        task = Task(case, SPEED, self._right_gradients)
        examined = self._examine(task)
        row = Row(SPEED, examined.verdict, 1, examined.detail)
        self._note(task, examined)
        if examined.verdict is not Verdict.PASS:
            row.case = str(case)
        elif examined.seconds:
            spec = replace(self._spec, file="", dtypes=())
            native = Worker(SUBJECT, options.time_limit_s, (spec,))
            try:
                sent: Any = task
                seconds = native.run(sent).results.get("seconds", (float("nan"),))
            finally:
                native.close()
            self._report.speed = Speed(
                str(case),
                examined.seconds[0],
                examined.seconds[-1],
                float(seconds[0]),
                float(seconds[-1]),
            )
            row.reason = str(self._report.speed)
        self._add(row)


__all__ = ["ROWS", "Options", "judge"]
