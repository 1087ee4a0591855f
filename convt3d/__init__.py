"""convt3d: ConvTranspose3d for PyTorch with hand-written CUDA kernels, and an emulator that runs them on a CPU."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["ConvTranspose3d", "ModelNew", "conv_transpose3d", "replace", "restore"]

_HOMES = {
    "conv_transpose3d": "convt3d.functional",
    "ConvTranspose3d": "convt3d.modules",
    "ModelNew": "convt3d.modules",
    "replace": "convt3d.swap",
    "restore": "convt3d.swap",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when the op is used: `convt3d.plan` and `convt3d.geometry` do without."""
    if name not in _HOMES:
        raise AttributeError(f"module 'convt3d' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    return globals().setdefault(name, found)  # where it is found from now on
