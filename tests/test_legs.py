"""One case on three legs: each is judged by itself, and what one does harms no other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import bounds, checks
from fuzz.case import Case, format_case, parse_case
from fuzz.legs import LEGS, Examination, HarnessError, Legs
from fuzz.outcome import FAILURES, Verdict
from fuzz.worker import preload


@pytest.fixture(scope="module")
def three_legs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Legs]:
    preload(["tests.fake_subjects", "pytest"])
    journal = tmp_path_factory.mktemp("legs") / "deep" / "journal.txt"
    with Legs("tests.fake_subjects", time_limit_s=1.0, journal=journal) as legs:
        legs.await_ready()
        yield legs


def verdicts(examination: Examination) -> list[str]:
    return [examination.judgements[leg].verdict.value for leg in LEGS]


def behaving(**plans: str) -> Case:
    return Case(input_size=(2, 2, 2), kernel_size=(2, 2, 2), **plans)  # type: ignore[arg-type]


def test_three_right_legs_pass(three_legs: Legs) -> None:
    examination = three_legs.examine(behaving())
    assert verdicts(examination) == ["pass"] * 3
    assert examination.failing_legs() == ()
    assert examination.card("here").startswith("PASS")


@pytest.mark.parametrize(
    ("leg", "plan"), [*zip(LEGS, ("forward_plan", "grad_input_plan", "grad_weight_plan"))]
)
@pytest.mark.parametrize(
    ("behaviour", "verdict"), [("wrong", "wrong"), ("segfault", "crashed"), ("refuse", "refused")]
)
def test_the_leg_that_fails_is_named_and_the_others_pass(
    three_legs: Legs, leg: str, plan: str, behaviour: str, verdict: str
) -> None:
    examination = three_legs.examine(behaving(**{plan: behaviour}))
    assert examination.failing_legs() == (leg,)
    assert examination.judgements[leg].verdict.value == verdict
    first_line = examination.card("here", leg).splitlines()[0]
    assert first_line.startswith(f"{verdict.upper():<10} {leg}")


def test_a_leg_that_hangs_is_told_from_one_that_crashes(three_legs: Legs) -> None:
    assert verdicts(three_legs.examine(behaving(grad_weight_plan="hang")))[2] == "hung"


def test_ours_comes_first_when_several_legs_fail(three_legs: Legs) -> None:
    case = behaving(forward_plan="wrong", grad_weight_plan="segfault")
    assert three_legs.examine(case).failing_legs() == ("convt3d", "native")


def test_a_leg_that_crashed_gets_a_fresh_process_and_one_that_was_wrong_does_not(
    three_legs: Legs,
) -> None:
    three_legs.examine(behaving(grad_weight_plan="wrong"))
    pids = {leg: three_legs.workers[leg].pid for leg in LEGS}
    three_legs.examine(behaving(grad_weight_plan="segfault"))
    assert three_legs.workers["native"].pid != pids["native"]
    assert three_legs.workers["native"].is_fresh
    assert three_legs.workers["convt3d"].pid == pids["convt3d"]


def test_a_fresh_process_confirms_what_the_case_alone_brings_about(three_legs: Legs) -> None:
    examination = three_legs.examine(behaving(forward_plan="wrong"))
    confirmed = three_legs.confirm(examination, "convt3d")
    assert verdicts(confirmed) == ["wrong", "pass", "pass"]


def test_a_fresh_process_does_not_confirm_what_an_earlier_case_brought_about(
    three_legs: Legs,
) -> None:
    three_legs.examine(behaving())
    examination = three_legs.examine(behaving(forward_plan="wrong.at.first"))
    assert examination.judgements["convt3d"].verdict is Verdict.WRONG
    confirmed = three_legs.confirm(examination, "convt3d")
    assert confirmed.judgements["convt3d"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("asked_s", "limits_s"), [(None, [20.0, 20.0, 10.0]), (1.0, [1.0] * 3), (60.0, [60.0] * 3)]
)
def test_native_gets_less_time_unless_a_limit_is_asked_for(
    asked_s: float | None, limits_s: list[float]
) -> None:
    with Legs("tests.fake_subjects", asked_s) as three_legs:
        assert [three_legs.workers[leg].time_limit_s for leg in LEGS] == limits_s


def test_the_case_is_on_disk_before_it_runs(tmp_path: Path) -> None:
    journal = tmp_path / "journal.txt"
    case = parse_case("f16_i2_k2_bias_normal")
    with Legs("tests.fake_subjects", journal=journal) as three_legs:
        for worker in three_legs.workers.values():
            worker.start = lambda _: pytest.fail(journal.read_text())  # type: ignore[assignment]
        with pytest.raises(pytest.fail.Exception, match=format_case(case, canonical=True)):
            three_legs.examine(case)


@pytest.mark.parametrize(("module", "name"), [(bounds, "expect"), (checks, "judge")])
def test_an_error_of_the_judge_is_loud_and_names_the_case(
    three_legs: Legs, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("in the judge")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(HarnessError, match=r"f32_.*_i2_k2_.*ZeroDivisionError"):
            three_legs.examine(behaving())
    assert verdicts(three_legs.examine(behaving())) == ["pass"] * 3


def test_every_failure_of_a_leg_counts_as_one() -> None:
    assert set(Verdict) - FAILURES == {Verdict.PASS, Verdict.MISTRUSTED}


# ---- interference ---------------------------------------------------------------------------------


def test_a_leg_killed_in_mid_case_runs_it_again_and_the_examination_says_so() -> None:
    with Legs("tests.fake_subjects") as legs:
        legs.await_ready()
        native = legs.workers["native"].pid
        threading.Timer(0.1, lambda: os.kill(native, signal.SIGKILL)).start()
        examination = legs.examine(behaving(grad_weight_plan="slow"))
        assert verdicts(examination) == ["pass"] * 3
        assert examination.incidents == ("native SIGKILL",)
        assert legs.examine(behaving()).incidents == ()


def test_one_leg_may_be_examined_alone(three_legs: Legs) -> None:
    examination = three_legs.examine_alone(behaving(grad_weight_plan="segfault"), "native")
    assert examination.failing_legs() == ("native",)
    assert examination.judgements.keys() == {"native"}
    assert examination.card("here", "native").startswith("CRASHED    native")
    assert three_legs.examine_alone(behaving(), "native").failing_legs() == ()


def test_the_journal_tells_cases_from_runs_on_one_leg(tmp_path: Path) -> None:
    journal = tmp_path / "journal.txt"
    with Legs("tests.fake_subjects", journal=journal) as legs:
        examination = legs.examine(behaving(forward_plan="wrong"))
        legs.confirm(examination, "convt3d")
        legs.examine_alone(behaving(), "native")
    lines = journal.read_text().splitlines()
    assert [line.partition("  # ")[2] for line in lines] == ["", "convt3d again", "native alone"]
    assert parse_case(lines[0]) == examination.case
