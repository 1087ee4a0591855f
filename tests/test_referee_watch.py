"""The referee sees what an implementation does to memory, to PyTorch's dispatcher and to the referee itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose3d as native

from fuzz.arena import Arena
from fuzz.case import parse_case
from fuzz.referee import probes
from fuzz.referee.loading import load
from fuzz.referee.seal import Seal
from fuzz.referee.watch import Watch, native_forbidden
from tests.test_referee_adapter import called, expected

CPU = torch.device("cpu")
CASE = parse_case("f32_n2_ci4_co6_g2_i3x2x2_k3x2x1_s2x1x3_p1_op1x0x1_d1x2x1_bias_int")
EVEN = parse_case("f32_ci2_co3_i3_k3_s2_p1_op1_int")


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
    if hasattr(library, "_destroy"):
        library._destroy()
    else:  # PyTorch 2.0, which does not expect to do it twice
        library.__del__()  # type: ignore[attr-defined]
        library._op_impls.clear()


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
