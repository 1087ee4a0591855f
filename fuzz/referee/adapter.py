"""Calls somebody's function or class with the arguments of a case; runs in the worker.

What an implementation has no argument for, or cannot take in that form, it refuses: NotImplementedError.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.arena import DTYPES
from fuzz.case import Case

Signature = Mapping[str, inspect.Parameter]

_ONES, _ZEROS = (1, 1, 1), (0, 0, 0)
# What an argument that is missing stands for.
_DEFAULTS: dict[str, Any] = {
    "stride": _ONES,
    "padding": _ZEROS,
    "output_padding": _ZEROS,
    "groups": 1,
    "dilation": _ONES,
    "bias": False,
}
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY,)
_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_INPUT_NAMES = ("input", "x", "inp")
_WEIGHT_NAMES = ("weight", "w")
_BIAS_NAMES = ("bias", "b")


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


class BuiltFunction:
    """A function and the parameters of a case."""

    def __init__(self, function: Callable[..., Any], case: Case) -> None:
        self._function = function
        self._signature = _signature(function)
        self._settings = _settings(case)
        if self._signature is not None:
            self._names = _tensor_names(self._signature, case.bias)
            self._settings = _accepted(self._signature, self._settings, self._names)

    def bind(self, weight: Tensor, bias: Tensor | None) -> Bound:
        """Returns the function with its weights."""

        def call(input: Tensor) -> Any:
            tensors = (input, weight, bias)
            if self._signature is None:  # a compiled function says nothing about its arguments
                return self._function(*tensors, *self._settings.values())
            named = {name: tensor for name, tensor in zip(self._names, tensors) if name}
            values = {**named, **self._settings}
            first = [
                values.pop(p.name)
                for p in self._signature.values()
                if p.kind in _BY_POSITION and p.name in values
            ]
            return self._function(*first, **values)

        return Bound(call, weight, bias)


class BuiltModule:
    """An object of a class, made with the parameters of a case."""

    def __init__(self, cls: type[nn.Module], case: Case, device: torch.device) -> None:
        values = {
            "in_channels": case.in_channels,
            "out_channels": case.out_channels,
            "kernel_size": case.kernel_size,
            **_settings(case),
            "bias": case.bias,
        }
        signature = _signature(cls) or {}
        module = cls(**_accepted(signature, values, ()))
        self._module = module.to(device=device, dtype=DTYPES[case.dtype])
        self._weight = _parameter(module, case.weight_shape, "weight")
        self._bias = _parameter(module, (case.out_channels,), "bias") if case.bias else None
        if not case.bias:
            _clear_bias(module, case.out_channels)

    def bind(self, weight: Tensor, bias: Tensor | None) -> Bound:
        """Returns the object, whose parameters are from now on these tensors' memory."""
        self._weight.data = weight
        self._weight.requires_grad_(weight.requires_grad)
        if self._bias is not None and bias is not None:
            self._bias.data = bias
            self._bias.requires_grad_(bias.requires_grad)
        return Bound(self._module, self._weight, self._bias)


Built = BuiltFunction | BuiltModule


def build(implementation: Any, case: Case, device: torch.device) -> Built:
    """Returns the implementation with a case's parameters.

    Raises:
        NotImplementedError: it has no argument for one of them, or takes it in another form.
    """
    if inspect.isclass(implementation) and issubclass(implementation, nn.Module):
        return BuiltModule(implementation, case, device)
    return BuiltFunction(implementation, case)


def _settings(case: Case) -> dict[str, Any]:
    """In the order of torch.nn.functional.conv_transpose3d's arguments."""
    return {
        name: getattr(case, name)
        for name in ("stride", "padding", "output_padding", "groups", "dilation")
    }


def _signature(function: Any) -> Signature | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _tensor_names(signature: Signature, has_bias: bool) -> tuple[str, str, str]:
    """Names of the arguments for input, weight and bias: usual names, else the first three; "" for no bias."""
    names = [p.name for p in signature.values() if p.kind not in _COLLECTING]
    chosen: list[str] = []
    for position, usual in enumerate((_INPUT_NAMES, _WEIGHT_NAMES, _BIAS_NAMES)):
        name = next((name for name in usual if name in names), "")
        if not name and position < len(names) and names[position] not in _DEFAULTS:
            name = names[position]
        chosen.append(name)
    if not chosen[0] or not chosen[1]:
        raise NotImplementedError(f"arguments ({', '.join(names)}): none for input and weight")
    if has_bias and not chosen[2]:
        raise NotImplementedError(f"bias is given, but the arguments are ({', '.join(names)})")
    return chosen[0], chosen[1], chosen[2]


def _accepted(
    signature: Signature, values: dict[str, Any], tensors: tuple[str, ...]
) -> dict[str, Any]:
    """Of the values those that there is an argument for, in the form that it takes."""
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    accepted = {}
    for name, value in values.items():
        if name in signature:
            accepted[name] = _formed(signature[name], value)
        elif takes_any:
            accepted[name] = value
        elif name in _DEFAULTS and value != _DEFAULTS[name]:
            raise NotImplementedError(
                f"{name}={value}, but there is no argument {name}, only ({', '.join(signature)})"
            )
    for name, parameter in signature.items():
        is_required = parameter.default is parameter.empty and parameter.kind not in _COLLECTING
        if is_required and name not in accepted and name not in tensors:
            raise NotImplementedError(f"argument {name} is required, but a case has no such thing")
    return accepted


def _formed(parameter: inspect.Parameter, value: Any) -> Any:
    """A triple as the argument's annotation, or else its default, wants it: one int or three.

    Where nothing is said: one int if all three are equal, as most callers write it.
    """
    if not isinstance(value, tuple):
        return value
    annotation = "" if parameter.annotation is parameter.empty else parameter.annotation
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    words = set(re.findall(r"\w+", re.sub(r"(?i)(tuple|list|sequence)\[[^\]]*\]", r"\1", text)))
    takes_three = any(word.lower() in ("tuple", "list", "sequence") for word in words)
    if (takes_three and "int" not in words) or isinstance(parameter.default, tuple):
        return value
    if len(set(value)) == 1:
        return value[0]
    if words == {"int"}:
        raise NotImplementedError(f"{parameter.name}={value}, but it takes one int for all axes")
    return value


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


def _clear_bias(module: nn.Module, out_channels: int) -> None:
    """A module without an argument for it may have a bias where the case has none: it becomes zero."""
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] == "bias" and tuple(parameter.shape) == (out_channels,):
            parameter.data.zero_()
