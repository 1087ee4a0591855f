"""What is said of mutants: reasons, score, kill matrix, and the command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from fuzz.campaign import BROKEN, FAILED, PASSED
from fuzz.case import parse_case
from fuzz.mutation import command, reasons, report
from fuzz.mutation.mutant import KernelMutant, Result
from fuzz.mutation.server import MutationError, Options
from tests.test_mutation import automatic


@pytest.mark.parametrize(
    "path", [reasons.EQUIVALENT, reasons.SURVIVORS], ids=lambda path: path.name
)
def test_every_mutant_that_has_a_reason_exists(path: Path) -> None:
    names = {mutant.name for mutant in automatic()}
    assert reasons.unknown(path, reasons.load(path), names) == []


def test_no_mutant_is_both_argued_away_and_a_survivor() -> None:
    equivalent, survivors = map(reasons.load, (reasons.EQUIVALENT, reasons.SURVIVORS))
    assert reasons.in_both(equivalent, survivors) == []
    assert reasons.in_both(["a", "b"], ["b", "c"]) == [
        "equivalent.txt and survivors.txt both name 'b'"
    ]


def test_the_cases_that_reasons_name_are_cases() -> None:
    texts = [
        text
        for path in (reasons.EQUIVALENT, reasons.SURVIVORS)
        for text in reasons.load(path).values()
    ]
    for word in re.findall(r"\b(?:f64|f32|f16|bf16)_[\w=.]+\w", " ".join(texts)):
        parse_case(word)


def test_a_reason_holds_for_the_names_right_under_it(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.txt"
    path.write_text("# never\n# negative\na -> b\nc -> d\n\n# other\ne -> f\n")
    assert reasons.load(path) == {
        "a -> b": "never negative",
        "c -> d": "never negative",
        "e -> f": "other",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a -> b\n", ":1: no comment above"),
        ("# why\n\na -> b\n", ":3: no comment above"),
        ("# why\na -> b\n# again\na -> b\n", ":4: a -> b is there already"),
    ],
)
def test_a_name_without_a_reason_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "equivalent.txt"
    path.write_text(text)
    with pytest.raises(reasons.ReasonsError, match=message):
        reasons.load(path)


def result(name: str, check: str = "") -> Result:
    return Result(name, check, "f32_int" if check else "", "", 7, 0.5)


def test_what_has_a_reason_to_live_but_is_gone_or_killed_is_stale() -> None:
    why = {"gone": "why", "killed": "why", "alive": "why"}
    results = [result("killed", "hung"), result("alive"), result("no reason", "hung")]
    path = Path("some/survivors.txt")
    assert reasons.unknown(path, why, {"killed", "alive"}) == [
        "survivors.txt is stale: no mutant has the name 'gone'"
    ]
    assert reasons.killed(path, why, results) == [
        "survivors.txt has 'killed', killed: hung on f32_int"
    ]


def outcomes(
    killed: int,
    survived: int,
    equivalent: int,
    by_hand: Sequence[str] = (),
    explained: Sequence[str] = (),
) -> report.Outcomes:
    """A run with so many automatic mutants, and one by hand for each check; "" survived."""
    fates = ["guard bands"] * killed + [""] * (survived + equivalent)
    automatic = [KernelMutant(f"a{i}", "relational", ()) for i in range(len(fates))]
    hand = [KernelMutant(f"h{i}", "a bug", ()) for i in range(len(by_hand))]
    results = [result(f"a{i}", check) for i, check in enumerate(fates)]
    results += [result(f"h{i}", check) for i, check in enumerate(by_hand)]
    argued_away = {f"a{i}": "why" for i in range(killed + survived, len(fates))}
    by_name = {r.name: r for r in results}
    return report.Outcomes(
        report.Ran(by_name), automatic, hand, argued_away, dict.fromkeys(explained, "too small")
    )


def test_the_score_leaves_out_what_is_equivalent() -> None:
    assert outcomes(killed=57, survived=3, equivalent=40).score == (57, 60)
    assert outcomes(killed=57, survived=3, equivalent=40).score.share == 0.95


@pytest.mark.parametrize(
    ("killed", "counted", "text"),
    [
        (2224, 2342, "94.9%"),  # 94.96 %
        (9499, 10000, "94.9%"),
        (95, 100, "95.0%"),
        (999_999, 1_000_000, "99.9%"),
        (3, 3, "100.0%"),
        (0, 3, "0.0%"),
        (0, 0, "100.0%"),
    ],
)
def test_a_score_is_rounded_down(killed: int, counted: int, text: str) -> None:
    assert str(report.Score(killed, counted)) == text


@pytest.mark.parametrize(
    ("run", "problems"),
    [
        (outcomes(95, 5, 3, ["hung"]), []),
        (outcomes(94, 6, 3), ["94.0% of the automatic mutants were killed, but must be 95%"]),
        (outcomes(2224, 118, 0), ["94.9% of the automatic mutants were killed, but must be 95%"]),
        (outcomes(95, 5, 0, ["hung", ""]), ["survived: h1"]),
    ],
)
def test_a_run_is_red_when(run: report.Outcomes, problems: list[str]) -> None:
    assert run.problems() == problems


def test_the_report_shows_survivors_first() -> None:
    text = report.text(outcomes(3, 1, 1, ["hung", ""]))
    assert (
        text.index("| `h1` | 7 | not explained |")
        < text.index("## By hand")
        < text.index("## Automatic")
    )
    assert "| relational | 5 | 3 | 1 | 1 | 75.0% | 7 | 7 | 0.50 |" in text
    assert "| by hand | 2 | 1 | 0 | 1 | 50.0% | 7 | 7 | 0.50 |" in text
    assert "guard bands 3, hung 1" in text
    assert report.summary_line(outcomes(3, 1, 1)) == (
        "3 of 5 mutants killed; automatic, without 1 equivalent: 75.0%; 1 survived, 1 not explained"
    )


def test_the_report_says_why_a_mutant_survives() -> None:
    run = outcomes(killed=2, survived=2, equivalent=0, explained=["a3"])
    text = report.text(run)
    assert "2, of which 1 are not explained." in text
    assert "| `a2` | 7 | not explained |" in text
    assert "| `a3` | 7 | too small |" in text
    assert report.summary_line(run).endswith("50.0%; 2 survived, 1 not explained")


def test_the_report_names_what_needs_a_gpu() -> None:
    mutant = KernelMutant("wrong_device", "", (), needs="two gpus")
    assert "`wrong_device` was not run: it needs two gpus" in report.text(
        report.Outcomes(report.Ran({}), [], [mutant])
    )


class FakeRun:
    """Kills every mutant but those named."""

    surviving: tuple[str, ...] = ()

    def __init__(
        self, mutants: Sequence[KernelMutant], options: Options, brief: Collection[str]
    ) -> None:
        self.stillborn: list[str] = []

    def results(self, names: Sequence[str]) -> Iterator[Result]:
        return iter([result(name, "" if name in self.surviving else "hung") for name in names])


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_command(parser.add_subparsers())
    parsed = parser.parse_args(["mutants", *arguments])
    code: int = parsed.command(parsed)
    return code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    by_hand = [KernelMutant("one", "", ()), KernelMutant("two", "", ())]
    monkeypatch.setattr(command, "all_by_hand", lambda: by_hand)
    monkeypatch.setattr(command, "Run", FakeRun)
    mutants = automatic()
    monkeypatch.setattr(command, "all_automatic", lambda: mutants)
    monkeypatch.setattr(reasons, "load", lambda path: {})
    return monkeypatch


def test_the_command_is_green_when_all_are_killed(
    fake: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.md"
    assert run_command(f"--report={path}", f"--json={tmp_path / 'report.json'}") == PASSED
    assert path.read_text().startswith("# Kill matrix")
    assert "mutants killed" in capsys.readouterr().out


def test_the_command_is_red_when_one_by_hand_survives(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.setattr(FakeRun, "surviving", ("two",))
    assert run_command("--by-hand") == FAILED
    assert "survived   two" in capsys.readouterr().out
    assert run_command("--by-hand", "--only=one") == PASSED


def test_a_name_that_no_mutant_has_is_not_green(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("--only=three") == BROKEN
    assert "--only='three', but no mutant" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stale", [reasons.EQUIVALENT, reasons.SURVIVORS], ids=lambda path: path.name
)
def test_the_command_is_red_when_a_reason_is_stale(
    stale: Path, fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.setattr(reasons, "load", lambda path: {"no such": "why"} if path == stale else {})
    assert run_command("--automatic") == FAILED
    assert f"{stale.name} is stale: no mutant has the name 'no such'" in capsys.readouterr().out
    assert run_command("--by-hand") == PASSED


def test_a_killed_mutant_is_not_equivalent_but_may_have_been_expected_to_survive(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = automatic()[0].name
    for path, code in ((reasons.EQUIVALENT, FAILED), (reasons.SURVIVORS, PASSED)):
        why = {path: {name: "why"}}
        fake.setattr(reasons, "load", lambda asked, why=why: why.get(asked, {}))
        assert run_command("--automatic") == code
        assert f"{path.name} has {name!r}, killed: hung" in capsys.readouterr().out


def test_what_a_run_has_written_down_is_reported_anew_with_the_reasons_of_today(
    fake: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor = automatic()[0].name
    fake.setattr(FakeRun, "surviving", (survivor,))
    written, first, second = (tmp_path / name for name in ("results.json", "1.md", "2.md"))
    code = run_command(f"--json={written}", f"--report={first}")
    fake.setattr(command, "Run", None)
    assert run_command(f"--results={written}", f"--report={second}") == code
    assert second.read_text() == first.read_text()
    why = {reasons.SURVIVORS: {survivor: "because"}}
    fake.setattr(reasons, "load", lambda path: why.get(path, {}))
    assert run_command(f"--results={written}", f"--report={second}") == code
    assert "| not explained |" in first.read_text()
    assert "| because |" in second.read_text() and "| not explained |" not in second.read_text()
    written.write_text(written.read_text().replace('"name": "one"', '"name": "another"'))
    capsys.readouterr()
    assert run_command(f"--results={written}") == FAILED
    printed = capsys.readouterr().out
    assert "of 'one' there is no result" in printed
    assert "no mutant that was asked for has the name 'another'" in printed
    written.write_text("{}")
    assert run_command(f"--results={written}") == BROKEN
    assert "holds no results" in capsys.readouterr().err


def test_the_command_says_when_it_cannot_run(
    fake: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(self: FakeRun, names: Sequence[str]) -> Iterator[Result]:
        raise MutationError("without a mutant, f32_int is wrong")

    fake.setattr(FakeRun, "results", results)
    assert run_command() == BROKEN
    assert "without a mutant" in capsys.readouterr().err
