"""The op on a GPU, against PyTorch's own on the CPU in float64: plans, dtypes, formats and views, bit for bit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import build, launch, plan
from tests import operator_checks as checks
from tests.operator_checks import GEOMETRIES, MEMORY_FORMATS, VIEWS, Operands, name_of

UPSAMPLING = GEOMETRIES["upsampling"]
# Several tiles of everything, and channel counts on and off the tiles.
LAYERS = {
    "upsampling_layer": checks.geometry(
        (8, 7, 9),
        (3, 3, 3),
        batch=2,
        channels=(64, 32),
        stride=(2, 2, 2),
        padding=(1, 1, 1),
        output_padding=(1, 1, 1),
    ),
    "odd_channels": checks.geometry(
        (5, 6, 7), (2, 3, 4), batch=3, channels=(37, 41), stride=(1, 2, 3), dilation=(2, 1, 2)
    ),
    "four_channels_a_group": checks.geometry(
        (4, 4, 3), (3, 5, 2), batch=1, channels=(12, 12), groups=3, stride=(3, 4, 2)
    ),
    "depthwise_layer": checks.geometry(
        (6, 9, 8), (3, 3, 3), batch=2, channels=(48, 48), groups=48, padding=(1, 1, 1)
    ),
    "long_reduction": checks.geometry((16, 33, 32), (1, 2, 1), batch=4, channels=(3, 5)),
}
# An edge of the input that makes an output of more than 2^31 elements with kernel and stride 2.
LARGE_SIDE = 646
LARGE_BYTES = 14 << 30


def on_gpu(geometry: Any, dtype: torch.dtype, **options: Any) -> Operands:
    return checks.operands(geometry, dtype, "cuda", **options)


# ---- right answers ------------------------------------------------------------------------------


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("name", [*GEOMETRIES, *LAYERS])
def test_every_plan_gives_the_exact_answer(
    name: str, dtype: torch.dtype, memory_format: str
) -> None:
    geometry = {**GEOMETRIES, **LAYERS}[name]
    operands = on_gpu(geometry, dtype, memory_format=MEMORY_FORMATS[memory_format])
    expected = checks.native(geometry, operands)
    checks.assert_right(checks.ours(geometry, operands), expected, "auto")
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            got = checks.ours(geometry, operands)
            assert got.output.is_cuda
            checks.assert_right(got, expected, str(plans))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("view", VIEWS)
def test_operands_are_read_where_they_lie(view: str, dtype: torch.dtype) -> None:
    operands = on_gpu(UPSAMPLING, dtype).map(VIEWS[view])
    expected = checks.native(UPSAMPLING, operands)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            checks.assert_right(checks.ours(UPSAMPLING, operands), expected, str(plans))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
def test_a_call_without_a_bias_adds_none(dtype: torch.dtype) -> None:
    for geometry in GEOMETRIES.values():
        operands = on_gpu(geometry, dtype, bias=False)
        checks.assert_right(checks.ours(geometry, operands), checks.native(geometry, operands))


def test_the_unbatched_call_is_a_batch_of_one() -> None:
    operands = on_gpu(UPSAMPLING, torch.float32)
    single = dataclasses.replace(
        operands, input=operands.input[1], grad_output=operands.grad_output[1]
    )
    checks.assert_right(checks.ours(UPSAMPLING, single), checks.native(UPSAMPLING, single))


@pytest.mark.usefixtures("poison")
def test_a_batch_of_nothing_has_no_output_and_gradients_of_zero() -> None:
    geometry = dataclasses.replace(UPSAMPLING, batch=0)
    operands = on_gpu(geometry, torch.float16)
    expected = checks.native(geometry, operands)
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            checks.assert_right(checks.ours(geometry, operands), expected, str(plans))


def test_a_gpu_splits_a_long_reduction() -> None:
    count = torch.cuda.get_device_properties(0).multi_processor_count
    chosen = plan.choose("grad_weight", LAYERS["long_reduction"], True, count)
    assert chosen.splits > 1


@pytest.mark.parametrize("kernel", plan.KERNELS)
def test_second_derivatives_match_finite_differences(kernel: str) -> None:
    tiny = checks.geometry((2, 1, 2), (2, 1, 2), channels=(2, 2), groups=2, stride=(2, 1, 1))
    stride, padding, output_padding, dilation, groups = checks.parameters(tiny)
    operands = on_gpu(tiny, torch.float64).map(lambda tensor: (tensor / 4).requires_grad_())
    assert operands.bias is not None
    with plan.forced(dict.fromkeys(plan.PRIMITIVES, f"{kernel}.i32")):
        assert torch.autograd.gradgradcheck(
            lambda *leaves: convt3d.conv_transpose3d(
                *leaves, stride, padding, output_padding, groups, dilation
            ),
            (operands.input, operands.weight, operands.bias),
        )


# ---- promises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("name", LAYERS)
def test_results_repeat_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    operands = checks.reals(LAYERS[name], dtype, "cuda")
    for plans in ({}, *checks.plan_sets(LAYERS[name])):
        with plan.forced(plans):
            first = checks.ours(LAYERS[name], operands)
            for _ in range(3):
                again = checks.ours(LAYERS[name], operands)
                checks.assert_same_results(again, first, str(plans))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ["upsampling_layer", "odd_channels"])
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(name: str, dtype: torch.dtype) -> None:
    geometry = LAYERS[name]
    operands = checks.reals(geometry, dtype, "cuda")
    for plans in ({}, *checks.plan_sets(geometry)):
        with plan.forced(plans):
            whole = checks.ours(geometry, operands)
            for n in range(geometry.batch):
                single = dataclasses.replace(
                    operands,
                    input=operands.input[n : n + 1],
                    grad_output=operands.grad_output[n : n + 1],
                )
                alone = checks.ours(geometry, single)
                for result in ("output", "grad_input"):
                    part = getattr(whole, result)[n : n + 1]
                    checks.assert_same_bits(getattr(alone, result), part, f"{result} {plans}")


@pytest.mark.parametrize("view", VIEWS)
def test_operands_are_left_as_they_were(view: str) -> None:
    operands = on_gpu(UPSAMPLING, torch.float32).map(VIEWS[view])
    before = operands.map(torch.clone)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            checks.ours(UPSAMPLING, operands)
    for field in dataclasses.fields(Operands):
        assert torch.equal(getattr(operands, field.name), getattr(before, field.name))


def allocations() -> int:
    """Returns how often this process has asked the allocator for memory on the GPU."""
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_a_call_allocates_its_results_alone(memory_format: str) -> None:
    operands = on_gpu(UPSAMPLING, torch.float16, memory_format=MEMORY_FORMATS[memory_format])
    rest = checks.parameters(UPSAMPLING)
    pair = (operands.input, operands.grad_output)
    calls = {
        1: lambda: torch.ops.convt3d.forward(operands.input, operands.weight, operands.bias, *rest),
        2: lambda: torch.ops.convt3d.grad_weight(
            *pair, UPSAMPLING.kernel_size, *rest, False, True, True
        ),
    }
    with plan.forced({"grad_weight": "tiled.i32"}):
        for expected, function in calls.items():
            function()
            before = allocations()
            results = function()
            assert allocations() - before == expected
            del results


# ---- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_cpu", ["input", "weight", "bias"])
def test_tensors_on_the_cpu_and_the_gpu_do_not_mix(on_cpu: str) -> None:
    operands = on_gpu(GEOMETRIES["plain"], torch.float32)
    operands = dataclasses.replace(operands, **{on_cpu: getattr(operands, on_cpu).cpu()})
    with pytest.raises(RuntimeError, match="all must be on one device") as caught:
        convt3d.conv_transpose3d(operands.input, operands.weight, operands.bias)
    assert f"{on_cpu} is on cpu" in str(caught.value)
    assert "is on cuda:0" in str(caught.value)


def test_a_launch_that_fails_names_the_device() -> None:
    operands = on_gpu(GEOMETRIES["plain"], torch.float32)
    with plan.forced({"grad_weight": "direct.i32.split2"}):
        with pytest.raises(
            RuntimeError, match="failed on cuda:0: the direct kernel has no split-K"
        ):
            checks.ours(GEOMETRIES["plain"], operands)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs"
)
def test_a_call_runs_where_its_tensors_are() -> None:
    geometry = GEOMETRIES["upsampling"]
    operands = checks.operands(geometry, torch.float32, "cuda:1")
    expected = checks.native(geometry, operands)
    torch.cuda.set_device(0)
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            got = checks.ours(geometry, operands)
            assert got.output.device == got.grad_weight.device == torch.device("cuda:1")
            checks.assert_right(got, expected, str(plans))
    assert torch.cuda.current_device() == 0
    mixed = operands.weight.to("cuda:0")
    with pytest.raises(RuntimeError, match="weight is on cuda:0, but input is on cuda:1"):
        convt3d.conv_transpose3d(operands.input, mixed)


def test_what_is_compiled_for_8_0_runs_on_this_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVT3D_ARCH", "8.0")
    monkeypatch.setattr(build, "library", functools.cache(build.library.__wrapped__))
    monkeypatch.setattr(launch, "_entry", functools.cache(launch._entry.__wrapped__))
    operands = on_gpu(UPSAMPLING, torch.float32)
    expected = checks.native(UPSAMPLING, operands)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            checks.assert_right(checks.ours(UPSAMPLING, operands), expected, str(plans))


# ---- offsets past 32 bits -----------------------------------------------------------------------


@pytest.fixture
def large() -> Iterator[tuple[Tensor, Tensor]]:
    """Input and weight of an output of more than 2^31 fp16 elements."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < LARGE_BYTES:
        pytest.skip(f"needs {LARGE_BYTES >> 30} GiB of free GPU memory")
    generator = torch.Generator("cuda").manual_seed(1)
    shape = (1, 1, *(LARGE_SIDE,) * 3)
    input = torch.randint(-3, 4, shape, generator=generator, device="cuda", dtype=torch.int8)
    weight = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8], device="cuda").view(1, 1, 2, 2, 2)
    yield input.half(), weight.half()
    torch.cuda.empty_cache()


LARGE_PARAMETERS = ((2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), 1)


@pytest.mark.parametrize("chosen", ["auto", "direct.i64", "tiled.i64"])
def test_an_output_past_32_bits_is_right_everywhere(
    chosen: str, large: tuple[Tensor, Tensor]
) -> None:
    input, weight = large
    with plan.forced({"forward": chosen}):
        output = torch.ops.convt3d.forward(input, weight, None, *LARGE_PARAMETERS)
    assert output.numel() > 2**31
    # With kernel and stride 2 every output is one product, and each tap has a lattice of its own.
    for d, h, w in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        lattice = output[:, :, d::2, h::2, w::2]
        assert torch.equal(lattice, input * weight[0, 0, d, h, w])


@pytest.mark.parametrize("kernel", plan.KERNELS)
def test_gradients_of_an_output_past_32_bits_are_right_at_its_far_corner(
    kernel: str, large: tuple[Tensor, Tensor]
) -> None:
    input, weight = large
    input[..., -1, -1, -1] = 3
    side = 2 * LARGE_SIDE
    grad_output = torch.zeros((1, 1, side, side, side), dtype=torch.float16, device="cuda")
    corner = torch.arange(1.0, 9, device="cuda").half().view(2, 2, 2)
    grad_output[0, 0, -2:, -2:, -2:] = corner
    with plan.forced({"grad_input": f"{kernel}.i64"}):
        grad_input = torch.ops.convt3d.grad_input(grad_output, weight, *LARGE_PARAMETERS, False)
    assert grad_input[0, 0, -1, -1, -1] == (corner * weight[0, 0]).sum()
    assert grad_input.count_nonzero() == 1
    # A warp an element would take a minute for grad_bias: the plan that is chosen is tiled.
    grad_weight, grad_bias = torch.ops.convt3d.grad_weight(
        input, grad_output, (2, 2, 2), *LARGE_PARAMETERS, False, True, True
    )
    assert torch.equal(grad_weight[0, 0], 3 * corner)
    assert grad_bias.item() == corner.sum().item()


def test_a_32_bit_plan_is_refused_past_32_bits(large: tuple[Tensor, Tensor]) -> None:
    with plan.forced({"forward": "direct.i32"}):
        with pytest.raises(RuntimeError, match="an offset needs 64 bits"):
            torch.ops.convt3d.forward(*large, None, *LARGE_PARAMETERS)
