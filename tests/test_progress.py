"""A campaign's counts add up, and its progress line suits a terminal and a log alike."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest

from fuzz import progress
from fuzz.case import Case, parse_case
from fuzz.coverage import pairs_of
from fuzz.legs import LEGS, Examination
from fuzz.outcome import Judgement, Verdict
from fuzz.progress import Display, Tally, progress_line, summary, total


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def examination(case: Case, **verdicts: Verdict) -> Examination:
    judgements = {
        leg: Judgement(leg, verdicts.get(leg, Verdict.PASS), shares={"output": 0.25})
        for leg in LEGS
    }
    return Examination(case, cast(Any, None), {}, judgements)


def test_tallies_of_shards_add_up() -> None:
    one, other = Tally(draws=3, discarded=1), Tally(draws=4, shrink_cases=1)
    one.add(examination(Case(dtype="f16", lane="normal")))
    other.add(examination(Case(dtype="f16"), native=Verdict.WRONG))
    other.add(examination(Case(mode="hostile")))
    both = total([one, other])
    assert both.cases == 3
    assert both.dtypes == {"f16": 2, "f32": 1}
    assert both.lanes == {"normal": 1, "int": 2}
    assert both.modes == {"fast": 2, "hostile": 1}
    assert both.verdicts["native", "wrong"] == 1
    assert both.verdicts["convt3d", "pass"] == 3
    assert (both.draws, both.discarded, both.shrink_cases) == (7, 1, 1)


def test_the_share_of_the_bound_is_the_largest_of_any_pass() -> None:
    half, more, third = ("f16", "output"), ("f16", "grad_bias"), ("f32", "output")
    tallies = [Tally(shares={half: 0.5, third: 0.1}), Tally(shares={half: 0.7, more: 0.2})]
    assert total(tallies).shares == {half: 0.7, more: 0.2, third: 0.1}
    tally = Tally()
    tally.add(examination(Case(), convt3d=Verdict.WRONG))
    assert tally.shares == {}
    tally.add(examination(Case()))
    assert tally.shares == {third: 0.25}


def test_the_summary_says_how_tight_the_bounds_are_by_dtype_and_result() -> None:
    assert "no share of it was used" in summary(Tally(), 0.0)
    tally = Tally(shares={("f16", "output"): 0.5, ("bf16", "grad_weight"): 0.123})
    lines = summary(tally, 1.0).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("  bound "))
    assert lines[header].split()[-4:] == ["output", "grad_input", "grad_weight", "grad_bias"]
    assert lines[header + 1].split() == ["bf16", "-", "-", "0.12", "-"]
    assert lines[header + 2].split() == ["f16", "0.50", "-", "-", "-"]
    assert len({len(line) for line in lines[header : header + 3]}) == 1


def test_pairs_of_features_are_met_unless_the_case_proves_nothing() -> None:
    one, other, doubtful = Case(), Case(dtype="f16", stride=(2, 2, 2)), Case(lane="special")
    tallies = [Tally(), Tally()]
    tallies[0].add(examination(one))
    tallies[1].add(examination(other, convt3d=Verdict.CRASHED))
    tallies[1].add(examination(doubtful, convt3d=Verdict.MISTRUSTED))
    assert total(tallies).met == pairs_of(one) | pairs_of(other)


def test_a_mode_that_the_device_has_not_is_not_counted_as_run() -> None:
    tally = Tally(device="cuda")
    for text in ("f32_int_asan", "f32_int_memcheck", "f32_far_int"):
        tally.add(examination(parse_case(text)))
    assert tally.modes == {"fast": 2, "memcheck": 1}
    there = pairs_of(parse_case("f32_int")) | pairs_of(parse_case("f32_int_memcheck"))
    assert tally.met == there


def test_the_summary_counts_mistrusted_and_unconfirmed_verdicts() -> None:
    tally = Tally()
    tally.add(examination(Case(), convt3d=Verdict.MISTRUSTED, native=Verdict.CRASHED))
    tally.unconfirmed["native"] += 1
    text = summary(tally, 2.0)
    assert "1 in 2.0 s" in text
    assert "convt3d  mistrusted 1" in text
    assert "native   crashed 1 (1 not in a fresh process)" in text


def test_the_summary_of_nothing_divides_by_nothing() -> None:
    assert "0 in 0.0 s, 0 cases/s" in summary(Tally(), 0.0)


def test_the_progress_line_says_time_cases_rate_findings_and_what_is_left() -> None:
    tally = Tally()
    for _ in range(1200):
        tally.dtypes["f32"] += 1
    line = progress_line(tally, 12.0, 1, 2, "48 s left")
    expected = "12 s 1,200 cases 100 cases/s 1 failures, 2 native findings 48 s left"
    assert line.split() == expected.split()


def test_a_terminal_has_its_line_rewritten_and_text_stays_above_it() -> None:
    stream = Terminal()
    display = Display(stream)
    display.progress("one")
    display.progress("two")
    display.print("text")
    display.progress("three")
    clear = "\r\033[K"
    assert stream.getvalue() == f"one{clear}two{clear}text\nthree"


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    display = Display(stream)
    display.progress("too early")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    display.progress("one")
    display.print("text")
    display.progress("two")
    assert stream.getvalue() == "one\ntext\ntwo\n"
