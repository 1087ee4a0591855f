"""What runs in a worker process: the subject, called with one case after the other."""

from __future__ import annotations

import fcntl
import importlib
import math
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz import machine
from fuzz.case import Case
from fuzz.outcome import TOOLS, Outcome

# How much longer a case may take in a mode that watches every access or starts a process first: about ten seconds for
# asan and tsan, a minute for compute-sanitizer, which loads the kernels of cuDNN one by one.
TIME_FACTORS = {
    "asan": 3,
    "tsan": 3,
    "memcheck": 24,
    "racecheck": 24,
    "initcheck": 24,
    "synccheck": 24,
}
# After this long beyond its limit a worker ends itself: its parent must have been killed.
ORPHAN_GRACE_S = 60
LOG_TAIL_BYTES = 800
STAGE_BYTES = 16

# What an op raises on arguments that it does not take. Anything else is a defect.
REFUSALS = (RuntimeError, TypeError, ValueError, NotImplementedError)
# After one of these a CUDA context fails every later call, so the process is of no more use.
STICKY_CUDA_ERROR = re.compile(r"CUDA error|device-side assert|CUDNN_STATUS_EXECUTION_FAILED")

_stage: Any = None  # of this process: shared with its parent, which reads it after a crash


def enter_stage(name: str) -> None:
    """Notes what the subject is at, such as "backward", for the message of a crash or a hang.

    Args:
        name: at most STAGE_BYTES ASCII characters, else it is cut; empty for none.
    """
    if _stage is not None:
        _stage.value = name.encode()[:STAGE_BYTES]


def time_limit_s(base_s: float, case: Case) -> float:
    """Seconds that a case may take, from those that it may take in the mode fast."""
    return base_s * TIME_FACTORS.get(case.mode, 1)


class Log:
    """What the processes of a worker print: a file without a name, so that none is left behind."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        # Each process writes at the end, wherever the one before it got to.
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_APPEND)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started gets a descriptor."""
        return _descriptor, (reduction.DupFd(self._file.fileno()),)

    def tail(self) -> str:
        """The end of it."""
        descriptor = self._file.fileno()
        start = max(0, os.fstat(descriptor).st_size - LOG_TAIL_BYTES)
        return os.pread(descriptor, LOG_TAIL_BYTES, start).decode(errors="replace").strip()

    def close(self) -> None:
        self._file.close()


def _descriptor(duplicate: Any) -> int:
    descriptor: int = duplicate.detach()
    return descriptor


def serve(
    connection: Connection,
    subject: str,
    arguments: tuple[Any, ...],
    preparations: tuple[Any, ...],
    base_limit_s: float,
    log: int,
    stage: Any,
) -> None:
    """The life of a worker process: load, warm up, then one outcome for each case."""
    global _stage
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign
    os.setpgid(0, 0)  # what it starts is killed with it
    with suppress(OSError):
        Path("/proc/self/comm").write_text(subject.rpartition(":")[2])  # for ps and top
    _stage = stage
    os.ftruncate(log, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        function = _load(subject, arguments, preparations, connection)
    except BaseException as error:
        connection.send(("failed", _last_lines(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            case = connection.recv()
        except (EOFError, OSError):
            return
        os.ftruncate(log, 0)
        enter_stage("")
        signal.alarm(math.ceil(time_limit_s(base_limit_s, case)) + ORPHAN_GRACE_S)
        outcome = attempt(function, case)
        signal.alarm(0)
        connection.send(outcome)


def _load(
    subject: str,
    arguments: tuple[Any, ...],
    preparations: tuple[Any, ...],
    connection: Connection,
) -> Callable[[Case], Outcome]:
    module_name, _, function_name = subject.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, function_name)
    connection.send(("facts", machine.subject_facts()))
    warm_up = getattr(module, "warm_up", None)
    if warm_up is not None:
        warm_up(function_name, *arguments, *preparations)
    return lambda case: function(case, *arguments)


def attempt(function: Callable[[Case], Outcome], case: Case) -> Outcome:
    """Runs a subject on a case in this process; what it raises is an outcome too.

    One of REFUSALS means refused, unless its class says `is_defect = True`, or it is a CUDA error that
    no process survives; everything else means crashed.
    """
    try:
        return function(case)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        if getattr(error, "is_defect", False):
            is_named = str(error).startswith(tuple(f"{tool}: " for tool in TOOLS))
            return Outcome("crashed", str(error) if is_named else text)
        if not isinstance(error, REFUSALS):
            return Outcome("crashed", _last_lines(error))
        is_sticky = STICKY_CUDA_ERROR.search(text) is not None
        return Outcome("crashed" if is_sticky else "refused", text)


def _last_lines(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return "\n".join(lines.strip().splitlines()[-5:])
