"""Runs an implementation once, on tensors in an arena, and takes the raw bits of its results; in the worker."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuzz import number
from fuzz.arena import DTYPES, Arena, ArenaFull, Placed, dirty_free_memory
from fuzz.case import Case
from fuzz.data import Inputs
from fuzz.outcome import Outcome
from fuzz.referee import adapter
from fuzz.referee.task import ALIAS_NOTE, LIBRARY_NOTE, NATIVE_NOTE, RESULT_NOTE, Task
from fuzz.referee.watch import Watch
from fuzz.worker_process import enter_stage

# For the inputs of a large case; more is taken where they need it.
ARENA_BYTES = 1 << 26


class Misbehaviour(Exception):
    """A result that is no result; the message is a note for Outcome.damage."""


@dataclass
class Bench:
    """An implementation and what is needed to run it.

    Args:
        implementation: a function or a class.
        device: where it runs.
        is_native: it is PyTorch's own op.
    """

    implementation: Any
    device: torch.device
    is_native: bool = False
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        self.arena = Arena(self.device, ARENA_BYTES)

    def build(self, case: Case) -> adapter.Built:
        """The implementation with the case's parameters."""
        return adapter.build(self.implementation, case, self.device)

    def begin(self, items: list[Placed]) -> tuple[list[Tensor], Watch]:
        """The inputs of a run, which alone lie in the arena, and what watches it."""
        while True:
            try:
                tensors = self.arena.begin(items)
                return tensors, Watch(self.device, tensors[0])
            except ArenaFull:
                self.arena.grow()

    def finish(self, results: Mapping[str, Tensor], watch: Watch | None) -> Ran:
        """Takes the bits of results, and notes what the watched run did."""
        raw, damage = self.arena.finish(results)
        ran = Ran(raw, damage)
        if watch is not None:
            ran.notes += [
                *watch.guarded.damage(),
                *watch.guarded.unwritten(results, raw),
                *watch.written,
                *(f"{NATIVE_NOTE}: {call}" for call in watch.native),
                *(f"{LIBRARY_NOTE}: {call}" for call in watch.library),
            ]
        return ran

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a case as an implementation gets them."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor


@dataclass
class Ran:
    """What came of one or several runs.

    Args:
        raw: name of a result -> its raw bits.
        notes: damage and what else was noted, a sentence each.
    """

    raw: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, label: str, other: Ran) -> None:
        """Takes in another run, whose results get names like "label.output"."""
        self.raw |= {f"{label}.{name}": bits for name, bits in other.raw.items()}
        self.notes += other.notes

    def outcome(self) -> Outcome:
        """For the parent."""
        return Outcome("ok", results=self.raw, damage=tuple(dict.fromkeys(self.notes)))


def run_once(
    bench: Bench,
    built: adapter.Built,
    task: Task,
    inputs: Inputs,
    is_watched: bool = True,
    random_state: int = 0,
) -> Ran:
    """Runs forward, and backward where gradients are wanted, in memory that was dirtied first.

    Args:
        bench: with the implementation.
        built: the implementation with the case's parameters.
        task: whose wants and placement count.
        inputs: data of the task's case, or other data of its shapes.
        is_watched: whether operators are watched, and allocations guarded.
        random_state: of every random generator there is.
    """
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(random_state)
    items, watch = bench.begin(placed(task, inputs))
    given = tensors(task, items)
    dirty_free_memory(bench.device)
    notes: list[str] = []
    results: dict[str, Tensor] = {}
    try:
        returned = differentiate(built, task, given, watch if is_watched else None)
        bench.synchronize()
        results = checked(task, given, returned)
        notes += alias_notes(given, results)
    except Misbehaviour as error:
        notes.append(str(error))
    ran = bench.finish(results, watch)
    ran.notes[:0] = notes
    return ran


def placed(task: Task, inputs: Inputs) -> list[Placed]:
    """The tensors of a case, or larger ones that hold them, for an arena."""
    dtype = task.case.dtype
    items = []
    for name in ("input", "weight", "bias", "grad_output"):
        value = getattr(inputs, name)
        if value is None:
            continue
        raw = number.encode(value, dtype)
        if name == "grad_output" and task.placement == "expanded":
            raw = number.encode(np.ones((1,) * 5), dtype)
        elif name in ("input", "grad_output") and task.placement != "dense":
            gap = number.encode(np.full(raw.shape, np.nan), dtype)
            raw = np.stack([raw, gap], axis=-1).reshape(*raw.shape[:-1], -1)
        is_last = task.case.layout == "cl" and raw.ndim == 5
        items.append(Placed(name, raw, DTYPES[dtype], is_last))
    return items


def tensors(task: Task, items: list[Tensor]) -> Tensors:
    """The tensors as the implementation gets them, those that need a gradient marked."""
    # `data` gives each a version counter of its own: with one for the whole arena, writing to one input would look to
    # autograd like writing to another.
    input, weight, *biases, grad_output = (tensor.data for tensor in items)
    if task.placement != "dense":
        input = input[..., ::2]
    if task.placement == "strided":
        grad_output = grad_output[..., ::2]
    elif task.placement == "expanded":
        grad_output = grad_output.expand(task.case.output_shape)
    bias = biases[0] if biases else None
    input.requires_grad_("grad_input" in task.wants)
    weight.requires_grad_("grad_weight" in task.wants)
    if bias is not None:
        bias.requires_grad_("grad_bias" in task.wants)
    return Tensors(input, weight, bias, grad_output)


def differentiate(
    built: adapter.Built, task: Task, given: Tensors, watch: Watch | None
) -> dict[str, Any]:
    """Output and the wanted gradients, as the implementation returns them.

    Raises:
        Misbehaviour: the output is no result.
        NotImplementedError: there is no backward pass.
    """
    bound = built.bind(given.weight, given.bias)
    leaves = {"grad_input": given.input, "grad_weight": bound.weight, "grad_bias": bound.bias}
    wanted = {
        name: leaf for name, leaf in leaves.items() if name in task.wants and leaf is not None
    }
    around: AbstractContextManager[Any] = nullcontext() if watch is None else watch
    with around:
        enter_stage("forward")
        output = bound.call(given.input)
        _check_tensor("output", output, task.case.output_shape, given.input)
        if not wanted:
            return {"output": output}
        if not output.requires_grad:
            raise NotImplementedError("output does not require grad, so there is no backward pass")
        enter_stage("backward")
        if watch is not None:
            watch.stage = "backward"
        gradients = torch.autograd.grad(
            output, [*wanted.values()], given.grad_output, allow_unused=True
        )
    return {"output": output, **dict(zip(wanted, gradients))}


def checked(task: Task, given: Tensors, results: Mapping[str, Any]) -> dict[str, Tensor]:
    """The results without their history.

    Raises:
        Misbehaviour: one is no plain tensor of the right shape, dtype and device.
    """
    case = task.case
    shapes = {
        "output": case.output_shape,
        "grad_input": case.input_shape,
        "grad_weight": case.weight_shape,
        "grad_bias": (case.out_channels,),
    }
    for name, tensor in results.items():
        _check_tensor(name, tensor, shapes[name], given.input)
    return {name: tensor.detach().resolve_neg() for name, tensor in results.items()}


def alias_notes(given: Tensors, results: Mapping[str, Tensor]) -> list[str]:
    """Where writing to a result would change an input or another result."""
    inputs = {name: tensor for name, tensor in vars(given).items() if tensor is not None}
    spans = {name: _span(tensor) for name, tensor in {**inputs, **results}.items()}
    return [
        f"{ALIAS_NOTE}: {name} shares memory with {other}"
        for name in results
        for other, (start, end) in spans.items()
        if other != name and start < spans[name][1] and spans[name][0] < end
    ]


def _check_tensor(name: str, tensor: Any, shape: tuple[int, ...], like: Tensor) -> None:
    """Raises Misbehaviour, which says what is wrong with a result before its values are looked at."""
    if tensor is None:
        fault = "is None, but must be a torch.Tensor"
    elif type(tensor) is not Tensor:  # a subclass may compute its values when they are looked at
        fault = f"is a {type(tensor).__name__}, but must be a plain torch.Tensor"
    elif tensor.layout is not torch.strided:
        fault = f"has layout {tensor.layout}, but must have torch.strided"
    elif tuple(tensor.shape) != shape:
        fault = f"has shape {tuple(tensor.shape)}, but must have {shape}"
    elif tensor.dtype != like.dtype:
        fault = f"has dtype {tensor.dtype}, but must have {like.dtype}"
    elif tensor.device != like.device:
        fault = f"is on {tensor.device}, but must be on {like.device}"
    else:
        return
    raise Misbehaviour(f"{RESULT_NOTE}: {name} {fault}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor's elements and the first behind them."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
