"""What fails is confirmed, shrunk and reported once, however strangely the subjects behave."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import strategies as st

from fuzz import inquiry
from fuzz.case import Case, parse_case
from fuzz.checks import judge
from fuzz.failure import SHRUNK, UNCONFIRMED, UNSHRUNK, Failure, Kind, is_explained, kind_of
from fuzz.inquiry import MOST_SPECIMENS
from fuzz.legs import LEGS, Examination, HarnessError, Legs
from fuzz.outcome import Judgement, Outcome, Verdict
from fuzz.progress import Tally
from fuzz.search import EndOfCampaign, Search
from fuzz.strategies import cases
from fuzz.worker import preload

DTYPES = ("f64", "f32", "f16", "bf16")
Verdicts = Mapping[str, Verdict]


class FakeLegs:
    """Legs without processes.

    Args:
        verdicts: a case -> verdicts of the legs that do not pass.
        confirmed: the same in a fresh process.
        sanitized: the same under a sanitizer.
        device: "cuda" or "emulator".
    """

    def __init__(
        self,
        verdicts: Callable[[Case], Verdicts],
        confirmed: Callable[[Case], Verdicts] | None = None,
        sanitized: Callable[[Case], Verdicts] = lambda case: {},
        device: str = "emulator",
    ) -> None:
        self.verdicts = verdicts
        self.confirmed = confirmed or verdicts
        self.sanitized = sanitized
        self.device = device
        self.says = ""  # of a crash
        self.examined: list[Case] = []
        self.fresh: list[Case] = []
        self.alone: list[Case] = []

    def examine(self, case: Case, is_hasty: bool = False) -> Examination:
        self.examined.append(case)
        return self._examination(case, self.verdicts(case))

    def examine_alone(self, case: Case, leg: str) -> Examination:
        self.alone.append(case)
        examination = self._examination(case, self.sanitized(case))
        mine = {leg: examination.judgements[leg]}
        crashed = mine[leg].verdict is Verdict.CRASHED
        outcome = Outcome("crashed", f"{case.mode}: invalid write") if crashed else Outcome("ok")
        return replace(examination, outcomes={leg: outcome}, judgements=mine)

    def await_facts(self) -> dict[str, str]:
        return {"device": self.device}

    def confirm(self, examination: Examination, leg: str) -> Examination:
        self.fresh.append(examination.case)
        return self._examination(examination.case, self.confirmed(examination.case))

    def _examination(self, case: Case, verdicts: Verdicts) -> Examination:
        judgements = {
            leg: Judgement(
                leg,
                verdicts.get(leg, Verdict.PASS),
                "output" if verdicts.get(leg) is Verdict.WRONG else "",
            )
            for leg in LEGS
        }
        outcomes = {
            leg: Outcome("crashed", self.says)
            if verdicts.get(leg) is Verdict.CRASHED
            else Outcome("ok")
            for leg in LEGS
        }
        return Examination(case, cast(Any, None), outcomes, judgements)


def explore(
    legs: Any,
    *,
    batches: int = 1,
    examples: int = 100,
    strategy: st.SearchStrategy[Case] | None = None,
    left_s: Callable[[], float] = lambda: 1e9,
) -> tuple[list[Failure], Tally]:
    tally, failures = Tally(), list[Failure]()
    strategy = cases(dtypes=DTYPES) if strategy is None else strategy
    searching = Search(legs, strategy, tally, failures.append, left_s)
    with suppress(EndOfCampaign):
        for batch in range(batches):
            searching.run_batch(batch, examples)
    return failures, tally


def wrong_if(leg: str, is_wrong: Callable[[Case], bool]) -> Callable[[Case], Verdicts]:
    return lambda case: {leg: Verdict.WRONG} if is_wrong(case) else {}


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


def test_a_much_better_specimen_of_a_known_kind_is_reported_again() -> None:
    # Both shrink as far as they can: from the first there is no way to the second.
    def verdicts(case: Case) -> Verdicts:
        is_wrong = (case.n == 7 and case.in_channels == 8) or case.kernel_size == (1, 1, 5)
        return {"native": Verdict.WRONG} if is_wrong and not case.n == 1 == case.in_channels else {}

    search, failures, _ = searching(FakeLegs(verdicts))
    sizes = []
    for text in (
        "f32_n7_ci8_i3_int",
        "f32_n7_ci8_i4_int",
        "f32_n2_k1x1x5_int",
        "f32_n3_k1x1x5_int",
    ):
        search.examine(parse_case(text))
        sizes.append(len(failures))
    assert sizes == [1, 1, 2, 2]
    assert [str(failure.examination.case) for failure in failures] == [
        "f32_n7_ci8_int",
        "f32_n2_k1x1x5_int",
    ]
    search.learn(failures[0].kind, parse_case("f32_k1x1x5_int"))  # another shard has a better one
    search.examine(parse_case("f32_n3_i1_k1x1x5_int_seed4"))
    assert len(failures) == 2


def test_a_failure_that_no_specimen_of_its_kind_explains_is_another_one() -> None:
    def verdicts(case: Case) -> Verdicts:
        is_wrong = case.stride[2] > 2 or case.padding[0] > 0
        return {"native": Verdict.WRONG} if is_wrong else {}

    search, failures, _ = searching(FakeLegs(verdicts))
    for text in (
        "f32_i3_s1x1x3_bias_int",
        "f32_i3_s2x2x4_d2_int",  # has a stride, as the first has
        "f32_i3_p1x0x0_int",
        "f32_i3_s1x1x3_p1x0x0_int",  # either explains it
    ):
        search.examine(parse_case(text))
    assert [str(failure.examination.case) for failure in failures] == [
        "f32_s1x1x3_int",
        "f32_i3x1x1_p1x0x0_int",
    ]


@pytest.mark.parametrize(
    "says",
    [
        ("crashed", "wrong", "crashed", "wrong"),
        ("wrong", "crashed", "crashed", "wrong"),
        ("hung", "crashed", "wrong"),
        ("crashed", "pass"),
        ("wrong", "pass"),
        ("crashed", "hung", "crashed", "crashed"),
    ],
)
def test_a_case_has_one_verdict_a_leg_whatever_its_processes_say_one_after_the_other(
    says: tuple[str, ...],
) -> None:
    verdicts = itertools.chain(map(Verdict, says), itertools.repeat(Verdict.PASS))

    def say(case: Case) -> Verdicts:
        return {"native": next(verdicts)} if case == Case() else {}

    search, _, tally = searching(FakeLegs(say))
    search.examine(Case())
    assert tally.cases == 1
    assert sum(tally.verdicts["native", verdict.value] for verdict in Verdict) == 1
    assert all(count >= 0 for count in tally.verdicts.values()), tally.verdicts


@pytest.mark.parametrize(("batch", "reported"), [(20, 2), (30, 1)])
def test_a_specimen_that_is_still_large_may_be_bettered_by_a_case_that_is_larger_yet(
    batch: int, reported: int
) -> None:
    # From the first, of 51 elements, there is no way to the second; 31 are not much less.
    def verdicts(case: Case) -> Verdicts:
        is_wrong = case.stride[2] > 2 and (case.input_size[0] == 50 or case.n == batch)
        return {"native": Verdict.WRONG} if is_wrong else {}

    search, failures, _ = searching(FakeLegs(verdicts))
    for text in ("f32_i50x1x1_s1x1x3_int", f"f32_n{batch}_i2_s1x1x3_int", "f32_i50_s1x1x4_int"):
        search.examine(parse_case(text))
    shown = [str(failure.examination.case) for failure in failures]
    assert shown == ["f32_i50x1x1_s1x1x3_int", f"f32_n{batch}_s1x1x3_int"][:reported]


@pytest.mark.parametrize(
    ("case", "specimen", "explained"),
    [
        ("f32_k2_s2_int", "f32_k2_int", True),
        ("f32_k2_int", "f32_k2_s2_int", False),
        ("f32_k2_normal", "f32_k2_special", False),
        ("f32_k2_special", "f32_k2_int", True),
        ("f32_k2_int_hostile", "f32_k2_int_asan", False),
        ("f32_k2_int_hostile_sched3", "f32_k2_int_hostile", True),
        ("f32_k2_int_fwd=tiled.i32", "f32_k2_int_fwd=direct.i32", False),
        ("f32_k2_int_gwt=tiled.i64.split2", "f32_k2_int_gwt=tiled.i32", True),
        ("f32_k2_int", "f32_n20_i2_k2_int", False),  # much smaller
    ],
)
def test_a_specimen_explains_what_has_all_its_ingredients(
    case: str, specimen: str, explained: bool
) -> None:
    assert is_explained(parse_case(case), parse_case(specimen)) == explained


def test_a_specimen_that_is_told_twice_is_one() -> None:
    search, failures, _ = searching(FakeLegs(wrong_if("native", lambda case: max(case.stride) > 1)))
    for case in map(parse_case, ("f32_k2_int", "f32_d2_int")):
        for _ in range(MOST_SPECIMENS):
            search.learn(Kind("native", "f32", "wrong", "output", ""), case)
    search.examine(parse_case("f32_s2_int"))
    assert len(failures) == 1


@pytest.mark.parametrize(
    "says", [("crashed", "crashed", "crashed", "hung"), ("hung", "hung", "hung", "crashed")]
)
def test_what_fails_in_every_process_is_confirmed_however_it_fails(says: tuple[str, ...]) -> None:
    verdicts = iter(map(Verdict, says))
    legs = FakeLegs(lambda case: {"convt3d": next(verdicts)} if case == Case() else {})
    search, failures, _ = searching(legs)
    search.examine(Case())
    assert [failure.status for failure in failures] == [SHRUNK]
    assert failures[0].kind.verdict == says[-1]


def test_of_a_kind_enough_specimens_are_enough() -> None:
    def verdicts(case: Case) -> Verdicts:
        fields = ("stride", "dilation", "groups", "bias", "layout", "kernel_size")
        wanted = [getattr(case, name) != getattr(Case(), name) for name in fields]
        return {"native": Verdict.WRONG} if sum(wanted) == 1 else {}

    search, failures, _ = searching(FakeLegs(verdicts))
    for token in ("s2", "d2", "g2_ci2_co2", "bias", "cl", "k2"):
        search.examine(parse_case(f"f32_{token}_int"))
    assert len(failures) == MOST_SPECIMENS


# ---- given cases ----------------------------------------------------------------------------------


def searching(legs: Any, left_s: float = 1e9) -> tuple[Search, list[Failure], Tally]:
    tally, failures = Tally(), list[Failure]()
    return (
        Search(legs, cases(dtypes=DTYPES), tally, failures.append, lambda: left_s),
        failures,
        tally,
    )


LARGE = parse_case("bf16_n3_g2_ci4_co6_i5x4x3_k3x2x3_s2x3x1_p1_op1_d2_bias_cl_normal_seed9")


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


# ---- verdicts on crashes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confirmed", "verdict"),
    [({}, "pass"), ({"native": Verdict.WRONG}, "wrong"), ({"native": Verdict.CRASHED}, "crashed")],
)
def test_a_case_that_crashed_has_the_verdict_of_a_fresh_process(
    confirmed: Verdicts, verdict: str
) -> None:
    legs = FakeLegs(
        lambda case: {"native": Verdict.CRASHED} if case == LARGE else {}, lambda case: confirmed
    )
    search, failures, tally = searching(legs)
    search.examine(LARGE)
    assert tally.verdicts["native", verdict] == (tally.cases if verdict == "pass" else 1)
    assert sum(n for (leg, _), n in tally.verdicts.items() if leg == "native") == tally.cases
    assert [failure.status == UNCONFIRMED for failure in failures] == [verdict == "pass"]


def test_a_crash_that_no_smaller_case_and_no_later_run_bears_out_is_unconfirmed() -> None:
    """Its process was killed from outside, and so were both that should confirm it."""
    crashes = iter([True, True, False])
    legs = FakeLegs(
        lambda case: {"convt3d": Verdict.CRASHED} if case == LARGE else {},
        lambda case: {"convt3d": Verdict.CRASHED} if next(crashes) else {},
    )
    search, failures, tally = searching(legs)
    search.examine(LARGE)
    assert [failure.status for failure in failures] == [UNCONFIRMED]
    assert tally.verdicts["convt3d", "pass"] == tally.cases
    assert tally.unconfirmed["convt3d"] == 1


def test_a_crash_met_while_another_failure_is_shrunk_is_looked_at() -> None:
    def verdicts(case: Case) -> Verdicts:
        if case.n > 1:
            return {"native": Verdict.WRONG}
        return {"native": Verdict.CRASHED} if case.kernel_size[1] > 1 else {}

    search, failures, _ = searching(FakeLegs(verdicts))
    search.examine(LARGE)
    assert [(failure.kind.verdict, str(failure.examination.case)) for failure in failures] == [
        ("wrong", "bf16_n2_int"),
        ("crashed", "bf16_k1x2x1_int"),
    ]


def test_crashes_are_told_apart_by_signal_tool_and_stage() -> None:
    def kind(outcome: Outcome) -> str:
        judgement = judge(Case(), cast(Any, None), outcome, "native")
        examination = Examination(
            Case(), cast(Any, None), {"native": outcome}, {"native": judgement}
        )
        return str(kind_of(examination, "native"))

    sigsegv = "killed by signal 11 (SIGSEGV) in backward"
    assert kind(Outcome("crashed", sigsegv, stage="backward")) == (
        "native f32 crashed SIGSEGV in backward"
    )
    assert kind(Outcome("crashed", sigsegv, stage="forward")).endswith("SIGSEGV in forward")
    assert kind(Outcome("crashed", "tsan: data race")) == "native f32 crashed tsan"
    assert kind(Outcome("crashed", "RuntimeError: CUDA error: oh")) == (
        "native f32 crashed CUDA error"
    )
    assert kind(Outcome("hung", "no answer", stage="forward")) == "native f32 hung in forward"
    assert kind(Outcome("refused", "SIGSEGV")) == "native f32 refused"


# ---- sanitizers -----------------------------------------------------------------------------------


SINGLE = replace(LARGE, n=1)  # as large as a sanitizer takes it


def state_dependent(leg: str, device: str, sanitized: Callable[[Case], Verdicts]) -> FakeLegs:
    """Wrong, but never in a fresh process."""
    wrong = wrong_if(leg, lambda case: case.groups > 1)
    return FakeLegs(wrong, lambda case: {}, sanitized, device)


@pytest.mark.parametrize(
    ("leg", "device", "mode"),
    [("native", "cuda", "memcheck"), ("convt3d", "cuda", "memcheck"), ("convt3d", "emulator", "asan")],
)  # fmt: skip
def test_what_only_a_sanitizer_confirms_is_shrunk_with_it_as_the_check(
    leg: str, device: str, mode: str
) -> None:
    legs = state_dependent(
        leg, device, lambda case: {leg: Verdict.CRASHED} if case.kernel_size[0] > 2 else {}
    )
    search, failures, tally = searching(legs)
    search.examine(SINGLE)
    (failure,) = failures
    assert (failure.status, failure.kind.signal) == (SHRUNK, mode)
    dtype = "bf16" if leg == "native" else "f32"
    assert failure.examination.case == parse_case(f"{dtype}_k3x1x1_int_{mode}")
    assert legs.examined == [SINGLE]  # the other legs did not run again
    assert tally.unconfirmed[leg] == 1


@pytest.mark.parametrize(
    ("leg", "device"), [("native", "cuda"), ("convt3d", "emulator"), ("native", "emulator")]
)
def test_what_no_sanitizer_confirms_stays_unconfirmed_and_few_are_tried(
    leg: str, device: str
) -> None:
    legs = state_dependent(leg, device, lambda case: {})
    search, failures, _ = searching(legs)
    for seed in range(20):
        search.examine(replace(SINGLE, seed=seed))
    assert [failure.status for failure in failures] == [UNCONFIRMED]
    can_be_tried = (leg, device) != ("native", "emulator")
    assert len(legs.alone) == (inquiry.SANITIZER_TRIES if can_be_tried else 0)


def test_no_sanitizer_is_started_near_the_end() -> None:
    legs = state_dependent("native", "cuda", lambda case: {"native": Verdict.CRASHED})
    search, failures, _ = searching(legs, left_s=119.0)
    search.examine(SINGLE)
    assert [failure.status for failure in failures] == [UNCONFIRMED]
    assert not legs.alone


def test_a_case_that_is_too_large_for_a_sanitizer_is_not_tried() -> None:
    legs = state_dependent("native", "cuda", lambda case: {"native": Verdict.CRASHED})
    search, failures, _ = searching(legs)
    search.examine(parse_case("f16_n65537_g2_ci2_co2_int"))
    assert [failure.status for failure in failures] == [UNCONFIRMED]
    assert not legs.alone


def test_a_drawn_case_under_a_sanitizer_of_the_gpu_is_shrunk_without_the_other_legs() -> None:
    def verdicts(case: Case) -> Verdicts:
        return {"native": Verdict.CRASHED} if case.mode == "memcheck" else {}

    legs = FakeLegs(verdicts, sanitized=verdicts, device="cuda")
    legs.says = "memcheck: invalid write"
    failures, _ = explore(legs, strategy=cases(dtypes=("f16",), modes=("memcheck",)), examples=3)
    assert [(str(f.kind), f.status) for f in failures] == [("native f16 crashed memcheck", SHRUNK)]
    assert str(failures[0].examination.case) == "f16_int_memcheck"
    assert legs.fresh == []


def test_a_native_failure_with_a_vast_dilation_is_of_a_kind_of_its_own() -> None:
    legs = FakeLegs(lambda case: {"native": Verdict.CRASHED, "convt3d": Verdict.CRASHED})
    small = legs.examine(parse_case("f32_k3_d2_int"))
    vast = legs.examine(parse_case("f32_k3_d1x1x2147483639_p0x0x2147483638_int"))
    assert kind_of(small, "native") != kind_of(vast, "native")
    assert str(kind_of(vast, "native")).endswith("with a vast dilation")
    assert kind_of(small, "convt3d") == kind_of(vast, "convt3d")
