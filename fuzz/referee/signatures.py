"""How to call somebody's function or class: which of a case's values goes to which argument; runs in the worker.

Note [Arguments]
An argument is known by its name, PyTorch's or a usual short one, whatever the case and underscores; the input and the
weight of a function by position too. **kwargs takes what has no argument of its own, under PyTorch's name; *args takes
it in PyTorch's order. Where there are both, as wrappers have, they get no value that is PyTorch's default, so that what
is wrapped need not have every argument; what shows nothing else and turns out to need them gets all by name, and if it
takes none by name, all by position.

Refused is, with the argument's name, a value other than the default that there is no argument for, and an argument
without a default that a case has no value for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

Signature = Mapping[str, inspect.Parameter]

# Other names, in small letters and without underscores, for what PyTorch calls so.
_ALIASES: dict[str, tuple[str, ...]] = {
    "input": ("x", "inp"),
    "weight": ("w", "weights", "filter", "filters"),
    "bias": ("b", "usebias", "hasbias", "withbias"),
    "in_channels": ("inchannel", "inch", "inc", "cin", "ci", "ic", "inplanes", "inputchannels"),
    "out_channels": (
        "outchannel",
        "outch",
        "outc",
        "cout",
        "co",
        "oc",
        "outplanes",
        "outputchannels",
    ),
    "kernel_size": ("kernel", "kernels", "ksize", "ks", "k"),
    "stride": ("strides", "s"),
    "padding": ("paddings", "pad", "p"),
    "output_padding": ("outputpad", "outpadding", "outpad", "opad", "op"),
    "groups": ("group", "numgroups", "ngroups", "g"),
    "dilation": ("dilations", "dil", "d"),
}
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Values:
    """What there is to be passed on, by PyTorch's names and in PyTorch's order.

    Args:
        given: name -> value.
        leading: names of the first arguments of any call.
        required: names without which a call makes no sense.
        defaults: name -> what a missing argument stands for.
        explicit: names that wrappers get even with their default, for there are two customs about it.
        spare: name -> value for an argument that has no default, where there is one.
    """

    given: Mapping[str, Any]
    leading: tuple[str, ...]
    required: tuple[str, ...]
    defaults: Mapping[str, Any]
    explicit: tuple[str, ...] = ()
    spare: Mapping[str, Any] = field(default_factory=dict)

    def is_default(self, name: str) -> bool:
        """Whether a value need not be passed on."""
        if name in self.leading:
            return name not in self.required and self.given[name] is None
        return bool(name in self.defaults and self.given[name] == self.defaults[name])


def signature_of(function: Any) -> Signature | None:
    """The arguments; None of a compiled function, which says nothing about them."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def is_bare(function: Any) -> bool:
    """Whether it shows *args and **kwargs alone: a wrapper, or an operator of PyTorch's."""
    signature = signature_of(function)
    return signature is not None and {p.kind for p in signature.values()} == {*_COLLECTING}


def arranged(signature: Signature | None, values: Values) -> tuple[list[Any], dict[str, Any]]:
    """The positional arguments and the keyword arguments of a call.

    Raises:
        NotImplementedError: Note [Arguments].
    """
    if signature is None:
        return [*values.given.values()], {}
    named = _named(signature, values)
    passed = {
        argument: _formed(signature[argument], values.given[name])
        for name, argument in named.items()
    }
    rest = [name for name in values.given if name not in named]
    collected, keywords = _collected(signature, rest, values)
    passed |= _spare(signature, passed, values)
    leading = {named[name] for name in values.leading if name in named}
    positional = _positional(signature, passed, leading, bool(collected))
    for name in [*positional]:
        passed.pop(name, None)
    return [*positional.values(), *collected], {**passed, **keywords}


def _named(signature: Signature, values: Values) -> dict[str, str]:
    """PyTorch's name -> the argument that it is known by: Note [Arguments]."""
    free = [p.name for p in signature.values() if p.kind not in _COLLECTING]
    named = {name: name for name in values.given if name in free}
    for name in values.given:
        usual = (_plain(name), *_ALIASES[name])
        found = [argument for argument in free if _plain(argument) in usual]
        if name not in named and found:
            named[name] = found[0]
    if not values.required:  # what stands first in a constructor may be anything
        return named
    for name, argument in zip(values.leading, free):
        is_taken = argument in named.values() or argument in values.spare
        has_default = signature[argument].default not in (inspect.Parameter.empty, None)
        if name not in named and not is_taken and not has_default:
            named[name] = argument
    return named


def _shown(signature: Signature) -> str:
    """As it stands in the source: "(x, w, *, stride)", without annotations and defaults."""
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.values()]
    return str(inspect.Signature(bare, __validate_parameters__=False))


def _plain(argument: str) -> str:
    return argument.replace("_", "").lower()


def _collected(
    signature: Signature, rest: Sequence[str], values: Values
) -> tuple[list[Any], dict[str, Any]]:
    """What *args and **kwargs get, of the values that have no argument of their own."""
    kinds = {parameter.kind for parameter in signature.values()}
    by_position: list[str] = []
    by_keyword: list[str] = []
    needed = [name for name in rest if name in values.required or not values.is_default(name)]
    if kinds.issuperset(_COLLECTING):
        by_position = [name for name in rest if name in values.leading]
        by_keyword = [name for name in rest if name in needed or name in values.explicit]
        by_keyword = [name for name in by_keyword if name not in by_position]
    elif inspect.Parameter.VAR_KEYWORD in kinds:
        by_keyword = [name for name in rest if name in needed or name not in values.leading]
    elif inspect.Parameter.VAR_POSITIONAL in kinds and needed:
        order = [*values.given]
        until = order[order.index(rest[0]) : order.index(needed[-1]) + 1]
        by_position = [*takewhile(lambda name: name in rest, until)]
    for name in needed:
        is_passed = name in by_position or name in by_keyword
        if not is_passed and (name in values.required or name in values.defaults):
            what = f"{name} is given" if name in values.leading else f"{name}={values.given[name]}"
            raise NotImplementedError(
                f"{what}, but there is no argument {name}, only {_shown(signature)}"
            )
    return (
        [values.given[name] for name in by_position],
        {name: values.given[name] for name in by_keyword},
    )


def _spare(signature: Signature, passed: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Values for the arguments that have no default and none of a case's values."""
    spare = {}
    for name, parameter in signature.items():
        if (
            name in passed
            or parameter.kind in _COLLECTING
            or parameter.default is not parameter.empty
        ):
            continue
        if name not in values.spare:
            allowed = ", ".join([*values.given, *values.spare])
            raise NotImplementedError(
                f"argument {name} is required, but must have a default or be one of {allowed}"
            )
        spare[name] = values.spare[name]
    return spare


def _positional(
    signature: Signature, passed: Mapping[str, Any], leading: Collection[str], to_the_end: bool
) -> dict[str, Any]:
    """Argument -> value, of those that are passed by position.

    That is the leading ones as far as they come first, for a wrapper may know them by other names; whatever can
    come no other way; and all before a *args that gets something.
    """
    order = [p for p in signature.values() if p.kind in _BY_POSITION]
    count = next((i for i, p in enumerate(order) if p.name not in leading), len(order))
    for i, parameter in enumerate(order):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.name in passed:
            count = max(count, i + 1)
    return {
        parameter.name: passed.get(parameter.name, parameter.default)
        for parameter in order[: len(order) if to_the_end else count]
    }


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
