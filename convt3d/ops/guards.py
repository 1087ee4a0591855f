"""What the dispatcher passes over for a while: context managers for which PyTorch has no public name."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch


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
