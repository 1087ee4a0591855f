"""Runs a subject in a process of its own, which may crash, hang or corrupt its memory.

The processes are forks of a server that has imported the subjects already: importing torch costs
seconds, a fork costs milliseconds. A subject is named "module:function"; its module may have a
function `warm_up(name, ...)`, which is called with the function's name before the first case and may
take minutes (it builds kernels), where a case may not.

Note [Interference]
A process can be ended or stopped from outside: by the kernel that is short of memory, by whoever looks
after the machine, by a machine so busy that the case is late. That is no deed of the case:

    killed by SIGKILL or SIGTERM, or stopped   the case runs again in a fresh process, and that counts
    no answer within the first limit           the same, with a limit that only a hang passes
    its server (see above) killed              the same
    anything else (SIGSEGV, SIGABRT, an exit)  looks like a crash, and is one until fuzz.search has a
                                               fresh process run the case again
    any of these before the first case         another process is started

Each is an incident: counted and shown, but no verdict. A case that ends its process with SIGKILL time and
again has crashed after all.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from fuzz.case import Case
from fuzz.outcome import Outcome
from fuzz.worker_process import (
    STAGE_BYTES,
    STICKY_CUDA_ERROR,
    Log,
    attempt,
    enter_stage,
    serve,
    time_limit_s,
)

__all__ = ["SubjectError", "Worker", "attempt", "enter_stage", "pin_threads", "preload"]

# Seconds that a case may take in a fresh process: past it, it hangs. Before that it gets one try with the first
# limit, so that a stopped process holds the others up for a moment only; the longest cases take less than a second.
DEFAULT_TIME_LIMIT_S = 20.0
FIRST_TIME_LIMIT_S = 3.0
START_LIMIT_S = 900.0
# What a killed process may take to end. One that is stuck in a driver does not; it is left behind.
END_LIMIT_S = 5.0
# How long the next part of a message may take.
RECEIVE_LIMIT_S = 2
# How often a silent process is looked at: stopped ones are replaced.
LOOK_EVERY_S = 0.5
# In how many processes one after the other a case, or a start, may meet interference. More is its own deed.
MOST_TRIES = 5

_SERVER_KILLED = 255  # the exit code that multiprocessing then gives its processes
_FROM_OUTSIDE = (
    "SIGKILL",
    "SIGTERM",
    "server killed",
)  # no program does the first two to itself by mistake

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

    Whatever a case does to it, the next one runs: a dead or late process is replaced at once. What
    is done to it from outside harms no case: Note [Interference].

    Args:
        subject: "module:function"; the function takes a Case and returns an Outcome.
        time_limit_s: seconds a case may take in the mode fast, not counting the start of the process.
        arguments: handed to the function after the case, and to warm_up after the name.
        preparations: handed to warm_up after them.

    Raises:
        SubjectError: from any method, when the subject cannot be loaded or warmed up.
    """

    def __init__(
        self,
        subject: str,
        time_limit_s: float = DEFAULT_TIME_LIMIT_S,
        arguments: tuple[Any, ...] = (),
        preparations: tuple[Any, ...] = (),
    ) -> None:
        self.subject = subject
        self.time_limit_s = time_limit_s
        self.arguments = arguments
        self.preparations = preparations
        self.facts: dict[str, str] = {}  # of the machine, as its process sees it
        self.is_fresh = True  # no case has run in this process
        self._incidents: list[str] = []
        self._case: Case | None = None  # sent, and not answered yet
        self._log = Log()
        self._stage = _context.RawArray(ctypes.c_char, STAGE_BYTES + 1)
        self._since_s = 0.0  # when what is waited for began: the start, or the case
        self._is_ready = False
        self._failed_starts = 0  # in a row
        self._spawn()

    @property
    def pid(self) -> int:
        """Of the process that runs the next case."""
        assert self._process.pid is not None
        return self._process.pid

    def start(self, case: Case) -> None:
        """Sends a case and returns; the answer comes from `finish`."""
        if self._is_ready and not self._process.is_alive():
            # It died between two cases, which is no outcome of this one.
            self._incidents.append(f"{self._death()[0] or 'exit'} between two cases")
            self.replace()
        self._case = case
        self._send()

    def finish(self, is_hasty: bool = False) -> Outcome:
        """Waits for the answer to the case sent last, at most until its time limit.

        Args:
            is_hasty: a case that is late once hangs.
        """
        answer = self._await_answer(is_first=True)
        for _ in range(1, MOST_TRIES):
            if not answer.interference or (is_hasty and answer.interference == "late"):
                break
            self._incidents.append(answer.interference)
            self.replace()
            answer = self._await_answer(is_first=False)
        self._case = None
        outcome = answer.outcome
        if outcome.status in ("crashed", "hung"):
            outcome = replace(outcome, stage=self._stage.value.decode(errors="replace"))
        if not answer.is_process_sound:
            self.replace()
        return replace(outcome, has_gpu=self.facts["device"] == "cuda")

    def run(self, case: Case) -> Outcome:
        """Runs one case and waits for it."""
        self.start(case)
        return self.finish()

    def take_incidents(self) -> list[str]:
        """What was done to its processes since the last call, a few words each: Note [Interference]."""
        incidents, self._incidents = self._incidents, []
        return incidents

    def await_facts(self) -> dict[str, str]:
        """What the process says about its machine, as soon as its module is loaded."""
        while not self.facts:
            self._take_start_message()
        return self.facts

    def await_ready(self) -> None:
        """Waits until the subject is loaded and warmed up."""
        while not self._is_ready:
            self._take_start_message()

    def replace(self) -> None:
        """Kills the process and starts a fresh one, with the case that is not answered yet."""
        self._end()
        self._spawn()
        if self._case is not None:
            self._send()

    def close(self) -> None:
        """Kills the process."""
        self._end()
        self._log.close()

    def _spawn(self) -> None:
        self._is_ready = False
        self._since_s = time.monotonic()
        self.is_fresh = True
        for tries_left in reversed(range(MOST_TRIES)):
            self._connection, theirs = _context.Pipe()
            _limit_receiving(self._connection)
            self._process = _context.Process(
                target=serve,
                args=(
                    theirs, self.subject, self.arguments, self.preparations, self.time_limit_s,
                    self._log, self._stage,
                ),
            )  # fmt: skip
            try:
                self._process.start()  # starts the server too, if that has died
                return
            except (EOFError, OSError) as error:
                self._connection.close()
                if not tries_left:
                    raise SubjectError(
                        f"subject {self.subject} cannot be loaded: its server died ({error!r})"
                    ) from error
            finally:
                theirs.close()

    def _end(self) -> None:
        self._connection.close()
        if self._process.pid is None:
            return  # it could not be started
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and the processes that it has started
        self._process.kill()
        self._process.join(END_LIMIT_S)
        if self._process.exitcode is not None:
            self._process.close()

    def _send(self) -> None:
        self.is_fresh = False
        self._stage.value = b""
        if self._is_ready:
            self._since_s = time.monotonic()
        with suppress(OSError):  # the process is gone; finish() finds out how
            self._connection.send(self._case)

    def _await_answer(self, is_first: bool) -> _Answer:
        """Waits for the answer of the process that is there now.

        Args:
            is_first: nothing has happened to this case yet, so that it has the first limit.
        """
        assert self._case is not None
        self.await_ready()
        limit_s = time_limit_s(self.time_limit_s, self._case)
        if is_first and limit_s == self.time_limit_s:
            limit_s = min(limit_s, FIRST_TIME_LIMIT_S)
        while not self._wait(limit_s):
            if _is_stopped(self.pid):
                return _Answer(Outcome("hung", f"stopped{self._where()}; killed"), "SIGSTOP")
            if time.monotonic() >= self._since_s + limit_s:
                message = f"no answer within {limit_s:g} s{self._where()}; killed"
                return _Answer(Outcome("hung", message), "late" if is_first else "")
        return self._take_answer()

    def _take_answer(self) -> _Answer:
        """The answer of a process that has sent one, or how it died."""
        try:
            if self._connection.poll():
                answer = self._connection.recv()
                if not isinstance(answer, Outcome):
                    return _Answer(_not_an_outcome(answer))
                is_sticky = STICKY_CUDA_ERROR.search(answer.message) is not None
                return _Answer(
                    answer, is_process_sound=not (is_sticky and answer.status == "crashed")
                )
        except BlockingIOError:
            return _Answer(Outcome("hung", "stopped in its answer; killed"), "SIGSTOP")
        except (EOFError, OSError):
            pass
        except Exception as error:  # a process with a broken heap may send anything
            return _Answer(_not_an_outcome(error))
        word, how = self._death()
        return _Answer(Outcome("crashed", how), word if word in _FROM_OUTSIDE else "")

    def _take_start_message(self) -> None:
        """Takes the next message of a starting process; replaces it if something was done to it."""
        while not self._wait(START_LIMIT_S):
            if _is_stopped(self.pid):
                return self._start_again("SIGSTOP", "stopped")
            if time.monotonic() >= self._since_s + START_LIMIT_S:
                raise SubjectError(f"subject {self.subject} was not ready in {START_LIMIT_S:g} s")
        kind: str = "died"
        value: Any = None
        with suppress(EOFError, OSError):
            if self._connection.poll():
                kind, value = self._connection.recv()
        if kind == "died":
            self._start_again(*self._death())
        elif kind == "failed":
            raise SubjectError(f"subject {self.subject} cannot be loaded: {value}")
        elif kind == "facts":
            self.facts = value
        else:
            self._is_ready = True
            self._failed_starts = 0
            self._since_s = time.monotonic()  # a case that was sent already gets its full time

    def _start_again(self, word: str, how: str) -> None:
        self._failed_starts += 1
        if not word or self._failed_starts == MOST_TRIES:
            raise SubjectError(f"subject {self.subject} cannot be loaded: its process died: {how}")
        self._incidents.append(f"{word} at its start")
        self.replace()

    def _wait(self, limit_s: float) -> bool:
        """Whether the process has sent something or has died; waits for it, but for a moment only."""
        left_s = self._since_s + limit_s - time.monotonic()
        moment_s = min(max(0.0, left_s), LOOK_EVERY_S)
        return bool(wait([self._connection, self._process.sentinel], moment_s))

    def _where(self) -> str:
        stage = self._stage.value.decode(errors="replace")
        return f" in {stage}" if stage else ""

    def _death(self) -> tuple[str, str]:
        """How the process ended.

        Returns:
            The signal's name, "server killed", or nothing for an exit; and a description, with the end of
            what the process printed (an assert, an abort).
        """
        self._process.join(END_LIMIT_S)
        code, word = self._process.exitcode, ""
        if code is None:
            how = "closed its pipe but did not end"
        elif code < 0:
            word = _signal_name(-code)
            how = f"killed by signal {-code} ({word})"
        elif code == _SERVER_KILLED and self._is_connected():
            word = how = "server killed"
        else:
            how = f"ended with exit code {code}"
        tail = self._log.tail()
        how += self._where()
        return word, f"{how}: {tail}" if tail else how

    def _is_connected(self) -> bool:
        """Whether the process, or what remains of it, still holds its end of the pipe."""
        try:
            return not self._connection.poll()
        except OSError:
            return False


class _Answer(NamedTuple):
    """What came of one try of a case.

    Args:
        outcome: what the subject did, as far as one can tell.
        interference: what was done to its process: the case shall run again; empty if nothing was.
        is_process_sound: whether it may run the next case.
    """

    outcome: Outcome
    interference: str = ""
    is_process_sound: bool = False


def _limit_receiving(connection: Connection) -> None:
    """Makes recv() raise BlockingIOError when a message stops half way: its sender is stopped."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        limit = struct.pack("ll", RECEIVE_LIMIT_S, 0)  # a timeval
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _not_an_outcome(answer: object) -> Outcome:
    return Outcome("crashed", f"answered {answer!r}, but must answer an Outcome")


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; False where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
