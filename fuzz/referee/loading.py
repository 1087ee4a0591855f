"""Finds the implementation in a Python file; runs in the worker."""

from __future__ import annotations

import hashlib
import inspect
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

# What an implementation is usually called, in the order in which it is looked for.
USUAL_NAMES = ("ModelNew", "conv_transpose3d")


class LoadError(Exception):
    """The file holds no implementation, or several."""


def load(path: Path, name: str = "") -> Any:
    """Imports a file under a name of its own and returns the implementation in it.

    Args:
        path: of a Python file; its directory is where it may import from, after everything else.
        name: of a function or a class. Empty for what the file itself defines: a class ModelNew, else a function
            conv_transpose3d, else its only subclass of torch.nn.Module; else for one of these two names that it
            has from elsewhere, such as a compiled extension.

    Raises:
        LoadError: there is no such thing, or it cannot be told which.
        Exception: whatever the file itself raises.
    """
    module = _import(path)
    if name:
        return _named(module, name)
    own = {
        key: value
        for key, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and callable(value)
    }
    usual = [vars(module)[key] for key in USUAL_NAMES if callable(vars(module).get(key))]
    classes = [
        value for value in own.values() if inspect.isclass(value) and issubclass(value, nn.Module)
    ]
    for found in ([own[key] for key in USUAL_NAMES if key in own][:1], classes, usual[:1]):
        if len(found) == 1:
            return found[0]
    names = ", ".join(cls.__name__ for cls in classes) or "none"
    raise LoadError(
        f"no implementation in {path.name}: it must hold a class ModelNew, a function conv_transpose3d, or one "
        f"subclass of torch.nn.Module (found {names}); or give its name, as in {path.name}:NAME"
    )


def describe(implementation: Any) -> str:
    """For reports: "class ModelNew" or "function conv_transpose3d"."""
    kind = "class" if inspect.isclass(implementation) else "function"
    return f"{kind} {getattr(implementation, '__name__', type(implementation).__name__)}"


def _import(path: Path) -> ModuleType:
    name = f"candidate_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is no Python file: its name must end in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look there
    sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module


def _named(module: ModuleType, name: str) -> Any:
    implementation = getattr(module, name, None)
    if implementation is None:
        raise LoadError(f"no {name} in {module.__file__}")
    if inspect.isclass(implementation) and not issubclass(implementation, nn.Module):
        raise LoadError(f"class {name} must be a subclass of torch.nn.Module, but is not")
    if isinstance(implementation, nn.Module) or not callable(implementation):
        raise LoadError(
            f"{name} is a {type(implementation).__name__}, but must be a function or a class"
        )
    return implementation
