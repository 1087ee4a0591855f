"""`python -m fuzz sanitize`: which sanitizers run on what, and what comes out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from convt3d import build
from fuzz import corpus, sanitize
from fuzz.__main__ import main
from fuzz.case import GPU_TOOLS, parse_case
from fuzz.worker import preload


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVT3D_REQUIRE_GPU", raising=False)
    monkeypatch.setattr(sanitize, "device_of_subjects", lambda: "emulator")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A corpus: one case in two modes, one of native's, one in TF32, one in a layout without sanitizers."""
    (tmp_path / "kept").mkdir()
    for text, file in (
        ("f32_i2_k2_int", "regressions"),
        ("f32_i2_k2_int_hostile_sched7", "regressions"),
        ("f32_i2_k2_far_int", "regressions"),
        ("tf32_i2_k2_int", "regressions"),
        ("f16_bias_int", "native"),
    ):
        corpus.keep(parse_case(text), f"Why {text}.", file, tmp_path / "kept")
    return tmp_path / "kept"


def test_the_corpus_is_written_in_every_mode_with_a_schedule_from_the_seed(
    kept: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2)):
        assert sanitize.write_corpus(kept, folder, ("asan", "tsan"), seed) == 8
    entries = [corpus.load_all(folder) for folder in folders]
    assert entries[0] == entries[1] != entries[2]
    of_file = {
        file: [e for e in entries[0] if e.file == file] for file in ("native", "regressions")
    }
    assert [e.case.mode for e in of_file["native"]] == ["asan", "tsan"]
    assert [e.case.mode for e in of_file["regressions"]] == ["asan"] * 3 + ["tsan"] * 3
    assert {e.case.dtype for e in entries[0]} == {"f32", "tf32", "f16"}
    assert of_file["regressions"][0].why == "Why f32_i2_k2_int."
    assert any(e.case.schedule for e in entries[0])


def test_a_tool_of_a_gpu_has_no_schedule(kept: Path, tmp_path: Path) -> None:
    count = sanitize.write_corpus(kept, tmp_path / "gpu", GPU_TOOLS, 1)
    entries = corpus.load_all(tmp_path / "gpu")
    assert count == len(entries) == 3 * len(GPU_TOOLS)  # the hostile case is the fast one here
    assert all(entry.case.schedule == 0 for entry in entries)


@pytest.mark.parametrize(
    ("device", "modes", "problem"),
    [
        ("emulator", ("asan", "tsan"), ""),
        ("emulator", ("tsan", "memcheck"), "--modes 'memcheck', but must be of asan, tsan on this"),
        ("cuda", GPU_TOOLS, ""),
        (
            "cuda",
            ("asan",),
            "--modes 'asan', but must be of memcheck, racecheck, initcheck, synccheck",
        ),
        ("emulator", ("",), "--modes '', but must be of asan, tsan"),
    ],
)
def test_a_mode_must_be_one_of_the_device(
    device: str, modes: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzz.compute_sanitizer.find", lambda: "/usr/bin/compute-sanitizer")
    found = sanitize.problem_of(device, modes)
    assert found.startswith(problem) and bool(found) == bool(problem)


def test_a_tool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.compute_sanitizer.find", lambda: None)
    assert "there is no compute-sanitizer" in sanitize.problem_of("cuda", GPU_TOOLS)


def test_a_gpu_that_is_required_and_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVT3D_REQUIRE_GPU", "1")
    assert main(["sanitize"]) == 2
    assert "CONVT3D_REQUIRE_GPU is set, but" in capsys.readouterr().err


@pytest.mark.parametrize("examples", [20, 0])
def test_the_command_says_what_it_ran(
    examples: int,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built: list[str] = []
    monkeypatch.setattr(build, "build_all", lambda target, parts: built.append(target))
    preload(["tests.fake_subjects", "pytest"])
    code = main(
        [
            *("sanitize", "--subject-module=tests.fake_subjects", f"--examples={examples}"),
            *("--seed=3", "--shards=1", f"--corpus={kept}", f"--state={tmp_path}"),
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert built == ["asan", "tsan"]
    assert f"asan tsan on the emulator: 8 cases from the corpus, then {examples} random" in printed
    assert f"cases      {8 + examples} in " in printed and "(8 from the corpus" in printed
    assert f"exit 0: no failure of convt3d or the oracle in {8 + examples} cases" in printed
