"""Fixtures of several test modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator_kernels import Kernels, compile_kernels


@pytest.fixture(scope="session")
def scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of a run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def asan(scratch: Path) -> Kernels:
    return compile_kernels(scratch, sanitizer="asan")


@pytest.fixture(scope="session")
def tsan(scratch: Path) -> Kernels:
    return compile_kernels(scratch, sanitizer="tsan")
