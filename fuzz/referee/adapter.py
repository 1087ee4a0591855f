"""Calls somebody's function or class with the arguments of a case; runs in the worker.

What an implementation has no argument for, or cannot take in that form, it refuses: NotImplementedError.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.arena import DTYPES
from fuzz.case import Case
from fuzz.referee.signatures import Values, arranged, is_bare, signature_of

# What Python, PyTorch's operators and autograd functions say of a call in another form than theirs.
_IS_MISFIT = re.compile(
    r"missing \d+ required|missing value for argument|takes no keyword arguments|"
    r"positional-only arguments passed as keyword"
)
# What an argument that is missing stands for.
_DEFAULTS: dict[str, Any] = {
    "stride": (1, 1, 1),
    "padding": (0, 0, 0),
    "output_padding": (0, 0, 0),
    "groups": 1,
    "dilation": (1, 1, 1),
    "bias": False,
}


@dataclass(frozen=True)
class Bound:
    """An implementation with its weights: call(input) is the output.

    Args:
        call: takes the input.
        weight, bias: the tensors whose gradients are asked for.
    """

    call: Callable[[Tensor], Any]
    weight: Tensor
    bias: Tensor | None


class _Given(Enum):
    """Stands for a tensor until there is one."""

    INPUT = "input"
    WEIGHT = "weight"
    BIAS = "bias"


class BuiltFunction:
    """A function and the parameters of a case."""

    def __init__(self, function: Callable[..., Any], case: Case, device: torch.device) -> None:
        self._function = function
        given = {
            "input": _Given.INPUT,
            "weight": _Given.WEIGHT,
            "bias": _Given.BIAS if case.bias else None,
            **_settings(case),
        }
        values = Values(
            given,
            leading=("input", "weight", "bias"),
            required=("input", "weight"),
            defaults=_DEFAULTS,
            spare=_spare(case, device),
        )
        self._forms = [arranged(signature_of(function), values)]
        if is_bare(function):
            # It does not say what it wraps: perhaps what needs every value, or takes none by name.
            self._forms += [([], given), ([*given.values()], {})]

    def bind(self, weight: Tensor, bias: Tensor | None) -> Bound:
        """Returns the function with its weights."""

        def call(input: Tensor) -> Any:
            tensors = {_Given.INPUT: input, _Given.WEIGHT: weight, _Given.BIAS: bias}

            def filled(value: Any) -> Any:
                return tensors[value] if isinstance(value, _Given) else value

            positional, keywords = self._forms[0]
            try:
                return self._function(
                    *map(filled, positional),
                    **{name: filled(value) for name, value in keywords.items()},
                )
            except (TypeError, RuntimeError) as error:
                if len(self._forms) == 1 or not _IS_MISFIT.search(str(error)):
                    raise
            del self._forms[0]
            return call(input)

        return Bound(call, weight, bias)


class BuiltModule:
    """An object of a class, made with the parameters of a case."""

    def __init__(self, cls: type[nn.Module], case: Case, device: torch.device) -> None:
        settings = _settings(case)
        dilation = settings.pop("dilation")
        given = {  # in the order of torch.nn.ConvTranspose3d
            "in_channels": case.in_channels,
            "out_channels": case.out_channels,
            "kernel_size": case.kernel_size,
            **settings,
            "bias": case.bias,
            "dilation": dilation,
        }
        values = Values(
            given,
            leading=("in_channels", "out_channels", "kernel_size"),
            required=(),
            defaults=_DEFAULTS,
            explicit=("bias",),
            spare=_spare(case, device),
        )
        positional, keywords = arranged(signature_of(cls), values)
        module = cls(*positional, **keywords)
        self._module = module.to(device=device, dtype=DTYPES[case.dtype])
        self._weight = _parameter(module, case.weight_shape, "weight")
        self._bias = _parameter(module, (case.out_channels,), "bias") if case.bias else None
        if not case.bias:
            _clear_bias(module, case.out_channels)

    def bind(self, weight: Tensor, bias: Tensor | None) -> Bound:
        """Returns the object, whose parameters are from now on these tensors' memory."""
        _hold(self._weight, weight)
        if self._bias is not None and bias is not None:
            _hold(self._bias, bias)
        return Bound(self._module, self._weight, self._bias)


Built = BuiltFunction | BuiltModule


def build(implementation: Any, case: Case, device: torch.device) -> Built:
    """Returns the implementation with a case's parameters.

    Raises:
        NotImplementedError: it has no argument for one of them, or takes it in another form.
    """
    if inspect.isclass(implementation) and issubclass(implementation, nn.Module):
        return BuiltModule(implementation, case, device)
    return BuiltFunction(implementation, case, device)


def _settings(case: Case) -> dict[str, Any]:
    """In the order of torch.nn.functional.conv_transpose3d's arguments."""
    return {
        name: getattr(case, name)
        for name in ("stride", "padding", "output_padding", "groups", "dilation")
    }


def _spare(case: Case, device: torch.device) -> dict[str, Any]:
    """For arguments that an implementation may ask for, though its tensors say it all."""
    return {"device": device, "dtype": DTYPES[case.dtype]}


def _parameter(module: nn.Module, shape: tuple[int, ...], word: str) -> nn.Parameter:
    """The module's parameter of a shape; if there are several, the only one whose name ends in the word."""
    named = {n: p for n, p in module.named_parameters() if tuple(p.shape) == shape}
    if len(named) != 1:
        named = {n: p for n, p in named.items() if n.rpartition(".")[2] == word} or named
    if len(named) != 1:
        shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
        raise NotImplementedError(
            f"{word} of shape {shape} must be one of the module's parameters, but they are {shapes}"
        )
    return next(iter(named.values()))


def _hold(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Makes a parameter of a tensor's memory, and a new version of it, as an optimizer's step does."""
    parameter.data = tensor
    parameter.requires_grad_(tensor.requires_grad)
    increment = getattr(torch.autograd.graph, "increment_version", None)  # not in older versions
    if increment is not None:
        increment(parameter)


def _clear_bias(module: nn.Module, out_channels: int) -> None:
    """A module without an argument for it may have a bias where the case has none: it becomes zero."""
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] == "bias" and tuple(parameter.shape) == (out_channels,):
            parameter.data.zero_()
