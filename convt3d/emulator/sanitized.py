"""Runs a launch under a sanitizer: in a process of its own, which `sanitized_child.py` is the program of.

The process has the sanitizer's runtime, and neither torch nor any other library that would take it minutes to start. It
gets copies of the tensors, and what the kernel wrote is copied back. It serves one launch after the other until one of
them fails, and ends with the process that started it, whatever ends that.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convt3d.emulator import report

PROGRAM = Path(__file__).with_name("sanitized_child.py")
# Addresses of tensors keep their remainder by this.
ALIGNMENT = 64
# What all tensors of a launch may span.
LARGEST_BYTES = 1 << 30

_COMMON = "symbolize=1:abort_on_error=0:handle_abort=1:exitcode=77"
OPTIONS = {
    "ASAN_OPTIONS": f"{_COMMON}:halt_on_error=1:detect_leaks=0:detect_stack_use_after_return=0:"
    "quarantine_size_mb=16:allocator_may_return_null=1",
    "UBSAN_OPTIONS": f"{_COMMON}:halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": f"{_COMMON}:halt_on_error=1:report_signal_unsafe=0",
}


class Region(NamedTuple):
    """The memory of a tensor.

    Args:
        name: for messages.
        field: offset of its pointer in the parameter struct.
        address: of its first element, in this process.
        size: bytes from there to the end of its last element.
    """

    name: str
    field: int
    address: int
    size: int


class Call(NamedTuple):
    """What a launch calls.

    Args:
        library: of the part, compiled for the mode.
        entry: name of its function.
        params: the parameter struct; its pointers do not matter.
        flags: what the function takes after it.
        schedule: as `runtime.current_schedule` gives it.
    """

    library: Path
    entry: str
    params: bytes
    flags: tuple[int, ...]
    schedule: int


class _Ended(Exception):
    """The process has ended instead of answering."""


def launch(mode: str, runtime_library: Path, call: Call, regions: Sequence[Region]) -> str:
    """Runs a launch under a sanitizer.

    Args:
        mode: "asan" or "tsan".
        runtime_library: of the sanitizer.
        call: what to call.
        regions: the tensors. What the kernel writes there is in the caller's memory afterwards.

    Returns:
        What went wrong, starting with who says so (asan, ubsan, tsan, or the library as in any mode), or "".

    Raises:
        RuntimeError: the tensors are too large, or no process can be started.
    """
    size = sum(region.size for region in regions)
    if size > LARGEST_BYTES:
        raise RuntimeError(
            f"the tensors span {size} bytes, but must span at most {LARGEST_BYTES} in mode {mode!r}"
        )
    with _lock:
        if mode in _processes and not _processes[mode].is_alive():
            _processes.pop(mode).close()
        process = _processes.get(mode) or _Process(mode, runtime_library)
        _processes[mode] = process
        error = "unfinished"
        try:
            error = process.launch(call, regions)
        finally:
            if error:  # it is dead, or its threads are left where they stood
                _processes.pop(mode).close()
        return error


class _Process:
    """A process under a sanitizer, with pipes to and from it."""

    def __init__(self, mode: str, runtime_library: Path) -> None:
        self._mode = mode
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM)],
            env={**os.environ, **OPTIONS, "LD_PRELOAD": str(runtime_library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self._receive()
        except _Ended:
            printed = report.tail(self._read_log())
            self.close()
            raise RuntimeError(
                f"a process under {runtime_library} does not start: {printed}\n(where the addresses "
                "of the process are the reason, `setarch -R` before the command helps, or sysctl "
                "vm.mmap_rnd_bits=28)"
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def launch(self, call: Call, regions: Sequence[Region]) -> str:
        """As the function `launch`, in this process."""
        addresses: dict[str, range] = {}
        tensors = [
            (
                region.field,
                region.address % ALIGNMENT,
                ctypes.string_at(region.address, region.size),
            )
            for region in regions
        ]
        try:
            self._send({**call._asdict(), "library": str(call.library), "tensors": tensors})
            for region, start in zip(regions, self._receive()):
                addresses[region.name] = range(start, start + region.size)
            error, contents = self._receive()
        except _Ended:
            return self._describe_end(addresses)
        for region, content in zip(regions, contents):
            if content is not None:
                ctypes.memmove(region.address, content, region.size)
        return error.decode() if error else ""

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Lets go of the process, which may be another process's child."""
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            try:
                pipe.close()  # type: ignore[union-attr]
            except OSError:
                pass  # what was left to write has no reader
        self._process.returncode = self._process.returncode or 0  # else it is taken for running

    def _send(self, request: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickle.dumps(request))
            self._process.stdin.flush()
        except OSError:
            raise _Ended from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise _Ended from None

    def _describe_end(self, addresses: Mapping[str, range]) -> str:
        """What the sanitizer reported; else how the process ended, and what it printed."""
        code = self._process.wait()
        printed = self._read_log()
        described = report.one_line(self._mode, printed, addresses)
        if described is None:
            how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
            described = f"{self._mode}: the process ended with {how}: {report.tail(printed)}"
        return described

    def _read_log(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


# By mode. A fork waits for the launch that is running, and its child starts processes of its own.
_processes: dict[str, _Process] = {}
_lock = threading.Lock()


def _forget_all() -> None:
    for process in _processes.values():
        process.forget()
    _processes.clear()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_all)


@atexit.register
def _close_all() -> None:
    while _processes:
        _processes.popitem()[1].close()
