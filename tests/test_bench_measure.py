"""Rows are measured right: on the emulator, with a clock that needs no GPU."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fuzz.__main__ import main
from fuzz.bench import calls, measure
from fuzz.bench import timer as timer_module
from fuzz.bench.calls import Subject
from fuzz.bench.floor import Ceilings
from fuzz.bench.measure import Bench
from fuzz.bench.results import load
from fuzz.bench.suite import DIRECTIONS, DTYPES, SUITE, Point, points_of_case
from fuzz.case import parse_case

CEILINGS = Ceilings(4.0, dict.fromkeys(DTYPES, 100.0))
CASES = (
    "bf16_n2_ci16_co8_i5_k3_s2_p1_op1_bias_cl_normal",
    "f16_g4_ci4_co4_i6_k3_normal",
    "tf32_ci3_co4_i4_k2_s2_normal",
    "f32_ci3_co4_i4_k2_s2_bias_cl_normal",
)


class FakeTimer:
    """Says what it is told; runs each subject once, and notes which it was given."""

    def __init__(self, **medians_ms: float) -> None:
        self.medians_ms = {"ours": 1.0, "native_on": 2.0, "native_off": 4.0, **medians_ms}
        self.given: list[tuple[tuple[str, ...], int, int]] = []

    def times_ms(
        self, subjects: Mapping[str, Subject], warm_ups: int, runs: int
    ) -> dict[str, list[float]]:
        self.given.append((tuple(subjects), warm_ups, runs))
        for subject in subjects.values():
            subject()
        return {name: [self.medians_ms[name]] * runs for name in subjects}

    def captured(self, subject: Subject) -> Subject:
        return subject

    def host_us(self, subject: Subject) -> float:
        subject()
        return 50.0


def points(text: str = CASES[0], directions: Sequence[str] = ("forward",)) -> list[Point]:
    return points_of_case(parse_case(text), directions)


@pytest.fixture
def timer() -> FakeTimer:
    return FakeTimer()


@pytest.fixture
def bench(timer: FakeTimer) -> Iterator[Bench]:
    made = Bench(timer, CEILINGS, 5, "cpu")
    yield made
    made.close()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("text", CASES)
def test_a_row_is_checked_and_timed(bench: Bench, text: str, direction: str) -> None:
    (point,) = points(text, [direction])
    row = bench.measure(point)
    assert (row.problem, row.native_problem, row.exact, row.ratio) == ("", "", "f64", 2.0)
    assert row.error is not None and row.allowed_error is not None
    assert 0 < row.error <= row.allowed_error < 0.1
    assert row.rms_error is not None and row.native_rms_error is not None
    assert row.plan.startswith(("tiled.", "direct."))
    assert {name: timing.runs for name, timing in row.times.items()} == {
        "ours": 5,
        "native_on": 5,
        "native_off": 5,
    }
    assert row.host_us == {"ours": 50.0, "native": 50.0}
    assert row.case.startswith(text)


def test_a_short_row_is_replayed_and_a_long_one_is_not(bench: Bench, timer: FakeTimer) -> None:
    (point,) = points()
    assert bench.measure(point).graph == {}
    timer.medians_ms["ours"] = 0.09
    row = bench.measure(point)
    assert row.graph["ours"].median == 0.09
    assert timer.given == [(("ours", "native_on", "native_off"), measure.WARM_UPS, 5)] * 3


def test_the_plan_of_a_case_string_runs(bench: Bench) -> None:
    (point,) = points(CASES[3] + "_fwd=direct.i64")
    row = bench.measure(point)
    assert (row.problem, row.plan) == ("", "direct.i64")


def test_a_wrong_result_is_a_wrong_row_that_is_timed_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly(*arguments: object) -> Tensor:
        right: Tensor = torch.nn.functional.conv_transpose3d(*arguments)  # type: ignore[arg-type]
        right.view(-1)[0] += 5
        return right

    monkeypatch.setattr(calls, "conv_transpose3d", nearly)
    (point,) = points(CASES[1])
    row = bench.measure(point)
    assert row.problem.startswith("wrong: error 0.") and "must be at most" in row.problem
    assert (row.mark, row.ratio, row.ours_ms) == ("WRONG", None, 1.0)


def test_what_is_not_finite_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: object) -> Tensor:
        right: Tensor = torch.nn.functional.conv_transpose3d(*arguments)  # type: ignore[arg-type]
        return torch.full_like(right, float("nan"))

    monkeypatch.setattr(calls, "conv_transpose3d", nothing)
    (point,) = points()
    assert bench.measure(point).problem.startswith("wrong: error nan")


def test_an_exception_of_ours_is_a_failed_row(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(calls, "conv_transpose3d", fail)
    (point,) = points()
    row = bench.measure(point)
    assert (row.mark, row.problem) == ("FAILED", "failed: RuntimeError: no such kernel")
    assert bench.is_alive()


def test_where_native_fails_ours_is_still_timed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = calls.native_call

    def call(point: Point, operands: calls.Operands) -> calls.Call:
        if operands.input.dtype == torch.float64:
            return original(point, operands)

        def fail() -> tuple[Tensor, ...]:
            raise RuntimeError("no engine")

        return fail

    monkeypatch.setattr(calls, "native_call", call)
    (point,) = points()
    row = bench.measure(point)
    assert (row.mark, row.problem, row.ours_ms) == ("NATIVE", "", 1.0)
    assert row.native_problem == "failed with benchmark off: RuntimeError: no engine"
    assert row.host_us == {"ours": 50.0}


def test_where_float64_does_not_run_float32_is_compared_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "_fits", lambda *_: False)
    (point,) = points()
    row = bench.measure(point)
    assert (row.exact, row.problem) == ("f32", "")


def test_each_mode_of_native_has_a_thread_of_its_own(bench: Bench) -> None:
    (point,) = points()
    operands = calls.make_operands(point, "cpu")
    subjects = bench._subjects(point, operands)
    threads = {name: subject.place(threading.get_ident) for name, subject in subjects.items()}
    assert threads["ours"] == threading.get_ident()
    assert len({*threads.values()}) == 3


def test_settings_hold_within_a_place_and_not_after() -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32

    before = settings()
    assert calls.placed(None, True, False)(settings) == (True, True)
    assert calls.placed(None, False, True)(settings) == (False, False)
    assert settings() == before


def test_operands_have_the_same_values_in_both_layouts() -> None:
    (last,) = points(CASES[0], ["grad_weight"])
    first = dataclasses.replace(last, layout="ncdhw")
    one, other = calls.make_operands(first, "cpu"), calls.make_operands(last, "cpu")
    for field in dataclasses.fields(calls.Operands):
        left, right = getattr(one, field.name), getattr(other, field.name)
        assert left.dtype == right.dtype == torch.bfloat16
        assert torch.equal(left, right)
        assert left.is_contiguous()
    assert other.input.is_contiguous(memory_format=torch.channels_last_3d)
    assert other.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_errors_are_relative_and_the_worst_result_counts() -> None:
    exact = torch.tensor([4.0, 2.0, -4.0], dtype=torch.float64)
    largest, rms = calls.errors([exact.float(), exact.float() + 1], [exact, exact])
    assert largest == 0.25
    assert rms == pytest.approx((3**0.5) / 6)
    assert calls.errors([exact * 0], [exact * 0]) == (0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"shape \(2,\), but must be \(3,\)"):
        calls.errors([exact[:2]], [exact])


class FakeEvent:
    """An event of a device whose clock is the length of the log."""

    log: list[str] = []  # noqa: RUF012

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.log.append("event")
        self.at = len(self.log)

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return float(end.at - self.at)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a clock without a GPU enqueues."""
    monkeypatch.setattr(FakeEvent, "log", [])
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: FakeEvent.log.append("sleep"))
    return FakeEvent.log


def test_the_clock_flushes_and_waits_before_each_call_and_takes_turns(log: list[str]) -> None:
    class Flush:
        def zero_(self) -> None:
            log.append("flush")

    def subject(name: str) -> Subject:
        return Subject(lambda: log.append(name), calls.placed(None, False, True))  # type: ignore[arg-type, return-value]

    clock = timer_module.CudaTimer.__new__(timer_module.CudaTimer)
    clock._flush = Flush()  # type: ignore[assignment]
    times_ms = clock.times_ms({"a": subject("a"), "b": subject("b")}, 2, 3)
    assert times_ms == {"a": [2.0] * 3, "b": [2.0] * 3}
    turn = [[*("flush", "sleep", "event"), name, "event"] for name in ("a", "b")]
    assert log == ["a", "a", "b", "b", *(turn[0] + turn[1]) * 3]
    assert clock.host_us(subject("a")) > 0


@pytest.mark.usefixtures("log")
def test_ceilings_are_of_every_dtype_and_leave_the_precision_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device: randn(*shape))
    monkeypatch.setattr(timer_module, "MATMUL_SIZE", 8)
    monkeypatch.setattr(timer_module, "COPY_BYTES", 64)
    ceilings = timer_module.measure_ceilings()
    assert ceilings.copy_tb_s == pytest.approx(2 * 64 / 1e-3 / 1e12)  # 1 ms by the fake clock
    rate = 2 * 8**3 / 1e-3 / 1e12
    assert ceilings.matmul_tflops == pytest.approx(dict.fromkeys(DTYPES, rate))
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_run_from_end_to_end_but_for_the_gpu(
    timer: FakeTimer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "device_problem", lambda: "")
    monkeypatch.setattr(measure, "facts", lambda: {"card": "Some GPU"})
    monkeypatch.setattr(measure, "build_parts", lambda points, say: say(f"{len(points)} points"))
    monkeypatch.setattr(measure, "Bench", partial(Bench, device="cpu"))
    monkeypatch.setattr(timer_module, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(timer_module, "CudaTimer", lambda: timer)
    monkeypatch.setenv("CONVT3D_ARCH", "")
    options = ["--runs=4", "--arch=8.0", "--directions=forward,grad_weight"]
    files = [f"--json={tmp_path / 'run.json'}", f"--svg={tmp_path / 'run.svg'}"]
    assert main(["bench", CASES[0], *options, *files]) == 0
    printed = capsys.readouterr().out
    run = load(tmp_path / "run.json")
    assert [str(row) for row in run.rows] == [
        f"case bf16 channels_last {direction}" for direction in ("forward", "grad_weight")
    ]
    assert "PTX of 8.0 (CONVT3D_ARCH)" in printed and "2 points" in printed
    assert main(["bench", f"--from={tmp_path / 'run.json'}"]) == 0
    again = capsys.readouterr().out
    shown, shown_again = (
        {" ".join(line.split()) for line in t.splitlines()} for t in (printed, again)
    )
    assert shown ^ shown_again == {"2 points"}
    assert (tmp_path / "run.svg").read_text().startswith("<svg")


def test_parts_are_noted_and_nothing_is_launched() -> None:
    (point,) = points()
    call = calls.our_call(point, calls.make_operands(point, "cpu"))
    with calls.noting_parts() as parts:
        call()
    assert parts == {"gather_bf16"}


@pytest.mark.parametrize("layer", SUITE, ids=lambda layer: str(layer.name))
def test_the_layer_for_host_time_is_small_and_of_the_same_kind(layer: object) -> None:
    big = layer.geometry  # type: ignore[attr-defined]
    small = calls.tiny(layer).geometry  # type: ignore[arg-type]
    assert small.batch == 1
    assert max(small.input_size) <= 4
    assert min(small.output_size) >= 1
    assert small.weight_shape == big.weight_shape


def test_clocks_are_told_or_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert measure.clocks() == "unknown, for there is no nvidia-smi"
