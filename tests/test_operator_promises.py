"""What a call of the op costs, and what it promises beside right answers."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import launch, plan
from convt3d.emulator import runtime
from convt3d.geometry import Geometry
from convt3d.params import Params
from tests import operator_checks as checks
from tests.operator_checks import GEOMETRIES, MEMORY_FORMATS, VIEWS, Operands, name_of

# Shapes for tests that are about something else.
PLAIN = GEOMETRIES["plain"]
UPSAMPLING = GEOMETRIES["upsampling"]
LEAVES = ("input", "weight", "bias")

Allocation = tuple[tuple[int, ...], torch.dtype]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was launched so far, in words."""
    seen: list[str] = []
    real = launch._launch

    def recording(
        family: str, params: Params, flags: tuple[int, ...], tensor: Tensor, what: str
    ) -> None:
        seen.append(what)
        real(family, params, flags, tensor, what)

    monkeypatch.setattr(launch, "_launch", recording)
    return seen


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[Allocation]:
    """What was allocated so far; what has no element left out."""
    seen: list[Allocation] = []
    real = launch.allocate

    def recording(shape: Sequence[int], dtype: torch.dtype, *rest: Any) -> Tensor:
        tensor = real(shape, dtype, *rest)
        if tensor.numel():
            seen.append((tuple(shape), dtype))
        return tensor

    monkeypatch.setattr(launch, "allocate", recording)
    return seen


# ---- what a call costs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward_is_one_launch_and_one_allocation(
    name: str, launches: list[str], allocations: list[Allocation]
) -> None:
    geometry = GEOMETRIES[name]
    operands = checks.operands(geometry, torch.float32)
    for one in plan.candidates("forward", geometry):
        launches.clear()
        allocations.clear()
        with plan.forced({"forward": str(one)}):
            checks.call(geometry, operands)
        assert launches == [f"forward with plan {one}"]
        assert allocations == [(geometry.output_shape, torch.float32)]


@pytest.mark.parametrize("wanted", checks.subsets(LEAVES), ids="-".join)
def test_only_the_gradients_that_are_needed_are_computed(
    wanted: tuple[str, ...], launches: list[str], allocations: list[Allocation]
) -> None:
    operands = checks.operands(PLAIN, torch.float32)
    leaves = {name: getattr(operands, name).requires_grad_(name in wanted) for name in LEAVES}
    output = checks.call(PLAIN, operands)
    launches.clear()
    allocations.clear()
    gradients = torch.autograd.grad(output, [leaves[name] for name in wanted], operands.grad_output)
    expected = checks.native(PLAIN, operands)
    for name, gradient in zip(wanted, gradients):
        exact = getattr(expected, f"grad_{name}")
        checks.assert_same_bits(gradient, exact.to(gradient.dtype), name)
    primitives = sorted({"grad_input" if name == "input" else "grad_weight" for name in wanted})
    assert [what.partition(" ")[0] for what in sorted(launches)] == primitives
    shapes = sorted(shape for shape, _ in allocations)
    assert shapes == sorted(leaves[name].shape for name in wanted)


def test_no_graph_is_kept_where_nothing_requires_a_gradient() -> None:
    operands = checks.operands(PLAIN, torch.float32)
    assert not checks.call(PLAIN, operands).requires_grad
    operands.weight.requires_grad_()
    assert checks.call(PLAIN, operands).requires_grad
    with torch.no_grad():
        assert not checks.call(PLAIN, operands).requires_grad


@pytest.mark.parametrize("splits", [2, 7])
def test_split_k_allocates_its_partial_sums_in_the_accumulators_type(
    splits: int, allocations: list[Allocation]
) -> None:
    accumulators = {dtype: torch.float32 for dtype in checks.DTYPES}
    accumulators[torch.float64] = torch.float64
    for dtype, accumulator in accumulators.items():
        operands = checks.operands(PLAIN, dtype)
        allocations.clear()
        with plan.forced({"grad_weight": f"tiled.i32.split{splits}"}):
            torch.ops.convt3d.grad_weight(
                operands.input,
                operands.grad_output,
                PLAIN.kernel_size,
                *checks.parameters(PLAIN),
                False,
                True,
                True,
            )
        elements = operands.weight.numel() + PLAIN.out_channels
        assert allocations == [
            (PLAIN.weight_shape, dtype),
            ((PLAIN.out_channels,), dtype),
            ((splits, elements), accumulator),
        ]


def names_run(geometry: Geometry, operands: Operands) -> set[str]:
    """Returns the names of all operators that a call and its gradients run, also inside others."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        checks.ours(geometry, operands)
    names = {event.name for event in profile.events()} - {"aten::is_same_size"}  # the engine of 2.0
    return {name for name in names if "::" in name and not name.startswith("autograd::")}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_a_call_runs_nothing_but_its_primitives_and_empty(memory_format: str, view: str) -> None:
    operands = checks.operands(
        UPSAMPLING, torch.float32, memory_format=MEMORY_FORMATS[memory_format]
    )
    viewed = dataclasses.replace(operands.map(VIEWS[view]), bias=operands.bias)
    primitives = {f"convt3d::{primitive}" for primitive in plan.PRIMITIVES}
    # detach: how differentiated() makes its leaves, and no copy.
    assert names_run(UPSAMPLING, viewed) == {*primitives, "aten::empty", "aten::detach"}


def test_a_strided_bias_is_not_copied() -> None:
    operands = checks.operands(UPSAMPLING, torch.float32)
    assert operands.bias is not None
    operands = dataclasses.replace(operands, bias=checks.every_other(operands.bias))
    assert not names_run(UPSAMPLING, operands) & {"aten::clone", "aten::copy_", "aten::contiguous"}


# ---- promises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
def test_results_repeat_bit_for_bit(dtype: torch.dtype) -> None:
    operands = checks.reals(UPSAMPLING, dtype)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            first = checks.ours(UPSAMPLING, operands)
            for seed in range(2):
                with runtime.schedule("hostile", seed):
                    again = checks.ours(UPSAMPLING, operands)
                checks.assert_same_results(again, first, str(plans))


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ["upsampling", "positions_past_a_tile"])
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(name: str, dtype: torch.dtype) -> None:
    geometry = GEOMETRIES[name]
    operands = checks.reals(geometry, dtype)
    for plans in checks.plan_sets(geometry):
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
    operands = checks.operands(UPSAMPLING, torch.float32).map(VIEWS[view])
    before = operands.map(storage_of)
    for plans in checks.plan_sets(UPSAMPLING):
        with plan.forced(plans):
            checks.ours(UPSAMPLING, operands)
    for field in dataclasses.fields(Operands):
        name = field.name
        after = storage_of(getattr(operands, name))
        assert torch.equal(after, getattr(before, name)), name


def storage_of(tensor: Tensor) -> Tensor:
    """Returns a copy of all memory behind a tensor, the gaps between its elements too."""
    bytes_ = tensor.untyped_storage()
    return torch.tensor([], dtype=tensor.dtype).set_(bytes_).clone()


@pytest.mark.parametrize("kernel", plan.KERNELS)
def test_a_nan_reaches_only_the_outputs_of_its_taps(kernel: str) -> None:
    input = torch.ones(1, 1, 1, 1, 4)
    input[..., 3] = float("nan")
    weight = torch.ones(1, 1, 1, 1, 2)
    with plan.forced({"forward": f"{kernel}.i32"}):
        output = convt3d.conv_transpose3d(input, weight, stride=2)
    assert output.isnan().flatten().tolist() == [False] * 6 + [True] * 2


def test_the_emulator_says_once_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    say = launch._say_once_that_this_is_the_emulator.__wrapped__
    monkeypatch.setattr(launch, "_say_once_that_this_is_the_emulator", functools.cache(say))
    operands = checks.operands(PLAIN, torch.float32)
    with pytest.warns(UserWarning, match="convt3d runs CPU tensors on its kernel emulator"):
        checks.call(PLAIN, operands)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.call(PLAIN, operands)


FORKS_DURING_LAUNCHES = """
import os, threading, torch, convt3d
torch.set_num_threads(1)
x, w = torch.ones(1, 8, 4, 8, 8), torch.ones(8, 8, 3, 3, 3)
convt3d.conv_transpose3d(x, w)
threading.Thread(target=lambda: [convt3d.conv_transpose3d(x, w) for _ in range(150)]).start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        convt3d.conv_transpose3d(x, w)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_that_was_forked_during_a_launch_can_launch() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS_DURING_LAUNCHES]
    subprocess.run(command, check=True, timeout=120)
