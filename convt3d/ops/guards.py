"""What the dispatcher does with a call, and what it passes over for a while; PyTorch has no public names for it.

Note [The short way]
    The dispatcher takes a call of an operator that is written in Python through C++ and back twice, for autograd and
    for the kernel, which takes longer than a small kernel runs. Where it would do nothing else, the functions `run_*`
    of autograd.py call what it would call: an autograd.Function where a gradient is recorded, else the kernel. Whether
    it would is read from what decides it: the dispatch keys of the tensors, and those that this thread includes and
    excludes. What is remembered from call to call follows from shapes, strides, dtypes, devices, alignment, parameters,
    whether fp32 is rounded to TF32, and a forced plan; no tensor and no address is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

_C: Any = torch._C
_keys_of = _C._dispatch_keys
_included_keys = _C._dispatch_tls_local_include_set  # of this thread
_excluded_keys = _C._dispatch_tls_local_exclude_set
# Older versions of PyTorch cannot tell a function that it is being compiled, or the bits of dispatch keys.
_HAS_KEYS = all(
    (
        hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling"),
        hasattr(_C.DispatchKeySet, "raw_repr"),
    )
)
# PyTorch's stubs know nothing of it.
_is_profiled: Callable[[], bool] = getattr(torch.autograd, "_profiler_enabled")  # noqa: B009


def _bits(*names: str) -> int:
    """The dispatch keys of those names, a bit each."""
    bits = 0
    for name in names if _HAS_KEYS else ():
        bits |= _C.DispatchKeySet(getattr(_C.DispatchKey, name)).raw_repr()
    return bits


# Each is a kind of work and a kind of device, in bits of their own.
_DEVICE_BITS = _bits("CPU", "CUDA") & _bits("AutogradCPU", "AutogradCUDA")
_RECORDING_BITS = _bits("AutogradCPU") & ~_DEVICE_BITS
_PLAIN_BITS = _DEVICE_BITS | _RECORDING_BITS | _bits("CPU", "ADInplaceOrView", "BackendSelect")
_AUTOCAST_BITS = _bits("AutocastCPU", "AutocastCUDA")


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would do nothing with a call on them but record it, and call a kernel for CPU or CUDA."""
    if not _HAS_KEYS or torch.compiler.is_compiling() or has_torch_function(tensors):
        return False
    if forward_ad._current_level >= 0 or _is_profiled():
        return False
    bits = _included_keys().raw_repr()
    for tensor in tensors:
        if tensor is not None:
            bits |= _keys_of(tensor).raw_repr()
    # All tensors have keys of autocast. It is off where they are excluded.
    return not bits & ~_PLAIN_BITS & ~(_AUTOCAST_BITS & _excluded_keys().raw_repr())


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would record a call on these plain tensors for autograd."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return not _excluded_keys().raw_repr() & _RECORDING_BITS
    return False


def below_autograd() -> AbstractContextManager[Any]:
    """Within it an operator's Autograd kernel is passed over."""
    guard: Any = torch._C._AutoDispatchBelowAutograd()
    # PyTorch 2.0's is no context manager: it holds from its birth to its death.
    return guard if hasattr(guard, "__enter__") else nullcontext(guard)


def excluding(key: str) -> AbstractContextManager[Any]:
    """Within it an operator's kernel of that dispatch key is passed over."""
    exclude: Any = torch._C._dispatch_tls_set_dispatch_key_excluded
    stack = ExitStack()
    stack.callback(exclude, key, torch._C._dispatch_tls_is_dispatch_key_excluded(key))
    exclude(key, True)
    return stack
