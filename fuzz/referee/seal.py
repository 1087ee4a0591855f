"""Notices when an implementation replaces what the referee itself uses in the worker: its own functions, NumPy's, the
clock, methods of torch.Tensor.

What cannot be noticed in one's own process: who writes to memory past Python, or replaces this module too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

_PACKAGES = ("fuzz", "reference")
# Of these PyTorch's own: others may be replaced by what an implementation imports.
_OF_TORCH = (
    (torch.autograd, "grad"),
    (torch, "roll"),
    (torch.cuda, "Event"),
    (torch.cuda, "synchronize"),
)


class _Part(NamedTuple):
    name: str
    owner: Mapping[str, Any]  # the dictionary of a module or a class
    key: str
    value: Any
    code: Any  # of a function

    def is_whole(self) -> bool:
        value = self.owner.get(self.key)
        return value is self.value and getattr(value, "__code__", None) is self.code


class Seal:
    """What there was when it was made."""

    def __init__(self) -> None:
        self._parts = [*_parts()]
        self._methods = {*vars(torch.Tensor)}

    def broken(self) -> str:
        """The name of something that is not what it was; empty if all is."""
        changed = (part.name for part in self._parts if not part.is_whole())
        new = (name for name in vars(torch.Tensor) if name not in self._methods)
        hidden = (f"Tensor.{name}" for name in new if hasattr(torch.Tensor.__base__, name))
        return next(changed, "") or next(hidden, "")


def _parts() -> Iterator[_Part]:
    own = [
        module
        for name, module in [*sys.modules.items()]
        if name.partition(".")[0] in _PACKAGES and isinstance(module, ModuleType)
    ]
    for module in (*own, np, time):
        yield from _callables(module.__name__, vars(module))
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__ and module in own:
                yield from _callables(f"{module.__name__}.{name}", vars(value))
    yield from _callables("Tensor", vars(torch.Tensor))
    for module, name in _OF_TORCH:
        yield _part(f"{module.__name__}.{name}", vars(module), name)


def _callables(name: str, owner: Mapping[str, Any]) -> Iterator[_Part]:
    for key, value in [*owner.items()]:
        if callable(value) or hasattr(value, "__get__"):
            yield _part(f"{name}.{key}", owner, key)


def _part(name: str, owner: Mapping[str, Any], key: str) -> _Part:
    value = owner[key]
    return _Part(name, owner, key, value, getattr(value, "__code__", None))
