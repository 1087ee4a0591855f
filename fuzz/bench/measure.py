"""One row at a time: its results are checked, then it is timed, ours and native's in turn."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from convt3d import build, plan
from fuzz import machine
from fuzz.bench import calls
from fuzz.bench.calls import Operands, Subject
from fuzz.bench.floor import Ceilings, floor_ms
from fuzz.bench.results import NATIVE, OURS, Row, timing
from fuzz.bench.suite import LAYOUTS, Point, case_string
from fuzz.bench.timer import Timer
from fuzz.number import unit_roundoff
from fuzz.subjects import noting_plans

WARM_UPS = 3
GRAPH_BELOW_MS = 0.1
TF32_ROUNDOFF = 2.0**-11  # of an operand: 10 stored bits of significand
# Elements that float64 takes, of operands, results and what compares them, over those of operands and results.
EXACT_COPIES = 4


class Bench:
    """Measures points.

    Args:
        timer: the clock.
        ceilings: of the card.
        runs: timed calls of each subject.
        device: "cuda"; a test without a GPU has the emulator on "cpu".
    """

    def __init__(self, timer: Timer, ceilings: Ceilings, runs: int, device: str = "cuda") -> None:
        self._timer, self._ceilings, self._runs, self._device = timer, ceilings, runs, device
        self._threads = {name: ThreadPoolExecutor(1, f"bench-{name}") for name in NATIVE}
        self._exact_of: Point | None = None
        self._exact: tuple[Tensor, ...] = ()
        self._exact_dtype = ""

    def close(self) -> None:
        """Ends the threads of native's two modes."""
        for thread in self._threads.values():
            thread.shutdown()

    def is_alive(self) -> bool:
        """Whether the GPU still answers; after an illegal access it does not, to this process."""
        try:
            if self._device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def measure(self, point: Point) -> Row:
        """Returns the row of a point; whatever goes wrong is in it, and nothing is raised."""
        row = Row(
            shape=point.layer.name,
            case=case_string(point),
            dtype=point.dtype,
            layout=point.layout,
            direction=point.direction,
            floor_ms=floor_ms(point.layer, point.dtype, self._ceilings),
            allowed_error=allowed_error(point),
        )
        try:
            with plan.forced(dict(point.plans)):
                self._fill(row, point)
        except Exception as error:
            row.problem = row.problem or f"failed: {_one_line(error)}"
        return row

    def _fill(self, row: Row, point: Point) -> None:
        """Fills the row in, step by step, so that what was found before a failure stays."""
        operands = calls.make_operands(point, self._device)
        self._find_exact(point)
        row.exact = self._exact_dtype
        subjects = self._subjects(point, operands)
        with noting_plans() as ran:
            results = subjects[OURS]()
        row.plan = ran.get(point.direction, "")
        row.error, row.rms_error = calls.errors(results, self._exact)
        del results
        if not row.error <= (row.allowed_error or 0.0):
            row.problem = (
                f"wrong: error {row.error:.2g}, but must be at most {row.allowed_error:.2g}"
            )
        rms = self._check_native(row, subjects)
        for name, times_ms in self._timer.times_ms(subjects, WARM_UPS, self._runs).items():
            row.times[name] = timing(times_ms)
        row.native_rms_error = rms.get(row.best_native or "")
        self._replay(row, subjects)
        self._time_host(row, point, list(subjects))

    def _subjects(self, point: Point, operands: Operands) -> dict[str, Subject]:
        strict = point.dtype == "f32"
        native = calls.native_call(point, operands)
        subjects = {
            OURS: Subject(calls.our_call(point, operands), calls.placed(None, False, strict))
        }
        for name, mode in NATIVE.items():
            place = calls.placed(self._threads[name], mode == "on", strict)
            subjects[name] = Subject(native, place)
        return subjects

    def _find_exact(self, point: Point) -> None:
        """Native's result in float64, in float32 where that does not fit; the last one is kept for the next layout."""
        key = replace(point, layout=next(iter(LAYOUTS)), plans=())
        if key == self._exact_of:
            return
        self._exact_of, self._exact = None, ()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        operands = calls.make_operands(key, self._device)
        place = calls.placed(None, False, True)
        for name, dtype in (("f64", torch.float64), ("f32", torch.float32)):
            if name == "f64" and not self._fits(point):
                continue
            try:
                self._exact = Subject(calls.native_call(key, operands.to(dtype)), place)()
            except RuntimeError as error:  # out of memory is one too
                if name == "f32":
                    raise RuntimeError(f"native gives nothing to compare with: {error}") from error
                continue
            self._exact_of, self._exact_dtype = key, name
            return

    def _fits(self, point: Point) -> bool:
        """Whether the float64 result, its operands and the comparison fit the free memory."""
        if self._device != "cuda":
            return True
        shape = point.layer.geometry
        shapes = (shape.input_shape, shape.weight_shape, shape.output_shape)
        needed = EXACT_COPIES * 8 * sum(math.prod(sizes) for sizes in shapes)
        return needed < torch.cuda.mem_get_info()[0]

    def _check_native(self, row: Row, subjects: dict[str, Subject]) -> dict[str, float]:
        """Notes native's errors and drops a mode that fails. Returns the RMS errors by mode."""
        rms: dict[str, float] = {}
        for name, mode in NATIVE.items():
            try:
                largest, rms[name] = calls.errors(subjects[name](), self._exact)
            except Exception as error:
                row.native_problem = f"failed with benchmark {mode}: {_one_line(error)}"
                del subjects[name]
                continue
            row.native_error = (
                largest if row.native_error is None else max(row.native_error, largest)
            )
            if not largest <= (row.allowed_error or 0.0):
                row.native_problem = f"wrong with benchmark {mode}: error {largest:.2g}"
        return rms

    def _replay(self, row: Row, subjects: dict[str, Subject]) -> None:
        """Times short rows by graph replay too."""
        medians = [timing.median for timing in row.times.values()]
        if min(medians) >= GRAPH_BELOW_MS:
            return
        replays: dict[str, Subject] = {}
        for name, subject in subjects.items():
            try:
                replays[name] = self._timer.captured(subject)
            except Exception as error:
                if name == OURS:
                    raise
                row.native_problem = f"failed under graph capture: {_one_line(error)}"
        for name, times_ms in self._timer.times_ms(replays, WARM_UPS, self._runs).items():
            row.graph[name] = timing(times_ms)

    def _time_host(self, row: Row, point: Point, names: Iterable[str]) -> None:
        """Host time of a call, of native the better one; not with plans that may be none for a tiny layer."""
        if point.plans:
            return
        small = replace(point, layer=calls.tiny(point.layer))
        subjects = self._subjects(small, calls.make_operands(small, self._device))
        host = {name: self._timer.host_us(subjects[name]) for name in names}
        row.host_us = {OURS: host[OURS]}
        native = [host[name] for name in NATIVE if name in host]
        if native:
            row.host_us["native"] = min(native)


def allowed_error(point: Point) -> float:
    """Returns how far a right result may be from the exact one, over the largest exact element.

    On normal data the errors of a sum of n products in float32 grow as the square root of n; rounding operands to TF32
    adds two roundings a product, and rounding the result one. Four times that tells rounding from a bug that shows in
    the largest elements; to judge every element is what the fuzzer is for.
    """
    length = plan.reduction_length(point.direction, point.layer.geometry)
    rounding = unit_roundoff(point.dtype) + math.sqrt(length) * unit_roundoff("f32")
    return 4 * (rounding + (2 * TF32_ROUNDOFF if point.dtype == "tf32" else 0.0))


def build_parts(points: Sequence[Point], say: Callable[[str], None]) -> None:
    """Compiles what the points need, many parts at a time, and not one after the other as calls would.

    Args:
        points: what will be measured.
        say: shows a line of progress.

    Raises:
        RuntimeError: a compiler is missing or fails.
    """
    with calls.noting_parts() as parts:
        for point in points:
            small = replace(point, layer=calls.tiny(point.layer))
            for asked in [point] if point.plans else [point, small]:
                with plan.forced(dict(point.plans)):
                    subject = calls.our_call(asked, _uninitialised(asked))
                    calls.placed(None, False, point.dtype == "f32")(subject)
    say(
        f"building {len(parts)} parts of the kernels, unless they are cached: {' '.join(sorted(parts))}"
    )
    build.build_all("cuda", sorted(parts))


def _uninitialised(point: Point) -> Operands:
    shape = point.layer.geometry
    is_last = point.layout == "channels_last"
    memory_format = torch.channels_last_3d if is_last else torch.contiguous_format
    dtype = calls.TORCH_DTYPES[point.dtype]

    def empty(sizes: Sequence[int]) -> Tensor:
        return torch.empty(tuple(sizes), dtype=dtype, device="cuda", memory_format=memory_format)

    bias = torch.empty(shape.out_channels, dtype=dtype, device="cuda")
    return Operands(
        empty(shape.input_shape),
        empty(shape.weight_shape),
        bias if point.layer.bias else None,
        empty(shape.output_shape),
    )


def device_problem() -> str:
    """Returns why nothing can be measured here; "" if it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < build.OLDEST_CAPABILITY:
        return f"the GPU has compute capability {major}.{minor}, but must have 8.0 or above"
    return ""


def facts() -> dict[str, str]:
    """Returns card, driver and versions: name -> text."""
    known = machine.subject_facts()
    return {name: known[name] for name in ("card", "driver", "torch", "cuda", "cudnn", "nvcc")}


def clocks() -> str:
    """Returns the clocks of the first GPU as nvidia-smi finds them."""
    query = "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader", "-i", "0"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown, for there is no nvidia-smi"
    names = ("sm", "sm at most", "memory", "power", "power at most")
    values = ran.stdout.strip().split(", ")
    if ran.returncode != 0 or len(values) != len(names):
        return "unknown to nvidia-smi"
    return ", ".join(f"{name} {value}" for name, value in zip(names, values))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
