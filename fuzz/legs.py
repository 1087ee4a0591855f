"""Runs one case on every leg and has each judged by the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fuzz import bounds, checks, data, suspect
from fuzz.card import card
from fuzz.case import MODES, Case, format_case
from fuzz.outcome import FAILURES, Judgement, Outcome, Verdict
from fuzz.suspect import REFERENCE
from fuzz.worker import DEFAULT_TIME_LIMIT_S, Worker, preload

LEGS = ("convt3d", "oracle", "native")
SUBJECT_MODULE = "fuzz.subjects"
# PyTorch's op is known to hang on some cases, and all legs wait for it. A case takes it milliseconds; what
# takes seconds, loading libraries, it has done when it is warm.
NATIVE_TIME_LIMIT_S = 10.0


class HarnessError(Exception):
    """The reference or the judge itself broke down on a case: there is no verdict."""


@dataclass(frozen=True)
class Examination:
    """What every leg did with a case, and what the reference says of it.

    Args:
        case: the case.
        expectation: what the reference says; what the oracle says, where the reference is the suspect.
        outcomes: by leg, what its subject did.
        judgements: by leg. "reference" is there too where it is the suspect (fuzz.suspect).
        incidents: what was done to the legs' processes meanwhile (Note [Interference] of fuzz.worker).
    """

    case: Case
    expectation: bounds.Expectation
    outcomes: Mapping[str, Outcome]
    judgements: Mapping[str, Judgement]
    incidents: tuple[str, ...] = ()

    def failing_legs(self) -> tuple[str, ...]:
        """Who failed: the reference, then the legs in the order of LEGS, ours first."""
        return tuple(
            leg
            for leg in (REFERENCE, *LEGS)
            if leg in self.judgements and self.judgements[leg].verdict in FAILURES
        )

    def card(self, machine: str, leg: str = LEGS[0]) -> str:
        """The failure card, about this leg if it failed; of all legs when none did."""
        others = [judgement for name, judgement in self.judgements.items() if name != leg]
        judgements = [self.judgements[leg], *others]
        return card(self.case, judgements, self.expectation, self.outcomes, machine)


class Legs:
    """Three worker processes, one a leg, that run each case side by side.

    Args:
        subject_module: module with the functions convt3d, oracle and native.
        time_limit_s: seconds that a leg may take for a case; None stands for NATIVE_TIME_LIMIT_S
            for native and DEFAULT_TIME_LIMIT_S for the others.
        journal: file that each case string is written to before the case runs, so that what ran
            last is known whatever dies; a comment follows where not all legs run it.
        modes: that cases may have: what they need is built before the first case.

    Raises:
        SubjectError: from any method, when a subject cannot be loaded.
    """

    def __init__(
        self,
        subject_module: str = SUBJECT_MODULE,
        time_limit_s: float | None = None,
        journal: Path | None = None,
        modes: Sequence[str] = MODES,
    ) -> None:
        preload([subject_module])
        self.workers: dict[str, Worker] = {}
        self._journal = None
        if journal is not None:
            journal.parent.mkdir(parents=True, exist_ok=True)
            self._journal = journal.open("w", encoding="utf-8")
        for leg in LEGS:
            limit_s = NATIVE_TIME_LIMIT_S if leg == "native" else DEFAULT_TIME_LIMIT_S
            self.workers[leg] = Worker(
                f"{subject_module}:{leg}", time_limit_s or limit_s, preparations=(tuple(modes),)
            )

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

    def examine(self, case: Case, is_hasty: bool = False) -> Examination:
        """Runs a case on all legs while the reference computes the truth, and judges them.

        A leg that crashed, hung or did damage gets a fresh process, so that no later case suffers
        from this one.

        Args:
            case: the case.
            is_hasty: a leg that is late once hangs: for cases of which that is expected.

        Raises:
            HarnessError: the reference or the judge raised; the message holds the case string.
        """
        self._write_down(case)
        return self._examine(case, is_hasty)

    def _examine(self, case: Case, is_hasty: bool = False) -> Examination:
        for worker in self.workers.values():
            worker.start(case)
        expectation = _try_to_expect(case)
        outcomes = {leg: worker.finish(is_hasty) for leg, worker in self.workers.items()}
        if isinstance(expectation, HarnessError):
            raise expectation
        judgements = {leg: _judge(case, expectation, outcomes[leg], leg) for leg in LEGS}
        for leg, worker in self.workers.items():
            is_sound = outcomes[leg].status in ("ok", "refused") and not outcomes[leg].damage
            if not is_sound and not worker.is_fresh:
                worker.replace()
        incidents = self._take_incidents()
        examination = Examination(case, expectation, outcomes, judgements, incidents)
        try:
            return _examine_reference(examination)
        except Exception as error:
            text = f"no verdict on the reference for {format_case(case, True)}: {error!r}"
            raise HarnessError(text) from error

    def examine_alone(self, case: Case, leg: str) -> Examination:
        """Runs a case on one leg only, in whatever process it has, and judges it."""
        self._write_down(case, f"  # {leg} alone")
        worker = self.workers[leg]
        worker.start(case)
        expectation = _try_to_expect(case)
        outcome = worker.finish()
        if isinstance(expectation, HarnessError):
            raise expectation
        judgement = _judge(case, expectation, outcome, leg)
        incidents = self._take_incidents()
        return Examination(case, expectation, {leg: outcome}, {leg: judgement}, incidents)

    def confirm(self, examination: Examination, leg: str) -> Examination:
        """Runs the case once more on one leg, in a process that has run nothing else.

        Who confirms that the reference is wrong is every leg.
        """
        case = examination.case
        self._write_down(case, f"  # {leg} again")
        if leg == REFERENCE:
            for worker in self.workers.values():
                if not worker.is_fresh:
                    worker.replace()
            return self._examine(case)
        worker = self.workers[leg]
        if not worker.is_fresh:
            worker.replace()
        outcome = worker.run(case)
        worker.replace()
        judgement = _judge(case, examination.expectation, outcome, leg)
        return replace(
            examination,
            outcomes={**examination.outcomes, leg: outcome},
            judgements={**examination.judgements, leg: judgement},
            incidents=self._take_incidents(),
        )

    def _take_incidents(self) -> tuple[str, ...]:
        return tuple(
            f"{leg} {incident}"
            for leg, worker in self.workers.items()
            for incident in worker.take_incidents()
        )

    def _write_down(self, case: Case, why: str = "") -> None:
        if self._journal is not None:
            self._journal.write(f"{format_case(case, True)}{why}\n")
            self._journal.flush()


def _try_to_expect(case: Case) -> bounds.Expectation | HarnessError:
    """What the reference says; an error is returned, to be raised when the subjects have answered."""
    try:
        return bounds.expect(case, data.generate(case))
    except Exception as error:
        broken = HarnessError(f"no expectation for {format_case(case, True)}: {error!r}")
        broken.__cause__ = error
        return broken


def _examine_reference(examination: Examination) -> Examination:
    """The examination with a verdict on the reference if that is the suspect: Note [Two against one]."""
    if not set(suspect.WITNESSES) & set(examination.failing_legs()):
        return examination
    accusation = suspect.accuse(examination.expectation, examination.outcomes)
    if accusation is None:
        return examination
    judgements = {REFERENCE: accusation.judgement, **examination.judgements}
    excused = "refused" if accusation.judgement.check == "refusal" else "ok"
    for leg in LEGS:
        outcome = examination.outcomes[leg]
        if outcome.status == excused and not outcome.damage:
            judgements[leg] = Judgement(
                leg, Verdict.MISTRUSTED, detail="the reference is wrong on this case"
            )
    return replace(
        examination,
        expectation=accusation.expectation,
        outcomes={REFERENCE: accusation.outcome, **examination.outcomes},
        judgements=judgements,
    )


def _judge(case: Case, expectation: bounds.Expectation, outcome: Outcome, leg: str) -> Judgement:
    try:
        return checks.judge(case, expectation, outcome, leg)
    except Exception as error:
        text = f"no verdict on {leg} for {format_case(case, True)}: {error!r}"
        raise HarnessError(text) from error
