"""What a worker does with a task: each probe returns raw bits, for the parent to judge.

A probe that runs the implementation several times gives its results names like "first.output".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import torch

from fuzz import data
from fuzz.case import Case
from fuzz.data import Inputs
from fuzz.outcome import Outcome
from fuzz.referee import adapter
from fuzz.referee.loading import describe
from fuzz.referee.running import (
    Bench,
    Misbehaviour,
    Ran,
    Tensors,
    checked,
    differentiate,
    placed,
    run_once,
    tensors,
)
from fuzz.referee.sampling import Sample
from fuzz.referee.task import NATIVE_NOTE, Task, with_other_data
from fuzz.referee.watch import native_forbidden

REPEATS = 3
# After how many more calls a result must still be what it was: there may be several buffers, used in turn.
CALLS_AFTER = 5
# How long results are left alone before they are read again: for a thread that is still writing.
SETTLE_S = 0.05
# About 0.1 s: the host of a slow implementation has launched everything by then.
DELAY_CYCLES = 1 << 27
TIMED_RUNS = {"cpu": 5, "cuda": 20}
TIMING_LIMIT_S = 2.0


def perform(bench: Bench, task: Task) -> Outcome:
    """Performs a task."""
    # PyTorch's own switches are what tells an implementation whether TF32 is wanted.
    torch.backends.cuda.matmul.allow_tf32 = task.case.dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = task.case.dtype == "tf32"
    if task.probe == "name":
        return Outcome("ok", describe(bench.implementation))
    try:
        return PROBES[task.probe](bench, task).outcome()
    except Misbehaviour as error:
        return Outcome("ok", damage=(str(error),))


def run(bench: Bench, task: Task) -> Ran:
    """Forward, and backward where gradients are wanted."""
    return run_once(bench, bench.build(task.case), task, data.generate(task.case))


def repeat(bench: Bench, task: Task) -> Ran:
    """Several runs from the same state of every random generator."""
    return _run_from_states(bench, task, [0] * REPEATS)


def random_state(bench: Bench, task: Task) -> Ran:
    """Several runs from different states."""
    return _run_from_states(bench, task, [*range(REPEATS)])


def batch(bench: Bench, task: Task) -> Ran:
    """One sample in its batch, alone, beside other samples, and beside NaN; only its own results are kept."""
    case = task.case
    inputs, others = data.generate(case), data.generate(with_other_data(case))
    kept = slice(case.n // 2, case.n // 2 + 1)
    alone = replace(inputs, input=inputs.input[kept], grad_output=inputs.grad_output[kept])
    nothing = replace(
        inputs,
        input=np.full_like(inputs.input, np.nan),
        grad_output=np.full_like(inputs.grad_output, np.nan),
    )
    ran = Ran()
    for label, its_inputs in (
        ("whole", inputs),
        ("alone", alone),
        ("others", _with_sample(others, inputs, kept)),
        ("nan", _with_sample(nothing, inputs, kept)),
    ):
        its_task = replace(task, case=replace(case, n=its_inputs.input.shape[0]))
        once = run_once(bench, bench.build(its_task.case), its_task, its_inputs)
        where = slice(None) if label == "alone" else kept
        once.raw = {
            name: bits[where] for name, bits in once.raw.items() if name in ("output", "grad_input")
        }
        ran.add(label, once)
    return ran


def reuse(bench: Bench, task: Task) -> Ran:
    """Runs on other data of the same shapes: in the same memory, then in memory of their own.

    What the first run there returned is read at once, and again, after a moment, after several more.
    """
    case, built = task.case, bench.build(task.case)
    inputs, others = data.generate(case), data.generate(with_other_data(case))
    ran = Ran()
    ran.add("first", run_once(bench, built, task, inputs))
    ran.add("second", run_once(bench, built, task, others))

    items, watch = bench.begin([*placed(task, inputs), *placed(task, others)])
    half = len(items) // 2
    kept = _run_on(bench, built, task, tensors(task, items[:half]), watch)
    before = bench.finish(kept, None)
    for _ in range(CALLS_AFTER):
        later = _run_on(bench, built, task, tensors(task, items[half:]), watch)
    time.sleep(SETTLE_S)
    after = bench.finish(
        {f"{name} of the run before": tensor for name, tensor in kept.items()} | later, watch
    )
    ran.add("kept", Ran(before.raw))
    ran.add("after", Ran({name: after.raw[f"{name} of the run before"] for name in kept}))
    ran.add("later", Ran({name: after.raw[name] for name in later}, after.notes))
    return ran


def stream(bench: Bench, task: Task) -> Ran:
    """A run on a side stream that brings the data late; its results are read on that stream at once."""
    if bench.device.type != "cuda":
        raise NotImplementedError("streams need a GPU")
    built = bench.build(task.case)
    items, watch = bench.begin(placed(task, data.generate(task.case)))
    copies = [item.clone() for item in items]
    for item in items:
        item.fill_(float("nan"))
    side = torch.cuda.Stream(bench.device)
    bench.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(DELAY_CYCLES)
        for item, copy in zip(items, copies):
            item.copy_(copy)
        given = tensors(task, items)
        results = checked(task, given, differentiate(built, task, given, watch))
        read = {name: tensor.clone() for name, tensor in results.items()}
    bench.synchronize()
    return bench.finish(read, watch)


def unwatched(bench: Bench, task: Task) -> Ran:
    """Runs with nothing around them, and PyTorch's convolutions made to raise: forward alone, and all."""
    ran, inputs = Ran(), data.generate(task.case)
    with native_forbidden() as called:
        try:
            for label, wants in (("forward", ()), ("all", task.wants)):
                its_task = replace(task, wants=wants)
                built = bench.build(task.case)
                ran.add(label, run_once(bench, built, its_task, inputs, is_watched=False))
        except Exception:
            if not called:
                raise
    ran.notes += [f"{NATIVE_NOTE}: {call}" for call in called]
    return ran


def speed(bench: Bench, task: Task) -> Ran:
    """A watched run; then median seconds of forward, and of forward with backward: "seconds".

    Of each timed call a part of the results, drawn when it has returned: "0.output", "0.sample" and so on.
    """
    inputs, built = data.generate(task.case), bench.build(task.case)
    ran = Ran()
    ran.add("watched", run_once(bench, built, task, inputs))
    timing = _Timing(bench, built, task.case, bench.begin(placed(task, inputs))[0])
    guard: Any = nullcontext({}) if bench.is_native else native_forbidden()
    seconds = []
    with guard as called:
        try:
            for wants in dict.fromkeys(((), task.wants)):
                seconds.append(timing.median_s(replace(task, wants=wants)))
        except Exception:
            if not called:
                raise
    ran.raw |= bench.finish(timing.parts, None).raw | timing.samples
    ran.raw["seconds"] = np.array(seconds)
    ran.notes += [f"{NATIVE_NOTE}: {call} while time was measured" for call in called]
    return ran


PROBES: dict[str, Callable[[Bench, Task], Ran]] = {
    function.__name__: function
    for function in (run, repeat, random_state, batch, reuse, stream, unwatched, speed)
}


def _run_from_states(bench: Bench, task: Task, states: list[int]) -> Ran:
    ran, inputs = Ran(), data.generate(task.case)
    for index, state in enumerate(states):
        built = bench.build(task.case)
        ran.add(str(index), run_once(bench, built, task, inputs, random_state=state))
    return ran


def _with_sample(others: Inputs, inputs: Inputs, kept: slice) -> Inputs:
    """The inputs, but for what belongs to the other samples."""
    input, grad_output = others.input.copy(), others.grad_output.copy()
    input[kept], grad_output[kept] = inputs.input[kept], inputs.grad_output[kept]
    return replace(inputs, input=input, grad_output=grad_output)


def _run_on(bench: Bench, built: adapter.Built, task: Task, given: Tensors, watch: Any) -> Any:
    returned = differentiate(built, task, given, watch)
    bench.synchronize()
    return checked(task, given, returned)


class _Timing:
    """Times calls, each on data that were never seen before, and takes a part of what each returned.

    Two sets of tensors are used in turn, and their elements change from call to call, in place: neither an object nor
    its address tells a result of before. Their versions do, as autograd's rules have it: who has packed a weight sees
    that it has changed.
    """

    def __init__(
        self, bench: Bench, built: adapter.Built, case: Case, items: list[torch.Tensor]
    ) -> None:
        self._bench, self._built, self._case = bench, built, case
        self._originals = items
        self._sets = [[item.clone() for item in items] for _ in range(2)]
        self._calls = 0
        self.parts: dict[str, torch.Tensor] = {}
        self.samples: dict[str, Any] = {}

    def median_s(self, task: Task) -> float:
        """Median seconds of a run, after one to warm up; as many as fit TIMING_LIMIT_S."""
        sets = [tensors(task, items) for items in self._sets]
        times: list[float] = []
        end_s = time.perf_counter() + TIMING_LIMIT_S
        while len(times) <= TIMED_RUNS[self._bench.device.type]:
            self._calls += 1
            which = self._calls % len(sets)
            self._change(sets[which])
            times.append(self._time_s(task, sets[which]))
            if time.perf_counter() >= end_s:
                break
        return float(np.median(times[1:] or times))

    def _change(self, given: Tensors) -> None:
        held = (given.input, given.weight, given.bias, given.grad_output)
        with torch.no_grad():
            for tensor, original in zip([t for t in held if t is not None], self._originals):
                tensor.copy_(torch.roll(original, self._calls))

    def _time_s(self, task: Task, given: Tensors) -> float:
        """Seconds of one call: on a GPU as its events tell, on a CPU as the clock does.

        The results are read at once, on the current stream: what is still being computed then is wrong.
        """
        if self._bench.device.type != "cuda":
            start_s = time.perf_counter()
            returned = differentiate(self._built, task, given, None)
            seconds = time.perf_counter() - start_s
            self._take_part(task, given, returned)
            return seconds
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._bench.synchronize()
        start.record()
        returned = differentiate(self._built, task, given, None)
        end.record()
        self._take_part(task, given, returned)
        self._bench.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _take_part(self, task: Task, given: Tensors, returned: dict[str, Any]) -> None:
        sample = Sample.draw(self._case)
        self.samples[f"{self._calls}.sample"] = np.array(astuple(sample))
        for name, tensor in checked(task, given, returned).items():
            part = tensor[sample.part(self._case, name).of(name)].clone()
            self.parts[f"{self._calls}.{name}"] = part
