"""Confirms, shrinks and reports failures, each kind once.

    a failure        a fresh process runs the case again; what it says is believed
    confirmed        shrunk, and the smallest case that a fresh process confirms is reported
    not confirmed    state-dependent: a sanitizer runs the case, and what it finds is shrunk with the
                     sanitizer as the check; else it is reported once, as unconfirmed
    of a kind        that is known: only counted, if a small specimen explains it (fuzz.failure.is_explained) or there
                     are enough of them

Failures of ours that Hypothesis has drawn are shrunk by it first, for it knows how they were drawn, and
then by fuzz.reduce; all others by fuzz.reduce alone, which needs few tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from fuzz.case import GPU_TOOLS, Case, CaseError
from fuzz.failure import (
    SHRUNK,
    UNCONFIRMED,
    UNSHRUNK,
    Failure,
    Kind,
    is_explained,
    is_same,
    kind_of,
)
from fuzz.legs import Examination, Legs
from fuzz.outcome import Verdict
from fuzz.progress import Tally
from fuzz.reduce import shrink
from fuzz.strategies import MODE_MULTIPLY_ADDS
from fuzz.suspect import REFERENCE

# Seconds of shrinking, of which Hypothesis has the first half where it takes part.
SHRINK_S = {"reference": 20.0, "convt3d": 20.0, "oracle": 20.0, "native": 10.0}
SHRINK_FACTOR_HUNG = 3.0  # a smaller case that hangs takes seconds
# How far it may run past the end of the campaign.
SHRINK_OVERTIME_S = {"reference": 5.0, "convt3d": 5.0, "oracle": 5.0, "native": 1.0}

# Fresh processes that must fail for a failure to be confirmed: of a crash or a hang two, for one may have been killed
# from outside in its turn.
FRESH_RUNS = 1
FRESH_RUNS_WITHOUT_ANSWER = 2
WITHOUT_ANSWER = (Verdict.CRASHED, Verdict.HUNG)
# Of the smaller cases that failed, how many are tried in a fresh process, the smallest first.
CONFIRMED_STEPS = 5
# So many specimens of a kind are enough.
MOST_SPECIMENS = 3
# A specimen with more elements of input and weight has hardly been shrunk: another one may shrink further.
SMALL_SPECIMEN = 32

# A sanitizer may find what a fresh process does not confirm. On a GPU it takes up to a minute to get ready, and then
# seconds for a case, so few findings are tried, none near the end of the campaign, and none that is larger than what is
# drawn in its mode: a batch of 2^16 keeps cuDNN under memcheck for minutes.
SANITIZER_TRIES = 5
SANITIZER_SHRINK_S = 240.0


class Sanitizer(NamedTuple):
    """What watches memory on a device.

    Args:
        mode: of the case.
        legs: those that can run in it.
        needs_s: seconds that must be left.
    """

    mode: str
    legs: tuple[str, ...]
    needs_s: float


SANITIZERS = {
    "cuda": Sanitizer("memcheck", ("convt3d", "native"), 120.0),
    "emulator": Sanitizer("asan", ("convt3d",), 10.0),
}


class EndOfShrinking(BaseException):
    """Leaves whoever shrinks, with the smallest case that was found so far."""


class Inquiry:
    """Looks into failures.

    Args:
        legs: what examines a case.
        tally: counts what happens.
        report: takes each failure that is worth showing.
        left_s: seconds that are left of the campaign.
        note_target: takes each confirmed failure before it is shrunk, and None when it has been reported.
    """

    def __init__(
        self,
        legs: Legs,
        tally: Tally,
        report: Callable[[Failure], None],
        left_s: Callable[[], float],
        note_target: Callable[[Failure | None], None] = lambda _: None,
    ) -> None:
        self._legs = legs
        self._tally = tally
        self._report = report
        self._left_s = left_s
        self._note_target = note_target
        self._known: dict[Kind, list[Case]] = {}  # cases that were reported, or could have been
        self._seen_once: set[Kind] = set()  # kinds that were reported as unconfirmed
        self._waiting: list[tuple[Examination, str]] = []  # failures to be looked at
        self._target: Kind | None = None  # what is being shrunk
        # Its failures: the confirmed first one, then smaller and smaller.
        self._steps: list[Failure] = []
        self._is_alone = False  # the other legs need not run
        self._tried: set[Case] = set()
        self._budget_s = 0.0
        self._end_s = 0.0
        self._sanitizer_tries = 0

    @property
    def is_shrinking(self) -> bool:
        """Whether cases belong to `step`."""
        return self._target is not None

    def learn(self, kind: Kind, case: Case) -> None:
        """Notes that a kind was reported, with this case."""
        known = self._known.setdefault(kind, [])
        if case not in known:  # a campaign tells all shards, also the one that it has it from
            known.append(case)

    def put_aside(self, examination: Examination, legs: list[str]) -> None:
        """Has `look` look at the failures of these legs."""
        self._waiting += [(examination, leg) for leg in legs]

    def look(self) -> None:
        """Confirms, shrinks and reports what was put aside, and what comes to light meanwhile."""
        while self._waiting:
            examination, leg = self._waiting.pop(0)
            if examination.outcomes[leg].tool in GPU_TOOLS:
                self._tally.failures[leg] += 1
                self._take_report(examination, leg)
                continue
            failure = self.confirm(examination, leg)
            if failure is not None:
                self._shrink(failure, SHRINK_S[leg])

    def confirm(self, examination: Examination, leg: str) -> Failure | None:
        """Returns the failure as fresh processes show it, or None if there is nothing new."""
        self._tally.failures[leg] += 1
        kind = kind_of(examination, leg)
        if self._is_known(kind, examination.case) or self._is_fault_of_reference(examination, leg):
            return None
        confirmed = examination
        has_answered = examination.judgements[leg].verdict not in WITHOUT_ANSWER
        for _ in range(FRESH_RUNS if has_answered else FRESH_RUNS_WITHOUT_ANSWER):
            confirmed = self._run_fresh(confirmed, leg)
            if leg not in confirmed.failing_legs():
                break
        else:
            kind = kind_of(confirmed, leg)
            is_known = self._is_known(kind, examination.case)
            return None if is_known else Failure(kind, confirmed, SHRUNK)
        self._report_unconfirmed(Failure(kind, examination, UNCONFIRMED))
        return None

    def aim_at(self, failure: Failure, budget_s: float, is_alone: bool = False) -> None:
        """Begins to shrink a failure.

        Args:
            failure: confirmed.
            budget_s: seconds that `step` may be called, and then those of `finish`.
            is_alone: the other legs need not run.
        """
        self._note_target(failure)
        self._target, self._steps, self._is_alone = failure.kind, [failure], is_alone
        self._tried = {failure.examination.case}
        if failure.kind.verdict == Verdict.HUNG.value:
            budget_s *= SHRINK_FACTOR_HUNG
        self._budget_s = budget_s
        self._end_s = time.monotonic() + budget_s

    def step(self, case: Case) -> Failure | None:
        """Examines a smaller case; returns its failure if it is of the kind being shrunk.

        Raises:
            EndOfShrinking: there is no time left.
        """
        target = self._target
        assert target is not None
        is_late = self._left_s() <= -SHRINK_OVERTIME_S[target.leg]
        if is_late or time.monotonic() >= self._end_s:
            raise EndOfShrinking
        self._tried.add(case)
        if self._is_alone:
            examination = self._examine_alone(case, target.leg)
        else:
            is_hasty = target.verdict == Verdict.HUNG.value  # it is confirmed at the end
            examination = self._legs.examine(case, is_hasty)
            self._tally.add(examination)
            self._tally.shrink_cases += 1
        failing = examination.failing_legs()
        self.put_aside(examination, [leg for leg in failing if self._is_news(examination, leg)])
        if target.leg not in failing or not is_same(kind_of(examination, target.leg), target):
            return None
        self._steps.append(Failure(kind_of(examination, target.leg), examination, SHRUNK))
        return self._steps[-1]

    def _is_news(self, examination: Examination, leg: str) -> bool:
        """Whether a failure that was met while another one is shrunk shall be looked at too."""
        target, kind = self._target, kind_of(examination, leg)
        assert target is not None
        if self._is_alone or is_same(kind, target):
            return False
        is_ours = leg != "native" and target.leg == "native"
        return is_ours or examination.judgements[leg].verdict in WITHOUT_ANSWER

    def finish(self) -> None:
        """Shrinks what is aimed at with fuzz.reduce, and reports it."""
        assert self._target is not None
        self._end_s = time.monotonic() + self._budget_s
        with suppress(EndOfShrinking):
            shrink(
                self._steps[-1].examination.case,
                lambda case: case not in self._tried and self.step(case) is not None,
                self._budget_s,
                any_dtype=self._target.leg != "native",
            )
        failure = self._smallest_confirmed()
        if failure.status == UNCONFIRMED:
            self._report_unconfirmed(failure)
        else:
            self._report_new(failure)
        self._note_target(None)
        self._target = None

    def _shrink(self, failure: Failure, budget_s: float, is_alone: bool = False) -> None:
        self.aim_at(failure, budget_s, is_alone)
        self.finish()

    def _is_known(self, kind: Kind, case: Case) -> bool:
        """Whether a small specimen explains it, or there are enough."""
        known = self._known.get(kind, [])
        small = [other for other in known if other.elements <= SMALL_SPECIMEN]
        return len(known) >= MOST_SPECIMENS or any(is_explained(case, other) for other in small)

    def _smallest_confirmed(self) -> Failure:
        """The smallest failure that a fresh process confirms, else the first, which one has."""
        # Only now, not at every step: a fresh process takes seconds on a GPU.
        first, *smaller = self._steps
        leg = first.kind.leg
        if self._is_alone:
            return self._steps[-1]
        for failure in smaller[: -CONFIRMED_STEPS - 1 : -1]:
            confirmed = self._run_fresh(failure.examination, leg)
            if leg in confirmed.failing_legs() and is_same(kind_of(confirmed, leg), first.kind):
                return Failure(kind_of(confirmed, leg), confirmed, SHRUNK)
        if smaller:
            return replace(first, status=UNSHRUNK)
        if first.examination.judgements[leg].verdict not in WITHOUT_ANSWER:
            return first
        # No smaller case bears it out, so that it is asked for once more.
        again = self._run_fresh(first.examination, leg)
        if leg not in again.failing_legs():
            return replace(first, status=UNCONFIRMED)
        return Failure(kind_of(again, leg), again, SHRUNK)

    def _report_unconfirmed(self, failure: Failure) -> None:
        """Reports a failure that a fresh process does not confirm once a kind, unless a sanitizer does."""
        kind, case = failure.kind, failure.examination.case
        self._tally.unconfirmed[kind.leg] += 1
        if not self._try_sanitizer(case, kind.leg) and kind not in self._seen_once:
            self._seen_once.add(kind)
            self._report(failure)

    def _report_new(self, failure: Failure) -> None:
        """Reports a confirmed failure; its like is only counted from now on."""
        case = failure.examination.case
        # Or it has shrunk to what is known.
        is_new = not any(is_explained(case, other) for other in self._known.get(failure.kind, []))
        if failure.status == SHRUNK and self._target not in (None, failure.kind):
            self.learn(self._target, case)
        self.learn(failure.kind, case)
        if is_new:
            self._report(failure)

    def _is_fault_of_reference(self, examination: Examination, leg: str) -> bool:
        """Whether the reference is the suspect on the same case with integers: Note [Two against one]."""
        case, judgement = examination.case, examination.judgements[leg]
        if case.lane == "int" or judgement.check != "bound" or leg == REFERENCE:
            return False
        witness = self._legs.examine(replace(case, lane="int"))
        self._tally.add(witness)
        self._tally.shrink_cases += 1
        if REFERENCE not in witness.failing_legs():
            return False
        self._tally.failures[leg] -= 1
        self._tally.verdicts[leg, Verdict.WRONG.value] -= 1
        self._tally.verdicts[leg, Verdict.MISTRUSTED.value] += 1
        self.put_aside(witness, [REFERENCE])
        return True

    def _run_fresh(self, examination: Examination, leg: str) -> Examination:
        """Has a fresh process run the case; what it says is the verdict that counts.

        Args:
            examination: what the last run of the case on this leg came to.
            leg: the leg.
        """
        confirmed = self._legs.confirm(examination, leg)
        self._tally.incidents.update(confirmed.incidents)
        self._tally.verdicts[leg, examination.judgements[leg].verdict.value] -= 1
        self._tally.verdicts[leg, confirmed.judgements[leg].verdict.value] += 1
        return confirmed

    def _try_sanitizer(self, case: Case, leg: str) -> bool:
        """Runs a case whose failure no fresh process confirms under a sanitizer; whether that finds any."""
        sanitizer = SANITIZERS[self._legs.await_facts()["device"]]
        is_possible = leg in sanitizer.legs and self._left_s() >= sanitizer.needs_s
        is_large = case.multiply_adds > MODE_MULTIPLY_ADDS[sanitizer.mode]
        if not is_possible or is_large or self._sanitizer_tries == SANITIZER_TRIES:
            return False
        self._sanitizer_tries += 1
        try:
            sanitized = replace(case, mode=sanitizer.mode)
        except CaseError:  # a layout that it cannot have
            return False
        return self._take_report(self._examine_alone(sanitized, leg), leg)

    def _take_report(self, examination: Examination, leg: str) -> bool:
        """Shrinks and reports what a sanitizer has found, if it has; returns whether.

        Its report is proof, whatever the process ran before, and a fresh process would cost a minute on a GPU.
        """
        if leg not in examination.failing_legs():
            return False
        kind = kind_of(examination, leg)
        is_report = examination.outcomes[leg].tool != ""
        if is_report and not self._is_known(kind, examination.case):
            self._shrink(Failure(kind, examination, SHRUNK), SANITIZER_SHRINK_S, is_alone=True)
        return is_report

    def _examine_alone(self, case: Case, leg: str) -> Examination:
        examination = self._legs.examine_alone(case, leg)
        self._tally.incidents.update(examination.incidents)
        return examination
