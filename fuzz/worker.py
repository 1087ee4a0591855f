"""Runs a subject in a process of its own, which may crash, hang or corrupt its memory.

The processes are forks of a server that has imported the subjects already: importing torch costs
seconds, a fork costs milliseconds. A subject is named "module:function"; its module may have a
function `warm_up(name)`, which is called with the function's name before the first case and may
take minutes (it builds kernels), where a case may not.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz import machine
from fuzz.case import Case
from fuzz.outcome import Outcome

DEFAULT_TIME_LIMIT_S = 20.0
START_LIMIT_S = 900.0
# After this long beyond its limit a worker ends itself: its parent must have been killed.
ORPHAN_GRACE_S = 60
# What a killed process may take to end. One that is stuck in a driver does not; it is left behind.
END_LIMIT_S = 5.0
LOG_TAIL_BYTES = 800

# What an op raises on arguments that it does not take. Anything else is a defect.
REFUSALS = (RuntimeError, TypeError, ValueError, NotImplementedError)
# After one of these a CUDA context fails every later call, so the process is of no more use.
STICKY_CUDA_ERROR = re.compile(r"CUDA error|device-side assert|CUDNN_STATUS_EXECUTION_FAILED")

_context = multiprocessing.get_context("forkserver")


class SubjectError(Exception):
    """A subject cannot be loaded or warmed up: a fault of the set-up, not a verdict."""


def pin_threads() -> None:
    """Makes every process that starts from here on compute with one thread.

    Shards and legs already fill the cores, and a fork of a process with a thread pool would wait
    for threads that it does not have.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    # A subject may ask for more; its idle threads then sleep and do not take a core from the others.
    os.environ["OMP_WAIT_POLICY"] = "passive"


def preload(modules: Sequence[str]) -> None:
    """Has the server import these modules before its first fork; call before the first Worker."""
    pin_threads()
    # The server has the path of a bare interpreter; a subject lives in the repository.
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    if root not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, path)))
    _context.set_forkserver_preload(["numpy", "fuzz.worker", *modules])


class Worker:
    """A process that runs one subject on one case at a time.

    Whatever a case does to it, the next one runs: a dead or late process is replaced at once.

    Args:
        subject: "module:function"; the function takes a Case and returns an Outcome.
        time_limit_s: seconds a case may take, not counting the start of the process.

    Raises:
        SubjectError: from any method, when the subject cannot be loaded or warmed up.
    """

    def __init__(self, subject: str, time_limit_s: float = DEFAULT_TIME_LIMIT_S) -> None:
        self.subject = subject
        self.time_limit_s = time_limit_s
        self.facts: dict[str, str] = {}  # of the machine, as its process sees it
        self.is_fresh = True  # no case has run in this process
        descriptor, log = tempfile.mkstemp(prefix="convt3d-worker-")
        os.close(descriptor)
        self.log = Path(log)  # what the process prints
        self._started_s = 0.0
        self._is_ready = False
        self._spawn()

    @property
    def pid(self) -> int:
        """Of the process that runs the next case."""
        assert self._process.pid is not None
        return self._process.pid

    def start(self, case: Case) -> None:
        """Sends a case and returns; the answer comes from `finish`."""
        if not self._process.is_alive() and self._is_ready:
            self.replace()  # it died between two cases, which is no outcome of this one
        self.is_fresh = False
        self._started_s = time.monotonic()
        try:
            self._connection.send(case)
        except OSError:
            pass  # the process is gone; finish() finds out how

    def finish(self) -> Outcome:
        """Waits for the answer to the case sent last, at most until its time limit."""
        self.await_ready()
        left_s = self._started_s + self.time_limit_s - time.monotonic()
        if not wait([self._connection, self._process.sentinel], max(0.0, left_s)):
            self.replace()
            return Outcome("hung", f"no answer within {self.time_limit_s:g} s; killed")
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            outcome = Outcome("crashed", self._describe_death())
            self.replace()
            return outcome
        except Exception as error:  # a process with a broken heap may send anything
            answer = error
        if not isinstance(answer, Outcome):
            self.replace()
            return Outcome("crashed", f"answered {answer!r}, but must answer an Outcome")
        outcome = answer
        if outcome.status == "crashed" and STICKY_CUDA_ERROR.search(outcome.message):
            self.replace()
        return replace(outcome, has_gpu=self.facts["device"] == "cuda")

    def run(self, case: Case) -> Outcome:
        """Runs one case and waits for it."""
        self.start(case)
        return self.finish()

    def await_facts(self) -> dict[str, str]:
        """What the process says about its machine, as soon as its module is loaded."""
        if not self.facts:
            kind, value = self._receive_while_starting()
            if kind != "facts":
                raise SubjectError(f"subject {self.subject} cannot be loaded: {value}")
            self.facts = value
        return self.facts

    def await_ready(self) -> None:
        """Waits until the subject is loaded and warmed up."""
        while not self._is_ready:
            kind, value = self._receive_while_starting()
            if kind == "failed":
                raise SubjectError(f"subject {self.subject} cannot be loaded: {value}")
            if kind == "facts":
                self.facts = value
            else:
                self._is_ready = True
                # A case that was sent to a starting process gets its full time.
                self._started_s = time.monotonic()

    def replace(self) -> None:
        """Kills the process and starts a fresh one."""
        self._end()
        self._spawn()

    def close(self) -> None:
        """Kills the process."""
        self._end()
        self.log.unlink(missing_ok=True)

    def _spawn(self) -> None:
        self._connection, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_serve, args=(theirs, self.subject, self.time_limit_s, str(self.log))
        )
        self._is_ready = False
        self.is_fresh = True
        try:
            self._process.start()
        except (EOFError, OSError) as error:
            raise SubjectError(
                f"subject {self.subject} cannot be loaded: its server died ({error!r})"
            ) from error
        finally:
            theirs.close()

    def _end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join(END_LIMIT_S)
        if self._process.exitcode is not None:
            self._process.close()

    def _receive_while_starting(self) -> tuple[str, Any]:
        if not self._connection.poll(START_LIMIT_S):
            raise SubjectError(f"subject {self.subject} was not ready in {START_LIMIT_S:g} s")
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return "failed", f"its process died: {self._describe_death()}"

    def _describe_death(self) -> str:
        """How the process ended, and the end of what it printed (an assert, an abort)."""
        self._process.join(END_LIMIT_S)
        code = self._process.exitcode
        if code is None:
            how = "closed its pipe but did not end"
        elif code < 0:
            how = f"killed by signal {-code} ({_signal_name(-code)})"
        else:
            how = f"ended with exit code {code}"
        tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"{how}: {tail}" if tail else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _serve(connection: Connection, subject: str, time_limit_s: float, log: str) -> None:
    """The life of a worker process: load, warm up, then one outcome for each case."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the campaign
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        function = _load(subject, connection)
    except BaseException as error:
        connection.send(("failed", _last_lines(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            case = connection.recv()
        except (EOFError, OSError):
            return
        os.ftruncate(descriptor, 0)
        signal.alarm(math.ceil(time_limit_s) + ORPHAN_GRACE_S)
        outcome = _attempt(function, case)
        signal.alarm(0)
        connection.send(outcome)


def _load(subject: str, connection: Connection) -> Callable[[Case], Outcome]:
    module_name, _, function_name = subject.partition(":")
    module = importlib.import_module(module_name)
    function: Callable[[Case], Outcome] = getattr(module, function_name)
    connection.send(("facts", machine.subject_facts()))
    warm_up = getattr(module, "warm_up", None)
    if warm_up is not None:
        warm_up(function_name)
    return function


def _attempt(function: Callable[[Case], Outcome], case: Case) -> Outcome:
    try:
        return function(case)
    except REFUSALS as error:
        text = f"{type(error).__name__}: {error}"
        is_sticky = STICKY_CUDA_ERROR.search(text) is not None
        return Outcome("crashed" if is_sticky else "refused", text)
    except BaseException as error:
        return Outcome("crashed", _last_lines(error))


def _last_lines(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return "\n".join(lines.strip().splitlines()[-5:])
