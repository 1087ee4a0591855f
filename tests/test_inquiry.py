"""Which failures are told apart and which are one, what confirms them, and what a sanitizer has a say in."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from fuzz import inquiry
from fuzz.case import Case, parse_case
from fuzz.checks import judge
from fuzz.failure import SHRUNK, UNCONFIRMED, Kind, is_explained, kind_of
from fuzz.inquiry import MOST_SPECIMENS
from fuzz.legs import Examination
from fuzz.outcome import Outcome, Verdict
from fuzz.strategies import cases
from tests.fake_legs import LARGE, FakeLegs, Verdicts, explore, searching, wrong_if

# ---- specimens ------------------------------------------------------------------------------------


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
