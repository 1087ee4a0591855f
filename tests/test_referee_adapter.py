"""The referee calls anybody's function or class as it wants to be called, or says what it cannot pass on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose3d as native

from fuzz.case import Case, parse_case
from fuzz.referee import adapter

CPU = torch.device("cpu")
CASE = parse_case("f32_n2_ci4_co6_g2_i3x2x2_k3x2x1_s2x1x3_p1_op1x0x1_d1x2x1_bias_int")
EVEN = parse_case("f32_ci2_co3_i3_k3_s2_p1_op1_int")


def called(function: Callable[..., Any], case: Case = CASE) -> Any:
    weight, bias = torch.ones(case.weight_shape), torch.ones(case.out_channels)
    built = adapter.build(function, case, CPU)
    return built.bind(weight, bias if case.bias else None).call(torch.ones(case.input_shape))


def expected(case: Case = CASE) -> Tensor:
    bias = torch.ones(case.out_channels) if case.bias else None
    parameters = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    return native(torch.ones(case.input_shape), torch.ones(case.weight_shape), bias, *parameters)


def by_position(x: Any, w: Any, b: Any, s: Any, /, padding: Any = 0) -> None: ...


def positional_only(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
                    groups: Any, dilation: Any, /) -> Any:  # fmt: skip
    return native(input, weight, bias, stride, padding, output_padding, groups, dilation)


def in_another_order(
    weight: Any, dilation: Any, x: Any, groups: Any, bias: Any = None, **rest: Any
) -> Any:
    return native(x, weight, bias, groups=groups, dilation=dilation, **rest)


@pytest.mark.parametrize("function", [native, positional_only, in_another_order])
def test_a_function_gets_its_arguments_by_name_or_position(function: Callable[..., Any]) -> None:
    assert torch.equal(called(function), expected())


def test_an_int_is_passed_where_the_axes_are_alike_and_a_triple_where_that_is_wanted() -> None:
    given: dict[str, Any] = {}

    def function(
        x: Any,
        w: Any,
        stride: int,
        padding: int | tuple[int, int, int],
        output_padding: tuple[int, int, int],
        dilation: Any = (1, 1, 1),
    ) -> None:
        given.update(locals())

    called(function, EVEN)
    assert (given["stride"], given["padding"]) == (2, 1)
    assert (given["output_padding"], given["dilation"]) == ((1, 1, 1), (1, 1, 1))
    with pytest.raises(NotImplementedError, match=r"stride=\(2, 1, 2\), but it takes one int"):
        called(function, replace(EVEN, stride=(2, 1, 2), output_padding=(1, 0, 1)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: None, r"bias is given, but there is no argument bias, only \(x, w\)"),
        (lambda x: None, r"weight is given, but there is no argument weight, only \(x\)"),
        (lambda x, w, bias, factor, **rest: None, "argument factor is required"),
        (lambda x, w, bias, stride: None, r"padding=\(1, 1, 1\), but there is no argument padding"),
    ],
)
def test_what_a_function_cannot_take_is_refused(function: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        called(function)


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def bare_wrapper(*args: Any, **kwargs: Any) -> Any:
    return native(*args, **kwargs)


def only_positions(*args: Any) -> Any:
    return native(*args)


def renamed(x: Any, w: Any, *args: Any, **kwargs: Any) -> Any:
    return native(x, w, *args, **kwargs)


def bias_by_keyword(x: Any, w: Any, **kwargs: Any) -> Any:
    return native(x, w, **kwargs)


def keyword_only(*, weight: Any, input: Any, bias: Any, **kwargs: Any) -> Any:
    return native(input, weight, bias, **kwargs)


def short_names(x: Any, w: Any, b: Any, s: Any, p: Any, op: Any, g: int, d: Any) -> Any:
    return native(x, w, b, s, p, op, g, d)


def other_names(tensor: Any, kernel: Any, offset: Any = None, *, Stride: Any, pad: Any,
                out_padding: Any, num_groups: Any, dilations: Any) -> Any:  # fmt: skip
    return native(tensor, kernel, offset, Stride, pad, out_padding, num_groups, dilations)


def with_more(x: Any, w: Any, bias: Any, scale: float = 1.0, /, *, stride: Any, padding: Any,
              output_padding: Any, groups: Any, dilation: Any, device: torch.device,
              dtype: torch.dtype, tile: int = 8) -> Any:  # fmt: skip
    assert (device, dtype, scale, tile) == (CPU, torch.float32, 1.0, 8)
    return native(x, w, bias, stride, padding, output_padding, groups, dilation)


def default_between(x: Any, w: Any, bias: Any = None, scale: float = 1.0, stride: Any = 1,
                    padding: Any = 0, /, *args: Any) -> Any:  # fmt: skip
    return native(x, w, bias, stride, padding, *args)


@pytest.mark.parametrize(
    "function",
    [
        wrapped(native),
        wrapped(short_names),
        wrapped(positional_only),
        bare_wrapper,
        only_positions,
        renamed,
        wrapped(renamed),
        bias_by_keyword,
        keyword_only,
        short_names,
        other_names,
        with_more,
        default_between,
        functools.partial(bare_wrapper),
        functools.partial(other_names, num_groups=2),
    ],
)
def test_wrappers_and_other_signatures_are_called(function: Callable[..., Any]) -> None:
    assert torch.equal(called(function), expected())


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        return native(*args)


def all_needed(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
               groups: Any, dilation: Any) -> Any:  # fmt: skip
    return native(input, weight, bias, stride, padding, output_padding, groups, dilation)


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda *args, **kwargs: all_needed(*args, **kwargs),
        lambda *args, **kwargs: positional_only(*args, **kwargs),
        lambda *args, **kwargs: Function.apply(*args, **kwargs),
        torch.ops.aten.conv_transpose3d.input,
    ],
)
def test_a_bare_wrapper_may_need_every_value(wrapper: Callable[..., Any]) -> None:
    case = parse_case("f32_ci2_co3_i3_k3_int")
    assert torch.equal(called(wrapper, case), expected(case))


def test_an_error_of_what_is_wrapped_is_its_own() -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise TypeError("no such tile")

    with pytest.raises(TypeError, match="no such tile"):
        called(fails)


def test_a_wrapper_is_not_given_what_is_the_default_anyway() -> None:
    """The function behind it need not have every argument."""

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return native(x, w)

    case = parse_case("f32_ci2_co3_i3_k3_int")
    for wrapper in (lambda *a: plain(*a), lambda *a, **k: plain(*a[:2], **k), wrapped(plain)):
        assert torch.equal(called(wrapper, case), expected(case))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w, *args, stride: None,
         r"padding=.*, but there is no argument padding, only \(x, w, \*args, stride\)"),
        (lambda x, w, b, tile, **rest: None,
         "argument tile is required, but must have a default or be one of input, weight, bias, "
         "stride, padding, output_padding, groups, dilation, device, dtype"),
        (lambda x, w, *, b: None, r"stride=.*, only \(x, w, \*, b\)"),
        (wrapped(lambda x, w, b: None), r"stride=.*, only \(x, w, b\)"),
    ],
)  # fmt: skip
def test_other_signatures_are_refused_by_the_name_of_the_argument(
    function: Any, message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        called(function)


class Layer(nn.Module):
    """Takes what KernelBench's tasks take."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
                 padding: Any = 0, output_padding: Any = 0, dilation: Any = 1, groups: int = 1,
                 bias: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.conv_transpose3d = nn.ConvTranspose3d(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias,
            dilation,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv_transpose3d(x)
        return output


class WithBias(nn.Module):
    """Always has a bias, whatever the case says, and two parameters of the weight's shape."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))
        self.scale = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.ones(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return native(x, self.weight, self.bias)


class Ambiguous(WithBias):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        del self.weight
        self.other = nn.Parameter(torch.ones(in_channels, out_channels, 1, 1, 1))


class OfPyTorchs(nn.ConvTranspose3d):
    """Has the base class's constructor, of which padding_mode, device and dtype have defaults."""


class PassesOn(nn.ConvTranspose3d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class PassesOnByPosition(nn.ConvTranspose3d):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)


class KnowsSome(Layer):
    def __init__(self, c_in: int, c_out: int, k: Any, s: Any = 1, **kwargs: Any) -> None:
        super().__init__(c_in, c_out, k, s, **kwargs)


class OtherNames(Layer):
    def __init__(self, inc: int, outC: int, ksize: Any, *, device: torch.device,
                 dtype: torch.dtype, use_bias: bool = True, verbose: bool = False,
                 **kwargs: Any) -> None:  # fmt: skip
        super().__init__(inc, outC, ksize, bias=use_bias, **kwargs)
        assert (device, dtype, verbose) == (CPU, torch.float32, False)


@pytest.mark.parametrize(
    "cls", [Layer, OfPyTorchs, PassesOn, PassesOnByPosition, KnowsSome, OtherNames]
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_class_gets_its_arguments_and_its_weights(cls: type[nn.Module], has_bias: bool) -> None:
    case = replace(CASE, bias=has_bias)
    assert torch.equal(called(cls, case), expected(case))


def test_what_a_class_cannot_take_is_refused_by_the_name_of_the_argument() -> None:
    with pytest.raises(NotImplementedError, match=r"groups=2, but there is no argument groups"):
        called(WithBias, parse_case("f32_g2_ci2_co2_int"))
    with pytest.raises(NotImplementedError, match=r"bias=True, but there is no argument bias"):
        called(WithBias, parse_case("f32_bias_int"))

    class NeedsMore(Layer):
        def __init__(self, in_channels: int, out_channels: int, tile: int) -> None: ...

    with pytest.raises(NotImplementedError, match="argument tile is required, but must have"):
        called(NeedsMore, Case())


def test_the_gradient_of_a_class_is_that_of_its_parameters() -> None:
    weight = torch.ones(EVEN.weight_shape, requires_grad=True)
    bound = adapter.build(Layer, EVEN, CPU).bind(weight, None)
    assert bound.weight.data_ptr() == weight.data_ptr()
    bound.call(torch.ones(EVEN.input_shape)).sum().backward()
    assert bound.weight.grad is not None and bound.bias is None


def test_a_class_without_an_argument_for_its_bias_gets_a_bias_of_zero() -> None:
    assert torch.equal(called(WithBias, Case()), expected(Case()))


def test_parameters_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"weight of shape \(1, 1, 1, 1, 1\) must be one"):
        called(Ambiguous, Case())
