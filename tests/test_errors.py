"""A wrong argument raises before anything is allocated or launched, by name and value, as the type native raises."""

from __future__ import annotations

import ctypes
import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import build, launch, plan
from convt3d import ops as _ops  # noqa: F401  registers torch.ops.convt3d


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


INPUT = ones(2, 4, 3, 3, 3)
WEIGHT = ones(4, 6, 3, 3, 3)
BIAS = ones(6)
RIGHT: dict[str, Any] = {"input": INPUT, "weight": WEIGHT, "bias": BIAS}

# What the message must hold -> the arguments that are unlike RIGHT.
WRONG_SHAPES: dict[str, dict[str, Any]] = {
    "input has 3 dimensions, but must have 5": {"input": ones(3, 3, 3)},
    "input has 6 dimensions, but must have 5": {"input": ones(1, 2, 4, 3, 3, 3)},
    "input has 3 channels, but weight, of shape (4, 6, 3, 3, 3), is for 4": {
        "input": ones(2, 3, 3, 3, 3)
    },
    "input has 2 channels, but weight": {"input": ones(2, 3, 3, 3)},
    "weight has 4 dimensions, but must have 5": {"weight": ones(6, 3, 3, 3)},
    "weight has 6 dimensions, but must have 5": {"weight": ones(1, 4, 6, 3, 3, 3)},
    "input has 4 channels, but weight, of shape (5, 6, 3, 3, 3), is for 5": {
        "weight": ones(5, 6, 3, 3, 3)
    },
    "bias has shape (5,), but must have shape (6,)": {"bias": ones(5)},
    "bias has shape (6, 1), but must have shape (6,)": {"bias": ones(6, 1)},
    "bias has shape (), but must have shape (6,)": {"bias": ones()},
    "bias has shape (6,), but must have shape (12,)": {"groups": 2},
    "in_channels=0, but must be at least 1": {
        "input": ones(2, 0, 3, 3, 3),
        "weight": ones(0, 6, 3, 3, 3),
    },
    "input_size[1]=0, but must be at least 1": {"input": ones(2, 4, 3, 0, 3)},
    "kernel_size[2]=0, but must be at least 1": {"weight": ones(4, 6, 3, 3, 0)},
}
WRONG_NUMBERS: dict[str, dict[str, Any]] = {
    "stride[0]=0, but must be at least 1": {"stride": 0},
    "stride[2]=-1, but must be at least 1": {"stride": (1, 1, -1)},
    "dilation[1]=0, but must be at least 1": {"dilation": (1, 0, 1)},
    "dilation[0]=-3, but must be at least 1": {"dilation": -3},
    "padding[1]=-1, but must be at least 0": {"padding": (0, -1, 0)},
    "output_padding[0]=-1, but must be at least 0": {"output_padding": -1},
    "output_padding[0]=1, but must be less than stride[0]=1 or dilation[0]=1": {
        "output_padding": 1
    },
    "output_padding[1]=2, but must be less than stride[1]=1 or dilation[1]=2": {
        "output_padding": (1, 2, 0),
        "dilation": 2,
    },
    "output_padding[2]=3, but must be less than stride[2]=3 or dilation[2]=1": {
        "output_padding": (0, 0, 3),
        "stride": (1, 1, 3),
    },
    "groups=0, but must be at least 1": {"groups": 0},
    "groups=-1, but must be at least 1": {"groups": -1},
    "in_channels=4 is not divisible by groups=3": {"groups": 3, "bias": None},
    "output size (-1, -1, -1) is negative": {"padding": 3},
    "padding=(2, 2, 3)": {"padding": (2, 2, 3)},
    "output size (-2, 5, 5) is negative": {
        "input": ones(1, 4, 1, 3, 3),
        "weight": ones(4, 6, 2, 3, 3),
        "padding": (2, 0, 0),
    },
    "stride=(1, 1) has 2 values, but must have 1 or 3": {"stride": (1, 1)},
    "padding=[0, 0, 0, 0] has 4 values, but must have 1 or 3": {"padding": [0, 0, 0, 0]},
    "output_padding=() has 0 values, but must have 1 or 3": {"output_padding": ()},
    "dilation=[2, 2] has 2 values, but must have 1 or 3": {"dilation": [2, 2]},
}
WRONG_TYPES: dict[str, dict[str, Any]] = {
    "input is a ndarray, but must be a Tensor": {"input": INPUT.numpy()},
    "input is a NoneType, but must be a Tensor": {"input": None},
    "weight is a list, but must be a Tensor": {"weight": WEIGHT.tolist()},
    "weight is a NoneType, but must be a Tensor": {"weight": None},
    "bias is a list, but must be a Tensor or None": {"bias": [0.0] * 6},
    "bias is a float, but must be a Tensor or None": {"bias": 1.0},
    "stride=1.0, but must be an int": {"stride": 1.0},
    "stride='2', but must be an int": {"stride": "2"},
    "stride=None, but must be an int": {"stride": None},
    "stride={1}, but must be an int": {"stride": {1}},
    "stride=True": {"stride": True},
    "stride=(1, 1.0, 1), but 1.0 in it is not an int": {"stride": (1, 1.0, 1)},
    "padding='same', but must be an int": {"padding": "same"},
    "output_padding=0.5, but must be an int": {"output_padding": 0.5},
    "dilation=['1', 1, 1], but '1' in it is not an int": {"dilation": ["1", 1, 1]},
    "groups='1', but must be an int": {"groups": "1"},
    "groups=1.0, but must be an int": {"groups": 1.0},
    "groups=None, but must be an int": {"groups": None},
    "groups=True": {"groups": True},
}
WRONG_DTYPES: dict[str, dict[str, Any]] = {
    "weight has dtype torch.float64, but input has dtype torch.float32": {
        "weight": WEIGHT.double()
    },
    "bias has dtype torch.float16, but input has dtype torch.float32": {"bias": BIAS.half()},
    "weight has dtype torch.float32, but input has dtype torch.bfloat16": {
        "input": INPUT.bfloat16()
    },
    "input has dtype torch.int32, but must have one of torch.float64, torch.float32": {
        "input": INPUT.int(),
        "weight": WEIGHT.int(),
        "bias": None,
    },
    "input has dtype torch.bool, but must have one of": {
        "input": INPUT.bool(),
        "weight": WEIGHT.bool(),
        "bias": None,
    },
}
WRONG = {**WRONG_SHAPES, **WRONG_NUMBERS, **WRONG_TYPES, **WRONG_DTYPES}


def unreachable(*arguments: Any) -> None:
    raise AssertionError("reached with a wrong argument")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes allocation and launch fail the test."""
    monkeypatch.setattr(launch, "allocate", unreachable)
    monkeypatch.setattr(launch, "_launch", unreachable)


def test_the_arguments_that_the_others_are_made_from_are_right() -> None:
    assert convt3d.conv_transpose3d(**RIGHT).shape == (2, 6, 5, 5, 5)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_is_named_with_its_value(message: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=re.escape(message)):
        convt3d.conv_transpose3d(**{**RIGHT, **WRONG[message]})


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_raises_the_type_that_native_raises(message: str) -> None:
    arguments = {**RIGHT, **WRONG[message]}
    with torch.backends.mkldnn.flags(enabled=False), pytest.raises(Exception) as native:
        torch.nn.functional.conv_transpose3d(**arguments)
    with pytest.raises(Exception) as ours:
        convt3d.conv_transpose3d(**arguments)
    if torch.__version__.startswith("2.0.") and message in WRONG_DTYPES:
        assert issubclass(ours.type, native.type)  # which has no NotImplementedError yet
    else:
        assert ours.type is native.type


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("on_meta", ["input", "weight", "bias"])
def test_operands_on_different_devices_are_refused(on_meta: str) -> None:
    other = "input" if on_meta != "input" else "weight"
    with pytest.raises(RuntimeError, match="all must be on one device") as caught:
        convt3d.conv_transpose3d(**{**RIGHT, on_meta: RIGHT[on_meta].to("meta")})
    for part in (f"{on_meta} is on meta", f"{other} is on cpu"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8], ids=str)
def test_a_dtype_without_a_kernel_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match=f"input has dtype {dtype}, but must have one of torch."):
        convt3d.conv_transpose3d(INPUT.to(dtype), WEIGHT.to(dtype))


@pytest.mark.parametrize("field", ["stride", "padding", "output_padding", "dilation", "groups"])
def test_an_integer_of_another_type_is_taken_as_native_takes_it(field: str) -> None:
    value = 0 if "padding" in field else 1
    other = torch.ones(1).int().numpy()[0] * value  # a NumPy integer
    assert not isinstance(other, int)
    alike = [convt3d.conv_transpose3d(**RIGHT, **{field: number}) for number in (value, other)]
    assert torch.equal(*alike)


@pytest.mark.usefixtures("untouched")
def test_wrong_arguments_are_refused_on_a_batch_of_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"bias has shape \(5,\)"):
        convt3d.conv_transpose3d(INPUT[:0], WEIGHT, ones(5))


@pytest.mark.parametrize("message", [*WRONG_SHAPES, *WRONG_NUMBERS, *WRONG_DTYPES])
def test_meta_tensors_are_refused_where_real_ones_are(message: str) -> None:
    arguments = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in {**RIGHT, **WRONG[message]}.items()
    }
    with pytest.raises(RuntimeError, match=re.escape(message)):
        convt3d.conv_transpose3d(**arguments)


# ---- the primitives by themselves ---------------------------------------------------------------

GRAD_OUTPUT = ones(2, 6, 5, 5, 5)
PARAMETERS: dict[str, Any] = {
    "stride": (1, 1, 1),
    "padding": (0, 0, 0),
    "output_padding": (0, 0, 0),
    "dilation": (1, 1, 1),
    "groups": 1,
}
PRIMITIVES: dict[str, dict[str, Any]] = {
    "forward": {"input": INPUT, "weight": WEIGHT, "bias": BIAS},
    "grad_input": {"grad_output": GRAD_OUTPUT, "weight": WEIGHT},
    "grad_weight": {
        "input": INPUT,
        "grad_output": GRAD_OUTPUT,
        "kernel_size": (3, 3, 3),
        "want_weight": True,
        "want_bias": True,
    },
}
for _name in ("grad_input", "grad_weight"):
    PRIMITIVES[_name]["channels_last"] = False


def call_primitive(name: str, **change: Any) -> Any:
    arguments = {**PRIMITIVES[name], **PARAMETERS, **change}
    return getattr(torch.ops.convt3d, name)(**arguments)


@pytest.mark.parametrize("name", plan.PRIMITIVES)
def test_the_primitives_take_right_arguments(name: str) -> None:
    call_primitive(name)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", plan.PRIMITIVES)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("groups", 0, "groups=0, but must be at least 1"),
        ("groups", -1, "groups=-1, but must be at least 1"),
        ("stride", (1, 0, 1), "stride[1]=0, but must be at least 1"),
        ("dilation", (1, 0, 1), "dilation[1]=0, but must be at least 1"),
        ("padding", (1, -1, 1), "padding[1]=-1, but must be at least 0"),
        ("output_padding", (0, 0, 1), "output_padding[2]=1, but must be less than"),
    ],
)
def test_every_primitive_checks_its_parameters(
    name: str, field: str, value: Any, message: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call_primitive(name, **{field: value})


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("grad_input", {"grad_output": ones(2, 5, 5, 5, 5)}, "grad_output has 5 channels"),
        ("grad_input", {"grad_output": ones(2, 6, 2, 5, 5)}, "input_size[0]=0"),
        ("grad_input", {"stride": (1, 3, 1)}, "grad_output has size 5 on axis 1, which no input"),
        ("grad_input", {"weight": WEIGHT.double()}, "weight has dtype torch.float64"),
        ("grad_input", {"weight": WEIGHT.to("meta")}, "weight is on meta"),
        ("grad_input", {"grad_output": ones(6, 5, 5, 5)}, "grad_output has 4 dimensions"),
        ("grad_weight", {"grad_output": ones(2, 6, 5, 5, 4)}, "has shape (2, 6, 5, 5, 4), but"),
        ("grad_weight", {"grad_output": ones(1, 6, 5, 5, 5)}, "has shape (1, 6, 5, 5, 5), but"),
        ("grad_weight", {"kernel_size": (3, 3, 2)}, "the output has shape (2, 6, 5, 5, 4)"),
        ("grad_weight", {"kernel_size": (0, 3, 3)}, "kernel_size[0]=0, but must be at least 1"),
        ("grad_weight", {"input": INPUT.half()}, "grad_output has dtype torch.float32, but input"),
        ("grad_weight", {"input": ones(4, 3, 3, 3)}, "input has 4 dimensions"),
    ],
)
def test_every_primitive_checks_that_its_operands_fit(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call_primitive(name, **change)


# ---- what a call needs of the machine -----------------------------------------------------------


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the libraries that this process has loaded."""
    monkeypatch.setattr(build, "library", functools.cache(build.library.__wrapped__))
    monkeypatch.setattr(launch, "_entry", functools.cache(launch._entry.__wrapped__))


@pytest.mark.usefixtures("uncached")
def test_a_call_without_a_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"found no C\+\+ compiler.*install g\+\+ or set CXX"):
        convt3d.conv_transpose3d(**RIGHT)


def test_a_launch_that_fails_names_primitive_plan_and_device() -> None:
    input = INPUT.clone().requires_grad_()
    weight = WEIGHT.clone().requires_grad_()
    output = convt3d.conv_transpose3d(input, weight)
    message = (
        "grad_weight with plan direct.i32.split2 failed on cpu: the direct kernel has no split-K"
    )
    with plan.forced({"grad_weight": "direct.i32.split2"}):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            output.sum().backward()
    output = convt3d.conv_transpose3d(input, weight)
    output.sum().backward()  # the failure has left nothing behind


@pytest.mark.parametrize("part", ["gather_f32", "weight_f32", "lines.any_f32", "matrix.any_f32"])
@pytest.mark.usefixtures("uncached")
def test_a_parameter_struct_unlike_the_compiled_one_is_refused(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = launch._kind(part)

    longer = type("Longer", (launch.MIRRORS[kind],), {"_fields_": [("added", ctypes.c_int64)]})
    monkeypatch.setitem(launch.MIRRORS, kind, longer)
    with pytest.raises(RuntimeError, match=r"Longer here and in convt3d/kernels differ in size"):
        launch._entry(part, "host", 0)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_a_parameter_that_does_not_fit_32_bits_is_refused_before_it_can_overflow(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}\[1\]={2**31}, but must be below 2\^31"):
        convt3d.conv_transpose3d(INPUT, WEIGHT, **{name: (1, 2**31, 1)})  # type: ignore[arg-type]
