"""Legs that answer as they are told, and a search on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from hypothesis import strategies as st

from fuzz.case import Case, parse_case
from fuzz.failure import Failure
from fuzz.legs import LEGS, Examination
from fuzz.outcome import Judgement, Outcome, Verdict
from fuzz.progress import Tally
from fuzz.search import EndOfCampaign, Search
from fuzz.strategies import cases

DTYPES = ("f64", "f32", "f16", "bf16")
Verdicts = Mapping[str, Verdict]
LARGE = parse_case("bf16_n3_g2_ci4_co6_i5x4x3_k3x2x3_s2x3x1_p1_op1_d2_bias_cl_normal_seed9")


class FakeLegs:
    """Legs without processes.

    Args:
        verdicts: a case -> verdicts of the legs that do not pass.
        confirmed: the same in a fresh process.
        sanitized: the same under a sanitizer.
        device: "cuda" or "emulator".
    """

    def __init__(
        self,
        verdicts: Callable[[Case], Verdicts],
        confirmed: Callable[[Case], Verdicts] | None = None,
        sanitized: Callable[[Case], Verdicts] = lambda case: {},
        device: str = "emulator",
    ) -> None:
        self.verdicts = verdicts
        self.confirmed = confirmed or verdicts
        self.sanitized = sanitized
        self.device = device
        self.says = ""  # of a crash
        self.examined: list[Case] = []
        self.fresh: list[Case] = []
        self.alone: list[Case] = []

    def examine(self, case: Case, is_hasty: bool = False) -> Examination:
        self.examined.append(case)
        return self._examination(case, self.verdicts(case))

    def examine_alone(self, case: Case, leg: str) -> Examination:
        self.alone.append(case)
        examination = self._examination(case, self.sanitized(case))
        mine = {leg: examination.judgements[leg]}
        crashed = mine[leg].verdict is Verdict.CRASHED
        outcome = Outcome("crashed", f"{case.mode}: invalid write") if crashed else Outcome("ok")
        return replace(examination, outcomes={leg: outcome}, judgements=mine)

    def await_facts(self) -> dict[str, str]:
        return {"device": self.device}

    def confirm(self, examination: Examination, leg: str) -> Examination:
        self.fresh.append(examination.case)
        return self._examination(examination.case, self.confirmed(examination.case))

    def _examination(self, case: Case, verdicts: Verdicts) -> Examination:
        judgements = {
            leg: Judgement(
                leg,
                verdicts.get(leg, Verdict.PASS),
                "output" if verdicts.get(leg) is Verdict.WRONG else "",
            )
            for leg in LEGS
        }
        outcomes = {
            leg: Outcome("crashed", self.says)
            if verdicts.get(leg) is Verdict.CRASHED
            else Outcome("ok")
            for leg in LEGS
        }
        return Examination(case, cast(Any, None), outcomes, judgements)


def explore(
    legs: Any,
    *,
    batches: int = 1,
    examples: int = 100,
    strategy: st.SearchStrategy[Case] | None = None,
    left_s: Callable[[], float] = lambda: 1e9,
) -> tuple[list[Failure], Tally]:
    tally, failures = Tally(), list[Failure]()
    strategy = cases(dtypes=DTYPES) if strategy is None else strategy
    searching = Search(legs, strategy, tally, failures.append, left_s)
    with suppress(EndOfCampaign):
        for batch in range(batches):
            searching.run_batch(batch, examples)
    return failures, tally


def wrong_if(leg: str, is_wrong: Callable[[Case], bool]) -> Callable[[Case], Verdicts]:
    return lambda case: {leg: Verdict.WRONG} if is_wrong(case) else {}


def searching(legs: Any, left_s: float = 1e9) -> tuple[Search, list[Failure], Tally]:
    tally, failures = Tally(), list[Failure]()
    return (
        Search(legs, cases(dtypes=DTYPES), tally, failures.append, lambda: left_s),
        failures,
        tally,
    )
