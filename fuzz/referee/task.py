"""What the parent and the worker of the referee say to each other: plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fuzz.case import Case
from fuzz.outcome import RESULTS

SUBJECT = "fuzz.referee.subject:judge"

# In the worker's directory: where it was when its time to start was up.
HANG_FILE = "hang.txt"

# How input and grad_output lie in memory. strided: every second element of a larger tensor, with NaN between them.
# expanded: input as strided; grad_output is 1 everywhere, one element in memory, as in output.sum().backward().
PLACEMENTS = ("dense", "strided", "expanded")

# A sentence of Outcome.damage that starts with one of these words and a colon is about that.
RESULT_NOTE = "result"  # a result that is no result: wrong type, shape, dtype or device
ALIAS_NOTE = "alias"  # a result shares memory with an input or another result
NATIVE_NOTE = "native"  # PyTorch's own convolution was called
LIBRARY_NOTE = (
    "library"  # an operator of PyTorch that does most of the work was called, which is allowed
)


@dataclass(frozen=True)
class Spec:
    """Which implementation a worker loads, and how it gets ready.

    Args:
        file: path of the Python file; empty stands for PyTorch's own op.
        name: of the function or class in it; empty for the only one.
        directory: the worker's working directory.
        dtypes: the dtypes of which one case is run before the first task: kernels may be built then.
        start_limit_s: seconds until the worker must be ready.
    """

    file: str
    name: str
    directory: str
    dtypes: tuple[str, ...]
    start_limit_s: float


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do.

    Args:
        case: the case.
        probe: what to do with it: a function of fuzz.referee.probes.
        wants: the gradients to compute, of RESULTS; without any there is only a forward pass.
        placement: one of PLACEMENTS.
    """

    case: Case
    probe: str = "run"
    wants: tuple[str, ...] = RESULTS[1:]
    placement: str = "dense"

    @property
    def mode(self) -> str:
        """The case's mode, by which a Worker knows its time limit."""
        return self.case.mode


def with_other_data(case: Case) -> Case:
    """The case with another seed."""
    return replace(case, seed=case.seed ^ 1)
