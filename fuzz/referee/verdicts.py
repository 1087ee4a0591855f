"""The verdicts on what a worker sent: raw bits against the reference, or against one another. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuzz import checks, data
from fuzz.bounds import TABLE, Expectation, expect
from fuzz.case import Case
from fuzz.data import Inputs
from fuzz.identities import violated_identities
from fuzz.number import decode, encode
from fuzz.outcome import RESULTS, Outcome, Verdict
from fuzz.referee.sampling import Sample, shifted
from fuzz.referee.task import (
    ALIAS_NOTE,
    LIBRARY_NOTE,
    NATIVE_NOTE,
    RESULT_NOTE,
    Task,
    with_other_data,
)

# Rows that every run has a say in: word of a note -> row.
ROWS_OF_NOTES = {
    ALIAS_NOTE: "own_results",
    NATIVE_NOTE: "native_op",
}
LEG = "candidate"

Raw = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Examined:
    """What came of a task.

    Args:
        verdict: on what the task was about.
        detail: a sentence; empty on a pass.
        found: rows that the run failed besides -> a sentence.
        library: operators of PyTorch that did the work.
        seconds: of forward, and of forward with backward, where time was measured.
    """

    verdict: Verdict
    detail: str
    found: Mapping[str, str]
    library: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()


def examine(task: Task, outcome: Outcome, leg: str) -> Examined:
    """Judges what a worker did with a task.

    Args:
        task: the task.
        outcome: what came back.
        leg: the row of fuzz.bounds.TABLE that the implementation is held to.
    """
    if outcome.status != "ok":
        stage = f" in {outcome.stage}" if outcome.stage else ""
        detail = _one_line(outcome.message)
        detail = detail if stage in detail else f"{detail}{stage}"
        return Examined(Verdict(outcome.status), detail, {})
    notes = [note.partition(": ") for note in outcome.damage]
    found: dict[str, str] = {}
    for word, _, text in notes:
        if word in ROWS_OF_NOTES:
            found.setdefault(ROWS_OF_NOTES[word], text)
        elif word not in (RESULT_NOTE, LIBRARY_NOTE):
            found.setdefault(_row_of_damage(word), word)
    library = tuple(text for word, _, text in notes if word == LIBRARY_NOTE)
    seconds = tuple(float(s) for s in outcome.results.get("seconds", ()))
    faults = [text for word, _, text in notes if word == RESULT_NOTE]
    if faults:
        return Examined(Verdict.WRONG, faults[0], found, library)
    if "native_op" in found and task.probe in ("unwatched", "speed"):
        return Examined(Verdict.WRONG, found["native_op"], found, library)
    verdict, detail = _JUDGES.get(task.probe, _judge_run)(task, outcome, leg)
    if verdict is Verdict.PASS and task.probe == "reuse" and "own_results" in found:
        verdict, detail = Verdict.WRONG, found["own_results"]
    return Examined(verdict, detail, found, library, seconds)


def _row_of_damage(sentence: str) -> str:
    """The row that a sentence of fuzz.arena belongs to."""
    if "was overwritten" in sentence:
        return "inputs_unchanged"
    return "all_written" if "still hold the poison" in sentence else "out_of_bounds"


Judged = tuple[Verdict, str]
_PASS: Judged = (Verdict.PASS, "")


def _judge_run(task: Task, outcome: Outcome, leg: str) -> Judged:
    inputs = data.generate(task.case)
    if task.placement == "expanded":
        inputs = replace(inputs, grad_output=np.ones_like(inputs.grad_output))
    return _judge_values(task, inputs, outcome.results, leg)


def _judge_values(task: Task, inputs: Inputs, raw: Raw, leg: str) -> Judged:
    """Judges the results that the task wants; those that it does not count as right."""
    if missing := _missing(task, raw):
        return Verdict.WRONG, f"{missing} is missing"
    return _compare(task.case, inputs, raw, leg)


def _compare(case: Case, inputs: Inputs, raw: Raw, leg: str) -> Judged:
    """Judges the results that are there; the others count as right."""
    expectation = expect(case, inputs)
    expected = _expected(expectation, leg)
    results = {name: raw.get(name, expected[name]) for name in RESULTS}
    judgement = checks.judge(case, expectation, Outcome("ok", results=results), leg)
    return judgement.verdict, judgement.detail


def _missing(task: Task, raw: Raw) -> str:
    wanted = [name for name in task.wants if name != "grad_bias" or task.case.bias]
    return next((name for name in ("output", *wanted) if name not in raw), "")


def _expected(expectation: Expectation, leg: str) -> dict[str, NDArray[Any]]:
    dtype = TABLE[leg, expectation.case.dtype].output
    return {name: encode(getattr(expectation.values, name), dtype) for name in RESULTS}


def _judge_repeat(task: Task, outcome: Outcome, leg: str) -> Judged:
    runs = _runs(outcome)
    first, *others = runs.values()
    if missing := _missing(task, first):
        return Verdict.WRONG, f"{missing} is missing"
    states = "with the same" if task.probe == "repeat" else "with another"
    for other in others:
        if difference := _difference(first, other):
            return (
                Verdict.WRONG,
                f"{difference} in a second run, {states} state of random generators",
            )
    return _PASS


def _judge_batch(task: Task, outcome: Outcome, leg: str) -> Judged:
    runs = _runs(outcome)
    if missing := _missing(replace(task, wants=()), runs.get("whole", {})):
        return Verdict.WRONG, f"{missing} is missing"
    for label, how in (
        ("others", "beside other samples"),
        ("nan", "beside samples that are NaN"),
        ("alone", "in a batch of its own"),
    ):
        if difference := _difference(runs["whole"], runs.get(label, {})):
            return Verdict.WRONG, f"of a sample {how}, {difference}"
    return _PASS


def _judge_reuse(task: Task, outcome: Outcome, leg: str) -> Judged:
    runs = _runs(outcome)
    inputs = data.generate(task.case)
    others = data.generate(with_other_data(task.case))
    for label, its_inputs, how in (
        ("first", inputs, "first call"),
        ("second", others, "second call, with other data in the same memory"),
        ("kept", inputs, "first call of two on data side by side"),
        ("later", others, "second call of two on data side by side"),
    ):
        verdict, detail = _judge_values(task, its_inputs, runs.get(label, {}), leg)
        if verdict is not Verdict.PASS:
            return verdict, f"{how}: {detail}"
    if difference := _difference(runs["kept"], runs["after"]):
        return Verdict.WRONG, f"what a call returned did not stay: {difference} after the next call"
    return _PASS


def _judge_unwatched(task: Task, outcome: Outcome, leg: str) -> Judged:
    runs, inputs = _runs(outcome), data.generate(task.case)
    for label, wants in (("forward", ()), ("all", task.wants)):
        its_task = replace(task, wants=wants)
        verdict, detail = _judge_values(its_task, inputs, runs.get(label, {}), leg)
        if verdict is not Verdict.PASS:
            return verdict, f"with nothing watching, {detail}"
    return _PASS


def _judge_speed(task: Task, outcome: Outcome, leg: str) -> Judged:
    """The watched call by fuzz.identities and by a part of its results, the timed ones by a part of theirs."""
    case, inputs = task.case, data.generate(task.case)
    runs = _runs(outcome)
    watched = runs.pop("watched", {})
    if missing := _missing(task, watched):
        return Verdict.WRONG, f"{missing} is missing"
    dtype = TABLE[leg, case.dtype].output
    if dtype in ("f64", "f32"):  # sums of integers are exact, and the case may be large
        results = {name: decode(raw, dtype) for name, raw in watched.items()}
        if violated := violated_identities(inputs, results):
            return Verdict.WRONG, "; ".join(violated)
    drawn = Sample.draw(case)
    parts = {name: raw[drawn.part(case, name).of(name)] for name, raw in watched.items()}
    if wrong := _wrong_part(case, inputs, drawn, parts, leg):
        return Verdict.WRONG, wrong
    for label, parts in runs.items():
        if "sample" in parts:
            sample = Sample(*map(int, parts.pop("sample")))
            its_inputs = shifted(inputs, int(label))
            if wrong := _wrong_part(case, its_inputs, sample, parts, leg):
                return Verdict.WRONG, f"while time was measured, in call {label}: {wrong}"
    return _PASS


def _wrong_part(case: Case, inputs: Inputs, sample: Sample, parts: Raw, leg: str) -> str:
    """What is wrong with a part of the results; empty if nothing is."""
    for name, raw in parts.items():
        part = sample.part(case, name)
        verdict, detail = _compare(*part.crop(case, inputs), {name: raw}, leg)
        if verdict is Verdict.WRONG:
            index = ", ".join(_as_text(its_slice) for its_slice in part.of(name))
            return f"in {name}[{index}], {detail}"
    return ""


def _as_text(its_slice: slice) -> str:
    return ":" if its_slice == slice(None) else str(its_slice.start)


_JUDGES: dict[str, Callable[[Task, Outcome, str], Judged]] = {
    "repeat": _judge_repeat,
    "random_state": _judge_repeat,
    "batch": _judge_batch,
    "reuse": _judge_reuse,
    "unwatched": _judge_unwatched,
    "speed": _judge_speed,
}


def _runs(outcome: Outcome) -> dict[str, dict[str, NDArray[Any]]]:
    """Results of several runs, by label, in the order in which they ran."""
    runs: dict[str, dict[str, NDArray[Any]]] = {}
    for key, raw in outcome.results.items():
        label, _, name = key.partition(".")
        runs.setdefault(label, {})[name] = raw
    return runs


def _difference(one: Raw, other: Raw) -> str:
    """How two runs' bits differ; empty if they do not."""
    for name, raw in one.items():
        if name not in other or other[name].shape != raw.shape:
            return f"{name} is missing"
        differs = raw != other[name]
        if differs.any():
            index = ", ".join(map(str, np.argwhere(differs)[0]))
            return (
                f"{name} differs in {np.count_nonzero(differs)} of {raw.size} elements, "
                f"first at [{index}]"
            )
    return ""


def _one_line(text: str) -> str:
    """The first line of a message; of a traceback the last, and where that was."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    places = [line for line in lines if line.startswith('File "')]
    if places:
        return f"{lines[-1]} ({places[-1]})"
    return lines[0] if lines else ""
