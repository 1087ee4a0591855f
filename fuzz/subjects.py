"""The three subjects, as functions that a worker process calls with a case.

    convt3d   this project, every plan that a case names; on the GPU, or on the emulator
    oracle    PyTorch's native op in float64 on the CPU with oneDNN off: it checks the judge
    native    PyTorch's native op in the case's dtype, as a user gets it; it may crash or write out of bounds

Each gets its own copies of the tensors, between guard bands, in memory that was dirtied first. A mode or layout that
the device does not have (the emulator's on a GPU, a GPU's on the emulator) is left aside: the case runs plainly.
"""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

# torch.autograd.grad imports this on its first call, which would cost every fresh process 0.3 s; here the server that
# processes are forked from does it once.
import torch.fx.experimental.symbolic_shapes
from torch import Tensor
from torch.nn.functional import conv_transpose3d as native_conv_transpose3d

from convt3d import build, conv_transpose3d, launch, plan
from convt3d.emulator import runtime
from fuzz import compute_sanitizer, data, number
from fuzz.arena import DTYPES, Arena, ArenaFull, Placed, dirty_free_memory
from fuzz.case import GPU_TOOLS, Case
from fuzz.far_memory import FarMemory
from fuzz.outcome import RESULTS, Outcome
from fuzz.plans import usual_parts
from fuzz.separate_memory import SeparateMemory
from fuzz.worker_process import enter_stage

# A user has more than one, and oneDNN splits its work then: some of its defects show only with a second thread.
NATIVE_THREADS = 2
# About a millisecond: the host has launched forward and backward long before.
DELAY_CYCLES = 1 << 21

Memory = Arena | FarMemory | SeparateMemory
# What a process allocates from; fuzz.compute_sanitizer replaces it.
new_memory: Callable[[torch.device], Memory] = Arena


def warm_up(name: str, modes: Sequence[str]) -> None:
    """Gets a fresh worker ready: threads, no warnings, kernels built, and a first case behind it.

    The first case of a process pays for a CUDA context and for libraries that load lazily.

    Args:
        name: of the subject.
        modes: that cases may have.
    """
    gc.freeze()  # what is imported stays: the collector need not look at it again
    torch.set_num_threads(NATIVE_THREADS if name == "native" else 1)
    warnings.simplefilter("ignore")
    if name == "convt3d":
        sanitized = [mode for mode in modes if mode in build.SANITIZER_FLAGS]
        for target in ["cuda"] if torch.cuda.is_available() else ["host", *sanitized]:
            build.build_all(target, usual_parts(target))
    {"convt3d": convt3d, "oracle": oracle, "native": native}[name](Case())


def convt3d(case: Case) -> Outcome:
    """Runs this project on a case; results, workspaces and inputs lie in memory that is watched."""
    case = case.on(_device_name())
    return compute_sanitizer.run("convt3d", case) if case.mode in GPU_TOOLS else _convt3d(case)


def _convt3d(case: Case) -> Outcome:
    twin = twin_of(case)
    if twin is not None:
        _run_convt3d(twin)
    if case.mode == "delayed":
        # A kernel is loaded when it is first launched, which takes longer than the delay.
        _run_convt3d(replace(case, mode="fast"))
    outcome = _run_convt3d(case)
    alone = gradient_alone(case)
    return outcome if alone is None else _with_gradient_alone(case, outcome, alone)


def gradient_alone(case: Case) -> str | None:
    """Which gradient is asked for a second time, alone: "grad_input", "grad_weight", "grad_bias", or None.

    It must be the same bit for bit, though an op does less then, and other branches of it run. The seed decides, so
    that the case string alone brings it about again.
    """
    if case.seed % 8 != 5:
        return None
    gradients = RESULTS[1:] if case.bias else RESULTS[1:3]
    return gradients[case.seed // 8 % len(gradients)]


def _with_gradient_alone(case: Case, outcome: Outcome, name: str) -> Outcome:
    second = _run_convt3d(case, name)
    damage = [*outcome.damage, *second.damage]
    if not np.array_equal(second.results[name], outcome.results[name]):
        damage.append(f"{name} is another when it is asked for alone")
    return replace(outcome, damage=tuple(damage))


def twin_of(case: Case) -> Case | None:
    """A case of the same sizes, with other data or in the other layout, that runs before the case and is forgotten.

    What an op wrongly remembers from call to call (a result, a plan, strides) shows then: no two drawn cases share
    their sizes. One case in eight has a twin; the seed decides, so that the case string alone brings it about again.
    """
    if case.seed % 16 == 3:
        return replace(case, seed=case.seed - 1)
    if case.seed % 16 == 7 and case.layout in ("ncdhw", "cl"):
        return replace(case, layout="cl" if case.layout == "ncdhw" else "ncdhw")
    return None


def _run_convt3d(case: Case, gradient: str | None = None) -> Outcome:
    plans = {primitive: getattr(case, f"{primitive}_plan") for primitive in plan.PRIMITIVES}
    device = _device()
    memory = FarMemory(case.seed) if case.layout == "far" else _memory(device)
    with (
        _allocating_in(memory),
        noting_plans() as ran,
        plan.forced(plans, variation=case.seed, tf32=case.dtype == "tf32"),
        runtime.schedule(case.mode if case.mode in runtime.MODES else "fast", case.schedule),
        _on_side_stream(device) if case.mode == "delayed" else nullcontext(),
    ):
        outcome = _run(conv_transpose3d, case, memory, case.dtype, gradient)
    return replace(outcome, plans=ran)


def oracle(case: Case) -> Outcome:
    """Runs the native op in float64 on a CPU with oneDNN off, on the same values."""
    dirty_free_memory(torch.device("cpu"))
    with torch.backends.mkldnn.flags(enabled=False):
        memory = _memory(torch.device("cpu"))
        return _run(native_conv_transpose3d, case.on("emulator"), memory, "f64")


def native(case: Case) -> Outcome:
    """Runs the native op as a user gets it; in fp32 with TF32 off, in tf32 with it on.

    Of compute-sanitizer's tools it runs under memcheck only: the others report what is cuDNN's own affair.
    """
    case = case.on(_device_name())
    return compute_sanitizer.run("native", case) if case.mode == "memcheck" else _native(case)


def _native(case: Case) -> Outcome:
    device = _device()
    dirty_free_memory(device)
    torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
    return _run(native_conv_transpose3d, case, _memory(device), case.dtype)


# What a process under a tool runs, where nothing is left to hand over.
under_tool = {"convt3d": _convt3d, "native": _native}


def _run(
    function: Any, case: Case, memory: Memory, dtype: str, gradient: str | None = None
) -> Outcome:
    """Runs a function with conv_transpose3d's signature, forward and backward; one gradient, or all of them."""
    inputs = data.generate(case)
    values = {name: getattr(inputs, name) for name in ("input", "weight", "bias", "grad_output")}
    placed = [
        Placed(
            name,
            number.encode(value, dtype),
            DTYPES[dtype],
            case.layout == "cl" and value.ndim == 5,
        )
        for name, value in values.items()
        if value is not None
    ]
    while True:
        if case.mode == "delayed":
            # The data arrive late: who uses another stream than the current one is too early for them.
            torch.cuda._sleep(DELAY_CYCLES)
        try:
            *leaves, grad_output = memory.begin(placed)
            results = _differentiate(function, case, leaves, grad_output, gradient)
        except ArenaFull:
            assert isinstance(memory, Arena)
            memory.grow()
            continue
        raw, damage = memory.finish(results)
        return Outcome("ok", results=raw, damage=tuple(damage))


def _differentiate(
    function: Any,
    case: Case,
    leaves: list[Tensor],
    grad_output: Tensor,
    gradient: str | None,
) -> dict[str, Tensor]:
    """Output and the gradients of the leaves: input, weight and, if there is one, bias; or one of them."""
    wanted = {name: leaf for name, leaf in zip(RESULTS[1:], leaves) if gradient in (None, name)}
    for leaf in wanted.values():
        leaf.requires_grad_()
    enter_stage("forward")
    output = function(
        *leaves,
        stride=case.stride,
        padding=case.padding,
        output_padding=case.output_padding,
        groups=case.groups,
        dilation=case.dilation,
    )
    enter_stage("backward")
    gradients = torch.autograd.grad(output, [*wanted.values()], grad_output)
    return {"output": output.detach(), **dict(zip(wanted, gradients))}


@contextmanager
def _allocating_in(memory: Memory) -> Iterator[None]:
    """Has the op put its results and workspaces there."""

    def allocate(
        shape: Any, dtype: torch.dtype, device: torch.device, channels_last: bool
    ) -> Tensor:
        return memory.allocate("a result", tuple(shape), dtype, channels_last)

    original = launch.allocate
    launch.allocate = allocate
    try:
        yield
    finally:
        launch.allocate = original


@contextmanager
def noting_plans() -> Iterator[dict[str, str]]:
    """Notes which plan ran each primitive."""
    ran: dict[str, str] = {}

    def gather(primitive: str, *arguments: Any) -> plan.Plan:
        chosen = of_gather(primitive, *arguments)
        ran[primitive] = str(chosen)
        return chosen

    def weight_gradient(*arguments: Any) -> plan.Plan:
        chosen = of_weight(*arguments)
        ran["grad_weight"] = str(chosen)
        return chosen

    of_gather, of_weight = launch.gather, launch.weight_gradient
    launch.gather, launch.weight_gradient = gather, weight_gradient  # type: ignore[assignment]
    try:
        yield ran
    finally:
        launch.gather, launch.weight_gradient = of_gather, of_weight


def _device_name() -> str:
    """As fuzz.case.DEVICE_MODES names it."""
    return "cuda" if torch.cuda.is_available() else "emulator"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def _memory(device: torch.device) -> Memory:
    return new_memory(device)


def _on_side_stream(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.stream(_side_stream(device)) if device.type == "cuda" else nullcontext()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
