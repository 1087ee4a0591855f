"""Draws cases with Hypothesis, and has what fails looked into, within one process.

Hypothesis works in batches. Within a batch every case is examined once and remembered, so that a
replay always ends as it did the first time, whatever the machine does: Hypothesis gives up on a
test that fails only sometimes, and a defect that shows only sometimes is what is looked for here.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from fuzz.case import GPU_TOOLS, Case
from fuzz.failure import Failure, Kind
from fuzz.inquiry import SHRINK_S, EndOfShrinking, Inquiry
from fuzz.legs import Examination, Legs
from fuzz.progress import Tally

PROFILES = {"dev": 50, "ci": 500, "nightly": 20_000}
BATCH_EXAMPLES = 400

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


class CaseFailed(Exception):
    """Tells Hypothesis that a case fails, so that it shrinks it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.kind))
        self.failure = failure


class EndOfCampaign(BaseException):
    """Leaves Hypothesis at once; not an Exception, which it would take for a failing case."""


class _Abort(BaseException):
    """Carries an error of the harness itself out of Hypothesis, which would shrink it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Search:
    """Examines cases, from Hypothesis or given ones, and reports failures: see fuzz.inquiry.

    Args:
        legs: what examines a case.
        strategy: draws the cases.
        tally: counts what happens.
        report: takes each failure that is worth showing.
        left_s: seconds that are left; at 0 the search ends.
        note_target: takes each confirmed failure before it is shrunk, and None when it has been reported.
    """

    def __init__(
        self,
        legs: Legs,
        strategy: st.SearchStrategy[Case],
        tally: Tally,
        report: Callable[[Failure], None],
        left_s: Callable[[], float],
        note_target: Callable[[Failure | None], None] = lambda _: None,
    ) -> None:
        self._legs = legs
        self._inquiry = Inquiry(legs, tally, report, left_s, note_target)
        self._strategy = _counted(strategy, tally, lambda: not self._inquiry.is_shrinking)
        self._tally = tally
        self._left_s = left_s
        self._memo: dict[Case, Failure | None] = {}
        self._generated = 0

    def learn(self, kind: Kind, case: Case) -> None:
        """Notes that somebody has reported a kind, with this case."""
        self._inquiry.learn(kind, case)

    def run_batch(self, batch_seed: int, max_examples: int) -> int:
        """Generates up to max_examples cases, fewer if one fails on ours; returns how many.

        Raises:
            EndOfCampaign: there is no time left.
            HarnessError, SubjectError: see Legs.examine.
        """

        @seed(batch_seed)
        @settings(_SETTINGS, max_examples=max_examples)
        @given(self._strategy)
        def examine_case(case: Case) -> None:
            if case not in self._memo:
                look = self._inquiry.step if self._inquiry.is_shrinking else self._explore
                try:
                    self._memo[case] = look(case)
                except Exception as error:
                    raise _Abort(error) from error
            failure = self._memo[case]
            if failure is not None:
                raise CaseFailed(failure)

        self._memo.clear()
        self._generated = 0
        try:
            examine_case()
        except (CaseFailed, EndOfShrinking):
            pass
        except _Abort as abort:
            raise abort.error from None
        if self._inquiry.is_shrinking:
            self._inquiry.finish()
        self._inquiry.look()
        return self._generated

    def replay(self, case: Case, is_native_defect: bool = False) -> None:
        """Examines a case of the corpus.

        Args:
            case: the case.
            is_native_defect: the native op is known to fail on it, which is then only counted.
        """
        examination = self._examine(case)
        self._tally.corpus_cases += 1
        failing = list(examination.failing_legs())
        if is_native_defect:
            self._tally.known_native += "native" in failing
            self._tally.fixed_native += "native" not in failing
            failing = [leg for leg in failing if leg != "native"]
        self._inquiry.put_aside(examination, failing)
        self._inquiry.look()

    def examine(self, case: Case) -> None:
        """Examines a given case as if it had been drawn, whatever time is left."""
        examination = self._examine(case)
        self._inquiry.put_aside(examination, list(examination.failing_legs()))
        self._inquiry.look()

    def _examine(self, case: Case) -> Examination:
        examination = self._legs.examine(case)
        self._tally.add(examination)
        return examination

    def _explore(self, case: Case) -> Failure | None:
        """Examines a generated case; returns a confirmed new failure that Hypothesis shall shrink."""
        if self._left_s() <= 0:
            raise EndOfCampaign
        self._generated += 1
        examination = self._examine(case)
        failing = list(examination.failing_legs())
        while failing:
            leg = failing[0]
            # Each step would be slow, and Hypothesis takes many.
            if leg == "native" or examination.outcomes[leg].tool in GPU_TOOLS:
                break
            failure = self._inquiry.confirm(examination, failing.pop(0))
            if failure is not None:
                self._inquiry.aim_at(failure, SHRINK_S[leg] / 2)
                self._inquiry.put_aside(examination, failing)
                return failure
        self._inquiry.put_aside(examination, failing)
        self._inquiry.look()
        return None


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
