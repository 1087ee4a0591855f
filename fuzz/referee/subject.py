"""The subject of the referee's workers: loads an implementation and performs tasks with it."""

from __future__ import annotations

import faulthandler
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch

# torch.autograd.grad and a dispatch mode import these on their first call, which takes seconds; here the server that
# processes are forked from does it once.
import torch._dynamo
import torch.fx.experimental.symbolic_shapes
from torch.nn.functional import conv_transpose3d as native_conv_transpose3d

import reference
from fuzz.case import Case
from fuzz.outcome import Outcome
from fuzz.referee import loading
from fuzz.referee.probes import perform
from fuzz.referee.running import Bench
from fuzz.referee.seal import Seal
from fuzz.referee.task import HANG_FILE, RESULT_NOTE, Spec, Task

_seals: list[Seal] = []
_REFERENCE = ("evaluate", "magnitude", "products")


def judge(task: Task, spec: Spec) -> Outcome:
    """Performs a task with the implementation of a spec; what was sealed must still be whole then."""
    outcome, error = Outcome("ok"), None
    try:
        outcome = perform(_bench(spec), task)
    except BaseException as raised:
        error = raised
    if broken := _broken():
        note = f"{RESULT_NOTE}: {broken} was replaced, which the referee uses"
        return Outcome("ok", damage=(note,))
    if error is not None:
        raise error
    return outcome


def warm_up(_: str, spec: Spec) -> None:
    """Loads the implementation and runs a case of each of the spec's dtypes, for kernels that are built then.

    What goes wrong with such a case is for its own row to show, unless the process dies of it. The process also ends
    when the time is up, whatever holds it, and writes down where it was.
    """
    hang = Path(spec.directory, HANG_FILE).open("w")  # noqa: SIM115  open until the time is up
    faulthandler.dump_traceback_later(spec.start_limit_s, exit=True, file=hang)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.chdir(spec.directory)
    _hide_the_reference()
    _seals.append(Seal())
    bench = _bench(spec)
    for dtype in spec.dtypes:
        try:
            perform(bench, Task(Case(dtype=dtype, kernel_size=(2, 2, 2))))
        except Exception:
            pass
    faulthandler.cancel_dump_traceback_later()


def _broken() -> str:
    return next((broken for seal in _seals if (broken := seal.broken())), "")


@functools.cache
def _bench(spec: Spec) -> Bench:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not spec.file:
        return Bench(native_conv_transpose3d, device, is_native=True)
    return Bench(loading.load(Path(spec.file), spec.name), device)


def _hide_the_reference() -> None:
    """Makes the judge unusable in this process, which has no need of it."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("an implementation under judgement must not ask the reference")

    for module in (reference, sys.modules["reference.scatter"]):
        for name in _REFERENCE:
            setattr(module, name, refuse)
