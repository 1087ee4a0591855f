"""Where a GPU is required, a run without one is an error, of the tests and of the harness alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import conftest
from fuzz import machine

VARIABLE = "CONVT3D_REQUIRE_GPU"


@pytest.mark.parametrize("value", ["1", "true", "yes", "cuda"])
def test_anything_but_0_requires_a_gpu(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert (
        machine.gpu_problem({"device": "emulator"})
        == f"{VARIABLE} is set, but the subjects find no GPU"
    )
    assert machine.gpu_problem({"device": "cuda"}) == ""
    with pytest.raises(pytest.UsageError, match=f"{VARIABLE} is set, but no card"):
        start_tests_without_a_gpu(monkeypatch)


@pytest.mark.parametrize("value", ["", "0", None])
def test_nothing_and_0_do_not(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert machine.gpu_problem({"device": "emulator"}) == ""
    start_tests_without_a_gpu(monkeypatch)


def start_tests_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "gpu_problem", lambda: "no card")
    conftest.pytest_sessionstart(cast(Any, SimpleNamespace(config=SimpleNamespace())))
