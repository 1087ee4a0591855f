"""The command line: what is typed wrong gets one line and exit code 2, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz import corpus
from fuzz.__main__ import main
from fuzz.case import parse_case
from fuzz.worker import preload

ROOT = Path(__file__).parents[1]
FAKES = "--subject-module=tests.fake_subjects"


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed to stderr, which must be one line."""
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


pytestmark = pytest.mark.usefixtures("no_gpu_required")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    corpus.keep(parse_case("f32_i2_k2_int"), "First.", directory=tmp_path)
    corpus.keep(parse_case("f16_bias_int"), "Second.", "native", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("case", "token"),
    [
        ("f32_q7_int", "'q7'"),
        ("f32_s2_s3_int", "'s3'"),
        ("f32_op1_int", "'op1'"),
        ("f32_p9_int", "'p9'"),
        ("f33_int", "'f33'"),
        ("", "''"),
        ("f32_seed-1", "'seed-1'"),
        ("f32_int; rm -rf x", "'int; rm -rf x'"),
        ("f32_int_fwd=bogus", "token 'fwd=bogus'"),
    ],
)
@pytest.mark.parametrize("command", ["repro", "keep"])
def test_a_bad_case_string_is_one_line_that_names_the_token(
    command: str, case: str, token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--why=Why.", f"--corpus={tmp_path}"] if command == "keep" else [FAKES]
    assert main([command, case, *options]) == 2
    assert token in error_line(capsys)


def test_repro_of_a_case_that_all_legs_pass(capsys: pytest.CaptureFixture[str]) -> None:
    preload(["tests.fake_subjects", "pytest"])
    assert main(["repro", "f16_i2_k2_s2_bias_normal", FAKES]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("f16_i2_k2_s2_bias_normal\n")
    for leg in ("convt3d", "oracle", "native"):
        assert f"{leg:<10} pass\n" in printed
    assert "agree with the reference" in printed
    assert printed.endswith("\nexit 0: every leg passed\n")


@pytest.mark.parametrize(
    ("leg", "behaviour", "code", "line"),
    [
        ("CONVT3D", "wrong", 1, "convt3d    wrong output: 1 of 16 elements of output"),
        ("ORACLE", "refuse", 1, "oracle     refused: ValueError: padding=5"),
        ("NATIVE", "segfault", 0, "native     crashed: killed by signal 11 (SIGSEGV)"),
        ("NATIVE", "hang", 0, "native     hung: no answer within 1 s"),
    ],
)
def test_repro_shows_each_leg_and_the_card_and_fails_for_ours_only(
    leg: str, behaviour: str, code: int, line: str
) -> None:
    case = "f32_i2_s1x1x2_op0x0x1_int"
    command = [sys.executable, "-m", "fuzz", "repro", case, FAKES, "--time-limit=1"]
    environment = {**os.environ, f"FAKE_{leg}": behaviour}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert line in done.stdout
    assert f"make repro CASE={case}" in done.stdout
    assert "machine " in done.stdout
    meaning = "only native failed" if leg == "NATIVE" else f"{leg.lower()} failed"
    assert done.stdout.endswith(f"\nexit {code}: {meaning}\n")


def test_repro_of_a_case_that_proves_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    preload(["tests.fake_subjects", "pytest"])
    assert main(["repro", "f32_special_seed1518", FAKES]) == 0
    printed = capsys.readouterr().out
    assert "exit 0: nothing failed, but convt3d and oracle and native could not have" in printed


def test_repro_without_a_required_gpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVT3D_REQUIRE_GPU", "1")
    assert main(["repro", "f32_int", FAKES]) == 2
    assert "CONVT3D_REQUIRE_GPU is set" in capsys.readouterr().err


def test_keep_appends_and_list_shows_it(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--corpus={directory}"]
    assert main(["keep", "bf16_s2_op1_int", "--why=Last plane was zero.", *options]) == 0
    assert main(["list", *options]) == 0
    printed = capsys.readouterr().out
    assert "regressions.txt:5: Last plane was zero.\n    bf16_s2_op1_int\n" in printed
    assert "native.txt:2: Second.\n    f16_bias_int\n" in printed
    assert printed.endswith("3 cases: bf16 1, f16 1, f32 1\n")


def test_keep_of_a_case_that_is_kept_already_says_where_and_changes_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (directory / "native.txt").read_text()
    assert main(["keep", "f16_int_bias", "--why=Again.", f"--corpus={directory}"]) == 0
    assert "f16_bias_int is in native.txt:2 already: Second.\n" in capsys.readouterr().out
    assert (directory / "native.txt").read_text() == before


def test_a_native_defect_is_kept_with_the_version_it_was_seen_on(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keep", "f64_int", "--file=native", f"--corpus={directory}"]
    before = (directory / "native.txt").read_text()
    assert main([*command, "--why=Wrong."]) == 2
    assert "'Wrong.', but must say on which version" in error_line(capsys)
    assert (directory / "native.txt").read_text() == before
    assert main([*command, "--why=Wrong on torch 2.13.0."]) == 0


def test_a_misspelt_corpus_file_is_no_new_one(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["keep", "f64_int", "--why=Why.", f"--corpus={directory}", "--file=nativ"]
    assert main(command) == 2
    assert "file='nativ', but must be one of native, regressions" in error_line(capsys)
    assert main([*command, "--new-file"]) == 0
    assert (directory / "nativ.txt").exists()


def test_a_misspelt_corpus_directory_is_an_error(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["list"], ["run", "--corpus-only", FAKES], ["keep", "f64_int", "--why=Why."]):
        assert main([*command, f"--corpus={directory / 'typo'}"]) == 2
        assert "typo' does not exist" in error_line(capsys)


def test_output_that_nobody_reads_gives_no_traceback() -> None:
    command = f"{sys.executable} -m fuzz list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGPIPE}\n", "")


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.6])
def test_an_interrupt_at_once_gives_one_line_and_no_traceback(delay_s: float) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fuzz", "run", "--examples=10", FAKES]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[-1] == "argparse":  # the interpreter itself is up, and the handler next
            break
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in error


def test_a_corpus_that_does_not_parse_is_named_with_file_and_line(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "bad.txt").write_text("# Why.\nf32_x1_int\n")
    for command in (["list"], ["run", "--examples=10", FAKES]):
        assert main([*command, f"--corpus={directory}"]) == 2
        assert "bad.txt:2: token 'x1' is unknown" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["jugde"], "invalid choice: 'jugde'"),
        (["keep", "f32_int"], "--why"),
        (["run", "--dtypes=f32,f33"], "'f33', but must be of f64, f32, tf32, f16, bf16"),
        (["run", "--lanes=none"], "'none', but must be of int, normal, special"),
        (["run", "--modes=quick"], "'quick', but must be of fast, hostile"),
        (["run", "--duration=0"], "'0', but must be a number above 0"),
        (["run", "--duration=nan"], "'nan', but must be a number above 0"),
        (["run", "--duration=long"], "'long', but must be a number above 0"),
        (["run", "--examples=-1"], "'-1', but must be an integer of at least 1"),
        (["run", "--examples=many"], "'many', but must be an integer of at least 1"),
        (["run", "--shards=0"], "'0', but must be an integer of at least 1"),
        (["run", "--profile=default"], "invalid choice: 'default'"),
    ],
)
def test_a_bad_command_line_is_exit_2_and_says_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "fuzz", "list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"{len(corpus.load_all())} cases:")


def test_listing_the_corpus_does_not_import_torch() -> None:
    code = "import sys, fuzz.__main__ as m; m.main(['list']); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0
