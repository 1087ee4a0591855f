"""The parts of the referee, without a worker: adapter, loading, watch, pool, verdicts, report."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose3d as native

from fuzz import data
from fuzz.arena import Arena
from fuzz.bounds import expect
from fuzz.case import Case, format_case, parse_case
from fuzz.number import encode
from fuzz.outcome import RESULTS, Outcome, Verdict
from fuzz.referee import adapter, probes
from fuzz.referee.loading import LoadError, describe, load
from fuzz.referee.pool import FEATURES, drawn_cases, given_cases, restrict
from fuzz.referee.report import Report, Row, format_end, format_row
from fuzz.referee.sampling import Sample, shifted
from fuzz.referee.seal import Seal
from fuzz.referee.task import Task, with_other_data
from fuzz.referee.verdicts import examine
from fuzz.referee.watch import Watch, native_forbidden

CPU = torch.device("cpu")
CASE = parse_case("f32_n2_ci4_co6_g2_i3x2x2_k3x2x1_s2x1x3_p1_op1x0x1_d1x2x1_bias_int")
EVEN = parse_case("f32_ci2_co3_i3_k3_s2_p1_op1_int")


# Calling somebody's function.


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


# Finding it in a file.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def conv_transpose3d(x, w): ...", "function conv_transpose3d"),
        ("from torch import nn\nclass Mine(nn.Module): ...", "class Mine"),
        (
            "from torch import nn\ndef conv_transpose3d(x, w): ...\nclass ModelNew(nn.Module): ...",
            "class ModelNew",
        ),
        (
            "from torch import nn\nfrom torch.nn.functional import conv_transpose3d\n"
            "class Mine(nn.Module): ...",
            "class Mine",
        ),
        ("from torch.nn.functional import conv_transpose3d", "function conv_transpose3d"),
        ("from neighbour import conv_transpose3d", "function conv_transpose3d"),
    ],
)
def test_the_implementation_of_a_file_is_found(tmp_path: Path, source: str, found: str) -> None:
    (tmp_path / "neighbour.py").write_text("def conv_transpose3d(x, w): ...")
    (tmp_path / "file.py").write_text(source)
    assert describe(load(tmp_path / "file.py")) == found


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("file.py", "", "found A, B"),
        ("file.py", "C", "no C in"),
        ("file.py", "D", "must be a subclass of torch.nn.Module"),
        ("file.txt", "", "is no Python file"),
    ],
)
def test_what_is_no_implementation_is_named(
    tmp_path: Path, file: str, name: str, message: str
) -> None:
    source = "from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...\nclass D: ..."
    (tmp_path / file).write_text(source)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / file, name)


# Watching it.


@pytest.fixture
def inputs() -> Tensor:
    """In the place of those of a case."""
    return torch.ones(1, 1, 1, 1, 2)


ALLOCATIONS: list[Callable[[], Tensor]] = [
    lambda: torch.empty(2, 3),
    lambda: torch.empty_like(torch.ones(2, 3)),
    lambda: torch.ones(1).new_empty(2, 3),
    lambda: torch.empty_strided((2, 3), (3, 1)),
    lambda: torch.empty(2, 1, 1, 1, 3, memory_format=torch.channels_last_3d),
]


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_what_is_allocated_lies_poisoned_between_guard_bands(
    inputs: Tensor, allocate: Callable[[], Tensor]
) -> None:
    with Watch(CPU, inputs) as watch:
        result = allocate()
    assert result.isnan().all()
    raw = {"result": np.full(result.shape, 0xFFFFFFFF, np.uint32)}
    (damage,) = watch.guarded.unwritten({"result": result}, raw)
    assert damage.startswith("6 of 6 elements of result still hold the poison")
    result.fill_(1)
    assert not watch.guarded.damage()
    assert not watch.guarded.unwritten({"result": result}, {"result": raw["result"] ^ 1})


@pytest.mark.parametrize(
    ("offset", "where"), [(6, "0 bytes after the end"), (-1, "0 bytes before the start")]
)
def test_writing_beside_an_allocation_is_damage(inputs: Tensor, offset: int, where: str) -> None:
    with Watch(CPU, inputs) as watch:
        result = torch.empty(2, 3)
    result.as_strided((1,), (1,), result.storage_offset() + offset).fill_(0)
    assert watch.guarded.damage() == [
        f"4 bytes written out of bounds, nearest {where} of allocation 1"
    ]


def test_a_workspace_that_is_kept_from_run_to_run_stays_its_owner_s(inputs: Tensor) -> None:
    with Watch(CPU, inputs):
        workspace = torch.empty(8).fill_(1)
    with Watch(CPU, inputs) as watch:
        others = [torch.empty(8).fill_(2) for _ in range(4)]
        workspace.fill_(3)
    assert not watch.guarded.damage()
    assert all((other == 2).all() for other in others)


def test_what_cannot_be_guarded_is_filled_with_nan_or_left_alone(inputs: Tensor) -> None:
    with Watch(CPU, inputs):
        overlapping = torch.empty_strided((2, 3), (1, 1))
        integers, nothing = torch.empty(3, dtype=torch.int32), torch.empty(0)
    assert overlapping.isnan().all()
    assert integers.shape == (3,) and nothing.numel() == 0


def test_writing_to_an_allocation_is_not_writing_to_an_input(inputs: Tensor) -> None:
    x = inputs.requires_grad_()
    with Watch(CPU, inputs) as watch:
        y = x * x
        torch.empty(2).fill_(3).add_(1)
        y.sum().backward()  # would raise if x had the version counter of the allocation
    assert not watch.written


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.data.zero_(),
        lambda x: x[..., 1:].fill_(1),
        lambda x: torch.add(x, 1, out=x),
    ],
)
def test_writing_to_an_input_is_noted_whatever_is_there_at_the_end(
    inputs: Tensor, write: Callable[[Tensor], Any]
) -> None:
    with Watch(CPU, inputs) as watch:
        write(inputs)
    (sentence,) = watch.written
    assert sentence.startswith("an input was overwritten by aten::")


def test_an_input_may_be_read_and_seen_in_other_shapes(inputs: Tensor) -> None:
    with Watch(CPU, inputs) as watch:
        x = inputs.detach().view(2).unsqueeze_(0).t_().requires_grad_()
        torch.empty(2, 1).copy_(x).add_(x)
    assert not watch.written


def test_convolutions_and_library_calls_are_noted(inputs: Tensor) -> None:
    x, w = torch.ones(1, 1, 2, 2, 2, requires_grad=True), torch.ones(1, 1, 1, 1, 1)
    with Watch(CPU, inputs) as watch:
        y = native(x, w)
        watch.stage = "backward"
        y.sum().backward()
        torch.ones(2, 2) @ torch.ones(2, 2)
        torch.ones(2).long().to(torch.float64)  # conversions are no convolutions
    assert [*watch.native] == [
        "aten::convolution called in forward",
        "aten::convolution_backward called in backward",
    ]
    assert [*watch.library] == ["aten::mm"]


@pytest.fixture
def library() -> Iterator[Any]:
    library = torch.library.Library("referee_test", "DEF")
    yield library
    library._destroy()


@pytest.mark.parametrize("key", ["CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd"])
def test_operators_of_the_implementation_are_looked_into(
    inputs: Tensor, library: Any, key: str
) -> None:
    library.define("convolve(Tensor input, Tensor weight) -> Tensor")
    library.impl("convolve", lambda input, weight: native(input, weight), key)
    with Watch(CPU, inputs) as watch, torch.no_grad():
        torch.ops.referee_test.convolve(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
    assert len(watch.native) == 1
    assert "conv" in next(iter(watch.native))


def test_a_convolution_of_its_own_is_no_native_one(inputs: Tensor, library: Any) -> None:
    library.define("conv_transpose3d(Tensor input) -> Tensor")
    library.impl("conv_transpose3d", lambda input: input + 1, "CPU")
    with Watch(CPU, inputs) as watch, torch.no_grad():
        torch.ops.referee_test.conv_transpose3d(torch.ones(2))
    assert not watch.native


def test_forbidden_convolutions_raise_and_are_there_again_afterwards() -> None:
    x, w = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    with native_forbidden() as seen:
        for call in (native, nn.functional.conv3d, torch.convolution):
            extra = (
                ([1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1) if call is torch.convolution else ()
            )
            with pytest.raises(RuntimeError, match="must not be called"):
                call(x, w, None, *extra)
        assert torch.equal(x * 2, x + x)
    assert [*seen] == [
        "aten::conv_transpose3d called", "aten::conv3d called", "aten::convolution called"
    ]  # fmt: skip
    assert torch.equal(native(x, w), x)


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise"), reason="not in this torch"
)
def test_operators_of_mkldnn_are_forbidden_too() -> None:
    x, w = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    convolve: Any = torch.ops.mkldnn._convolution_transpose_pointwise
    arguments: Any = ([0] * 3, [0] * 3, [1] * 3, [1] * 3, 1, "none", [], "")
    with native_forbidden() as seen, pytest.raises(RuntimeError, match="must not be called"):
        convolve(x, w, None, *arguments)
    assert [*seen] == ["mkldnn::_convolution_transpose_pointwise called"]
    assert torch.equal(convolve(x, w, None, *arguments), x)


@pytest.fixture(scope="module")
def cheats() -> ModuleType:
    noisy = load(Path(__file__).parent / "candidates" / "cheats.py", "noisy")
    return sys.modules[noisy.__module__]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("native_forward", "aten::convolution called in forward"),
        ("native_by_a_gradient", "aten::convolution_backward called in forward"),
        ("native_by_flipped_weights", "aten::convolution called in forward"),
        ("native_in_a_script", "aten::convolution called in forward"),
    ],
)
def test_no_detour_to_a_convolution_goes_unseen(
    cheats: ModuleType, inputs: Tensor, name: str, call: str
) -> None:
    case = parse_case("f32_ci2_co3_i3_k3_p1_int")
    with Watch(CPU, inputs) as watch:
        output = called(getattr(cheats, name), case)
    assert torch.equal(output, expected(case))
    assert [*watch.native] == [call]


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("native_saved_at_import", "slow_conv_transpose3d"),
        ("native_with_modes_disabled", "conv_transpose3d"),
        ("native_if_nobody_minds", "conv_transpose3d"),
        ("native_of_mkldnn", "convolution"),
        ("native_by_its_kernel", "_convolution"),
    ],
)
def test_no_detour_to_a_convolution_is_open_where_they_are_forbidden(
    cheats: ModuleType, name: str, operator: str
) -> None:
    function = getattr(cheats, name)
    arguments = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1), None
    settings = dict(
        stride=[1] * 3, padding=[0] * 3, output_padding=[0] * 3, groups=1, dilation=[1] * 3
    )
    with native_forbidden() as seen, suppress(RuntimeError):
        function(*arguments, **settings)
    assert [*seen] == [f"aten::{operator} called"]
    assert torch.equal(function(*arguments, **settings), arguments[0])


# Noticing that the referee was changed.


@pytest.mark.parametrize(
    ("owner", "name", "reported"),
    [
        (Arena, "_changed_inputs", "fuzz.arena.Arena._changed_inputs"),
        (probes, "perform", "fuzz.referee.probes.perform"),
        (np, "array_equal", "numpy.array_equal"),
        (time, "perf_counter", "time.perf_counter"),
        (torch.autograd, "grad", "torch.autograd.grad"),
        (Tensor, "detach", "Tensor.detach"),
        (Tensor, "contiguous", "Tensor.contiguous"),  # which the base class has
    ],
)
def test_what_the_referee_uses_cannot_be_replaced_unnoticed(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, reported: str
) -> None:
    seal = Seal()
    assert seal.broken() == ""
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *_: None, raising=False)
        broken = seal.broken()
    assert broken == reported or broken.endswith(reported.rpartition(".")[2])


def test_code_that_was_put_into_a_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seal = Seal()
    monkeypatch.setattr(Arena.finish, "__code__", (lambda *_: ({}, [])).__code__)
    assert seal.broken() == "fuzz.arena.Arena.finish"


def test_other_things_may_be_added_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seal = Seal()
    monkeypatch.setattr(Tensor, "of_their_own", lambda self: self, raising=False)
    monkeypatch.setattr(torch, "allclose", lambda *_: True)
    assert seal.broken() == ""


# Cases.


@pytest.mark.parametrize("feature", FEATURES)
def test_drawn_cases_have_what_is_required_and_nothing_that_is_not_allowed(feature: str) -> None:
    required = ("stride", feature) if feature == "output_padding" else (feature,)
    cases = [case for case, _ in zip(drawn_cases(1, "row", ["f32"], required, ()), range(20))]
    assert len(set(cases)) == 20
    for case in cases:
        has = {name for name, is_in in FEATURES.items() if is_in(case)} - {"long_sums"}
        assert has == {*required} - {"long_sums"}
        assert (case.dtype, case.mode) == ("f32", "fast")


def test_the_same_seed_and_row_draw_the_same_cases() -> None:
    def first(seed: int, row: str) -> list[Case]:
        return [case for case, _ in zip(drawn_cases(seed, row, ["f16"], (), FEATURES), range(5))]

    assert first(1, "a") == first(1, "a")
    assert first(1, "a") != first(2, "a") != first(2, "b")


def test_restriction_keeps_a_case_legal_and_its_features_as_they_are() -> None:
    assert restrict(CASE, FEATURES) == CASE
    bare = restrict(CASE, ())
    assert format_case(bare) == "f32_ci4_co6_i3x2x2_k3_int"
    alike = restrict(CASE, ("stride", "padding", "output_padding"))
    assert (alike.stride, alike.padding, alike.output_padding) == ((3,) * 3, (1,) * 3, (1,) * 3)


def test_given_cases_come_first_as_they_are_and_then_with_other_data() -> None:
    given = (EVEN, parse_case("f16_s2_int"), parse_case("f32_int"))
    cases = [c for c, _ in zip(given_cases(1, "row", given, ["f32"], ("stride",)), range(9))]
    assert cases[0] == EVEN
    assert {replace(case, seed=0, lane="int") for case in cases} == {EVEN}
    assert len({case.seed for case in cases}) == 9
    assert [*given_cases(1, "row", given, ["f64"], ())] == []


# Verdicts.


def answer(case: Case, *names: str, label: str = "") -> dict[str, Any]:
    """The right results, or some of them."""
    values = expect(case, data.generate(case)).values
    return {
        label + name: encode(getattr(values, name), case.dtype)
        for name in names or RESULTS
        if name != "grad_bias" or case.bias
    }


def test_right_results_pass_and_only_wanted_ones_count() -> None:
    assert (
        examine(Task(CASE), Outcome("ok", results=answer(CASE)), "candidate").verdict
        is Verdict.PASS
    )
    output = Outcome("ok", results=answer(CASE, "output"))
    assert examine(Task(CASE, wants=()), output, "candidate").verdict is Verdict.PASS
    examined = examine(Task(CASE, wants=("grad_input",)), output, "candidate")
    assert (examined.verdict, examined.detail) == (Verdict.WRONG, "grad_input is missing")


@pytest.mark.parametrize("result", RESULTS)
def test_one_wrong_bit_is_wrong(result: str) -> None:
    results = answer(CASE)
    results[result].flat[-1] ^= 1
    examined = examine(Task(CASE), Outcome("ok", results=results), "candidate")
    assert examined.verdict is Verdict.WRONG
    assert f"elements of {result}" in examined.detail


@pytest.mark.parametrize("probe", ["repeat", "random_state"])
def test_runs_that_differ_in_a_bit_are_wrong(probe: str) -> None:
    case = replace(CASE, lane="normal")
    results = answer(case, label="0.") | answer(case, label="1.")
    task = Task(case, probe)
    assert examine(task, Outcome("ok", results=results), "candidate").verdict is Verdict.PASS
    results["1.grad_weight"].flat[3] ^= 1
    examined = examine(task, Outcome("ok", results=results), "candidate")
    assert "grad_weight differs in 1 of" in examined.detail


def test_an_answer_to_the_call_before_is_wrong() -> None:
    other = with_other_data(CASE)
    right = {
        **answer(CASE, label="first."),
        **answer(other, label="second."),
        **answer(CASE, label="kept."),
        **answer(CASE, label="after."),
        **answer(other, label="later."),
    }
    task = Task(CASE, "reuse")
    assert examine(task, Outcome("ok", results=right), "candidate").verdict is Verdict.PASS
    for label, source, reason in (
        ("second.", CASE, "second call, with other data in the same memory"),
        ("later.", CASE, "second call of two"),
        ("after.", other, "did not stay"),
    ):
        wrong = Outcome("ok", results=right | answer(source, label=label))
        assert reason in examine(task, wrong, "candidate").detail


def test_notes_go_to_the_rows_that_they_are_about() -> None:
    notes = (
        "input was overwritten",
        "3 of 8 elements of output still hold the poison: never written",
        "4 bytes written out of bounds, first 0 bytes after the end of output, before the end",
        "native: aten::convolution called in forward",
        "alias: output shares memory with input",
        "library: aten::mm",
    )
    outcome = Outcome("ok", results=answer(CASE), damage=notes)
    examined = examine(Task(CASE), outcome, "candidate")
    assert examined.verdict is Verdict.PASS
    assert set(examined.found) == {
        "inputs_unchanged", "all_written", "out_of_bounds", "native_op", "own_results"
    }  # fmt: skip
    assert examined.library == ("aten::mm",)


def test_a_result_that_is_none_is_wrong_whatever_the_values() -> None:
    outcome = Outcome("ok", damage=("result: output is a list, but must be a torch.Tensor",))
    examined = examine(Task(CASE), outcome, "candidate")
    assert (examined.verdict, examined.detail) == (
        Verdict.WRONG, "output is a list, but must be a torch.Tensor"
    )  # fmt: skip


def test_a_crash_is_told_by_its_last_line_and_its_place() -> None:
    message = 'return f(\n^^^^\nFile "kernel.py", line 3, in f\nreturn d["s"]\nKeyError: \'s\''
    examined = examine(Task(CASE), Outcome("crashed", message), "candidate")
    assert examined.detail == "KeyError: 's' (File \"kernel.py\", line 3, in f)"
    examined = examine(Task(CASE), Outcome("crashed", "killed by signal 11"), "candidate")
    assert examined.detail == "killed by signal 11"


def test_a_sum_kept_in_16_bits_is_wrong_unless_asked_for() -> None:
    case = parse_case("bf16_ci40_i2_k2_normal")
    inputs = data.generate(case)
    values = expect(case, inputs).values.output
    rounded_at_every_step = Outcome("ok", results={"output": encode(values * (1 + 2**-7), "bf16")})
    task = Task(case, wants=())
    assert examine(task, rounded_at_every_step, "candidate").verdict is Verdict.WRONG
    assert examine(task, rounded_at_every_step, "native").verdict is Verdict.PASS


def timed(case: Case, sample: Sample, step: int, dtype: str = "f32") -> dict[str, Any]:
    """What a worker sends of a right call that was timed."""
    values = expect(case, shifted(data.generate(case), step)).values
    parts = {
        name: encode(getattr(values, name), dtype)[sample.part(case, name).of(name)]
        for name in RESULTS
    }
    return {f"{step}.{name}": part for name, part in parts.items()} | {
        f"{step}.sample": np.array(astuple(sample))
    }


def test_a_large_case_is_judged_by_identities_and_parts() -> None:
    task = Task(CASE, "speed")
    right = {
        **answer(CASE, label="watched."),
        **timed(CASE, Sample(1, 1, 0, 2), 1),
        **timed(CASE, Sample(0, 0, 1, 1), 2),
        "seconds": np.array([0.25, 0.5]),
    }
    examined = examine(task, Outcome("ok", results=right), "candidate")
    assert (examined.verdict, examined.detail) == (Verdict.PASS, "")
    assert examined.seconds == (0.25, 0.5)
    for name, reason in (
        ("watched.grad_input", "must be 0"),
        (
            "1.output",
            r"while time was measured, in call 1: in output\[1, 5\], .* elements of output",
        ),
        ("2.grad_input", r"in call 2: in grad_input\[0, 1\]"),
        ("2.grad_weight", r"in call 2: in grad_weight\[1, 1\]"),
        ("1.grad_bias", r"in call 1: in grad_bias\[5\]"),
    ):
        wrong = Outcome("ok", results=right | {name: right[name] * 0})
        assert re.search(reason, examine(task, wrong, "candidate").detail)


def test_zeros_are_wrong_though_they_obey_the_identities() -> None:
    case = replace(CASE, bias=False)
    zeros = {name: bits * 0 for name, bits in answer(case, label="watched.").items()}
    examined = examine(Task(case, "speed"), Outcome("ok", results=zeros), "candidate")
    assert re.match(r"in output\[\d, \d\], ", examined.detail)


def test_a_large_case_in_16_bits_is_judged_by_parts_alone() -> None:
    """Its rounded results obey no identity."""
    case = replace(CASE, dtype="f16")
    results = {**answer(case, label="watched."), **timed(case, Sample(0, 1, 1, 0), 1, "f16")}
    task = Task(case, "speed")
    assert examine(task, Outcome("ok", results=results), "candidate").verdict is Verdict.PASS


def test_a_stale_result_is_not_that_of_shifted_data() -> None:
    results = answer(CASE, label="watched.") | timed(CASE, Sample(1, 0, 1, 1), 1)
    stale = {name.replace("1.", "3."): bits for name, bits in results.items() if name[0] == "1"}
    examined = examine(Task(CASE, "speed"), Outcome("ok", results=results | stale), "candidate")
    assert "in call 3: in output[1, 1]" in examined.detail


@pytest.mark.parametrize("result", RESULTS)
def test_every_element_of_a_result_belongs_to_a_part(result: str) -> None:
    seen = np.zeros(getattr(expect(CASE, data.generate(CASE)).values, result).shape, bool)
    for indices in itertools.product(range(2), range(2), range(2), range(3)):
        seen[Sample(*indices).part(CASE, result).of(result)] = True
    assert seen.all()


# The report.


def test_a_judgement_that_only_refusals_fail_says_how_to_allow_them() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("builds"), Row("forward", cases=3)])
    report.put(Row("groups", Verdict.REFUSED))
    assert format_end(report, False).splitlines() == [
        "refused rows are no failure with --allow-refused", "exit 1: 1 of 3 rows failed: groups"
    ]  # fmt: skip
    report.put(Row("stride", Verdict.WRONG))
    assert format_end(report, False) == "exit 1: 2 of 4 rows failed: groups, stride"


def test_a_row_that_fails_late_takes_the_place_of_the_one_that_passed() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("forward", cases=3)])
    report.not_judged["native_op"] = "forward failed already"
    report.put(Row("own_results", cases=3))
    report.put(Row("native_op", Verdict.WRONG))
    report.put(Row("own_results", Verdict.WRONG))
    assert [row.name for row in report.rows] == ["forward", "own_results", "native_op"]
    assert report.row("own_results").verdict is Verdict.WRONG and not report.not_judged


def test_the_table_shows_a_case_under_its_row() -> None:
    row = Row("stride", Verdict.CRASHED, 4, "killed by signal 11", "f32_s2_int", True)
    assert format_row(row).splitlines() == [
        "stride              crashed      4  killed by signal 11",
        " " * 36 + "f32_s2_int",
    ]


def test_the_report_as_json_has_what_its_documentation_says() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("builds"), Row("forward", cases=3)])
    values = json.loads(report.to_json())
    assert set(values) == {
        "schema", "file", "name", "sha256", "judged", "seed", "machine", "rows", "not_judged",
        "library_calls", "speed", "exit",
    }  # fmt: skip
    assert set(values["rows"][1]) == {
        "row", "asserts", "verdict", "cases", "reason", "case", "confirmed"
    }  # fmt: skip
    assert values["exit"] == 0 and math.isclose(values["schema"], 1)
    assert format_end(report, False) == "exit 0: all 2 rows passed"
