"""Every case of the corpus parses, has a reason and is there once; a file where one does not is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import corpus
from fuzz.bounds import expect
from fuzz.case import EMULATOR_MODES, LANES, LAYOUTS, Case, CaseError, format_case, parse_case
from fuzz.checks import proves_nothing
from fuzz.corpus import AlreadyKept, CorpusError, keep, load, load_all
from fuzz.data import generate
from fuzz.number import DTYPES

CASE = parse_case("f32_i2_k3_s2_int")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_reason_that_is_no_text_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="UTF-8"):
        corpus.keep(parse_case("f32_int"), "bad \udcff byte", directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_case_has_the_comment_right_above_it_as_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "# About the file.\n\n# First line,\n# second.\nf32_int\n")
    assert load(path) == [corpus.Entry(Case(), "First line, second.", "a", 5)]


@pytest.mark.parametrize(
    "text",
    ["f32_int\n", "# About the file.\n\nf32_int\n", "#\nf32_int\n", "# Why.\nf64_int\nf32_int\n"],
)
def test_a_case_without_a_reason_is_an_error_that_names_file_and_line(
    tmp_path: Path, text: str
) -> None:
    path = write(tmp_path / "a.txt", text)
    line = text.splitlines().index("f32_int") + 1
    with pytest.raises(CorpusError, match=rf"a\.txt:{line}: no comment above f32_int"):
        load(path)


def test_a_case_that_does_not_parse_is_an_error_that_names_file_line_and_token(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.txt", "# Why.\nf32_q3_int\n")
    with pytest.raises(CorpusError, match=r"a\.txt:2: .*'q3'"):
        load(path)


@pytest.mark.parametrize(
    "plans",
    ["fwd=tiled.i32", "gin=direct.i64_gwt=tiled.i64.split7", "fwd=auto_gwt=direct.i32"],
)
def test_a_case_may_name_the_plans_of_convt3d(tmp_path: Path, plans: str) -> None:
    path = keep(parse_case(f"f32_int_{plans}"), "Why.", directory=tmp_path)
    assert len(load(path)) == 1


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("fwd=bogus", "but must be like 'tiled.i32'"),
        ("gin=tiled.i16", "but must be like 'tiled.i32'"),
        ("gwt=tiled.i32.split1", "but must be like 'tiled.i32'"),
        ("fwd=tiled.i32.split2", "only tiled plans of grad_weight have split-K"),
        ("gin=tiled.i32.split2", "only tiled plans of grad_weight have split-K"),
        ("gwt=direct.i32.split2", ""),
    ],
)
def test_a_plan_that_convt3d_does_not_have_is_an_error_that_names_the_token(
    tmp_path: Path, token: str, message: str
) -> None:
    case = parse_case(f"f32_int_{token}")
    with pytest.raises(CaseError, match=f"token '{token}': .*{message}"):
        keep(case, "Why.", directory=tmp_path)
    path = write(tmp_path / "a.txt", f"# Why.\n{case}\n")
    with pytest.raises(CorpusError, match=rf"a\.txt:2: token '{token}'"):
        load(path)


def test_the_same_case_twice_is_an_error_whatever_its_spelling(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "# Why.\nf32_int\n")
    write(tmp_path / "b.txt", f"# Why.\n{format_case(Case(), canonical=True)}\n")
    with pytest.raises(CorpusError, match=r"b\.txt:2: f32_int is in a\.txt:2 already"):
        load_all(tmp_path)


def test_what_is_kept_is_read_back_with_its_reason(tmp_path: Path) -> None:
    path = keep(CASE, "The last tap was lost.\nSeen on the emulator.", directory=tmp_path)
    keep(Case(), "The smallest case.", directory=tmp_path)
    assert path == tmp_path / "regressions.txt"
    kept = [(entry.case, entry.why) for entry in load(path)]
    reason = "The last tap was lost. Seen on the emulator."
    assert kept == [(CASE, reason), (Case(), "The smallest case.")]


def test_keep_refuses_what_another_file_has(tmp_path: Path) -> None:
    keep(CASE, "Why.", "native", tmp_path)
    with pytest.raises(AlreadyKept, match=r"is in native\.txt:2 already: Why\."):
        keep(CASE, "Why not.", directory=tmp_path)
    assert not (tmp_path / "regressions.txt").exists()


@pytest.mark.parametrize("why", ["", " \n "])
def test_keep_refuses_an_empty_reason(tmp_path: Path, why: str) -> None:
    with pytest.raises(CorpusError, match="reason is empty"):
        keep(CASE, why, directory=tmp_path)


def test_keep_makes_a_new_file_only_when_told_to(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="file='nativ', but must be one of native, regressions; "):
        keep(CASE, "Why.", "nativ", tmp_path)
    keep(CASE, "Why.", "layouts", tmp_path, may_create=True)
    assert keep(Case(), "Why.", "layouts", tmp_path) == tmp_path / "layouts.txt"


def test_a_directory_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert load_all(tmp_path) == []
    with pytest.raises(CorpusError, match=r"corpus directory '.*/typo' does not exist"):
        load_all(tmp_path / "typo")
    with pytest.raises(CorpusError, match="does not exist"):
        keep(CASE, "Why.", directory=tmp_path / "typo")


@pytest.mark.parametrize("file", ["", "../a", "a/b", "a.txt"])
def test_keep_refuses_a_file_name_that_leaves_the_corpus(tmp_path: Path, file: str) -> None:
    with pytest.raises(CorpusError, match=r"file=.*but must be a plain name"):
        keep(CASE, "Why.", file, tmp_path)


def test_the_corpus_covers_every_dtype_lane_layout_and_mode() -> None:
    cases = [entry.case for entry in load_all()]
    assert {case.dtype for case in cases} == set(DTYPES)
    assert {case.lane for case in cases} == set(LANES)
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.mode for case in cases} >= {*EMULATOR_MODES, "memcheck"}


@pytest.mark.parametrize("entry", load_all(), ids=lambda entry: str(entry.case))
def test_every_case_of_the_corpus_is_small_and_proves_something(entry: corpus.Entry) -> None:
    assert entry.case.multiply_adds < 1_000_000
    assert not proves_nothing(expect(entry.case, generate(entry.case)))


def test_known_native_defects_say_of_which_versions_they_are() -> None:
    entries = load(corpus.DIRECTORY / f"{corpus.NATIVE}.txt")
    assert len(entries) >= 8
    assert all("torch 2." in entry.why for entry in entries)
