"""The exported file in KernelBench's seven tasks: from one seed it gives what the task's own model gives."""

from __future__ import annotations

import pytest
import torch

from tests import kernelbench

TRIALS = 5


@pytest.mark.parametrize("dtype", kernelbench.TOLERANCES, ids=str)
@pytest.mark.parametrize("number", kernelbench.TASKS)
def test_the_exported_file_agrees_with_the_task(number: int, dtype: torch.dtype) -> None:
    native, ours = (model.to("cuda", dtype) for model in kernelbench.models(number))
    tolerance = kernelbench.TOLERANCES[dtype]
    # With TF32, which is the default, native itself misses the tolerance in all tasks but 72.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for seed in range(TRIALS):
            x = kernelbench.draw(number, seed).to("cuda", dtype)
            expected, got = native(x), ours(x)
            assert got.shape == expected.shape
            assert torch.allclose(expected, got, atol=tolerance, rtol=tolerance)
