"""Note [The short way]: when a call goes past the dispatcher, and that nobody can tell but by the clock."""

from __future__ import annotations

import ctypes
import gc
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, note
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import convt3d
from convt3d import launch, plan
from convt3d.ops import guards, primitives
from convt3d.params import GatherParams
from tests import invalid_calls
from tests import operator_checks as checks
from tests.operator_checks import GEOMETRIES, MEMORY_FORMATS, VIEWS

needs_short_way = pytest.mark.skipif(
    not guards._HAS_KEYS, reason="this PyTorch cannot tell when it is open"
)

UPSAMPLING = GEOMETRIES["upsampling"]
RIGHT: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


@contextmanager
def long_way() -> Iterator[None]:
    """Within it every call takes the dispatcher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "is_plain", lambda *_: False)
        yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The primitives that went the short way so far."""
    seen: list[str] = []
    real = primitives._known

    def recording(check: Callable[..., Any], *rest: Any) -> Any:
        seen.append(check.__name__.removeprefix("_check_"))
        return real(check, *rest)

    monkeypatch.setattr(primitives, "_known", recording)
    return seen


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what was remembered, for a test."""
    monkeypatch.setattr(primitives, "_known_calls", launch.Remembered())
    monkeypatch.setattr(launch, "_ready", launch.Remembered())


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, 3, 2, 3, 2, dtype=dtype),
        torch.randn(3, 4, 2, 2, 3, dtype=dtype),
        torch.ones(4, dtype=dtype),
    )


def call(*tensors: Tensor) -> Tensor:
    return convt3d.conv_transpose3d(*tensors, stride=2, padding=1)


# ---- the results --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=checks.name_of)
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_ways_give_the_same_bits_at_every_call(
    name: str, memory_format: str, dtype: torch.dtype
) -> None:
    geometry = GEOMETRIES[name]
    values = checks.reals(geometry, dtype).map(
        lambda t: t.contiguous(memory_format=MEMORY_FORMATS[memory_format]) if t.dim() == 5 else t
    )
    with long_way():
        expected = checks.ours(geometry, values)
    for _ in range(2):
        got = checks.ours(geometry, values)
        for result in checks.RESULTS:
            one, other = getattr(got, result), getattr(expected, result)
            assert one.stride() == other.stride()
            assert torch.equal(one, other)


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_not_taken_for_another_tensor_of_its_shape(view: str) -> None:
    values = checks.operands(UPSAMPLING, torch.float32)
    checks.ours(UPSAMPLING, values)
    views = values.map(VIEWS[view])
    checks.assert_right(checks.ours(UPSAMPLING, views), checks.native(UPSAMPLING, views))


@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=checks.name_of)
def test_each_alignment_has_an_entry_of_its_own(dtype: torch.dtype) -> None:
    input, weight, _ = operands(dtype)
    expected = call(input, weight)
    assert len(launch._ready) == 1
    memory = torch.empty(input.numel() + 1, dtype=dtype)
    shifted = memory[1:].view(input.shape).copy_(input)
    assert shifted.data_ptr() % launch.ALIGNMENT and shifted.stride() == input.stride()
    assert torch.equal(call(shifted, weight), expected)
    assert len(launch._ready) == 2
    call(input, weight), call(shifted, weight)
    assert len(launch._ready) == 2


def test_no_address_is_remembered() -> None:
    call(*operands())
    for ready in launch._ready.values():
        fields = ready.kind.address_fields()
        assert len(ready.head) == ctypes.sizeof(ready.kind) - 8 * len(fields)


@pytest.mark.parametrize("kind", launch.MIRRORS)
def test_a_struct_ends_with_its_addresses(kind: str) -> None:
    mirror = launch.MIRRORS[kind]
    fields = mirror.address_fields()
    assert fields == [field[0] for field in mirror._fields_][-len(fields) :]
    for number, name in enumerate(reversed(fields), 1):
        assert getattr(mirror, name).offset == ctypes.sizeof(mirror) - 8 * number


@pytest.mark.parametrize("grad", [False, True])
def test_no_tensor_is_kept_alive(grad: bool) -> None:
    tensors = [tensor.requires_grad_(grad) for tensor in operands()]
    output = call(*tensors)
    if grad:
        output.sum().backward()
    seen = [weakref.ref(tensor) for tensor in (*tensors, output)]
    del tensors, output
    gc.collect()
    assert not any(ref() is not None for ref in seen)


def test_memory_that_is_used_again_is_read_anew() -> None:
    weight = torch.ones(3, 1, 1, 1, 1)
    for value in range(5):
        input = torch.full((1, 3, 2, 2, 2), float(value))  # where the one before lay, like as not
        assert torch.equal(
            convt3d.conv_transpose3d(input, weight), torch.full((1, 1, 2, 2, 2), 3.0 * value)
        )
        input += 1
        assert torch.equal(
            convt3d.conv_transpose3d(input, weight), torch.full((1, 1, 2, 2, 2), 3.0 * value + 3)
        )
        del input


@pytest.mark.usefixtures("nothing_known")
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_REMEMBERED", 5)
    weight = torch.ones(1, 1, 1, 1, 1)
    for size in (*range(1, 20), *range(1, 20)):
        input = torch.randn(1, 1, 1, 1, size)
        assert torch.equal(convt3d.conv_transpose3d(input, weight), input)
        assert len(launch._ready) <= 5 and len(primitives._known_calls) <= 5


@pytest.mark.usefixtures("nothing_known")
def test_threads_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_REMEMBERED", 3)
    weight = torch.ones(1, 1, 1, 1, 1)

    def call_often(thread: int) -> bool:
        inputs = [torch.randn(1, 1, 1, thread, size) for size in range(1, 6)]
        return all(
            torch.equal(convt3d.conv_transpose3d(input, weight), input) for input in inputs * 20
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call_often, range(1, 5)))


# ---- wrong arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    "wrong", [True, 1.0, 0.0, "1", None, (1, 1.0, 1), (True, 1, 1), (0, 0.0, 0)]
)
def test_what_equals_a_right_argument_and_has_another_type_is_still_wrong(
    name: str, wrong: Any
) -> None:
    input, weight = torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    for value in (0, 1, (0, 0, 0), (1, 1, 1)):
        right = {**RIGHT, name: value}
        invalid_calls.outcome(
            convt3d.conv_transpose3d,
            {"input": input, "weight": weight, "bias": None, **right},
            "cpu",
        )
    with pytest.raises((TypeError, RuntimeError)) as got:
        convt3d.conv_transpose3d(input, weight, **{**RIGHT, name: wrong})
    with long_way(), pytest.raises((TypeError, RuntimeError)) as expected:
        convt3d.conv_transpose3d(input, weight, **{**RIGHT, name: wrong})
    assert (got.type, str(got.value)) == (expected.type, str(expected.value))


@given(call=invalid_calls.calls())
def test_calls_are_taken_and_refused_as_the_long_way_does(call: dict[str, Any]) -> None:
    note(invalid_calls.described(call))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for value in call.values():
                if isinstance(value, Tensor) and value.is_floating_point():
                    value.requires_grad_(grad)
            with long_way():
                expected = said(call)
            assert [said(call), said(call)] == [expected, expected]


def said(call: dict[str, Any]) -> Any:
    """Returns the shape of what a call gives, or the type and the text of what it raises."""
    try:
        return convt3d.conv_transpose3d(**call).shape
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("wrong", ["input", "weight", "bias"])
def test_a_dtype_of_its_own_is_refused_after_a_right_call(wrong: str) -> None:
    tensors = dict(zip(("input", "weight", "bias"), operands()))
    convt3d.conv_transpose3d(**tensors)  # type: ignore[arg-type]
    tensors[wrong] = tensors[wrong].double()
    with pytest.raises(RuntimeError, match="all must have one dtype"):
        convt3d.conv_transpose3d(**tensors)  # type: ignore[arg-type]


# ---- plans and replaced functions ---------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was launched so far, in words."""
    seen: list[str] = []
    real = launch._launch

    def recording(*arguments: Any) -> None:
        seen.append(arguments[-1])
        real(*arguments)

    monkeypatch.setattr(launch, "_launch", recording)
    return seen


def test_a_forced_plan_runs_and_is_forgotten(launched: list[str]) -> None:
    tensors = operands()
    call(*tensors)
    usual = launched.pop()
    for name in ("direct.i64", "tiled.i64", "direct.i32") * 2:
        with plan.forced({"forward": name}):
            call(*tensors)
        assert launched.pop() == f"forward with plan {name}"
        call(*tensors)
        assert launched.pop() == usual


def test_the_variation_of_a_forced_style_is_not_forgotten(launched: list[str]) -> None:
    tensors = operands(torch.float16)
    for variation in (0, 1) * 2:
        with plan.forced({"forward": "lines.any"}, variation):
            call(*tensors)
    assert launched[0] != launched[1] and launched[:2] == launched[2:]


def test_tf32_is_looked_up_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = operands()
    parts: list[str] = []
    monkeypatch.setattr(launch, "_launch", lambda part, *_: parts.append(part))
    for tf32 in (False, True, None, False, True):
        with plan.forced({"forward": "matrix"}, tf32=tf32):
            call(*tensors)
    assert ["tf32" in part for part in parts] == [False, True, False, False, True]


def test_pytorchs_switches_for_tf32_count_on_a_gpu_alone() -> None:
    tensor: Any = types.SimpleNamespace(is_cuda=True, dtype=torch.float32)
    for allowed in (True, False) * 2:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert launch._rounds_to_tf32(tensor) == allowed
            assert not launch._rounds_to_tf32(torch.ones(1))


@pytest.mark.parametrize("name", ["allocate", "gather", "weight_gradient", "_launch", "_entry"])
def test_a_function_of_launch_may_be_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [tensor.requires_grad_() for tensor in operands()]
    call(*leaves).sum().backward()
    seen: list[str] = []
    real = getattr(launch, name)

    def replaced(*arguments: Any) -> Any:
        seen.append(name)
        return real(*arguments)

    monkeypatch.setattr(launch, name, replaced)
    call(*leaves).sum().backward()
    wanted = {"allocate": 4, "gather": 2, "weight_gradient": 1, "_launch": 3, "_entry": 3}
    assert len(seen) == wanted[name]


# ---- when the short way is open -----------------------------------------------------------------


@needs_short_way
@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.enable_grad, torch.inference_mode],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize(
    "kind", [torch.Tensor.detach, torch.nn.Parameter], ids=["tensor", "parameter"]
)
def test_ordinary_calls_go_the_short_way(around: Any, kind: Any, short: list[str]) -> None:
    input, weight, bias = operands()
    with around():
        output = call(input, kind(weight), kind(bias))
    assert short == ["forward"]
    assert output.requires_grad == (kind is torch.nn.Parameter and around is torch.enable_grad)


@needs_short_way
def test_gradients_go_the_short_way_at_every_order(short: list[str]) -> None:
    leaves = [tensor.double().requires_grad_() for tensor in operands()]
    output = call(*leaves)
    assert type(output.grad_fn).__name__ == "_ForwardBackward"
    assert short == ["forward"]
    gradients = torch.autograd.grad(output.pow(2).sum(), leaves, create_graph=True)
    assert sorted(short) == ["forward", "grad_input", "grad_weight"]
    short.clear()
    torch.autograd.grad([each.sum() for each in gradients], leaves)
    assert {*short} == {"forward", "grad_input", "grad_weight"}


@needs_short_way
def test_an_operator_called_by_its_name_goes_it_too(short: list[str]) -> None:
    parameters = ([2, 2, 2], [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
    input, weight, bias = operands()
    got = torch.ops.convt3d.forward(input, weight, bias, *parameters)
    assert short == ["forward"] and torch.equal(got, call(input, weight, bias))


class Seen(TorchDispatchMode):
    """Writes down the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
def test_a_mode_sees_the_operators(grad: bool, short: list[str]) -> None:
    leaves = [tensor.requires_grad_(grad) for tensor in operands()]
    with Seen() as seen:
        output = call(*leaves)
        if grad:
            output.sum().backward()
    names = ["forward", "grad_input", "grad_weight"] if grad else ["forward"]
    assert [name for name in seen.names if "convt3d" in name] == [f"convt3d::{n}" for n in names]
    assert not short


def test_a_mode_for_functions_sees_the_function() -> None:
    with SeenFunctions() as seen:
        call(*operands())
    assert "conv_transpose3d" in seen.names


def test_the_profiler_sees_the_operators(short: list[str]) -> None:
    leaves = [tensor.requires_grad_() for tensor in operands()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(*leaves).sum().backward()
    names = {event.name for event in profile.events()}
    assert {f"convt3d::{name}" for name in ("forward", "grad_input", "grad_weight")} <= names
    assert not short


def test_autocast_casts(short: list[str]) -> None:
    leaves = [tensor.requires_grad_() for tensor in operands()]
    call(*leaves)
    with torch.autocast("cpu", torch.bfloat16):
        output = call(*leaves)
        assert output.dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert call(*leaves).dtype == torch.float32


def test_a_fake_tensor_is_answered_by_one(short: list[str]) -> None:
    with FakeTensorMode() as mode:
        output = call(*(mode.from_tensor(tensor) for tensor in operands()))
    assert type(output).__name__ == "FakeTensor" and not short


@pytest.mark.parametrize("device", ["meta"])
def test_a_meta_tensor_is_answered_by_one(device: str, short: list[str]) -> None:
    assert call(*(tensor.to(device) for tensor in operands())).is_meta and not short


class Own(Tensor):
    """A subclass that wants to see what is done with it."""

    names: ClassVar[list[str]]
    elements: Tensor

    @staticmethod
    def __new__(cls: Any, elements: Tensor) -> Any:
        own = Tensor._make_wrapper_subclass(cls, elements.shape, dtype=elements.dtype)  # type: ignore[attr-defined]
        own.elements = elements
        return own

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        cls.names.append(function.name())
        plain = [each.elements if isinstance(each, cls) else each for each in args]
        return function(*plain, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


@pytest.mark.parametrize("place", range(3))
def test_a_subclass_sees_the_operator(place: int) -> None:
    Own.names = []
    tensors = [*operands()]
    expected = call(*tensors)
    tensors[place] = Own(tensors[place])
    assert torch.equal(call(*tensors), expected)
    assert Own.names == ["convt3d::forward"]


def test_a_negated_view_is_read_as_the_numbers_that_it_stands_for() -> None:
    numbers = torch.randn(2, 3, 2, 3, 2, dtype=torch.complex64)
    _, weight, bias = operands()
    view = numbers.conj().imag
    assert view.is_neg()
    assert torch.equal(call(view, weight, bias), call(view.resolve_neg(), weight, bias))


def test_tangents_are_carried_on(short: list[str]) -> None:
    input, weight, bias = operands()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, torch.ones_like(input))
        tangent = forward_ad.unpack_dual(call(dual, weight, bias)).tangent
    assert not short
    assert torch.equal(tangent, call(torch.ones_like(input), weight))


def test_a_trace_has_the_operator() -> None:
    graph = make_fx(call)(*operands())
    assert "torch.ops.convt3d.forward" in graph.code
    traced = torch.jit.trace(call, operands())
    assert "convt3d::forward" in str(traced.graph)
    other = operands()
    assert torch.equal(traced(*other), call(*other))


def test_transforms_are_applied() -> None:
    input, weight, bias = operands()

    def total(weight: Tensor) -> Tensor:
        return call(input, weight, bias).sum()

    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    assert torch.equal(torch.func.grad(total)(weight), expected)
    each = torch.func.vmap(lambda one: call(one, weight, bias))(input)
    assert torch.equal(each, call(input, weight, bias))


# ---- a launch on a GPU --------------------------------------------------------------------------


@pytest.mark.parametrize("current", [0, 1])
def test_the_device_is_set_only_if_it_is_not_the_current_one(
    current: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        done.append(f"set {index}")
        yield
        done.append("set back")

    def entry(_: Any, *arguments: Any) -> None:
        done.append(arguments)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(launch, "_entry", lambda *_: entry)
    monkeypatch.setattr(launch, "_current_stream", lambda index: 70 + index)
    tensor: Any = types.SimpleNamespace(is_cuda=True, get_device=lambda: 1, dtype=torch.float32)
    launch._launch("gather_f32", GatherParams(), (1, 2, 3), tensor, "forward")
    ran = (1, 2, 3, 71)
    assert done == ([ran] if current == 1 else ["set 1", ran, "set back"])
