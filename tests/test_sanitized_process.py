"""The process that runs launches under a sanitizer: when it starts, ends and is replaced, and what it is handed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from convt3d import launch
from convt3d.emulator import sanitized
from tests.emulator_kernels import Kernels, values

ROOT = Path(__file__).parents[1]
THREADS = 64


def run_well(kernels: Kernels) -> int:
    """Runs a kernel that has no fault; returns the process that it ran in."""
    input, output = values(THREADS), torch.zeros(THREADS)
    assert kernels.run("in_place", input, output) == ""
    assert torch.equal(input, output)
    return sanitized._processes[kernels.sanitizer].pid


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def test_the_process_of_the_caller_stays_ordinary(asan: Kernels) -> None:
    assert run_well(asan) != os.getpid()
    maps = Path("/proc/self/maps").read_text()
    assert "libasan" not in maps and str(asan.path) not in maps


def test_a_process_serves_until_a_launch_fails(asan: Kernels) -> None:
    first = run_well(asan)
    assert run_well(asan) == first
    assert asan.run("half_a_barrier") != ""
    assert not is_running(first)
    second = run_well(asan)
    assert asan.run("read_past_the_end", values(THREADS), torch.zeros(THREADS)) != ""
    assert not is_running(second)
    assert run_well(asan) not in (first, second)


def test_a_process_that_was_killed_is_replaced(asan: Kernels) -> None:
    first = run_well(asan)
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: not sanitized._processes["asan"].is_alive())
    assert run_well(asan) != first


def test_threads_take_turns(asan: Kernels) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: run_well(asan), range(20)))) == 1


def test_a_fork_has_a_process_of_its_own(asan: Kernels) -> None:
    ours = run_well(asan)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run_well(asan) not in (ours, 0) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_well(asan) == ours


# Starts the launch of a kernel that never ends, having said which process runs it.
PROGRAM = """
import sys, torch
from pathlib import Path
from convt3d.emulator import sanitized
from tests.emulator_kernels import Kernels
kernels = Kernels(Path(sys.argv[1]), sys.argv[2])
assert kernels.run("in_place", torch.ones(64), torch.ones(64)) == ""
print(sanitized._processes[sys.argv[2]].pid, flush=True)
if sys.argv[3] == "busy":
    kernels.run("endless", torch.ones(64))
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("sanitizer", "state"), [("asan", "idle"), ("asan", "busy"), ("tsan", "busy")]
)
def test_no_process_outlives_a_caller_that_is_killed(
    sanitizer: str, state: str, request: pytest.FixtureRequest
) -> None:
    kernels: Kernels = request.getfixturevalue(sanitizer)
    command = [sys.executable, "-c", PROGRAM, str(kernels.path), sanitizer, state]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        if state == "busy":
            stat = Path(f"/proc/{pid}/stat")
            ticks = int(stat.read_text().split()[13])
            assert wait_until(lambda: int(stat.read_text().split()[13]) > ticks + 10)
        assert is_running(pid)
        caller.kill()
        caller.wait()
        assert wait_until(lambda: not is_running(pid))


def use_program(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text)
    monkeypatch.setattr(sanitized, "PROGRAM", path)
    monkeypatch.setattr(sanitized, "_processes", {})


def test_a_process_that_does_not_start_is_no_finding(
    asan: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "import sys; sys.exit('FATAL: ThreadSanitizer: unexpected memory mapping')"
    use_program(monkeypatch, tmp_path / "program.py", text)
    with pytest.raises(RuntimeError, match=r"does not start: FATAL: .* mapping.*\n.*setarch -R"):
        asan.run("in_place", values(THREADS), torch.zeros(THREADS))


def test_a_process_that_dies_without_a_report_is_a_finding(
    asan: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = """
import os, pickle, sys
for answer in ("ready", [0, 0]):
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.flush()
    os.write(2, b"about to die")
    os.read(0, 1)
os.kill(os.getpid(), 9)
"""
    use_program(monkeypatch, tmp_path / "program.py", text)
    error = asan.run("in_place", values(THREADS), torch.zeros(THREADS))
    assert error == "asan: the process ended with signal SIGKILL: about to dieabout to die"


def test_tensors_that_are_too_large_are_refused(
    asan: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitized, "LARGEST_BYTES", 8 * THREADS)
    assert asan.run("in_place", values(THREADS), torch.zeros(THREADS)) == ""
    message = "the tensors span 516 bytes, but must span at most 512 in mode 'asan'"
    with pytest.raises(RuntimeError, match=message):
        asan.run("in_place", values(THREADS), torch.zeros(THREADS + 1))


def test_a_span_ends_with_the_last_element() -> None:
    tensor = torch.zeros(4, 5, 6, dtype=torch.float16)
    assert launch._span_bytes(tensor) == 240
    assert launch._span_bytes(tensor[1:, ::2, 3]) == 2 * (1 + 2 * 30 + 2 * 12)
    assert launch._span_bytes(tensor[:0]) == 0
    assert launch._span_bytes(tensor[:1, :1, :1].expand(4, 5, 6)) == 2
