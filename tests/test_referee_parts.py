"""The parts of the referee, without a worker: loading, pool, verdicts, report."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuzz import data
from fuzz.bounds import expect
from fuzz.case import Case, format_case, parse_case
from fuzz.number import encode
from fuzz.outcome import RESULTS, Outcome, Verdict
from fuzz.referee.loading import LoadError, describe, load
from fuzz.referee.pool import FEATURES, drawn_cases, given_cases, restrict
from fuzz.referee.report import Report, Row, format_end, format_row
from fuzz.referee.sampling import Sample, shifted
from fuzz.referee.task import Task, with_other_data
from fuzz.referee.verdicts import examine

CPU = torch.device("cpu")
CASE = parse_case("f32_n2_ci4_co6_g2_i3x2x2_k3x2x1_s2x1x3_p1_op1x0x1_d1x2x1_bias_int")
EVEN = parse_case("f32_ci2_co3_i3_k3_s2_p1_op1_int")


# Finding it in a file.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def conv_transpose3d(x, w): ...", "function conv_transpose3d"),
        ("from torch import nn\nclass Mine(nn.Module): ...", "class Mine"),
        (
            "from torch import nn\ndef conv_transpose3d(x, w): ...\nclass ModelNew(nn.Module): ...",
            "class ModelNew",
        ),
        (
            "from torch import nn\nfrom torch.nn.functional import conv_transpose3d\n"
            "class Mine(nn.Module): ...",
            "class Mine",
        ),
        ("from torch.nn.functional import conv_transpose3d", "function conv_transpose3d"),
        ("from neighbour import conv_transpose3d", "function conv_transpose3d"),
    ],
)
def test_the_implementation_of_a_file_is_found(tmp_path: Path, source: str, found: str) -> None:
    (tmp_path / "neighbour.py").write_text("def conv_transpose3d(x, w): ...")
    (tmp_path / "file.py").write_text(source)
    assert describe(load(tmp_path / "file.py")) == found


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("file.py", "", "found A, B"),
        ("file.py", "C", "no C in"),
        ("file.py", "D", "must be a subclass of torch.nn.Module"),
        ("file.txt", "", "is no Python file"),
    ],
)
def test_what_is_no_implementation_is_named(
    tmp_path: Path, file: str, name: str, message: str
) -> None:
    source = "from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...\nclass D: ..."
    (tmp_path / file).write_text(source)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / file, name)


# Cases.


@pytest.mark.parametrize("feature", FEATURES)
def test_drawn_cases_have_what_is_required_and_nothing_that_is_not_allowed(feature: str) -> None:
    required = ("stride", feature) if feature == "output_padding" else (feature,)
    cases = [case for case, _ in zip(drawn_cases(1, "row", ["f32"], required, ()), range(20))]
    assert len(set(cases)) == 20
    for case in cases:
        has = {name for name, is_in in FEATURES.items() if is_in(case)} - {"long_sums"}
        assert has == {*required} - {"long_sums"}
        assert (case.dtype, case.mode) == ("f32", "fast")


def test_the_same_seed_and_row_draw_the_same_cases() -> None:
    def first(seed: int, row: str) -> list[Case]:
        return [case for case, _ in zip(drawn_cases(seed, row, ["f16"], (), FEATURES), range(5))]

    assert first(1, "a") == first(1, "a")
    assert first(1, "a") != first(2, "a") != first(2, "b")


def test_restriction_keeps_a_case_legal_and_its_features_as_they_are() -> None:
    assert restrict(CASE, FEATURES) == CASE
    bare = restrict(CASE, ())
    assert format_case(bare) == "f32_ci4_co6_i3x2x2_k3_int"
    alike = restrict(CASE, ("stride", "padding", "output_padding"))
    assert (alike.stride, alike.padding, alike.output_padding) == ((3,) * 3, (1,) * 3, (1,) * 3)


def test_given_cases_come_first_as_they_are_and_then_with_other_data() -> None:
    given = (EVEN, parse_case("f16_s2_int"), parse_case("f32_int"))
    cases = [c for c, _ in zip(given_cases(1, "row", given, ["f32"], ("stride",)), range(9))]
    assert cases[0] == EVEN
    assert {replace(case, seed=0, lane="int") for case in cases} == {EVEN}
    assert len({case.seed for case in cases}) == 9
    assert [*given_cases(1, "row", given, ["f64"], ())] == []


# Verdicts.


def answer(case: Case, *names: str, label: str = "") -> dict[str, Any]:
    """The right results, or some of them."""
    values = expect(case, data.generate(case)).values
    return {
        label + name: encode(getattr(values, name), case.dtype)
        for name in names or RESULTS
        if name != "grad_bias" or case.bias
    }


def test_right_results_pass_and_only_wanted_ones_count() -> None:
    assert (
        examine(Task(CASE), Outcome("ok", results=answer(CASE)), "candidate").verdict
        is Verdict.PASS
    )
    output = Outcome("ok", results=answer(CASE, "output"))
    assert examine(Task(CASE, wants=()), output, "candidate").verdict is Verdict.PASS
    examined = examine(Task(CASE, wants=("grad_input",)), output, "candidate")
    assert (examined.verdict, examined.detail) == (Verdict.WRONG, "grad_input is missing")


@pytest.mark.parametrize("result", RESULTS)
def test_one_wrong_bit_is_wrong(result: str) -> None:
    results = answer(CASE)
    results[result].flat[-1] ^= 1
    examined = examine(Task(CASE), Outcome("ok", results=results), "candidate")
    assert examined.verdict is Verdict.WRONG
    assert f"elements of {result}" in examined.detail


@pytest.mark.parametrize("probe", ["repeat", "random_state"])
def test_runs_that_differ_in_a_bit_are_wrong(probe: str) -> None:
    case = replace(CASE, lane="normal")
    results = answer(case, label="0.") | answer(case, label="1.")
    task = Task(case, probe)
    assert examine(task, Outcome("ok", results=results), "candidate").verdict is Verdict.PASS
    results["1.grad_weight"].flat[3] ^= 1
    examined = examine(task, Outcome("ok", results=results), "candidate")
    assert "grad_weight differs in 1 of" in examined.detail


def test_an_answer_to_the_call_before_is_wrong() -> None:
    other = with_other_data(CASE)
    right = {
        **answer(CASE, label="first."),
        **answer(other, label="second."),
        **answer(CASE, label="kept."),
        **answer(CASE, label="after."),
        **answer(other, label="later."),
    }
    task = Task(CASE, "reuse")
    assert examine(task, Outcome("ok", results=right), "candidate").verdict is Verdict.PASS
    for label, source, reason in (
        ("second.", CASE, "second call, with other data in the same memory"),
        ("later.", CASE, "second call of two"),
        ("after.", other, "did not stay"),
    ):
        wrong = Outcome("ok", results=right | answer(source, label=label))
        assert reason in examine(task, wrong, "candidate").detail


def test_notes_go_to_the_rows_that_they_are_about() -> None:
    notes = (
        "input was overwritten",
        "3 of 8 elements of output still hold the poison: never written",
        "4 bytes written out of bounds, first 0 bytes after the end of output, before the end",
        "native: aten::convolution called in forward",
        "alias: output shares memory with input",
        "library: aten::mm",
    )
    outcome = Outcome("ok", results=answer(CASE), damage=notes)
    examined = examine(Task(CASE), outcome, "candidate")
    assert examined.verdict is Verdict.PASS
    assert set(examined.found) == {
        "inputs_unchanged", "all_written", "out_of_bounds", "native_op", "own_results"
    }  # fmt: skip
    assert examined.library == ("aten::mm",)


def test_a_result_that_is_none_is_wrong_whatever_the_values() -> None:
    outcome = Outcome("ok", damage=("result: output is a list, but must be a torch.Tensor",))
    examined = examine(Task(CASE), outcome, "candidate")
    assert (examined.verdict, examined.detail) == (
        Verdict.WRONG, "output is a list, but must be a torch.Tensor"
    )  # fmt: skip


def test_a_crash_is_told_by_its_last_line_and_its_place() -> None:
    message = 'return f(\n^^^^\nFile "kernel.py", line 3, in f\nreturn d["s"]\nKeyError: \'s\''
    examined = examine(Task(CASE), Outcome("crashed", message), "candidate")
    assert examined.detail == "KeyError: 's' (File \"kernel.py\", line 3, in f)"
    examined = examine(Task(CASE), Outcome("crashed", "killed by signal 11"), "candidate")
    assert examined.detail == "killed by signal 11"


def test_a_sum_kept_in_16_bits_is_wrong_unless_asked_for() -> None:
    case = parse_case("bf16_ci40_i2_k2_normal")
    inputs = data.generate(case)
    values = expect(case, inputs).values.output
    rounded_at_every_step = Outcome("ok", results={"output": encode(values * (1 + 2**-7), "bf16")})
    task = Task(case, wants=())
    assert examine(task, rounded_at_every_step, "candidate").verdict is Verdict.WRONG
    assert examine(task, rounded_at_every_step, "native").verdict is Verdict.PASS


def timed(case: Case, sample: Sample, step: int, dtype: str = "f32") -> dict[str, Any]:
    """What a worker sends of a right call that was timed."""
    values = expect(case, shifted(data.generate(case), step)).values
    parts = {
        name: encode(getattr(values, name), dtype)[sample.part(case, name).of(name)]
        for name in RESULTS
    }
    return {f"{step}.{name}": part for name, part in parts.items()} | {
        f"{step}.sample": np.array(astuple(sample))
    }


def test_a_large_case_is_judged_by_identities_and_parts() -> None:
    task = Task(CASE, "speed")
    right = {
        **answer(CASE, label="watched."),
        **timed(CASE, Sample(1, 1, 0, 2), 1),
        **timed(CASE, Sample(0, 0, 1, 1), 2),
        "seconds": np.array([0.25, 0.5]),
    }
    examined = examine(task, Outcome("ok", results=right), "candidate")
    assert (examined.verdict, examined.detail) == (Verdict.PASS, "")
    assert examined.seconds == (0.25, 0.5)
    for name, reason in (
        ("watched.grad_input", "must be 0"),
        (
            "1.output",
            r"while time was measured, in call 1: in output\[1, 5\], .* elements of output",
        ),
        ("2.grad_input", r"in call 2: in grad_input\[0, 1\]"),
        ("2.grad_weight", r"in call 2: in grad_weight\[1, 1\]"),
        ("1.grad_bias", r"in call 1: in grad_bias\[5\]"),
    ):
        wrong = Outcome("ok", results=right | {name: right[name] * 0})
        assert re.search(reason, examine(task, wrong, "candidate").detail)


def test_zeros_are_wrong_though_they_obey_the_identities() -> None:
    case = replace(CASE, bias=False)
    zeros = {name: bits * 0 for name, bits in answer(case, label="watched.").items()}
    examined = examine(Task(case, "speed"), Outcome("ok", results=zeros), "candidate")
    assert re.match(r"in output\[\d, \d\], ", examined.detail)


def test_a_large_case_in_16_bits_is_judged_by_parts_alone() -> None:
    """Its rounded results obey no identity."""
    case = replace(CASE, dtype="f16")
    results = {**answer(case, label="watched."), **timed(case, Sample(0, 1, 1, 0), 1, "f16")}
    task = Task(case, "speed")
    assert examine(task, Outcome("ok", results=results), "candidate").verdict is Verdict.PASS


def test_a_stale_result_is_not_that_of_shifted_data() -> None:
    results = answer(CASE, label="watched.") | timed(CASE, Sample(1, 0, 1, 1), 1)
    stale = {name.replace("1.", "3."): bits for name, bits in results.items() if name[0] == "1"}
    examined = examine(Task(CASE, "speed"), Outcome("ok", results=results | stale), "candidate")
    assert "in call 3: in output[1, 1]" in examined.detail


@pytest.mark.parametrize("result", RESULTS)
def test_every_element_of_a_result_belongs_to_a_part(result: str) -> None:
    seen = np.zeros(getattr(expect(CASE, data.generate(CASE)).values, result).shape, bool)
    for indices in itertools.product(range(2), range(2), range(2), range(3)):
        seen[Sample(*indices).part(CASE, result).of(result)] = True
    assert seen.all()


# The report.


def test_a_judgement_that_only_refusals_fail_says_how_to_allow_them() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("builds"), Row("forward", cases=3)])
    report.put(Row("groups", Verdict.REFUSED))
    assert format_end(report, False).splitlines() == [
        "refused rows are no failure with --allow-refused", "exit 1: 1 of 3 rows failed: groups"
    ]  # fmt: skip
    report.put(Row("stride", Verdict.WRONG))
    assert format_end(report, False) == "exit 1: 2 of 4 rows failed: groups, stride"


def test_a_row_that_fails_late_takes_the_place_of_the_one_that_passed() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("forward", cases=3)])
    report.not_judged["native_op"] = "forward failed already"
    report.put(Row("own_results", cases=3))
    report.put(Row("native_op", Verdict.WRONG))
    report.put(Row("own_results", Verdict.WRONG))
    assert [row.name for row in report.rows] == ["forward", "own_results", "native_op"]
    assert report.row("own_results").verdict is Verdict.WRONG and not report.not_judged


def test_the_table_shows_a_case_under_its_row() -> None:
    row = Row("stride", Verdict.CRASHED, 4, "killed by signal 11", "f32_s2_int", True)
    assert format_row(row).splitlines() == [
        "stride              crashed      4  killed by signal 11",
        " " * 36 + "f32_s2_int",
    ]


def test_the_report_as_json_has_what_its_documentation_says() -> None:
    report = Report("file.py", "", "ab", 1, rows=[Row("builds"), Row("forward", cases=3)])
    values = json.loads(report.to_json())
    assert set(values) == {
        "schema", "file", "name", "sha256", "judged", "seed", "machine", "rows", "not_judged",
        "library_calls", "speed", "exit",
    }  # fmt: skip
    assert set(values["rows"][1]) == {
        "row", "asserts", "verdict", "cases", "reason", "case", "confirmed"
    }  # fmt: skip
    assert values["exit"] == 0 and math.isclose(values["schema"], 1)
    assert format_end(report, False) == "exit 0: all 2 rows passed"
