"""What all tests on a GPU have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def strict_fp32() -> Iterator[None]:
    """fp32 is fp32, for native and for us: a test that wants TF32 says so."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
