"""`replace` and `restore`: a model's nn.ConvTranspose3d modules become convt3d's and back, where they stand.

Only the class of a module changes. Parameters, buffers, hooks, names, optimizers and whatever else refers to the module
stay as they are, and so does its pickled state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.nn.utils import parametrize

from convt3d.modules import ConvTranspose3d


@dataclass(frozen=True)
class Swap:
    """What `replace` or `restore` did; `str` says it in lines.

    Args:
        swapped: qualified names of the modules that were swapped; "" is the model itself.
        left: qualified name -> why a module that might have been meant was left as it is.
    """

    swapped: tuple[str, ...]
    left: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} swapped"]
        lines += [f"  {name or '(the model itself)'}" for name in self.swapped]
        if self.left:
            lines.append(f"{len(self.left)} left")
            lines += [f"  {name or '(the model itself)'}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def replace(model: torch.nn.Module) -> Swap:
    """Makes every torch.nn.ConvTranspose3d of a model a convt3d.ConvTranspose3d, in place.

    Left as they are: modules of a class of their own derived from it, modules whose forward was replaced, and lazy
    modules that have not run yet. Parametrized modules are swapped.

    Args:
        model: any module; what it shares with other models is swapped for them too.

    Returns:
        The names of what was swapped, and of what was left, with the reason.

    Raises:
        TypeError: model is not a torch.nn.Module.
    """
    return _swap(model, torch.nn.ConvTranspose3d, ConvTranspose3d)


def restore(model: torch.nn.Module) -> Swap:
    """Undoes `replace`: makes every convt3d.ConvTranspose3d of a model a torch.nn.ConvTranspose3d, in place.

    Args, Returns, Raises: as for `replace`.
    """
    return _swap(model, ConvTranspose3d, torch.nn.ConvTranspose3d)


def _swap(model: torch.nn.Module, old: type, new: type) -> Swap:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but must be a torch.nn.Module")
    swapped: list[str] = []
    left: dict[str, str] = {}
    module: torch.nn.Module
    for name, module in model.named_modules():
        if not isinstance(module, old) or (isinstance(module, new) and issubclass(new, old)):
            continue
        reason = _reason_to_leave(module, old)
        if reason:
            left[name] = reason
            continue
        if type(module) is old:
            module.__class__ = new
        else:
            module.__class__ = _parametrized_class(type(module), new)
        swapped.append(name)
    return Swap(tuple(swapped), left)


def _reason_to_leave(module: torch.nn.Module, old: type) -> str:
    """Why a module cannot be swapped by its class alone; empty if it can."""
    cls = type(module)
    if "forward" in vars(module):
        return "its forward was replaced"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
        return "it is lazy and has no parameters yet: run the model once first"
    if cls is old or (parametrize.is_parametrized(module) and cls.__bases__ == (old,)):
        return ""
    return f"its class {cls.__module__}.{cls.__qualname__} may do more than {old.__name__}"


def _parametrized_class(cls: type, base: type) -> type:
    """The class that torch.nn.utils.parametrize has made for one module, on another base."""
    own = {
        name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")
    }
    return type(cls.__name__, (base,), own)
