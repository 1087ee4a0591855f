"""Autocast: within it the forward operator casts its operands to the lower precision, as PyTorch's own op does.

The gradients then come in that precision by themselves, and autograd casts them back to that of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convt3d.ops import guards
from convt3d.ops.primitives import LIBRARY, OPERATORS


def lower_precision(device_type: str) -> torch.dtype:
    """Returns the dtype that autocast casts to on "cpu" or "cuda"."""
    if hasattr(torch, "get_autocast_dtype"):  # PyTorch 2.4 and newer
        return torch.get_autocast_dtype(device_type)
    return (
        torch.get_autocast_gpu_dtype() if device_type == "cuda" else torch.get_autocast_cpu_dtype()
    )


def _cast(tensor: Tensor | None, device_type: str, dtype: torch.dtype) -> Tensor | None:
    """Casts what autocast may cast: no float64, no complex numbers and no tensor of another device."""
    if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype) if tensor.device.type == device_type else tensor


def _autocast_kernel(device_type: str, key: str) -> Callable[..., Tensor]:
    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Tensor:
        dtype = lower_precision(device_type)
        operands = [_cast(tensor, device_type, dtype) for tensor in (input, weight, bias)]
        with guards.excluding(key):
            return OPERATORS.forward(*operands, *parameters)

    return kernel


for _key, _device_type in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
    LIBRARY.impl("forward", _autocast_kernel(_device_type, _key), _key)
