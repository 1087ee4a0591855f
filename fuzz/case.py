"""Cases and case strings.

A case string is one line of tokens joined by `_`, safe in a shell, in a file and in a pytest id:

    f16_n1_g1_ci2_co3_i2x3x4_k3_s2_p1_op1_d1_bias_cl_int_seed7

    dtype            f64 f32 tf32 f16 bf16
    n g ci co        batch size, groups, input channels, output channels
    i k s p op d     input size, kernel size, stride, padding, output padding, dilation (1 = none);
                     three numbers as in 2x3x4, or one for three equal axes
    bias, nobias     whether there is a bias
    ncdhw, cl, far   memory layout; cl is channels_last_3d; far: one axis of each tensor has a stride above
                     2^31 elements (on the emulator only, where memory that nobody touches costs nothing)
    lane             int normal special: what the data are
    seed             of the data
    fwd= gin= gwt=   plans of forward, grad_input, grad_weight
    mode             fast; hostile asan tsan: of the emulator; delayed: on a GPU, on a side stream behind a
                     delay; memcheck racecheck initcheck synccheck: on a GPU, under that tool of compute-sanitizer
    sched            seed of the schedule in the modes hostile, asan and tsan

The minimal form leaves out what has its default value, except dtype and lane; the canonical form
prints every token. The parser takes tokens in any order, each at most once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from string import ascii_lowercase, digits
from typing import Any

from fuzz.number import DTYPES
from reference import Parameters, output_size

Triple = tuple[int, int, int]

LAYOUTS = ("ncdhw", "cl", "far")
# A sanitizer copies what lies between the first element and the last; a GPU has no memory to spare.
FAR_MODES = ("fast", "hostile")
LANES = ("int", "normal", "special")
EMULATOR_MODES = ("fast", "hostile", "asan", "tsan")
GPU_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # of compute-sanitizer
GPU_MODES = ("fast", "delayed", *GPU_TOOLS)
MODES = (*EMULATOR_MODES, *GPU_MODES[1:])
DEVICE_MODES = {"emulator": EMULATOR_MODES, "cuda": GPU_MODES}

# In the order of printing: field -> what stands before its value.
_PREFIXES = {
    "dtype": "",
    "n": "n",
    "groups": "g",
    "in_channels": "ci",
    "out_channels": "co",
    "input_size": "i",
    "kernel_size": "k",
    "stride": "s",
    "padding": "p",
    "output_padding": "op",
    "dilation": "d",
    "bias": "",
    "layout": "",
    "lane": "",
    "seed": "seed",
    "forward_plan": "fwd=",
    "grad_input_plan": "gin=",
    "grad_weight_plan": "gwt=",
    "mode": "",
    "schedule": "sched",
}
_FIELDS = {prefix: field for field, prefix in _PREFIXES.items() if prefix}
_AXES = ("input_size", "kernel_size", "stride", "padding", "output_padding", "dilation")
_PLANS = ("forward_plan", "grad_input_plan", "grad_weight_plan")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": DTYPES,
    "bias": (False, True),
    "layout": LAYOUTS,
    "lane": LANES,
    "mode": MODES,
}
_RANGES = {
    "padding": (0, 2**31 - 1),
    "output_padding": (0, 2**31 - 1),
    "seed": (0, 2**63 - 1),
    "schedule": (0, 2**62 - 1),  # what the emulator takes
}
_POSITIVE = (1, 2**31 - 1)
_ALWAYS_PRINTED = ("dtype", "lane")


class CaseError(ValueError):
    """A case string that is not a case, or values that do not make one."""


@dataclass(frozen=True)
class Case:
    """Everything that decides a run, and nothing else; the axes are depth, height, width.

    Raises:
        CaseError: a value out of range, or values that do not go together.
    """

    dtype: str = "f32"
    n: int = 1
    groups: int = 1
    in_channels: int = 1
    out_channels: int = 1
    input_size: Triple = (1, 1, 1)
    kernel_size: Triple = (1, 1, 1)
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    output_padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    bias: bool = False
    layout: str = "ncdhw"
    lane: str = "int"
    seed: int = 0
    forward_plan: str = "auto"
    grad_input_plan: str = "auto"
    grad_weight_plan: str = "auto"
    mode: str = "fast"
    schedule: int = 0

    def __post_init__(self) -> None:
        for field in _PREFIXES:
            _check_value(field, getattr(self, field))
        _check_possible(self)

    def __str__(self) -> str:
        return format_case(self)

    @property
    def parameters(self) -> Parameters:
        return Parameters(
            self.stride, self.padding, self.output_padding, self.dilation, self.groups
        )

    @property
    def output_size(self) -> Triple:
        return output_size(self.input_size, self.kernel_size, self.parameters)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.n, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.n, self.out_channels, *self.output_size)

    @property
    def elements(self) -> int:
        """Of input and weight together."""
        return math.prod(self.input_shape) + math.prod(self.weight_shape)

    @property
    def is_beyond_torch(self) -> bool:
        """Whether PyTorch's op gets the output size wrong: it adds 64-bit numbers to 2 * padding and to
        dilation * (kernel_size - 1) + 1 in 32 bits, which is right only where the errors cancel."""
        terms = zip(self.padding, self.dilation, self.kernel_size)
        return any(_error_32(d * (k - 1) + 1) != _error_32(2 * p) for p, d, k in terms)

    def on(self, device: str) -> Case:
        """The case as it runs there: without a mode or a layout that the device does not have.

        Args:
            device: one of DEVICE_MODES.
        """
        mode = self.mode if self.mode in DEVICE_MODES[device] else "fast"
        is_far = self.layout == "far" and device == "cuda"
        return replace(self, mode=mode, layout="ncdhw" if is_far else self.layout)

    @property
    def multiply_adds(self) -> int:
        """Products of an input element and a weight, those that padding crops away included."""
        return self.n * math.prod(self.input_size) * math.prod(self.weight_shape)


def _error_32(value: int) -> int:
    """What a number loses in 32 bits."""
    return value - ((value + 2**31) % 2**32 - 2**31)


def format_case(case: Case, canonical: bool = False) -> str:
    """Returns the case string; parse_case gives the case back.

    Args:
        case: any case.
        canonical: print every token; otherwise leave out those that have their default value.
    """
    return "_".join(
        format_token(field.name, value)
        for field in fields(case)
        if (value := getattr(case, field.name)) != field.default
        or canonical
        or field.name in _ALWAYS_PRINTED
    )


def parse_case(text: str) -> Case:
    """Returns the case of a case string, minimal or canonical.

    Raises:
        CaseError: a token that is unknown, malformed, repeated, out of range or impossible; the
            message names it.
    """
    values: dict[str, Any] = {}
    given: dict[str, str] = {}
    for token in text.split("_"):
        field, value = _parse_token(token)
        if field in given:
            raise CaseError(f"token {token!r} repeats {field}: {given[field]!r} gave it already")
        given[field] = token
        values[field] = value
    return Case(**values)


def format_token(field: str, value: Any) -> str:
    """Returns the token of one field of a case."""
    if field == "bias":
        return "bias" if value else "nobias"
    if field in _AXES:
        value = value[0] if len(set(value)) == 1 else "x".join(map(str, value))
    return f"{_PREFIXES[field]}{value}"


# Tokens that are words: word -> field, value.
_WORDS = {
    format_token(field, value): (field, value)
    for field, values in _CHOICES.items()
    for value in values
}


def _parse_token(token: str) -> tuple[str, Any]:
    """Returns field and value of one token."""
    if token in _WORDS:
        return _WORDS[token]
    letters = len(token) - len(token.lstrip(ascii_lowercase))
    if token[letters : letters + 1] == "=":
        letters += 1
    field, text = _FIELDS.get(token[:letters]), token[letters:]
    if field is None:
        prefixes = ", ".join(f"{prefix}..." for prefix in _FIELDS)
        raise CaseError(
            f"token {token!r} is unknown, must be one of {', '.join(_WORDS)}, {prefixes}"
        )
    value: Any = text
    if field in _AXES:
        sizes = [_parse_number(part, token) for part in text.split("x")]
        if len(sizes) not in (1, 3):
            raise CaseError(f"token {token!r} has {len(sizes)} axes, but must have 3, or 1 for all")
        value = tuple(sizes * (3 // len(sizes)))
    elif field not in _PLANS:
        value = _parse_number(text, token)
    _check_value(field, value, token)
    return field, value


def _parse_number(text: str, token: str) -> int:
    # One spelling a number; int() alone takes "+1", "1 " and the digits of other scripts.
    if not text or text.strip(digits) or (text[0] == "0" and text != "0") or len(text) > 19:
        raise CaseError(
            f"token {token!r} has {text!r} for a number, but must have up to 19 digits, "
            "without sign or leading zeros"
        )
    return int(text)


def _check_value(field: str, value: Any, token: str | None = None) -> None:
    """Raises CaseError if the value is not one of the field's, whatever the other fields are."""
    where = f"token {token!r}: " if token else ""
    if field in _CHOICES:
        allowed = _CHOICES[field]
        if value not in allowed or type(value) is not type(allowed[0]):
            raise CaseError(f"{where}{field}={value!r}, but must be one of {allowed}")
        return
    if field in _PLANS:
        if not isinstance(value, str) or not value or value.strip(ascii_lowercase + digits + "."):
            raise CaseError(f"{where}{field}={value!r}, but must be made of a-z, 0-9 and '.'")
        return
    if field in _AXES and not (isinstance(value, tuple) and len(value) == 3):
        raise CaseError(f"{where}{field}={value!r}, but must be a tuple of three numbers")
    least, most = _RANGES.get(field, _POSITIVE)
    for number in value if field in _AXES else (value,):
        if type(number) is not int or not least <= number <= most:
            raise CaseError(f"{where}{field}={value!r}, but must be from {least} to {most}")


def _check_possible(case: Case) -> None:
    """Raises CaseError if the values, each right alone, do not go together."""
    for field in ("in_channels", "out_channels"):
        channels = getattr(case, field)
        if channels % case.groups:
            raise CaseError(
                f"token {format_token('groups', case.groups)!r}: groups={case.groups}, but must divide "
                f"{field}={channels} (token {format_token(field, channels)!r})"
            )
    if case.layout == "far" and case.mode not in FAR_MODES:
        raise CaseError(f"token 'far': mode={case.mode!r}, but must be one of {FAR_MODES}")
    for axis, extra in enumerate(case.output_padding):
        stride, dilation = case.stride[axis], case.dilation[axis]
        if extra >= max(stride, dilation):
            raise CaseError(
                f"token {format_token('output_padding', case.output_padding)!r}: "
                f"output_padding[{axis}]={extra}, but must be less than "
                f"stride[{axis}]={stride} or dilation[{axis}]={dilation}"
            )
    for axis, size in enumerate(case.output_size):
        if size < 1:
            padding = case.padding[axis]
            raise CaseError(
                f"token {format_token('padding', case.padding)!r}: padding[{axis}]={padding} makes "
                f"output_size[{axis}]={size}, but must be at most {padding + (size - 1) // 2}"
            )
