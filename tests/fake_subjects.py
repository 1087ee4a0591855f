"""Subjects that do what the harness must cope with, without torch.

A leg misbehaves as the case's plan says, convt3d by the forward plan, oracle by the plan of
grad_input, native by that of grad_weight; where the plan is auto, and some stride is above 1, as
FAKE_CONVT3D, FAKE_ORACLE or FAKE_NATIVE say. Case strings from outside may name real plans only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from convt3d.plan import PRIMITIVES
from fuzz.case import Case
from fuzz.data import generate
from fuzz.number import encode
from fuzz.outcome import Outcome
from fuzz.worker import enter_stage
from reference import evaluate

_cases_run = 0


def right(case: Case, dtype: str | None = None) -> Outcome:
    """Correctly rounded answers."""
    data = generate(case)
    results = evaluate(data.input, data.weight, data.bias, data.grad_output, case.parameters)
    raw = {
        name: encode(getattr(results, name), dtype or case.dtype)
        for name in ("output", "grad_input", "grad_weight", "grad_bias")
        if name != "grad_bias" or case.bias
    }
    return Outcome("ok", results=raw)


def wrong(case: Case) -> Outcome:
    """One bit of the last output element is wrong."""
    outcome = right(case)
    outcome.results["output"].flat[-1] ^= 1
    return outcome


def wrong_at_first(case: Case) -> Outcome:
    """Wrong, but never for the first case of a process."""
    return wrong(case) if _cases_run > 1 else right(case)


def wrong_slowly(case: Case) -> Outcome:
    time.sleep(0.03)
    return wrong(case)


def segfault(case: Case) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return right(case)


def segfault_in_backward(case: Case) -> Outcome:
    enter_stage("forward")
    enter_stage("backward")
    return segfault(case)


def hang_in_forward(case: Case) -> Outcome:
    enter_stage("forward")
    return hang(case)


def kill(case: Case) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return right(case)


def abort(case: Case) -> Outcome:
    """Prints like a C assert, then aborts."""
    os.write(2, b"Assertion `i < size' failed.\n")
    ctypes.CDLL(None).abort()
    return right(case)


def corrupt(case: Case) -> Outcome:
    """Answers with what no Outcome looks like, as after a write into the interpreter's heap."""
    return "\0garbage"  # type: ignore[return-value]


def leave(case: Case) -> Outcome:
    os._exit(3)


def hang(case: Case) -> Outcome:
    while True:
        time.sleep(0.01)


def slow(case: Case) -> Outcome:
    time.sleep(0.3)
    return right(case)


def late(case: Case) -> Outcome:
    """Takes long, but not for the first case of a process."""
    if _cases_run > 1:
        time.sleep(60)
    return right(case)


def large(case: Case) -> Outcome:
    """Answers with more than a pipe holds."""
    return Outcome("ok", results={"output": np.zeros(1 << 20, np.uint32)})


def meet(case: Case) -> Outcome:
    """Waits until three processes are at this case."""
    place = meeting_place(case)
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    while len(list(place.iterdir())) < 3:
        time.sleep(0.01)
    return right(case)


def meeting_place(case: Case) -> Path:
    return Path(tempfile.gettempdir()) / f"convt3d-meeting-{case.seed}"


def slow_start(case: Case) -> Outcome:
    """Right, but see warm_up."""
    return right(case)


def refuse(case: Case) -> Outcome:
    raise ValueError("padding=5, but must be less than 3")


def stumble(case: Case) -> Outcome:
    raise KeyError("a defect of the subject itself")


class _Defect(RuntimeError):
    is_defect = True


def report(case: Case) -> Outcome:
    raise _Defect("tsan: data race: write of 4 bytes at convt3d/kernels/gather.py:251")


def defect(case: Case) -> Outcome:
    raise _Defect("no thread may leave the barrier")


def device_assert(case: Case) -> Outcome:
    raise RuntimeError("CUDA error: device-side assert triggered")


def count(case: Case) -> Outcome:
    """Says how many cases this process has run."""
    return Outcome("refused", f"{_cases_run}")


def speak(case: Case) -> Outcome:
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    os._exit(1)


BEHAVIOURS: dict[str, Callable[[Case], Outcome]] = {
    function.__name__.replace("_", "."): function
    for function in (
        right, wrong, wrong_at_first, wrong_slowly, segfault, abort, corrupt, leave, hang, slow, refuse, stumble,
        meet, device_assert, count, speak, segfault_in_backward, hang_in_forward, kill, late, large,
        report, defect,
    )
}  # fmt: skip


def convt3d(case: Case) -> Outcome:
    """Says that the plans ran that the case names."""
    outcome = _behaviour(case, "CONVT3D", case.forward_plan)(case)
    if not isinstance(outcome, Outcome):
        return outcome
    named = {name: getattr(case, f"{name}_plan") for name in PRIMITIVES}
    return replace(outcome, plans={name: plan for name, plan in named.items() if plan != "auto"})


def oracle(case: Case) -> Outcome:
    behaviour = _behaviour(case, "ORACLE", case.grad_input_plan)
    return right(case, "f64") if behaviour is right else behaviour(case)


def native(case: Case) -> Outcome:
    return _behaviour(case, "NATIVE", case.grad_weight_plan)(case)


def _behaviour(case: Case, leg: str, plan: str) -> Callable[[Case], Outcome]:
    global _cases_run
    _cases_run += 1
    # A plan of the op, as a campaign draws them, is no behaviour: the environment decides.
    if plan not in BEHAVIOURS and max(case.stride) > 1:
        plan = os.environ.get(f"FAKE_{leg}", "right")
    return BEHAVIOURS.get(plan, right)


def told(case: Case, words: tuple[str, ...]) -> Outcome:
    """Says what it was given besides the case."""
    return Outcome("refused", " ".join(words))


def die_at_start(case: Case) -> Outcome:
    """Right, but see warm_up."""
    return right(case)


def warm_up(name: str, *arguments: object) -> None:
    """Fails, takes long, or dies, where a test asks for it."""
    if name == "told" and not arguments:
        raise RuntimeError("no arguments")
    if name == "die_at_start":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "refuse":
        raise RuntimeError("no compiler")
    if name == "slow_start":
        time.sleep(1.5)
