"""Starts the worker of a judgement, and says why it cannot be started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fuzz.outcome import Verdict
from fuzz.referee.properties import BUILDS
from fuzz.referee.report import Row
from fuzz.referee.task import HANG_FILE, SUBJECT, Spec
from fuzz.worker import SubjectError, Worker


def start(spec: Spec, time_limit_s: float) -> tuple[Worker | None, Row]:
    """Loads a file in a worker, and tries fewer first calls if the process does not survive them.

    Args:
        spec: what to load.
        time_limit_s: seconds that a case may take later.

    Returns:
        The worker, which is ready, or None; and the row `builds`.
    """
    row = Row(BUILDS)
    tries = [spec.dtypes, spec.dtypes[:1], ()]
    while tries:
        spec = replace(spec, dtypes=tries.pop(0))
        worker = Worker(SUBJECT, time_limit_s, (spec,))
        try:
            worker.await_ready()
        except SubjectError as error:
            worker.close()
            row = _failed(str(error), spec)
            if row.verdict is Verdict.REFUSED:
                break
            if row.verdict is Verdict.HUNG:
                tries = [()] if spec.dtypes else []
            continue
        # What is built is built: a process that takes the place of this one has less to do.
        worker.arguments = (replace(spec, dtypes=spec.dtypes[:1]),)
        return worker, Row(BUILDS)
    return None, row


def _failed(message: str, spec: Spec) -> Row:
    """The row of a file that cannot be loaded, from what the worker said."""
    hang = Path(spec.directory, HANG_FILE)
    where = hang.read_text(errors="replace").splitlines() if hang.exists() else []
    frames = [line.strip() for line in where if line.strip().startswith("File ")]
    if frames:
        reason = f"not ready in {spec.start_limit_s:g} s; it was at {frames[0]}"
        return Row(BUILDS, Verdict.HUNG, reason=reason)
    _, _, text = message.partition("cannot be loaded: ")
    lines = [line.strip() for line in (text or message).splitlines() if line.strip()]
    if "LoadError: " in lines[-1]:
        return Row(BUILDS, Verdict.REFUSED, reason=lines[-1].partition("LoadError: ")[2])
    died = lines[0].startswith("its process died")
    return Row(BUILDS, Verdict.CRASHED, reason=lines[0] if died else _with_place(lines))


def _with_place(lines: Sequence[str]) -> str:
    """The last line of a traceback, and the line of the file that it came from."""
    places = [line for line in lines if line.startswith("File ")]
    return f"{lines[-1]} ({places[-1]})" if places else lines[-1]
