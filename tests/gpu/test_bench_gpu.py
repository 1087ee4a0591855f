"""The benchmark on a GPU, in small; and what a forward call launches there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fuzz.__main__ import main
from fuzz.bench import calls, results
from fuzz.bench.floor import Ceilings
from fuzz.bench.measure import Bench
from fuzz.bench.suite import DIRECTIONS, DTYPES, points_of_case
from fuzz.bench.timer import CudaTimer
from fuzz.case import parse_case
from tests.gpu.test_streams_and_graphs import kernels_run

CEILINGS = Ceilings(4.0, dict.fromkeys(DTYPES, 100.0))
# What a forward call may be: name -> case string without dtype, layout and lane.
LAUNCHES = {
    "plain": "n2_ci32_co48_i8_k3",
    "bias": "n2_ci32_co16_i8_k3_p1_bias",
    "strided": "n2_ci64_co32_i8x9x10_k3_s2_p1_op1_bias",
    "kernel_is_stride": "n2_ci64_co32_i8_k2_s2_bias",
    "grouped": "n2_g4_ci32_co32_i6x8x12_k3x5x7_s2_p1x2x3_op1",
    "depthwise": "n2_g16_ci16_co16_i8_k5_s2_p2_bias",
    "few_channels": "n4_ci3_co16_i6x8x8_k3_s2_p1_bias",
    "dilated": "ci32_co64_i6x8x8_k3_s2_p1_d2",
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench(CudaTimer(), CEILINGS, 3)
    yield made
    made.close()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ["ncdhw", "cl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_measured(bench: Bench, dtype: str, layout: str, direction: str) -> None:
    case = parse_case(f"{dtype}_n2_ci32_co16_i8_k3_s2_p1_op1_bias_{layout}_normal")
    (point,) = points_of_case(case, [direction])
    row = bench.measure(point)
    assert (row.problem, row.native_problem) == ("", "")
    assert {*row.times} == {*row.graph} == {"ours", "native_on", "native_off"}
    assert all(0 < timing.median < 100 for timing in (*row.times.values(), *row.graph.values()))
    assert row.ratio is not None and row.plan
    assert 1 < row.host_us["ours"] < 100_000 and 1 < row.host_us["native"] < 100_000


def test_the_clock_tells_long_from_short(bench: Bench) -> None:
    short, long = (
        calls.Subject(lambda n=n: (torch.cuda._sleep(n),), calls.placed(None, False, True))  # type: ignore[misc]
        for n in (1_000_000, 10_000_000)
    )
    times_ms = CudaTimer().times_ms({"short": short, "long": long}, 1, 5)
    assert 5 < min(times_ms["long"]) / min(times_ms["short"]) < 20


def test_two_shapes_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "run.json", tmp_path / "run.svg"
    options = ["--shapes=nnunet_bottleneck,nnunet_top", "--dtypes=bf16", "--runs=5"]
    assert main(["bench", *options, f"--json={file}", f"--svg={picture}"]) == 0
    printed = capsys.readouterr().out
    run = results.load(file)
    assert [str(row) for row in run.rows] == [
        f"{name} bf16 {layout} forward"
        for name in ("nnunet_top", "nnunet_bottleneck")
        for layout in ("ncdhw", "channels_last")
    ]
    assert all(f"{row.shape} {row.dtype}" in printed for row in run.rows)
    rates = run.ceilings.matmul_tflops
    assert rates["bf16"] > rates["tf32"] > rates["f32"] > 1
    assert run.ceilings.copy_tb_s > 0.1
    assert main(["bench", f"--from={file}"]) == 0


@pytest.mark.parametrize("layout", ["ncdhw", "cl"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "bf16") for name in LAUNCHES), *(("strided", dtype) for dtype in DTYPES[1:])],
)
def test_a_forward_call_is_one_kernel_and_nothing_else(name: str, dtype: str, layout: str) -> None:
    ones = torch.ones(8, device="cuda")
    if not kernels_run(lambda: ones + 1):
        pytest.skip("the profiler sees no kernels here")
    case = parse_case(f"{dtype}_{LAUNCHES[name]}_{layout}_normal")
    (point,) = points_of_case(case, ["forward"])
    call = calls.our_call(point, calls.make_operands(point, "cuda"))
    place = calls.placed(None, False, dtype == "f32")
    names = place(lambda: kernels_run(call))
    assert len(names) == 1, names
    assert "convt3d" in names[0] or "_kernel" in names[0]
