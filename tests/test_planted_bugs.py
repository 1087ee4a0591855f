"""The harness finds bugs: a short campaign on a copy of the op with one planted in it turns red."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted_bugs import PLANTED_BUGS, PlantedBug, plant

DURATION_S = 60


@pytest.mark.parametrize("bug", PLANTED_BUGS, ids=lambda bug: bug.name)
def test_a_short_campaign_catches(bug: PlantedBug, tmp_path: Path) -> None:
    plant(bug, tmp_path)
    command = [sys.executable, "-m", "fuzz", "run", f"--duration={DURATION_S}", "--shards=1"]
    command += ["--stop-on-failure", f"--dtypes={bug.dtype}"]
    # On the emulator, even where there is a GPU: a GPU may hide a race or uninitialised memory.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("CONVT3D_REQUIRE_GPU", None)
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DURATION_S + 240,
    )
    assert ran.returncode == 1, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "make repro CASE=" in ran.stdout


def test_a_bug_that_no_longer_applies_is_an_error(tmp_path: Path) -> None:
    stale = PlantedBug("stale", "geometry.py", "no such text", "")
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(stale, tmp_path)
