"""The clock: CUDA events, graph replay and host time; and the ceilings of the card.

What is measured goes through `Timer`, so that a test can put another clock in its place.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch

from fuzz.bench.calls import Subject
from fuzz.bench.floor import Ceilings

FLUSH_BYTES = 256 << 20  # more than the L2 of any card: 40 MiB on an A100, 50 on an H200
# Of one thread that only counts, about 0.3 ms: until it is done the host has enqueued what is timed, so that the time
# between the two events holds no host time.
HEAD_START_CYCLES = 600_000
HOST_CALLS, HOST_ROUNDS = (
    100,
    5,
)  # fewer calls than the 1,024 launches that a stream takes without waiting
COPY_BYTES = 1 << 30
MATMUL_SIZE = 8192
CEILING_WARM_UPS, CEILING_RUNS = 3, 20


class Timer(Protocol):
    """What `measure` needs of a clock."""

    def times_ms(
        self, subjects: Mapping[str, Subject], warm_ups: int, runs: int
    ) -> dict[str, list[float]]:
        """Returns each subject's times on the device in ms, `runs` of them, taken in turn."""

    def captured(self, subject: Subject) -> Subject:
        """Returns a subject that replays a CUDA graph of the call."""

    def host_us(self, subject: Subject) -> float:
        """Returns the host's time for one call, in microseconds."""


class CudaTimer:
    """Times by CUDA events, with the L2 flushed before each call."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")

    def times_ms(
        self, subjects: Mapping[str, Subject], warm_ups: int, runs: int
    ) -> dict[str, list[float]]:
        for subject in subjects.values():
            subject.place(partial(_repeat, subject.call, warm_ups))
        torch.cuda.synchronize()
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in subjects}
        for _ in range(runs):
            for name, subject in subjects.items():
                pair = subject.place(partial(self._enqueue, subject.call))
                events[name].append(pair)
        torch.cuda.synchronize()
        return {
            name: [float(start.elapsed_time(end)) for start, end in pairs]
            for name, pairs in events.items()
        }

    def _enqueue(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        """Enqueues one timed call; returns the events before and after it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        call()
        end.record()
        return start, end

    def captured(self, subject: Subject) -> Subject:
        graph = torch.cuda.CUDAGraph()

        def capture() -> Any:
            with torch.cuda.graph(graph):
                return subject.call()

        results = subject.place(capture)
        torch.cuda.synchronize()

        def replay() -> Any:
            graph.replay()
            return results  # keeps their memory

        return Subject(replay, subject.place)

    def host_us(self, subject: Subject) -> float:
        def rounds() -> list[float]:
            taken = []
            for _ in range(1 + HOST_ROUNDS):  # the first warms up
                torch.cuda.synchronize()
                started_s = time.perf_counter()
                for _ in range(HOST_CALLS):
                    subject.call()
                taken.append((time.perf_counter() - started_s) / HOST_CALLS * 1e6)
            torch.cuda.synchronize()
            return taken[1:]

        return statistics.median(subject.place(rounds))


def _repeat(call: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        call()


def measure_ceilings() -> Ceilings:
    """Returns what the card reaches now: the fastest of CEILING_RUNS copies of 1 GiB and products of 8192 x 8192.

    Run before anything sets a switch for TF32; leaves matmul's at PyTorch's default.
    """
    copy_tb_s = _copy_tb_s()
    rates = {}
    for dtype in (torch.bfloat16, torch.float16):
        name = "bf16" if dtype is torch.bfloat16 else "f16"
        rates[name] = _matmul_tflops(dtype)
    for name, precision in (("tf32", "high"), ("f32", "highest")):  # the last is the default
        torch.set_float32_matmul_precision(precision)
        rates[name] = _matmul_tflops(torch.float32)
    torch.cuda.empty_cache()
    return Ceilings(copy_tb_s, rates)


def _copy_tb_s() -> float:
    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _fastest_s(lambda: target.copy_(source)) / 1e12


def _matmul_tflops(dtype: torch.dtype) -> float:
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda").to(dtype) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / _fastest_s(lambda: left @ right) / 1e12


def _fastest_s(function: Callable[[], Any]) -> float:
    """Seconds on the device of the fastest run."""
    times_ms = []
    for run in range(CEILING_WARM_UPS + CEILING_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        if run >= CEILING_WARM_UPS:
            times_ms.append(float(start.elapsed_time(end)))
    return min(times_ms) / 1e3
