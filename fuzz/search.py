"""Draws cases with Hypothesis, confirms what fails and shrinks it, within one process.

Hypothesis works in batches. Within a batch every case is examined once and remembered, so that a
replay always ends as it did the first time, whatever the machine does: Hypothesis gives up on a
test that fails only sometimes, and a defect that shows only sometimes is what is looked for here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.legs import Examination, Legs
from fuzz.outcome import FAILURES, Verdict
from fuzz.progress import Tally

PROFILES = {"dev": 50, "ci": 500, "nightly": 20_000}
BATCH_EXAMPLES = 400
# Seconds of shrinking, and how far it may run past the end of the campaign.
SHRINK_S = {"convt3d": 20.0, "oracle": 20.0, "native": 5.0}
SHRINK_OVERTIME_S = {"convt3d": 5.0, "oracle": 5.0, "native": 1.0}

# Of the smaller cases that failed, how many are tried in a fresh process, the smallest first.
CONFIRMED_STEPS = 5

SHRUNK = "shrunk"
UNSHRUNK = "unshrunk"
# Seen once, but not by a fresh process: it depends on what ran before, or on chance.
UNCONFIRMED = "unconfirmed"


# Nothing is left to the profile that Hypothesis has loaded: where CI is set, that is one which
# tries the same examples for ever.
_SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=False,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    verbosity=Verbosity.quiet,
)


class Kind(NamedTuple):
    """What makes two failures the same one, as far as one can tell from outside."""

    leg: str
    dtype: str
    verdict: str
    result: str
    signal: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


@dataclass(frozen=True)
class Failure:
    """A leg that failed on a case, as last examined."""

    kind: Kind
    examination: Examination
    status: str


def kind_of(examination: Examination, leg: str) -> Kind:
    """The kind of failure of a leg."""
    judgement = examination.judgements[leg]
    signal = ""
    if judgement.verdict is Verdict.CRASHED:
        match = re.search(r"SIG[A-Z]+|CUDA error", examination.outcomes[leg].message)
        signal = match.group(0) if match else ""
    return Kind(leg, examination.case.dtype, judgement.verdict.value, judgement.result, signal)


class CaseFailed(Exception):
    """Tells Hypothesis that a case fails, so that it shrinks it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.kind))
        self.failure = failure


class EndOfCampaign(BaseException):
    """Leaves Hypothesis at once; not an Exception, which it would take for a failing case."""


class _EndOfShrinking(BaseException):
    """Leaves Hypothesis with the smallest case that it has found so far."""


class _Abort(BaseException):
    """Carries an error of the harness itself out of Hypothesis, which would shrink it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Search:
    """Examines cases, from Hypothesis or given ones, and reports failures, each kind once.

    Args:
        legs: what examines a case.
        strategy: draws the cases.
        tally: counts what happens.
        report: takes each failure that is worth showing.
        left_s: seconds that are left; at 0 the search ends.
    """

    def __init__(
        self,
        legs: Legs,
        strategy: st.SearchStrategy[Case],
        tally: Tally,
        report: Callable[[Failure], None],
        left_s: Callable[[], float],
    ) -> None:
        self.known: set[Kind] = set()  # kinds that were reported: only counted from then on
        self._legs = legs
        self._strategy = _counted(strategy, tally, lambda: self._target is None)
        self._tally = tally
        self._report = report
        self._left_s = left_s
        self._memo: dict[Case, Failure | None] = {}
        self._seen_once: set[Kind] = set()  # kinds that were reported as unconfirmed
        self._target: Kind | None = None  # what is being shrunk
        self._steps: list[
            Failure
        ] = []  # its failures, the confirmed first one, then smaller and smaller
        self._shrink_end_s = 0.0
        self._generated = 0

    def run_batch(self, batch_seed: int, max_examples: int) -> int:
        """Generates up to max_examples cases, fewer if one fails; returns how many.

        Raises:
            EndOfCampaign: there is no time left.
            HarnessError, SubjectError: see Legs.examine.
        """

        @seed(batch_seed)
        @settings(_SETTINGS, max_examples=max_examples)
        @given(self._strategy)
        def examine_case(case: Case) -> None:
            if case not in self._memo:
                look = self._shrink_step if self._target else self._explore
                try:
                    self._memo[case] = look(case)
                except Exception as error:
                    raise _Abort(error) from error
            failure = self._memo[case]
            if failure is not None:
                raise CaseFailed(failure)

        self._memo.clear()
        self._target = None
        self._steps = []
        self._generated = 0
        try:
            examine_case()
        except (CaseFailed, _EndOfShrinking):
            self._report_shrunk()
        except _Abort as abort:
            raise abort.error from None
        return self._generated

    def replay(self, case: Case, is_native_defect: bool = False) -> None:
        """Examines a case of the corpus; what fails is confirmed but not shrunk.

        Args:
            case: the case.
            is_native_defect: the native op is known to fail on it.
        """
        examination = self._legs.examine(case)
        self._tally.add(examination)
        self._tally.corpus_cases += 1
        failing = examination.failing_legs()
        if is_native_defect:
            self._tally.known_native += "native" in failing
            self._tally.fixed_native += "native" not in failing
            failing = tuple(leg for leg in failing if leg != "native")
        for leg in failing:
            self._report_unshrunk(examination, leg)

    def _explore(self, case: Case) -> Failure | None:
        """Examines a generated case; returns a confirmed failure of a new kind, to be shrunk."""
        if self._left_s() <= 0:
            raise EndOfCampaign
        self._generated += 1
        examination = self._legs.examine(case)
        self._tally.add(examination)
        for leg in examination.failing_legs():
            failure = self._confirm(examination, leg, SHRUNK)
            if failure is not None:
                self._target, self._steps = failure.kind, [failure]
                self._shrink_end_s = time.monotonic() + SHRINK_S[leg]
                return failure
        return None

    def _shrink_step(self, case: Case) -> Failure | None:
        """Examines a smaller case; returns its failure if it is of the kind being shrunk."""
        target = self._target
        assert target is not None
        is_late = self._left_s() <= -SHRINK_OVERTIME_S[target.leg]
        if is_late or time.monotonic() >= self._shrink_end_s:
            raise _EndOfShrinking
        examination = self._legs.examine(case)
        self._tally.add(examination)
        self._tally.shrink_cases += 1
        failing = examination.failing_legs()
        if target.leg == "native":
            for leg in failing:
                if leg != "native":
                    self._report_unshrunk(examination, leg)
        if target.leg not in failing or not _is_same(kind_of(examination, target.leg), target):
            return None
        self._steps.append(Failure(kind_of(examination, target.leg), examination, SHRUNK))
        return self._steps[-1]

    def _report_shrunk(self) -> None:
        """Reports the smallest failure that a fresh process confirms, else the first, which one has.

        Only now, not at every step: a fresh process takes seconds on a GPU.
        """
        first, *smaller = self._steps
        for failure in smaller[: -CONFIRMED_STEPS - 1 : -1]:
            confirmed = self._legs.confirm(failure.examination, first.kind.leg)
            kind = kind_of(confirmed, first.kind.leg)
            if _is_same(kind, first.kind):
                self._report_new(Failure(kind, confirmed, SHRUNK))
                return
        self._report_new(first if not smaller else replace(first, status=UNSHRUNK))

    def _report_unshrunk(self, examination: Examination, leg: str) -> None:
        failure = self._confirm(examination, leg, UNSHRUNK)
        if failure is not None:
            self._report_new(failure)

    def _confirm(self, examination: Examination, leg: str, status: str) -> Failure | None:
        """Returns the failure as a fresh process shows it, or None if there is nothing new."""
        self._tally.failures[leg] += 1
        kind = kind_of(examination, leg)
        if kind in self.known:
            return None
        confirmed = self._legs.confirm(examination, leg)
        if confirmed.judgements[leg].verdict in FAILURES:
            kind = kind_of(confirmed, leg)
            return None if kind in self.known else Failure(kind, confirmed, status)
        self._tally.unconfirmed[leg] += 1
        if kind not in self._seen_once:
            self._seen_once.add(kind)
            self._report(Failure(kind, examination, UNCONFIRMED))
        return None

    def _report_new(self, failure: Failure) -> None:
        """Reports a confirmed failure; its like is only counted from now on."""
        is_new = failure.kind not in self.known  # or it has shrunk to what is known
        if failure.status == SHRUNK and self._target is not None:
            self.known.add(self._target)
        self.known.add(failure.kind)
        if is_new:
            self._report(failure)


def _is_same(kind: Kind, target: Kind) -> bool:
    """Whether a smaller case shows the failure being shrunk.

    A failure of ours may change its dtype, for it should shrink to the simplest; PyTorch's
    defects depend on it, and are told apart by it.
    """
    if target.leg == "native":
        return kind == target
    return kind._replace(dtype=target.dtype) == target


def _counted(
    strategy: st.SearchStrategy[Case], tally: Tally, is_counting: Callable[[], bool]
) -> st.SearchStrategy[Case]:
    """The same strategy; draws that Hypothesis gives up half way are counted as discarded."""

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        if not is_counting():
            return draw(strategy)
        tally.draws += 1
        tally.discarded += 1
        case = draw(strategy)
        tally.discarded -= 1
        return case

    return draw_case()
