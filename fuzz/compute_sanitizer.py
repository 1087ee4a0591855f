"""Runs the subjects on a GPU under NVIDIA's compute-sanitizer, which sees what guard bands cannot.

    memcheck    reads and writes out of bounds, misaligned ones
    racecheck   hazards in shared memory
    initcheck   reads of global memory that nobody wrote
    synccheck   barriers and shuffles that not all of their threads reach

A worker process that gets a case in one of these modes starts fuzz.sanitized_subjects under the tool, hands it the
case, and reads what the tool has written by the time the answer comes. The program starts once a tool and serves many
cases, for a start takes about ten seconds.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.case import Case
from fuzz.outcome import Outcome

START_LIMIT_S = 180.0
# A tool falls silent after so many reports, so its process is replaced long before; one case may make hundreds.
MOST_REPORTS = 100_000
LARGEST_REPORT_BYTES = 4 << 20
OPTIONS = ["--show-backtrace=no", f"--print-limit={MOST_REPORTS}"]
# API errors are cuDNN trying what a card cannot do. A kernel that errs is stopped, not the whole context.
MEMCHECK_OPTIONS = ["--report-api-errors=no", "--destroy-on-device-error=kernel"]
_BANNER = re.compile(r"========= (COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY|LEAK SUMMARY)")
_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")


class SanitizerMissing(Exception):
    """There is no compute-sanitizer on this machine."""

    is_defect = True  # a case must not be called refused because of the machine it runs on


def find() -> str | None:
    """The path of compute-sanitizer, or None."""
    home = os.environ.get("CUDA_HOME")
    places = [os.environ.get("PATH", ""), *([f"{home}/bin"] if home else []), *_PLACES]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def run(subject: str, case: Case) -> Outcome:
    """Runs a case on a subject of fuzz.subjects under the tool that is the case's mode.

    Returns:
        The subject's outcome; status "crashed" and the tool's first report where it made one.

    Raises:
        SanitizerMissing: there is no compute-sanitizer.
    """
    tool = case.mode
    if tool not in _processes:
        _processes[tool] = _Sanitized(tool)
    outcome = _processes[tool].run(subject, case)
    if not _processes[tool].is_alive:  # or it has reported too much
        _processes.pop(tool).end()
    return outcome


_processes: dict[str, _Sanitized] = {}  # by tool


@atexit.register
def end_all() -> None:
    """Ends the processes of all tools."""
    while _processes:
        _processes.popitem()[1].end()


class _Sanitized:
    """A process under one tool."""

    def __init__(self, tool: str) -> None:
        program = find()
        if program is None:
            raise SanitizerMissing(f"mode={tool!r}, but there is no compute-sanitizer on the PATH")
        self.is_alive = True
        self._tool = tool
        # Where no killed process leaves anything behind: the campaign, too, ends with it.
        where = util.get_temp_dir()
        self._directory = Path(tempfile.mkdtemp(prefix="sanitizer-", dir=where))
        self._report = self._directory / "report.txt"
        self._printed = self._directory / "printed.txt"
        self._seen = 0  # bytes of the report that belong to earlier cases
        address = str(self._directory / "socket")
        command = [program, f"--tool={tool}", *OPTIONS, f"--log-file={self._report}"]
        command += MEMCHECK_OPTIONS if tool == "memcheck" else []
        command += [sys.executable, "-m", "fuzz.sanitized_subjects", address]
        with (
            socket.socket(socket.AF_UNIX) as listener,
            self._printed.open("wb") as printed,
        ):
            listener.bind(address)
            listener.listen()
            listener.settimeout(1.0)
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
            )
            self._connection = self._accept(listener)

    def run(self, subject: str, case: Case) -> Outcome:
        try:
            self._connection.send((subject, case))
            outcome = self._connection.recv()
        except (EOFError, OSError):
            self.is_alive = False
            self._process.wait()
            outcome = Outcome("crashed", f"its process ended: {self._tail()}")
        report = self._new_report()
        if not report:
            return outcome
        return Outcome("crashed", f"{self._tool}: {report}", plans=outcome.plans)

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _accept(self, listener: socket.socket) -> Connection:
        end_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                return Connection(listener.accept()[0].detach())
            except TimeoutError:
                continue
        self._process.kill()
        raise SanitizerMissing(f"compute-sanitizer --tool={self._tool} failed: {self._tail()}")

    def _tail(self) -> str:
        return self._printed.read_text(errors="replace").strip()[-800:]

    def _new_report(self) -> str:
        """The first report that was added since the last call; empty if there is none."""
        if not self._report.exists():
            return ""
        with self._report.open("rb") as file:
            file.seek(self._seen)
            new = file.read()
        self._seen += len(new)
        if self._seen > LARGEST_REPORT_BYTES:
            self.is_alive = False
        return first_report(new.decode(errors="replace"))


def first_report(text: str) -> str:
    """The first report in what the tool printed: what happened and where; empty if there is none.

    Args:
        text: lines that start with "=========", details indented further.
    """
    lines = [line for line in text.splitlines() if not _BANNER.match(line)]
    for index, line in enumerate(lines):
        what = line.removeprefix("=========")
        if what.strip() and not what.startswith("  "):
            place = lines[index + 1].removeprefix("=========") if index + 1 < len(lines) else ""
            return f"{what.strip()} {place.strip()}".strip()
    return ""
