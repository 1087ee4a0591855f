"""Runs one case on every leg and has each judged by the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fuzz import bounds, checks, data
from fuzz.card import card
from fuzz.case import Case, format_case
from fuzz.outcome import FAILURES, Judgement, Outcome
from fuzz.worker import DEFAULT_TIME_LIMIT_S, Worker, preload

LEGS = ("convt3d", "oracle", "native")
SUBJECT_MODULE = "fuzz.subjects"
# PyTorch's op is known to hang on some cases, and all legs wait for it. A case takes it milliseconds; what
# takes seconds, loading libraries, it has done when it is warm.
NATIVE_TIME_LIMIT_S = 3.0


class HarnessError(Exception):
    """The reference or the judge itself broke down on a case: there is no verdict."""


@dataclass(frozen=True)
class Examination:
    """What every leg did with a case, and what the reference says of it."""

    case: Case
    expectation: bounds.Expectation
    outcomes: Mapping[str, Outcome]
    judgements: Mapping[str, Judgement]

    def failing_legs(self) -> tuple[str, ...]:
        """Legs that failed, in the order of LEGS: ours first."""
        return tuple(leg for leg in LEGS if self.judgements[leg].verdict in FAILURES)

    def card(self, machine: str, leg: str = LEGS[0]) -> str:
        """The failure card, about this leg if it failed; of all legs when none did."""
        judgements = [self.judgements[leg], *(self.judgements[o] for o in LEGS if o != leg)]
        return card(self.case, judgements, self.expectation, self.outcomes, machine)


class Legs:
    """Three worker processes, one a leg, that run each case side by side.

    Args:
        subject_module: module with the functions convt3d, oracle and native.
        time_limit_s: seconds that a leg may take for a case; None stands for NATIVE_TIME_LIMIT_S
            for native and DEFAULT_TIME_LIMIT_S for the others.
        journal: file that each case string is written to before the case runs, so that what ran
            last is known whatever dies.

    Raises:
        SubjectError: from any method, when a subject cannot be loaded.
    """

    def __init__(
        self,
        subject_module: str = SUBJECT_MODULE,
        time_limit_s: float | None = None,
        journal: Path | None = None,
    ) -> None:
        preload([subject_module])
        self.workers: dict[str, Worker] = {}
        self._journal = None
        if journal is not None:
            journal.parent.mkdir(parents=True, exist_ok=True)
            self._journal = journal.open("w", encoding="utf-8")
        for leg in LEGS:
            limit_s = NATIVE_TIME_LIMIT_S if leg == "native" else DEFAULT_TIME_LIMIT_S
            self.workers[leg] = Worker(f"{subject_module}:{leg}", time_limit_s or limit_s)

    def __enter__(self) -> Legs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers.values():
            worker.close()
        if self._journal is not None:
            self._journal.close()

    def await_facts(self) -> dict[str, str]:
        """What the subjects say about their machine."""
        return self.workers[LEGS[0]].await_facts()

    def await_ready(self) -> None:
        """Waits until every subject is loaded and warmed up."""
        for worker in self.workers.values():
            worker.await_ready()

    def examine(self, case: Case) -> Examination:
        """Runs a case on all legs while the reference computes the truth, and judges them.

        A leg that crashed, hung or did damage gets a fresh process, so that no later case suffers
        from this one.

        Raises:
            HarnessError: the reference or the judge raised; the message holds the case string.
        """
        self._write_down(case)
        for worker in self.workers.values():
            worker.start(case)
        expectation, error = _try_to_expect(case)
        outcomes = {leg: worker.finish() for leg, worker in self.workers.items()}
        if expectation is None:
            raise HarnessError(
                f"no expectation for {format_case(case, True)}: {error!r}"
            ) from error
        judgements = {leg: _judge(case, expectation, outcomes[leg], leg) for leg in LEGS}
        examination = Examination(case, expectation, outcomes, judgements)
        for leg in examination.failing_legs():
            is_sound = outcomes[leg].status in ("ok", "refused") and not outcomes[leg].damage
            if not is_sound and not self.workers[leg].is_fresh:
                self.workers[leg].replace()
        return examination

    def confirm(self, examination: Examination, leg: str) -> Examination:
        """Runs the case once more on one leg, in a process that has run nothing else."""
        case, worker = examination.case, self.workers[leg]
        self._write_down(case)
        if not worker.is_fresh:
            worker.replace()
        outcome = worker.run(case)
        worker.replace()
        judgement = _judge(case, examination.expectation, outcome, leg)
        return replace(
            examination,
            outcomes={**examination.outcomes, leg: outcome},
            judgements={**examination.judgements, leg: judgement},
        )

    def _write_down(self, case: Case) -> None:
        if self._journal is not None:
            self._journal.write(format_case(case, True) + "\n")
            self._journal.flush()


def _try_to_expect(case: Case) -> tuple[bounds.Expectation | None, Exception | None]:
    try:
        return bounds.expect(case, data.generate(case)), None
    except Exception as error:
        return None, error


def _judge(case: Case, expectation: bounds.Expectation, outcome: Outcome, leg: str) -> Judgement:
    try:
        return checks.judge(case, expectation, outcome, leg)
    except Exception as error:
        text = f"no verdict on {leg} for {format_case(case, True)}: {error!r}"
        raise HarnessError(text) from error
