"""What the repository says of itself is true: the lock pins, the commands in the documents, the messages of make."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convt3d

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-dev.lock"
PROJECT = (ROOT / "pyproject.toml").read_text()
DOCUMENTS = (
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob(".github/workflows/*.yml")),
    ROOT / ".ci" / "run",
)
PIN = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)==(?P<version>[0-9][0-9a-z.]*)(?: ; (?P<marker>.+))?")
MARKERS = {None, 'python_version < "3.11"', 'python_version >= "3.11"'}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> list[re.Match[str] | None]:
    lines = LOCK.read_text().splitlines()
    return [PIN.fullmatch(line) for line in lines if not line.startswith("#")]


def required_names() -> set[str]:
    """Returns the names of all requirements in pyproject.toml, its own extras left out."""
    section = PROJECT[PROJECT.index("dependencies =") : PROJECT.index("[tool.")]
    return {canonical(name) for name in re.findall(r'"([A-Za-z0-9_-]+)>=', section)}


def mentioned_targets(text: str) -> Iterator[str]:
    """Yields what follows `make` in code spans, in code blocks and in the lines of a script."""
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    for code in (*re.findall(r"`([^`\n]+)`", text), *blocks, text):
        for line in code.splitlines():
            command = re.match(r"[\s$>-]*(?:run: |exec |timeout \S+ \S+ )*make\s+([a-z]+)", line)
            if command and (code is not text or "run" in line or "exec" in line):
                yield command[1]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make as from a fresh shell, with this Python in the place of the environment."""
    own = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CASE", "WHY", "SEED", "PROFILE", "ARGS", "DURATION"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments, *(f"{k}={v}" for k, v in variables.items())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A stand-in for Python that passes make's checks and writes down how else it was called."""
    path = tmp_path / "python with a space"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        "if sys.argv[1] != '-c':\n"
        "    pathlib.Path(__file__).with_name('call').write_text(json.dumps(sys.argv[1:]))\n"
    )
    path.chmod(0o755)
    return path


def recorded(recorder: Path) -> list[str]:
    call = json.loads(recorder.with_name("call").read_text())
    assert isinstance(call, list)
    return call


def test_every_line_of_the_lock_pins_one_version_without_a_local_part() -> None:
    assert all(pins())
    assert {match["marker"] for match in pins() if match} <= MARKERS


def test_the_lock_pins_each_package_once_for_each_python() -> None:
    for marker in MARKERS - {None}:
        names = [canonical(m["name"]) for m in pins() if m and m["marker"] in (None, marker)]
        assert sorted(names) == sorted(set(names))


def test_the_lock_holds_what_the_project_requires() -> None:
    assert len(required_names()) >= 8
    assert required_names() <= {canonical(match["name"]) for match in pins() if match}


@pytest.mark.parametrize("line", ["torch>=2.0", "torch==2.13.0+cpu", "numpy", "-e .", "torch == 2"])
def test_a_loose_or_local_requirement_is_no_pin(line: str) -> None:
    assert PIN.fullmatch(line) is None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_in_documents_exist(document: Path) -> None:
    assert set(mentioned_targets(document.read_text())) <= targets()


def test_a_mentioned_target_is_found_in_spans_blocks_and_scripts() -> None:
    text = "`make one` make two\n```sh\n$ make three X=1\n```\n  - run: make four\nexec make five\n"
    assert [*mentioned_targets(text)] == ["one", "three", "four", "five"]


def test_the_readme_names_the_four_commands() -> None:
    assert {"test", "fuzz", "repro", "keep"} <= {
        *mentioned_targets((ROOT / "README.md").read_text())
    }


def test_the_changelog_has_the_version_of_the_package() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert convt3d.__version__ in headings


def test_make_alone_prints_every_documented_target() -> None:
    printed = make().stdout
    for target in ("test", "fuzz", "repro", "keep", "check", "format", "lock", "clean"):
        assert re.search(rf"^  {target} ", printed, re.MULTILINE), printed


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("repro",), "CASE="), (("keep",), "CASE="), (("keep", "CASE=f32_int"), "WHY=")],
)
def test_make_says_which_variable_is_missing(arguments: tuple[str, ...], missing: str) -> None:
    run = make(*arguments, PYTHON=sys.executable)
    assert run.returncode == 2
    assert f"make: {missing} is missing" in run.stderr


def test_make_says_what_a_given_python_lacks(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    run = make("fuzz", PYTHON=str(tmp_path / "bare" / "bin" / "python"))
    assert run.returncode != 0
    assert "has no ['torch', 'numpy'" in run.stderr


def test_make_says_when_python_is_no_python() -> None:
    run = make("fuzz", PYTHON="/nowhere/python")
    assert run.returncode != 0
    assert "PYTHON=/nowhere/python, but must be" in run.stderr


def test_make_says_when_the_compiler_is_missing() -> None:
    run = make("fuzz", PYTHON=sys.executable, CXX="no-such-compiler")
    assert run.returncode != 0
    assert "no no-such-compiler on PATH" in run.stderr


def test_keep_passes_quotes_dollars_and_spaces_on_as_they_are(recorder: Path) -> None:
    why = """it's "wrong" by $HOME or $(PY), `id`; 100 % # of it"""
    run = make("keep", PYTHON=str(recorder), CASE="f32_int", WHY=why)
    assert run.returncode == 0, run.stderr
    assert recorded(recorder) == ["-m", "fuzz", "keep", "f32_int", f"--why={why}"]


def test_fuzz_passes_duration_profile_seed_and_arguments_on(recorder: Path) -> None:
    make("fuzz", PYTHON=str(recorder), DURATION="5", PROFILE="ci", SEED="7", ARGS="--one --two")
    options = ["--duration=5", "--profile=ci", "--seed=7", "--one", "--two"]
    assert recorded(recorder) == ["-m", "fuzz", "run", *options]


def test_bench_passes_a_case_and_arguments_on(recorder: Path) -> None:
    make("bench", PYTHON=str(recorder))
    assert recorded(recorder) == ["-m", "fuzz", "bench"]
    make("bench", PYTHON=str(recorder), CASE="bf16_normal", ARGS="--runs 3")
    assert recorded(recorder) == ["-m", "fuzz", "bench", "bf16_normal", "--runs", "3"]


def test_fuzz_runs_for_sixty_seconds_by_default(recorder: Path) -> None:
    make("fuzz", PYTHON=str(recorder))
    assert recorded(recorder) == ["-m", "fuzz", "run", "--duration=60"]


def test_fuzz_runs_a_profile_to_its_end(recorder: Path) -> None:
    make("fuzz", PYTHON=str(recorder), PROFILE="nightly")
    assert recorded(recorder) == ["-m", "fuzz", "run", "--profile=nightly"]


def held_rows() -> list[tuple[str, str]]:
    """Returns module and function of what the table of features in README names; a module alone has no function."""
    table = (ROOT / "README.md").read_text().partition("| feature |")[2].partition("\n\n")[0]
    found = re.findall(r"\| `([\w/]+\.py)(?:::(\w+))?` \|$", table, re.MULTILINE)
    assert len(found) == table.count("\n") - 1  # each row but the rule below the head
    return found


@pytest.mark.parametrize(("module", "function"), held_rows())
def test_the_table_of_features_names_tests_that_there_are(module: str, function: str) -> None:
    text = (ROOT / "tests" / module).read_text()
    assert f"def {function or 'test_'}" in text
