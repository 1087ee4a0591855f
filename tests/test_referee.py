"""The referee passes what is right, and names what is wrong in the row that is about it."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fuzz.__main__ import main
from fuzz.case import parse_case
from fuzz.outcome import Verdict
from fuzz.referee.judging import Options, judge
from fuzz.referee.properties import EVERY_RUN, PROPERTIES, ROWS
from fuzz.referee.report import Report, Row

CANDIDATES = Path(__file__).parent / "candidates"
RESULT_ROWS = ("forward", "grad_input", "grad_weight", "grad_bias")
PARAMETER_ROWS = ("stride", "padding", "output_padding", "dilation", "groups", "bias")
NEEDS_GPU = {"tf32", "streams"}


@pytest.fixture(scope="module", autouse=True)
def server_with_torch() -> Iterator[None]:
    """A server that has imported torch already, in the place of one that another module has started."""
    server: Any = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._stop()
    yield
    server._stop()
    multiprocessing.get_context("forkserver").set_forkserver_preload([])


def judged(
    name: str, rows: tuple[str, ...] = (), file: str = "cheats.py", **options: object
) -> Report:
    values = {
        "seed": 7, "examples": 3, "rows": rows, "time_limit_s": 10.0, "shrink_s": 0.5, **options
    }  # fmt: skip
    return judge(CANDIDATES / file, name, Options(**values))  # type: ignore[arg-type]


def failures(report: Report) -> dict[str, str]:
    return {row.name: str(row.verdict) for row in report.rows if row.verdict is not Verdict.PASS}


def has_gpu(report: Report) -> bool:
    return report.machine["device"] == "cuda"


# What is right.


@pytest.mark.parametrize(
    ("file", "examples"), [("ours_function.py", 3), ("ours_class.py", 2), ("pure.py", 1)]
)
def test_a_right_implementation_passes_every_row(file: str, examples: int) -> None:
    report = judged("", file=file, examples=examples, time_limit_s=20.0)
    assert failures(report) == {}
    assert report.exit_code() == 0
    assert [row.name for row in report.rows] == [
        name for name in ROWS if has_gpu(report) or name not in NEEDS_GPU
    ]
    assert all(row.cases for row in report.rows if row.name != "builds")
    assert report.speed is not None and report.speed.forward_s > 0 < report.speed.native_forward_s


@pytest.mark.parametrize("name", ["keeps_a_workspace", "packs_the_weight_once_a_version"])
def test_what_is_sound_may_be_kept_from_call_to_call(name: str) -> None:
    assert failures(judged(name, shrink_s=0.0)) == {}


def test_the_large_case_is_judged_in_16_bits_too() -> None:
    report = judged("", ("forward", "speed"), "ours_function.py", dtypes=("f16",), examples=1)
    assert failures(report) == {}


def test_noise_and_patched_comparisons_make_no_difference() -> None:
    assert failures(judged("noisy", ("forward", "stride", "repeatable"))) == {}


def test_what_a_function_has_no_argument_for_is_refused_and_the_rest_judged() -> None:
    report = judged("plain", (*RESULT_ROWS, *PARAMETER_ROWS, "all_together"))
    assert failures(report) == dict.fromkeys(set(PARAMETER_ROWS) - {"bias"}, "refused")
    assert "no argument dilation" in report.row("dilation").reason
    assert report.exit_code() == 1
    assert report.exit_code(allow_refused=True) == 0


def test_a_class_made_for_one_configuration_is_judged_on_the_cases_given() -> None:
    rows = (*RESULT_ROWS, *PARAMETER_ROWS, "own_results", "speed")
    case = parse_case("f32_n2_ci2_co3_i3x2x2_k3_s2_p1_op1_int")
    report = judged("Fixed", rows, "fixed.py", cases=(case,))
    assert failures(report) == {}
    assert report.row("forward").cases == 3
    assert set(report.not_judged) == {"grad_bias", "dilation", "groups", "bias"}
    report = judged("Fixed", ("forward", "stride", *EVERY_RUN), "fixed.py")
    assert failures(report) == {"forward": "refused"}
    assert [row.name for row in report.rows] == ["builds", "forward"]
    assert report.exit_code(allow_refused=True) == 1
    assert "(kernel_size=3, stride=2, padding=1, output_padding=1)" in report.row("forward").reason


# What is not.


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("native_forward", ("forward", "native_op"), {"native_op": "wrong"}),
        (
            "native_backward",
            ("forward", "grad_input", "native_op"),
            {"native_op": "wrong: aten::convolution called in backward"},
        ),
        ("native_in_a_thread", ("forward", "native_op"), {"native_op": "wrong"}),
        ("native_unless_watched", ("forward", "native_op"), {"native_op": "wrong"}),
        ("native_unless_watched", ("forward", "speed"), {"speed": "wrong"}),
        ("native_in_an_operator", ("forward", "native_op"), {"native_op": "wrong"}),
        (
            "remembers_tensors_unless_watched",
            ("forward", "speed"),
            {"speed": "wrong: while time was measured, in call 3: in output["},
        ),
        ("idle_when_large", ("forward", "speed"), {"speed": "wrong: in output["}),
        (
            "idle_when_large_and_unwatched",
            ("forward", "speed"),
            {"speed": "wrong: while time was measured, in call 1: in output["},
        ),
        (
            "idle_backward_when_large_and_unwatched",
            ("forward", "speed"),
            {"speed": "wrong: : in grad_"},
        ),
        (
            "works_on_when_it_has_returned_unless_watched",
            ("speed",),
            {"speed": "wrong: while time was measured, in call 1: in output["},
        ),
        ("remembers_shapes", ("own_results",), {"own_results": "wrong"}),
        (
            "remembers_addresses",
            ("forward", "own_results"),
            {"own_results": "wrong: second call, with other data in the same memory"},
        ),
        ("reuses_its_output", ("forward", "own_results"), {"own_results": "wrong"}),
        (
            "takes_turns_with_three_outputs",
            ("own_results",),
            {"own_results": "wrong: what a call returned did not stay"},
        ),
        ("spoils_its_last_output", ("own_results",), {"own_results": "wrong"}),
        ("writes_later", ("own_results",), {"own_results": "wrong"}),
        ("overwrites_its_input", ("forward", "inputs_unchanged"), {"inputs_unchanged": "wrong"}),
        (
            "overwrites_and_restores_its_input",
            ("forward", "inputs_unchanged"),
            {"inputs_unchanged": "wrong: an input was overwritten by aten::zero_"},
        ),
        (
            "zero_grad_weight",
            (*RESULT_ROWS, "f32"),
            {"grad_weight": "wrong: 1 of 1 elements of grad_weight"},
        ),
        (
            "without_backward",
            RESULT_ROWS,
            dict.fromkeys(
                RESULT_ROWS[1:], "refused: NotImplementedError: output does not require grad"
            ),
        ),
        ("crashes_on_stride", PARAMETER_ROWS, {"stride": "crashed", "output_padding": "crashed"}),
        (
            "exits_on_padding",
            PARAMETER_ROWS,
            {"padding": "crashed: ended with exit code 0 in forward"},
        ),
        (
            "hangs_on_dilation",
            ("dilation",),
            {"dilation": "hung: no answer within 0.5 s in forward"},
        ),
        ("refuses_groups", (*PARAMETER_ROWS, "all_together"), {"groups": "refused"}),
        (
            "writes_out_of_bounds",
            ("forward", "stride", *EVERY_RUN),
            {"out_of_bounds": "wrong: 4 bytes written out of bounds"},
        ),
        (
            "leaves_the_last_element",
            ("forward", *EVERY_RUN),
            {"forward": "wrong", "all_written": "wrong"},
        ),
        (
            "depends_on_the_batch",
            ("batch", "repeatable", "batch_independence"),
            {"batch_independence": "wrong"},
        ),
        ("depends_on_chance", ("batch", "repeatable"), {"repeatable": "wrong"}),
        ("depends_on_the_seed", ("repeatable", "random_state"), {"random_state": "wrong"}),
        (
            "returns_float64",
            ("forward",),
            {"forward": "wrong: output has dtype torch.float64, but must have torch.float32"},
        ),
        pytest.param(
            "returns_a_subclass",
            ("forward",),
            {"forward": "wrong: output is a _Lazy, but must be a plain torch.Tensor"},
            marks=pytest.mark.skipif(
                metadata.version("torch").startswith("2.0."),
                reason="PyTorch 2.0 makes no subclass of a tensor while a dispatch mode watches",
            ),
        ),
        ("asks_the_reference", ("forward",), {"forward": "crashed"}),
        ("asks_what_to_expect", ("forward",), {"forward": "crashed"}),
        ("looks_for_the_answer", ("forward",), {"forward": "wrong: "}),
        ("replaces_the_judge", ("forward",), {"forward": "wrong: 1 of 1 elements of output"}),
        ("replaces_the_clock", ("forward",), {"forward": "wrong: time.perf_counter was replaced"}),
        ("leaves_with_a_pass", ("forward",), {"forward": "crashed: SystemExit: 0"}),
        (
            "differs_now_and_then",
            ("own_results",),
            {"own_results": "wrong: "},
        ),
    ],
)
def test_each_cheat_and_bug_fails_in_the_row_that_names_it(
    name: str, rows: tuple[str, ...], expected: dict[str, str]
) -> None:
    limits: Any = {"time_limit_s": 0.5, "shrink_s": 0.0} if name.startswith("hangs") else {}
    report = judged(name, rows, **limits)
    assert failures(report) == {row: text.partition(":")[0] for row, text in expected.items()}
    assert report.exit_code() == 1
    for row, text in expected.items():
        assert text.partition(": ")[2] in report.row(row).reason
        assert parse_case(report.row(row).case)


def test_an_output_in_the_memory_of_the_input_is_two_faults() -> None:
    cases = (parse_case("f32_ci2_co2_i2_int"),)
    report = judged("returns_its_input", ("forward", "own_results", *EVERY_RUN), cases=cases)
    assert failures(report) == {"own_results": "wrong", "inputs_unchanged": "wrong"}
    assert report.row("own_results").reason == "output shares memory with input"


def test_what_is_seen_after_the_row_that_it_is_about_counts() -> None:
    cases = (parse_case("f32_ci2_co2_i2_int"),)
    rows = ("own_results", "native_op", *EVERY_RUN)
    report = judged("returns_its_input_unless_watched", rows, cases=cases)
    assert failures(report) == {"own_results": "wrong", "inputs_unchanged": "wrong"}
    assert report.row("own_results").reason == "output shares memory with input"
    assert [row.name for row in report.rows] == ["builds", *rows]


def test_what_is_seen_where_the_values_prove_nothing_counts() -> None:
    """All expected results are zeros, so that no row counts the case."""
    report = judged(
        "overwrites_its_input",
        ("forward", "inputs_unchanged"),
        cases=(parse_case("f32_special_seed1518"),),
        examples=1,
    )
    assert "forward" in report.not_judged
    assert failures(report) == {"inputs_unchanged": "wrong"}
    assert report.exit_code() == 1


def test_a_failing_case_is_confirmed_and_made_smaller() -> None:
    row = judged("crashes_on_stride", ("stride",), shrink_s=10.0).row("stride")
    assert row.confirmed
    assert parse_case(row.case) in [
        parse_case(f"f32_s{s}_int") for s in ("2x1x1", "1x2x1", "1x1x2")
    ]


def test_what_only_follows_an_earlier_call_says_so() -> None:
    """remembers_shapes is right in a fresh process."""
    case = parse_case("f32_i2_k2_int")
    report = judged("remembers_shapes", ("forward",), cases=(case,))
    row = report.row("forward")
    assert (row.verdict, row.confirmed, row.cases) == (Verdict.WRONG, False, 2)
    assert "not in a fresh process" in row.reason


def test_rows_that_need_a_right_output_are_left_out_where_there_is_none() -> None:
    report = judged("leaves_the_last_element", ("forward", "stride", "repeatable"))
    assert report.not_judged == {"stride": "forward failed already"}
    assert "repeatable" in [row.name for row in report.rows]


# Files that cannot be judged.


@pytest.mark.parametrize(
    ("source", "verdict", "reason"),
    [
        ("def conv_transpose3d(input, weight:\n    pass", "crashed", r"SyntaxError: .*line 1"),
        (
            "import no_such_module",
            "crashed",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("import os; os._exit(3)", "crashed", "ended with exit code 3"),
        ("while True: pass", "hung", r"not ready in 1.5 s; it was at File .*file.py\", line 1"),
        ("ANSWER = 42", "refused", "no implementation in file.py: it must hold a class ModelNew"),
        (
            "from torch import nn\nclass A(nn.Module): ...\nclass B(nn.Module): ...",
            "refused",
            r"found A, B\)",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_fails_to_build(
    tmp_path: Path, source: str, verdict: str, reason: str
) -> None:
    file = tmp_path / "file.py"
    file.write_text(source)
    report = judge(file, "", Options(seed=0, start_limit_s=1.5 if verdict == "hung" else 10.0))
    assert failures(report) == {"builds": verdict}
    assert [row.name for row in report.rows] == ["builds"]
    assert report.exit_code() == report.exit_code(allow_refused=True) == 2
    row = report.row("builds")
    assert re.search(reason, row.reason), row.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent", "no absent in"), ("ANSWER", "is a int, but must be a function or a class")],
)
def test_a_name_that_is_no_implementation_is_refused(
    tmp_path: Path, name: str, reason: str
) -> None:
    file = tmp_path / "file.py"
    file.write_text("ANSWER = 42")
    report = judge(file, name, Options(seed=0))
    assert failures(report) == {"builds": "refused"}
    assert reason in report.row("builds").reason


def test_a_missing_file_is_an_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "/nowhere/file.py"]) == 2
    assert "/nowhere/file.py cannot be read" in capsys.readouterr().err


# The command.


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.json"
    file = f"{CANDIDATES / 'cheats.py'}:refuses_groups"
    options = ["--rows=forward,groups", "--examples=2", "--seed=3", f"--json={output}"]
    assert main(["judge", file, *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "judging    function refuses_groups, sha256" in "\n".join(lines)
    assert any(line.split() == ["forward", "pass", "2"] for line in lines)
    assert any(line.startswith("groups              refused") for line in lines)
    assert lines[-1] == "exit 1: 1 of 3 rows failed: groups"
    report = json.loads(output.read_text())
    assert (report["schema"], report["seed"], report["exit"]) == (1, 3, 1)
    assert [row["verdict"] for row in report["rows"]] == ["pass", "pass", "refused"]
    assert parse_case(report["rows"][2]["case"]).groups > 1
    assert main(["judge", file, *options, "--allow-refused"]) == 0
    assert json.loads(output.read_text())["exit"] == 0
    assert capsys.readouterr().out.splitlines()[-1] == "exit 0: 2 rows passed, refused: groups"


@pytest.mark.parametrize(
    "arguments", [["--rows=forwards"], ["--cases", "f32_x"], ["--examples=0"], ["--dtypes=f8"]]
)
def test_a_wrong_option_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["judge", "file.py", *arguments])
    assert arguments[0].partition("=")[0] in capsys.readouterr().err


def test_the_same_seed_gives_the_same_verdicts_and_cases() -> None:
    first, second = (judged("refuses_groups", ("forward", "groups")) for _ in range(2))
    assert first.rows == second.rows


def test_an_implementation_that_refuses_everything_never_passes() -> None:
    report = Report("file.py", "", "", 0)
    assert report.exit_code() == 2
    report.rows = [Row("builds"), Row("forward", Verdict.REFUSED, 1, "no", "f32_int")]
    assert report.exit_code() == report.exit_code(allow_refused=True) == 1


def test_every_row_says_what_it_asserts() -> None:
    names = [property.name for property in PROPERTIES]
    assert len(set(names)) == len(names)
    assert all(property.asserts for property in PROPERTIES)


def test_the_parent_of_the_referee_never_imports_torch() -> None:
    code = "import fuzz.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CANDIDATES.parents[1]).returncode == 0
