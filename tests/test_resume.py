"""What a shard leaves behind when it dies is complete: cases to run again, and the failure it was shrinking."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fuzz import corpus
from fuzz.case import parse_case
from fuzz.failure import UNSHRUNK, Kind
from fuzz.progress import Tally
from fuzz.shard import Finding, Options, Resume, adopt_unfinished, uncounted_cases

JOURNAL = "f32_int\nf16_int\nf16_int  # native again\nbf16_int\nf64_int  # native alone\nf64_int\n"


def counted(cases: int) -> Tally:
    return Tally(dtypes=Counter(f32=cases))


@pytest.mark.parametrize(
    ("cases", "uncounted"),
    [(4, ()), (3, ("f64_int",)), (2, ("bf16_int", "f64_int")), (0, ("f32_int", "f16_int", "bf16_int", "f64_int"))],
)  # fmt: skip
def test_cases_that_were_started_and_not_counted_run_again(
    tmp_path: Path, cases: int, uncounted: tuple[str, ...]
) -> None:
    journal = tmp_path / "shard0.txt"
    journal.write_text(JOURNAL)
    assert uncounted_cases(journal, counted(cases), None) == uncounted


def test_what_a_shard_should_have_run_again_and_did_not_comes_first(tmp_path: Path) -> None:
    journal = tmp_path / "shard0.txt"
    resume = Resume(("f16_int", "tf32_int"), Tally(), 1.0)
    assert uncounted_cases(journal, counted(0), resume) == ("f16_int", "tf32_int")
    journal.write_text(JOURNAL)
    assert uncounted_cases(journal, counted(3), resume) == ("tf32_int", "f64_int")


@pytest.mark.parametrize(
    ("leg", "file"), [("native", "native_findings.txt"), ("convt3d", "findings.txt")]
)
def test_a_failure_that_was_being_shrunk_is_written_to_the_findings_once(
    tmp_path: Path, leg: str, file: str
) -> None:
    options = Options(seed=0, state=tmp_path)
    assert adopt_unfinished(options, 3) is None
    kind = Kind(leg, "f32", "crashed", "", "SIGSEGV", "backward")
    case = parse_case("f32_n2_int")
    Finding(kind, case, UNSHRUNK, "CRASHED\nwhy").write_down(options.unfinished(3))
    whose = "native finding" if leg == "native" else "failure"
    title = f"{whose}: {leg} f32 crashed SIGSEGV in backward, unshrunk"
    assert adopt_unfinished(options, 3) == (title, "f32_n2_int")
    (entry,) = corpus.load(tmp_path / file)
    assert (entry.case, entry.why) == (case, f"{title} CRASHED why")
    assert adopt_unfinished(options, 3) is None
