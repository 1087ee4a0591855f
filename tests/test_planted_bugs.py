"""A whole campaign turns red, and names who is wrong, on a copy of the packages with a bug planted in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted_bugs import PLANTED_BUGS, PlantedBug, copy_packages, plant

DURATION_S = 60


def run_campaign(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A campaign on the packages in the directory, on the emulator: a GPU may hide a race or uninitialised memory."""
    environment = {**os.environ, "PYTHONPATH": str(directory), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("CONVT3D_REQUIRE_GPU", None)
    return subprocess.run(
        [sys.executable, "-m", "fuzz", "run", "--shards=1", "--stop-on-failure", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DURATION_S + 240,
    )


@pytest.mark.parametrize("bug", PLANTED_BUGS, ids=lambda bug: bug.name)
def test_a_short_campaign_catches(bug: PlantedBug, tmp_path: Path) -> None:
    plant(bug, tmp_path)
    ran = run_campaign(tmp_path, f"--duration={DURATION_S}", "--dtypes=f32", "--modes=fast,hostile")
    assert ran.returncode == 1, ran.stdout[-4000:] + ran.stderr[-2000:]
    named = {line.split()[1] for line in ran.stdout.splitlines() if line.startswith("  failure: ")}
    assert named == {bug.package}, ran.stdout[-4000:]


def test_the_copy_is_green_without_a_bug(tmp_path: Path) -> None:
    copy_packages(tmp_path)
    ran = run_campaign(tmp_path, "--corpus-only", "--duration=600")
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


def test_a_bug_that_no_longer_applies_is_an_error(tmp_path: Path) -> None:
    stale = PlantedBug("stale", "geometry.py", "no such text", "")
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(stale, tmp_path)
