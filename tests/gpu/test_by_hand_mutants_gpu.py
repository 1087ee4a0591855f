"""Planted bugs that only a GPU shows, or only two: each in a process of its own, which it may leave unusable."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

STREAM = """
import sys
from fuzz import checks, data, subjects
from fuzz.bounds import expect
from fuzz.case import parse_case
from fuzz.mutation.by_hand import MUTANTS
from fuzz.worker_process import attempt

subjects.warm_up("convt3d", ["fast"])
for mutant in MUTANTS:
    if mutant.name in sys.argv[1:]:
        mutant.patch().__enter__()
case = parse_case("f32_n2_ci9_co17_i5_k3_s2_p1_op1_bias_int_delayed")
outcome = attempt(subjects.convt3d, case)
print(checks.judge(case, expect(case, data.generate(case)), outcome, "convt3d").verdict)
"""

# Device 0 stays the current one.
DEVICE = """
import sys
import torch
import convt3d
from fuzz.mutation.by_hand import MUTANTS

for mutant in MUTANTS:
    if mutant.name in sys.argv[1:]:
        mutant.patch().__enter__()
x, weight = torch.randn(2, 9, 5, 5, 5), torch.randn(9, 17, 3, 3, 3)
right = convt3d.conv_transpose3d(x.to("cuda:0"), weight.to("cuda:0")).cpu()
try:
    there = convt3d.conv_transpose3d(x.to("cuda:1"), weight.to("cuda:1")).cpu()
    print("pass" if torch.equal(there, right) else "wrong")
except RuntimeError:
    print("crashed")
"""


def run(script: str, *mutants: str) -> str:
    """The verdict that a script prints, with these mutants planted."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *mutants], capture_output=True, text=True, timeout=600
    )
    assert ran.stdout, ran.stderr[-4000:]
    return ran.stdout.split()[-1]


def test_the_default_stream_is_too_early_for_data_of_another() -> None:
    assert run(STREAM) == "pass"
    assert run(STREAM, "default_stream_used") == "wrong"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_current_device_is_not_the_tensors() -> None:
    """Without access to the other device's memory a launch there fails; with it, nothing would show."""
    assert run(DEVICE) == "pass"
    assert run(DEVICE, "current_device_used") in ("wrong", "crashed")
