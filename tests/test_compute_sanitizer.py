"""What compute-sanitizer prints is understood; the tool itself is tried in tests/gpu."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fuzz.arena import DTYPES, Placed
from fuzz.case import parse_case
from fuzz.compute_sanitizer import SanitizerMissing, first_report, run
from fuzz.number import encode
from fuzz.separate_memory import SeparateMemory

WRITE = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 16 bytes
=========     at sm80_xmma_wgrad_implicit_gemm_indexed_bf16+0x5a0
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Invalid __global__ write of size 4 bytes
=========     at another_kernel+0x10
========= ERROR SUMMARY: 2 errors
"""


def test_the_first_report_says_what_and_where() -> None:
    assert first_report(WRITE) == (
        "Invalid __global__ write of size 16 bytes at sm80_xmma_wgrad_implicit_gemm_indexed_bf16+0x5a0"
    )


@pytest.mark.parametrize(
    "text",
    ["", "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", "=========\n"],
)
def test_a_tool_that_found_nothing_reports_nothing(text: str) -> None:
    assert first_report(text) == ""


def test_a_missing_tool_is_no_verdict_on_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.compute_sanitizer.find", lambda: None)
    with pytest.raises(
        SanitizerMissing, match="mode='racecheck', but there is no compute-sanitizer"
    ):
        run("convt3d", parse_case("f32_int_racecheck"))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES])
def test_separate_memory_holds_values_and_sees_changes(dtype: str, channels_last: bool) -> None:
    memory = SeparateMemory(torch.device("cpu"))
    raw = encode(np.arange(24.0).reshape(2, 3, 1, 2, 2), dtype)
    (tensor,) = memory.begin([Placed("weight", raw, DTYPES[dtype], channels_last)])
    assert tensor.double().flatten().tolist() == list(range(24))
    found, damage = memory.finish({"output": tensor})
    assert damage == []
    assert np.array_equal(found["output"], raw)
    tensor[0, 0, 0, 0, 0] = 9
    assert memory.finish({})[1] == ["weight was overwritten"]
