"""`python -m fuzz bench` without a GPU: arguments, the budget, earlier results."""

from __future__ import annotations

import argparse
import os
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from fuzz.__main__ import main
from fuzz.bench import command, report, results
from fuzz.bench.command import measure_all
from fuzz.bench.results import Row, Run
from fuzz.bench.suite import SUITE, Point, points_of
from fuzz.progress import Display
from tests.test_bench import CEILINGS, row

POINTS = points_of(SUITE[:3], ["bf16"], ["ncdhw"], ["forward"])


class FakeBench:
    """Has a row for every point; the GPU dies at the point of this name."""

    def __init__(self, deadly: str = "") -> None:
        self.deadly = deadly

    def measure(self, point: Point) -> Row:
        found = row(point.layer.name)
        if point.layer.name == self.deadly:
            found.problem = "failed: RuntimeError: illegal memory access"
        return found

    def is_alive(self) -> bool:
        return False


def new_run(kind: str = "suite") -> Run:
    return Run(kind, {"card": "Some GPU"}, CEILINGS)


def measured(
    run: Run, bench: FakeBench, file: Path | None = None, deadline_s: float = 1e300
) -> str:
    """Measures POINTS into the run; returns what was printed."""
    stream = StringIO()
    measure_all(run, POINTS, bench, Display(stream), deadline_s, 5.0, file)
    return stream.getvalue()


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


# ---- arguments ----------------------------------------------------------------------------------


def test_without_a_gpu_there_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--shapes", "kb58"]) == 2
    line = error_line(capsys)
    assert line.startswith("fuzz: bench needs a GPU, but torch ") and "finds no GPU" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes=kb5"], "argument --shapes: 'kb5', but must be of kb58, kb61"),
        (["--dtypes=f64"], "argument --dtypes: 'f64', but must be of bf16, f16, tf32, f32"),
        (["--layouts=cl"], "argument --layouts: 'cl', but must be of ncdhw, channels_last"),
        (["--directions=back"], "argument --directions: 'back', but must be of forward"),
        (["--runs=0"], "argument --runs: '0', but must be an integer of at least 1"),
        (["--arch=7.5"], "argument --arch: '7.5', but must be like 8.0, and at least 8.0"),
        (["--arch=ampere"], "argument --arch: 'ampere', but must be like 8.0"),
        (["--budget=-1"], "argument --budget: '-1', but must be a number above 0"),
        (["--sample=0"], "argument --sample: '0', but must be an integer"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["bench", *arguments])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f32_int", "--shapes=kb58"], "--shapes is given with CASE"),
        (["f32_int", "--sample=3"], "--sample is given with CASE"),
        (["--sample=3", "--shapes=kb58"], "--shapes is given with --sample"),
        (["--from=run.json", "--dtypes=f16"], "--dtypes is given with --from"),
        (["--seed=3"], "--seed 3 is given without --sample N"),
        (["--json=/no/such/run.json"], "--json /no/such/run.json: there is no directory"),
        (["--svg=/no/such/run.svg"], "--svg /no/such/run.svg: there is no directory"),
        (["f64_int"], "dtype='f64', but bench measures bf16"),
        (["f32_q7_int"], "'q7'"),
        (["f32_int_fwd=bogus"], "'fwd=bogus'"),
        (["--from=/no/such.json"], "--from /no/such.json cannot be read"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in error_line(capsys)


def test_the_architecture_is_set_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVT3D_ARCH", "9.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--arch", "8.0"]) == 2
    assert os.environ["CONVT3D_ARCH"] == "8.0"


def test_a_suite_is_forward_in_all_dtypes_and_layouts_by_default() -> None:
    parsed = parse([])
    points = command.points_to_measure(parsed, 0)
    assert len(points) == 16 * 4 * 2
    assert {point.direction for point in points} == {"forward"}
    assert len(command.points_to_measure(parse(["--sample=5"]), 0)) == 5


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_command(parser.add_subparsers())
    return parser.parse_args(["bench", *arguments])


# ---- measuring ----------------------------------------------------------------------------------


def test_every_row_is_shown_and_saved_as_it_is_measured(tmp_path: Path) -> None:
    run = new_run()
    printed = measured(run, FakeBench(), tmp_path / "run.json")
    assert [one.shape for one in run.rows] == ["kb58", "kb61", "kb68"]
    assert all(f" {name} bf16 ncdhw forward " in printed for name in ("kb58", "kb61", "kb68"))
    assert results.load(tmp_path / "run.json") == run


def test_a_used_up_budget_names_what_was_not_measured() -> None:
    run = new_run()
    measured(run, FakeBench(), deadline_s=0.0)
    assert run.rows == []
    assert run.stopped == "the budget of 5 s is used up"
    text = report.summary(run)
    assert "not measured, 3 rows: the budget of 5 s is used up" in text
    for point in POINTS:
        assert f"\n  {point}  bf16_" in text


def test_a_gpu_that_no_longer_answers_ends_the_run() -> None:
    run = new_run()
    measured(run, FakeBench(deadly="kb61"))
    assert [one.mark for one in run.rows] == ["", "FAILED"]
    assert run.stopped == "the GPU no longer answers after kb61 bf16 ncdhw forward"
    assert len(run.unmeasured) == 1 and run.unmeasured[0].startswith("kb68 ")


# ---- earlier results ----------------------------------------------------------------------------


def test_earlier_results_are_shown_and_drawn_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run()
    run.rows = [row("kb58", 3.0), row("kb61", 0.5)]
    source, picture = tmp_path / "run.json", tmp_path / "run.svg"
    results.save(run, source)
    assert main(["bench", "--from", str(source), "--svg", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "Some GPU" in printed and "LOST   kb61" in printed and "MISSED" in printed
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_the_status_is_1_where_ours_was_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run("sample")
    run.rows = [row("sample0", 3.0)]
    run.rows[0].problem = "wrong: error 0.3"
    results.save(run, tmp_path / "run.json")
    assert main(["bench", "--from", str(tmp_path / "run.json")]) == 1
    assert "WRONG  sample0" in capsys.readouterr().out
