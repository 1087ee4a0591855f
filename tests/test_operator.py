"""The op on the emulator, against PyTorch's own in float64: every plan, dtype, memory format and view, bit for bit."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import launch, plan
from convt3d.emulator import runtime
from convt3d.geometry import Geometry
from tests import operator_checks as checks
from tests.operator_checks import GEOMETRIES, MEMORY_FORMATS, VIEWS, Operands, name_of

# Shapes for tests that are about something else.
PLAIN = GEOMETRIES["plain"]
UPSAMPLING = GEOMETRIES["upsampling"]


pytestmark = pytest.mark.usefixtures("poison")


# ---- right answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_plan_gives_the_exact_answer(
    name: str, dtype: torch.dtype, memory_format: str
) -> None:
    geometry = GEOMETRIES[name]
    operands = checks.operands(geometry, dtype, memory_format=MEMORY_FORMATS[memory_format])
    expected = checks.native(geometry, operands)
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            checks.assert_right(checks.ours(geometry, operands), expected, str(plans))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
def test_a_hostile_schedule_gives_the_same_answer(dtype: torch.dtype, seed: int) -> None:
    for geometry in (UPSAMPLING, GEOMETRIES["channels_past_a_tile"]):
        operands = checks.operands(geometry, dtype)
        expected = checks.native(geometry, operands)
        for plans in checks.plan_sets(geometry):
            with plan.forced(plans), runtime.schedule("hostile", seed):
                checks.assert_right(checks.ours(geometry, operands), expected, str(plans))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("view", VIEWS)
def test_operands_are_read_where_they_lie(view: str, dtype: torch.dtype) -> None:
    operands = checks.operands(UPSAMPLING, dtype).map(VIEWS[view])
    assert not operands.input.is_contiguous() or view == "at_an_odd_address"
    expected = checks.native(UPSAMPLING, operands)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            checks.assert_right(checks.ours(UPSAMPLING, operands), expected, str(plans))


@pytest.mark.parametrize("operand", ["input", "weight", "bias", "grad_output"])
@pytest.mark.parametrize("view", VIEWS)
def test_one_operand_may_lie_unlike_the_others(view: str, operand: str) -> None:
    operands = checks.operands(PLAIN, torch.float32)
    changed = VIEWS[view](getattr(operands, operand))
    operands = dataclasses.replace(operands, **{operand: changed})
    got = checks.ours(PLAIN, operands)
    checks.assert_right(got, checks.native(PLAIN, operands))


def test_a_call_without_a_bias_adds_none() -> None:
    for name, geometry in GEOMETRIES.items():
        operands = checks.operands(geometry, torch.float32, bias=False)
        expected = checks.native(geometry, operands)
        for plans in checks.plan_sets(geometry):
            with plan.forced(plans):
                checks.assert_right(checks.ours(geometry, operands), expected, f"{name} {plans}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_the_bias_is_added_before_the_only_rounding(dtype: torch.dtype) -> None:
    # 2^p + 1 lies between two numbers of p bits: rounded before the bias of 1, the sum would lose it.
    first = 2.0 ** {torch.float16: 11, torch.bfloat16: 8}[dtype]
    input = torch.tensor([first, 1.0], dtype=dtype).view(1, 2, 1, 1, 1)
    weight, bias = torch.ones(2, 1, 1, 1, 1, dtype=dtype), torch.ones(1, dtype=dtype)
    for name in ("tiled.i32", "direct.i32"):
        with plan.forced({"forward": name}):
            assert convt3d.conv_transpose3d(input, weight, bias).item() == first + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_16_bit_sums_are_kept_in_32_bits(dtype: torch.dtype) -> None:
    count = 3000  # ones: above 2^11 a 16-bit sum would stand still
    operands = Operands(
        torch.ones(1, count, 1, 1, 1, dtype=dtype),
        torch.ones(count, 1, 1, 1, 1, dtype=dtype),
        None,
        torch.ones(1, 1, 1, 1, 1, dtype=dtype),
    )
    geometry = checks.geometry((1, 1, 1), (1, 1, 1), channels=(count, 1))
    for name in ("tiled.i32", "direct.i32"):
        with plan.forced({"forward": name}):
            output = checks.call(geometry, operands)
            assert output.item() == torch.tensor(float(count)).to(dtype).item()


def test_the_unbatched_call_is_a_batch_of_one() -> None:
    operands = checks.operands(UPSAMPLING, torch.float32)
    single = dataclasses.replace(
        operands, input=operands.input[1], grad_output=operands.grad_output[1]
    )
    got = checks.ours(UPSAMPLING, single)
    expected = checks.native(UPSAMPLING, single)
    assert got.output.dim() == got.grad_input.dim() == 4
    checks.assert_right(got, expected)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_a_batch_of_nothing_has_no_output_and_gradients_of_zero(memory_format: str) -> None:
    geometry = dataclasses.replace(UPSAMPLING, batch=0)
    operands = checks.operands(geometry, torch.float32, memory_format=MEMORY_FORMATS[memory_format])
    expected = checks.native(geometry, operands)
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            got = checks.ours(geometry, operands)
            checks.assert_right(got, expected, str(plans))
            assert not got.grad_weight.any()


@pytest.mark.parametrize("value", [2, (2,), [2, 2, 2], torch.Size([2, 2, 2])])
def test_parameters_may_be_one_number_or_three(value: Any) -> None:
    operands = checks.operands(UPSAMPLING, torch.float32)
    output = convt3d.conv_transpose3d(
        operands.input, operands.weight, operands.bias, stride=value, padding=[1], output_padding=1
    )
    assert torch.equal(output, checks.call(UPSAMPLING, operands))


def test_the_positional_arguments_are_those_of_the_native_op() -> None:
    geometry = GEOMETRIES["every_axis_of_its_own"]
    operands = checks.operands(geometry, torch.float64)
    expected = torch.nn.functional.conv_transpose3d(
        operands.input,
        operands.weight,
        operands.bias,
        (2, 1, 3),
        (1, 0, 2),
        (0, 1, 2),
        1,
        (1, 2, 2),
    )
    assert torch.equal(checks.call(geometry, operands), expected)


# ---- where the results lie ----------------------------------------------------------------------


@pytest.mark.parametrize("of_weight", MEMORY_FORMATS)
@pytest.mark.parametrize("of_input", MEMORY_FORMATS)
def test_results_are_channels_last_when_input_or_weight_is(of_input: str, of_weight: str) -> None:
    operands = checks.operands(UPSAMPLING, torch.float32)
    operands = dataclasses.replace(
        operands,
        input=operands.input.contiguous(memory_format=MEMORY_FORMATS[of_input]),
        weight=operands.weight.contiguous(memory_format=MEMORY_FORMATS[of_weight]),
    )
    output = checks.call(UPSAMPLING, operands)
    wanted = "channels_last" if "channels_last" in (of_input, of_weight) else "contiguous"
    assert output.is_contiguous(memory_format=MEMORY_FORMATS[wanted])
    operands = dataclasses.replace(
        operands, grad_output=operands.grad_output.contiguous(memory_format=MEMORY_FORMATS[wanted])
    )
    got = checks.ours(UPSAMPLING, operands)
    checks.assert_right(got, checks.native(UPSAMPLING, operands))
    for gradient in (got.grad_input, got.grad_weight):
        assert gradient.is_contiguous(memory_format=MEMORY_FORMATS[wanted])


@pytest.mark.parametrize("part", [(slice(None, None, 2),), (slice(None), slice(0, 2))])
def test_part_of_a_channels_last_tensor_is_channels_last(part: tuple[slice, ...]) -> None:
    whole = torch.ones(4, 4, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    input = whole[part]
    weight = torch.ones(input.shape[1], 2, 2, 2, 2)
    output = convt3d.conv_transpose3d(input, weight)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)


def run_primitives(geometry: Geometry, operands: Operands) -> list[Tensor]:
    """Calls every primitive, in every way that decides the shapes of its results."""
    forward, grad_input, grad_weight = (
        getattr(torch.ops.convt3d, name) for name in plan.PRIMITIVES
    )
    rest = checks.parameters(geometry)
    channels_last = launch.is_channels_last(operands.input, operands.weight)
    results = [
        forward(operands.input, operands.weight, operands.bias, *rest),
        forward(operands.input, operands.weight, None, *rest),
        grad_input(operands.grad_output, operands.weight, *rest, channels_last),
    ]
    for wanted in ((True, True), (True, False), (False, True)):
        pair = operands.input, operands.grad_output
        results += grad_weight(*pair, geometry.kernel_size, *rest, channels_last, *wanted)
    return results


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("name", ["upsampling", "depthwise", "one_element"])
def test_meta_tensors_give_the_shapes_and_strides_of_real_ones(
    name: str, memory_format: str
) -> None:
    geometry = GEOMETRIES[name]
    operands = checks.operands(geometry, torch.float16, memory_format=MEMORY_FORMATS[memory_format])
    real = run_primitives(geometry, operands)
    meta = run_primitives(geometry, operands.map(lambda tensor: tensor.to("meta")))
    for one, other in zip(real, meta, strict=True):
        assert other.is_meta
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


# ---- offsets past 32 bits -----------------------------------------------------------------------


@pytest.fixture
def far_apart() -> Iterator[Any]:
    """Lays a float16 tensor out with 2^31 elements between its first two slices.

    The memory between is reserved, not used: only the pages that are touched cost anything.
    """
    maps: list[mmap.mmap] = []
    no_reserve = 0x4000

    def lay(tensor: Tensor) -> Tensor:
        distance = 2**31 + 8
        elements = (tensor.shape[0] - 1) * distance + tensor[0].numel()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
        try:
            maps.append(mmap.mmap(-1, 2 * elements, flags=flags))
        except OSError as error:
            pytest.skip(f"no 4 GiB of address space: {error}")
        strides = (distance, *tensor[0].contiguous().stride())
        memory = torch.frombuffer(maps[-1], dtype=torch.float16)
        return memory.as_strided(tensor.shape, strides).copy_(tensor)

    yield lay


@pytest.mark.parametrize("operand", ["input", "weight", "grad_output"])
def test_an_operand_may_reach_past_32_bits(operand: str, far_apart: Any) -> None:
    geometry = checks.geometry((2, 1, 3), (2, 2, 1), batch=2, channels=(2, 3), stride=(1, 2, 1))
    operands = checks.operands(geometry, torch.float16)
    expected = checks.native(geometry, operands)
    far = far_apart(getattr(operands, operand))
    operands = dataclasses.replace(operands, **{operand: far})
    checks.assert_right(checks.ours(geometry, operands), expected, "auto")
    for plans in checks.plan_sets(geometry, fits_32_bits=False):
        with plan.forced(plans):
            checks.assert_right(checks.ours(geometry, operands), expected, str(plans))
    for primitive in plan.PRIMITIVES:
        reads = {"forward": "input weight", "grad_input": "grad_output weight"}
        with plan.forced({primitive: "tiled.i32"}):
            if operand in reads.get(primitive, "input grad_output"):
                with pytest.raises(RuntimeError, match=f"{primitive}, but an offset needs 64 bits"):
                    checks.ours(geometry, operands)


def test_results_may_reach_past_32_bits(far_apart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = checks.geometry((2, 1, 3), (2, 2, 1), batch=2, channels=(2, 3), stride=(1, 2, 1))
    operands = checks.operands(geometry, torch.float16)
    expected = checks.native(geometry, operands)

    def far_allocate(shape: Sequence[int], dtype: torch.dtype, *rest: Any) -> Tensor:
        empty = torch.full(tuple(shape), float("nan"), dtype=dtype)
        return far_apart(empty) if len(shape) == 5 else empty

    monkeypatch.setattr(launch, "allocate", far_allocate)
    checks.assert_right(checks.ours(geometry, operands), expected, "auto")
    for plans in checks.plan_sets(geometry, fits_32_bits=False):
        with plan.forced(plans):
            checks.assert_right(checks.ours(geometry, operands), expected, str(plans))


def test_the_largest_stride_and_dilation_reach_the_right_tap() -> None:
    """Where the 64-bit product that finds the first tap of a phase is at its largest."""
    stride = 2**31 - 1
    input = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    weight = torch.tensor([10.0, 11.0, 12.0], dtype=torch.float64).reshape(1, 1, 1, 1, 3)
    output = convt3d.conv_transpose3d(
        input,
        weight,
        stride=(1, 1, stride),
        dilation=(1, 1, stride - 2),
        padding=(0, 0, stride - 2),
    )
    assert output.flatten().tolist() == [11.0]
