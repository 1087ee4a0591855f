"""What fails is confirmed, shrunk and reported once, however strangely the subjects behave."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fuzz import inquiry
from fuzz.case import Case, parse_case
from fuzz.failure import SHRUNK, UNCONFIRMED, UNSHRUNK, Failure
from fuzz.legs import HarnessError, Legs
from fuzz.outcome import Verdict
from fuzz.progress import Tally
from fuzz.search import Search
from fuzz.strategies import cases
from fuzz.worker import preload
from tests.fake_legs import DTYPES, LARGE, FakeLegs, Verdicts, explore, searching, wrong_if


def test_what_passes_is_counted_and_not_reported() -> None:
    legs = FakeLegs(lambda case: {})
    failures, tally = explore(legs, examples=100)
    assert not failures
    assert tally.cases == len(legs.examined) == len(set(legs.examined)) > 50
    assert tally.verdicts["convt3d", "pass"] == tally.cases
    assert sum(tally.lanes.values()) == sum(tally.modes.values()) == tally.cases


@pytest.mark.parametrize(
    ("is_wrong", "smallest"),
    [
        (lambda case: case.stride[1] > 1, "f32_s1x2x1_int"),
        (lambda case: case.bias and case.kernel_size[0] > 2, "f32_k3x1x1_bias_int"),
        (lambda case: case.lane == "special" and case.n > 1, "f32_n2_special"),
        (lambda case: case.dtype == "bf16" and case.groups > 1, "bf16_g2_ci2_co2_int"),
    ],
)
def test_a_failure_shrinks_to_what_it_needs(
    is_wrong: Callable[[Case], bool], smallest: str
) -> None:
    failures, _ = explore(FakeLegs(wrong_if("convt3d", is_wrong)), examples=400)
    assert [failure.status for failure in failures] == [SHRUNK]
    assert failures[0].examination.case == parse_case(smallest)


def test_a_kind_that_was_reported_is_only_counted_from_then_on() -> None:
    legs = FakeLegs(wrong_if("convt3d", lambda case: max(case.stride) > 1))
    failures, tally = explore(legs, batches=5)
    assert len(failures) <= len(DTYPES)
    assert len({failure.kind for failure in failures}) == len(failures)
    assert tally.failures["convt3d"] > 50


def test_shrinking_stays_on_the_same_kind_of_failure() -> None:
    def verdicts(case: Case) -> Verdicts:
        if case.kernel_size[2] > 2:
            return {"convt3d": Verdict.CRASHED}
        return {"convt3d": Verdict.WRONG} if case.kernel_size[1] > 1 else {}

    failures, _ = explore(FakeLegs(verdicts), batches=12)
    smallest = {failure.kind.verdict: failure.examination.case for failure in failures}
    assert smallest["crashed"].kernel_size[2] == 3
    assert smallest["wrong"].kernel_size[1:] in ((2, 1), (2, 2))


def test_a_failure_of_ours_shrinks_to_the_simplest_dtype_but_one_of_native_keeps_its_own() -> None:
    strategy = cases(dtypes=("f32", "bf16"))
    for leg, dtypes in (("convt3d", {"f32"}), ("native", {"f32", "bf16"})):
        legs = FakeLegs(wrong_if(leg, lambda case: max(case.stride) > 1))
        failures, _ = explore(legs, batches=6, strategy=strategy)
        assert {failure.examination.case.dtype for failure in failures} == dtypes


def test_no_case_is_drawn_twice_so_that_a_subject_of_moods_is_never_flaky() -> None:
    moods = random.Random(0)
    legs = FakeLegs(wrong_if("convt3d", lambda case: moods.random() < 0.3))
    failures, _ = explore(legs)
    # fuzz.reduce may try once more what Hypothesis has drawn.
    assert len(set(legs.examined)) > 10 and max(Counter(legs.examined).values()) <= 2
    # A fresh process may be in another mood than the one in which the case shrank.
    assert [f.status for f in failures if f.status != UNCONFIRMED] in ([SHRUNK], [UNSHRUNK])


def test_what_a_fresh_process_does_not_confirm_is_reported_unconfirmed_and_unshrunk() -> None:
    legs = FakeLegs(wrong_if("convt3d", lambda case: max(case.stride) > 1), lambda case: {})
    failures, tally = explore(legs)
    assert {failure.status for failure in failures} == {UNCONFIRMED}
    assert len({failure.kind for failure in failures}) == len(failures)
    assert tally.unconfirmed["convt3d"] == tally.failures["convt3d"] > 10
    assert tally.shrink_cases == 0


def test_a_failure_of_ours_met_while_a_native_one_is_shrunk_is_reported() -> None:
    def verdicts(case: Case) -> Verdicts:
        wrong = {"native"} if case.n > 1 else set()
        wrong |= {"convt3d"} if case.n > 1 and case.multiply_adds < 20 else set()
        return dict.fromkeys(wrong, Verdict.WRONG)

    failures, _ = explore(FakeLegs(verdicts), strategy=cases(dtypes=("f32",)))
    statuses = [(failure.kind.leg, failure.status) for failure in failures]
    assert statuses == [("native", SHRUNK), ("convt3d", SHRUNK)]


def test_shrinking_ends_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def verdicts(case: Case) -> Verdicts:
        nonlocal now_s
        now_s += 1
        return {"convt3d": Verdict.WRONG} if max(case.stride) > 1 else {}

    monkeypatch.setattr(inquiry, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setitem(inquiry.SHRINK_S, "convt3d", 6.0)
    failures, tally = explore(FakeLegs(verdicts))
    assert [failure.status for failure in failures] == [SHRUNK]
    assert tally.shrink_cases == 6  # half of them for Hypothesis, half for fuzz.reduce
    assert max(failures[0].examination.case.stride) > 1


def test_shrinking_ends_soon_after_the_campaign() -> None:
    left_s = itertools.chain([1.0] * 20, itertools.repeat(-100.0))
    legs = FakeLegs(wrong_if("convt3d", lambda case: max(case.stride) > 1))
    failures, tally = explore(legs, left_s=lambda: next(left_s))
    assert [failure.status for failure in failures] == [SHRUNK]
    assert tally.shrink_cases < 20


def test_the_searchends_when_no_time_is_left() -> None:
    left_s = itertools.chain([1.0] * 7, itertools.repeat(0.0))
    _, tally = explore(FakeLegs(lambda case: {}), left_s=lambda: next(left_s))
    assert tally.cases == 7


def test_an_error_of_the_harness_comes_out_at_once_and_is_not_shrunk() -> None:
    def fail(case: Case) -> Verdicts:
        raise HarnessError(str(case))

    legs = FakeLegs(fail)
    with pytest.raises(HarnessError, match="f32"):
        explore(legs)
    assert len(legs.examined) == 1


def test_the_same_seed_gives_the_same_cases_and_another_seed_others() -> None:
    runs = []
    for seed in (3, 3, 4):
        legs = FakeLegs(lambda case: {})
        Search(legs, cases(dtypes=DTYPES), Tally(), print, lambda: 1e9).run_batch(seed, 50)  # type: ignore[arg-type]
        runs.append(legs.examined)
    assert runs[0] == runs[1] != runs[2]


def test_draws_given_up_half_way_are_counted_as_discarded() -> None:
    strategy = cases(dtypes=DTYPES).filter(lambda case: case.bias)
    _, tally = explore(FakeLegs(lambda case: {}), strategy=strategy)
    assert 0 < tally.discarded < tally.draws
    _, tally = explore(FakeLegs(lambda case: {}))
    assert tally.discarded <= 0.01 * tally.draws


def test_a_known_native_defect_of_the_corpus_is_no_finding() -> None:
    failures, tally = list[Failure](), Tally()
    legs: Any = FakeLegs(wrong_if("native", lambda case: case.n == 1))
    searching = Search(legs, cases(dtypes=DTYPES), tally, failures.append, lambda: 1e9)
    searching.replay(Case(), is_native_defect=True)
    searching.replay(Case(n=2), is_native_defect=True)
    assert (tally.known_native, tally.fixed_native, tally.corpus_cases) == (1, 1, 2)
    assert not failures
    searching.replay(Case())
    assert [(f.kind.leg, f.status) for f in failures] == [("native", SHRUNK)]


def test_ours_must_pass_where_native_is_known_to_fail() -> None:
    failures = list[Failure]()
    legs: Any = FakeLegs(lambda case: {"convt3d": Verdict.WRONG, "native": Verdict.CRASHED})
    searching = Search(legs, cases(dtypes=DTYPES), Tally(), failures.append, lambda: 1e9)
    searching.replay(Case(), is_native_defect=True)
    assert [failure.kind.leg for failure in failures] == ["convt3d"]


@pytest.mark.parametrize(
    ("primitive", "behaviour", "leg", "kind"),
    [
        ("forward", "segfault", "convt3d", "crashed SIGSEGV"),
        ("grad_weight", "abort", "native", "crashed SIGABRT"),
        ("forward", "wrong", "convt3d", "wrong output"),
    ],
)
def test_shrinking_goes_on_across_real_crashes(
    primitive: str, behaviour: str, leg: str, kind: str
) -> None:
    preload(["tests.fake_subjects", "pytest"])
    strategy = cases(dtypes=("f32",), lanes=("int",), plans=lambda case: {primitive: [behaviour]})
    with Legs("tests.fake_subjects") as legs:
        failures, tally = explore(legs, examples=20, strategy=strategy)
    assert str(failures[0].kind) == f"{leg} f32 {kind}"
    plan = {f"{primitive}_plan": behaviour}
    assert failures[0].examination.case == Case(**plan)  # type: ignore[arg-type]
    assert tally.shrink_cases > 0


def test_a_native_failure_is_shrunk_in_few_tries_and_the_batch_goes_on() -> None:
    legs = FakeLegs(wrong_if("native", lambda case: case.kernel_size[1] > 2))
    failures, tally = explore(legs, strategy=cases(dtypes=("f32",)), examples=200)
    assert [str(failure.examination.case) for failure in failures] == ["f32_k1x3x1_int"]
    assert tally.shrink_cases < 100
    assert tally.generated > 150


# ---- given cases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("leg", "dtype"), [("convt3d", "f32"), ("native", "bf16")])
@pytest.mark.parametrize("entry", [Search.replay, Search.examine])
def test_a_given_case_that_fails_is_confirmed_and_shrunk(
    entry: Callable[[Search, Case], None], leg: str, dtype: str
) -> None:
    legs = FakeLegs(wrong_if(leg, lambda case: case.stride[1] > 2))
    search, failures, tally = searching(legs)
    entry(search, LARGE)
    assert [failure.status for failure in failures] == [SHRUNK]
    assert failures[0].examination.case == parse_case(f"{dtype}_s1x3x1_int")
    assert tally.shrink_cases > 0
    assert legs.fresh[0] == LARGE
    entry(search, LARGE)
    assert len(failures) == 1  # its like is known now


def test_a_given_case_fails_for_each_leg_that_does() -> None:
    search, failures, _ = searching(
        FakeLegs(lambda case: {"convt3d": Verdict.WRONG, "native": Verdict.CRASHED})
    )
    search.examine(LARGE)
    kinds = [(failure.kind.leg, failure.kind.dtype) for failure in failures]
    # Native crashed on each smaller case too, in f32 in the end.
    assert kinds == [("convt3d", "f32"), ("native", "bf16"), ("native", "f32")]


def test_a_drawn_case_on_which_two_legs_fail_brings_two_failures() -> None:
    legs = FakeLegs(lambda case: {"convt3d": Verdict.WRONG, "native": Verdict.CRASHED})
    failures, _ = explore(legs, strategy=cases(dtypes=("f32",)), examples=5)
    assert [failure.kind.leg for failure in failures] == ["convt3d", "native"]
