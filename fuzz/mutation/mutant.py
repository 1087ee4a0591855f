"""What a mutant is, and what became of one when the harness judged it.

There are two kinds. A KernelMutant changes the text of the kernel strings: all of them are compiled at once, each
behind `if (convt3d::mutant == N)`, and the emulator's libraries are told at run time which one is on. A PythonMutant
patches objects of `convt3d` in the process that runs the cases.

    KernelMutant(
        "bias_of_the_wrong_channel",
        "the bias is indexed within the group",
        (Edit("gather.py", "group * channels + c", "c", within="value += bias_at<scalar_t>(p, group * channels + c)"),),
    )
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

EXPRESSION, STATEMENTS = "expression", "statements"
KINDS = (EXPRESSION, STATEMENTS)
# What a mutant may need that the emulator on a CPU cannot show it on.
NEEDS = ("", "gpu", "two gpus")


@dataclass(frozen=True)
class Edit:
    """One text in the place of another, in the SOURCE of a module of convt3d/kernels.

    Expressions become `(mutant == N ? (wrong) : (right))`, so both must have a common type; statements become
    `{ if (mutant == N) { wrong } else { right } }`, so `right` may hold whole statements of any number, `continue`,
    `break` and `return` among them, but no declaration that later text needs (replace its initialiser, an expression,
    instead). What the compiler must know (a constexpr, an array's size, a template's argument, a pragma) cannot be
    switched. Edits of different mutants may overlap in any way.

    Args:
        file: "params.py", "gather.py" or "weight.py".
        right: the text as it is; occurs exactly once in the SOURCE, or in `within`.
        wrong: what stands there instead; may be empty for statements.
        kind: EXPRESSION or STATEMENTS.
        within: a longer text that holds `right`, and occurs exactly once in the SOURCE; empty if not needed.
    """

    file: str
    right: str
    wrong: str
    kind: str = EXPRESSION
    within: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}, but must be one of {KINDS}")


@dataclass(frozen=True)
class Change:
    """An edit by its place: what the automatic operators make, and what an Edit becomes.

    Args:
        file, wrong, kind: as for Edit.
        start, end: offsets into the SOURCE of the module, in characters.
    """

    file: str
    start: int
    end: int
    wrong: str
    kind: str = EXPRESSION


@dataclass(frozen=True)
class KernelMutant:
    """A bug in the kernel strings.

    Args:
        name: what it does wrong, in snake_case; for an automatic mutant its id. Unique among all mutants.
        why: the real bug behind it, for a reader of the report; for an automatic mutant its operator.
        edits: the changes, all of which are on or off together.
        dtypes: of the cases that it runs on; empty for all.
        needs: one of NEEDS.
        helpers: C++ definitions that `wrong` texts use; they stand before params.py, within namespace convt3d.
    """

    name: str
    why: str
    edits: tuple[Edit | Change, ...]
    dtypes: tuple[str, ...] = ()
    needs: str = ""
    helpers: str = ""

    def __post_init__(self) -> None:
        _check_needs(self.name, self.needs)


@dataclass(frozen=True)
class PythonMutant:
    """A bug in the Python part of convt3d: geometry, plans, launches, operators, modules.

    Args:
        name, why, dtypes, needs: as for KernelMutant.
        patch: returns a context manager (a function with @contextmanager, say) inside which convt3d has the bug. It is
            entered in a process of its own before any case runs there, and never needs to undo anything. Caches of
            convt3d's functions (functools.cache, lru_cache, launch.Remembered) are emptied after it is entered. What is
            replaced must be what the code looks up: `launch.plan.gather_tile = ...`, not a name that was imported from
            there.
    """

    name: str
    why: str
    patch: Callable[[], AbstractContextManager[object]]
    dtypes: tuple[str, ...] = ()
    needs: str = ""

    def __post_init__(self) -> None:
        _check_needs(self.name, self.needs)


Mutant = KernelMutant | PythonMutant


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Args:
        name: of the mutant.
        check: short name of the check that killed it, for example "wrong output (int)", "guard bands", "hung"; empty
            if it survived.
        case: the case string on which it was killed; empty if it survived.
        detail: what the judge said, one sentence.
        cases: how many cases ran on it, the killing one included.
        seconds: wall-clock time that they took.
    """

    name: str
    check: str
    case: str
    detail: str
    cases: int
    seconds: float

    @property
    def is_killed(self) -> bool:
        return bool(self.check)


def _check_needs(name: str, needs: str) -> None:
    if needs not in NEEDS:
        raise ValueError(f"{name}: needs={needs!r}, but must be one of {NEEDS}")
