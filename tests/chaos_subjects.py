"""The kernels and the oracle as they are, beside a native op with a fault."""

from __future__ import annotations

from fuzz import subjects
from fuzz.case import Case
from fuzz.outcome import Outcome
from fuzz.subjects import convt3d, oracle
from tests.fake_subjects import right, wrong

__all__ = ["convt3d", "native", "oracle", "warm_up"]


def native(case: Case) -> Outcome:
    """Right, by NumPy, but for one bit where groups meet a bias."""
    return wrong(case) if case.groups > 1 and case.bias else right(case)


def warm_up(name: str, modes: tuple[str, ...]) -> None:
    if name != "native":
        subjects.warm_up(name, modes)
