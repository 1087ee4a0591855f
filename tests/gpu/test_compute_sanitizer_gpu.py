"""compute-sanitizer is clean on the op, and names what is planted in a copy of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import compute_sanitizer
from fuzz.case import GPU_TOOLS, parse_case
from tests.planted_bugs import PlantedBug, plant

CASE = "bf16_n2_ci33_co40_i1x3x3_k2x4x3_s3x1x2_p0x2x0_d3x1x2_bias_cl_int"
PLANTED = {
    "memcheck": (
        PlantedBug(
            "write_past_the_end",
            "kernels/gather.py",
            "if (element >= int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
            "if (element > int64_t(p.batch) * channels * size_d * size_h * size_w) return;",
        ),
        "f32_ci3_co3_i3_k3_int_memcheck_fwd=direct.i32",
        "memcheck: Invalid __global__ .*of size 4 bytes at .*gather.py:",
    ),
    "racecheck": (
        PlantedBug(
            "missing_barrier",
            "kernels/gather.py",
            "          barrier();\n          if (computes)",
            "          if (computes)",
        ),
        f"{CASE}_racecheck_fwd=tiled.i32",
        "racecheck: Error: Race reported",
    ),
    "initcheck": (
        PlantedBug(
            "last_split_not_stored",
            "kernels/weight.py",
            "      if (row < in_channels && column < all_columns)\n        put_weight",
            "      if (row < in_channels && column < all_columns && split + 1 < p.splits)\n        put_weight",
        ),
        f"{CASE}_initcheck_gwt=tiled.i32.split2",
        "initcheck: Uninitialized __global__ memory read",
    ),
    "synccheck": (
        PlantedBug(
            "barrier_of_half_a_warp",
            "kernels/weight.py",
            "        }\n    barrier();\n  }\n",
            "        }\n    if (thread % 2 == 0) barrier();\n  }\n",  # the others end, so that it does not hang
        ),
        f"{CASE}_synccheck_gwt=tiled.i32",
        "synccheck: Barrier error detected. Divergent thread",
    ),
}


@pytest.fixture(autouse=True)
def needs_the_tool() -> None:
    if compute_sanitizer.find() is None:
        pytest.skip("no compute-sanitizer on the PATH")


@pytest.mark.parametrize("tool", GPU_TOOLS)
def test_the_op_is_clean(tool: str) -> None:
    plans = "fwd=tiled.i32_gin=direct.i64_gwt=tiled.i32.split2"
    outcome = compute_sanitizer.run("convt3d", parse_case(f"{CASE}_{plans}_{tool}"))
    assert outcome.status == "ok", outcome.message
    assert {*outcome.results} == {"output", "grad_input", "grad_weight", "grad_bias"}


@pytest.mark.parametrize("tool", PLANTED)
def test_a_planted_bug_is_named(tool: str, tmp_path: Path) -> None:
    bug, case, message = PLANTED[tool]
    plant(bug, tmp_path)
    ran = subprocess.run(
        [sys.executable, "-m", "fuzz", "repro", case],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    shown = " ".join(ran.stdout.split())
    assert message.split(".*")[0] in shown
    assert all(part in shown for part in message.split(".*"))
