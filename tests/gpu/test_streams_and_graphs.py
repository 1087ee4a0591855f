"""The op is enqueued like any other: on the current stream, without waiting, in as many launches as it should take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from convt3d import plan
from tests import operator_checks as checks
from tests.operator_checks import GEOMETRIES, Operands

GEOMETRY = GEOMETRIES["upsampling"]
# Keeps a stream busy for about half a second.
LONG_CYCLES = 1_000_000_000


def operands_and_answer() -> tuple[Operands, checks.Results]:
    """Returns operands on the GPU and the exact results, with every plan compiled and run once."""
    operands = checks.operands(GEOMETRY, torch.float32, "cuda")
    for plans in ({}, *checks.plan_sets(GEOMETRY)):
        with plan.forced(plans):
            checks.ours(GEOMETRY, operands)
    torch.cuda.synchronize()
    return operands, checks.native(GEOMETRY, operands)


# ---- streams ------------------------------------------------------------------------------------


def test_a_call_is_ordered_on_the_current_stream_and_does_not_wait() -> None:
    operands, expected = operands_and_answer()
    for plans in checks.plan_sets(GEOMETRY):
        late = operands.map(lambda tensor: torch.full_like(tensor, float("nan")))
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with plan.forced(plans), torch.cuda.stream(stream):
            torch.cuda._sleep(LONG_CYCLES // 10)
            for field in dataclasses.fields(Operands):
                getattr(late, field.name).copy_(getattr(operands, field.name))
            got = checks.ours(GEOMETRY, late)
            is_busy = not stream.query()
        stream.synchronize()
        assert is_busy, f"{plans}: the call has waited for the GPU"
        checks.assert_right(got, expected, str(plans))


def test_another_stream_does_not_hold_a_call_up() -> None:
    operands, expected = operands_and_answer()
    busy, free = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(LONG_CYCLES)
    with torch.cuda.stream(free):
        got = checks.ours(GEOMETRY, operands)
    free.synchronize()
    is_busy = not busy.query()
    busy.synchronize()
    assert is_busy
    checks.assert_right(got, expected)


def test_calls_on_two_streams_do_not_disturb_each_other() -> None:
    operands, expected = operands_and_answer()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for turn in range(20):
        with torch.cuda.stream(streams[turn % 2]):
            results.append(checks.ours(GEOMETRY, operands))
    torch.cuda.synchronize()
    for got in results:
        checks.assert_right(got, expected)


def test_two_python_threads_call_at_once() -> None:
    operands, expected = operands_and_answer()

    def call_often(_: int) -> list[checks.Results]:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [checks.ours(GEOMETRY, operands) for _ in range(10)]
            torch.cuda.current_stream().synchronize()
        return results

    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(call_often, range(2)):
            for got in results:
                checks.assert_right(got, expected)


# ---- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(10))
def test_a_captured_call_and_its_gradients_replay_on_new_values(turn: int) -> None:
    every = list(checks.plan_sets(GEOMETRY))
    plans = every[turn % len(every)]
    operands, expected = operands_and_answer()
    static = operands.map(torch.zeros_like)
    graph = torch.cuda.CUDAGraph()
    with plan.forced(plans):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                checks.ours(GEOMETRY, static)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = checks.ours(GEOMETRY, static)
    for factor in (1, -1):
        fresh = operands.map(lambda tensor, by=factor: tensor * by)  # type: ignore[misc]
        for field in dataclasses.fields(Operands):
            getattr(static, field.name).copy_(getattr(fresh, field.name))
        graph.replay()
        torch.cuda.synchronize()
        answer = expected if factor == 1 else checks.native(GEOMETRY, fresh)
        checks.assert_right(captured, answer, str(plans))


# ---- launches -----------------------------------------------------------------------------------


def kernels_run(function: Callable[[], Any]) -> list[str]:
    """Returns the names of what a function runs on the GPU, in order: kernels, copies and fills."""
    function()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    on_gpu = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    return [event.name for event in sorted(on_gpu, key=lambda event: event.time_range.start)]


@pytest.fixture
def needs_profiler() -> None:
    ones = torch.ones(8, device="cuda")
    if not kernels_run(lambda: ones + 1):
        pytest.skip("the profiler sees no kernels here")


@pytest.mark.usefixtures("needs_profiler")
@pytest.mark.parametrize("memory_format", checks.MEMORY_FORMATS)
@pytest.mark.parametrize("name", ["upsampling", "groups", "phases_without_a_tap"])
def test_forward_and_grad_input_are_one_launch_each(name: str, memory_format: str) -> None:
    geometry = GEOMETRIES[name]
    rest = checks.parameters(geometry)
    operands = checks.operands(
        geometry, torch.float16, "cuda", memory_format=checks.MEMORY_FORMATS[memory_format]
    )
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.ops.convt3d.forward(
            operands.input, operands.weight, operands.bias, *rest
        ),
        "grad_input": lambda: torch.ops.convt3d.grad_input(
            operands.grad_output, operands.weight, *rest, memory_format == "channels_last"
        ),
    }
    for primitive, function in calls.items():
        for one in plan.candidates(primitive, geometry):
            with plan.forced({primitive: str(one)}):
                names = kernels_run(function)
            assert len(names) == 1, names
            assert f"gather_{one.kernel}_kernel" in names[0]


@pytest.mark.usefixtures("needs_profiler")
@pytest.mark.parametrize(
    ("chosen", "kernels"),
    [
        ("tiled.i32", ["weight_tiled_kernel"]),
        ("direct.i64", ["weight_direct_kernel"]),
        ("tiled.i32.split3", ["weight_tiled_kernel", "weight_reduce_kernel"]),
    ],
)
def test_grad_weight_is_one_launch_or_two_with_split_k(chosen: str, kernels: list[str]) -> None:
    operands = checks.operands(GEOMETRY, torch.float16, "cuda")
    with plan.forced({"grad_weight": chosen}):
        names = kernels_run(
            lambda: torch.ops.convt3d.grad_weight(
                operands.input,
                operands.grad_output,
                GEOMETRY.kernel_size,
                *checks.parameters(GEOMETRY),
                False,
                True,
                True,
            )
        )
    assert len(names) == len(kernels), names
    for name, kernel in zip(names, kernels):
        assert kernel in name
