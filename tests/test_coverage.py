"""Pairs of features: what a case meets, what no case can meet, and few cases that meet all."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

import pytest

from fuzz.bounds import expect
from fuzz.case import Case, parse_case
from fuzz.checks import proves_nothing
from fuzz.coverage import (
    FEATURES,
    drawn_values,
    features_of,
    impossibilities,
    named_pairs,
    pairs_of,
    possible_pairs,
    report,
)
from fuzz.covering import CoveringSet
from fuzz.data import generate
from fuzz.number import DTYPES
from fuzz.plans import candidate_plans
from fuzz.strategies import MODE_MULTIPLY_ADDS, Space, draw_case, is_within

EMULATOR = Space(
    DTYPES,
    layouts=("ncdhw", "cl", "far"),
    modes=("fast", "hostile", "asan", "tsan"),
    plans=candidate_plans,
)
GPU = Space(
    DTYPES,
    modes=("fast", "memcheck", "racecheck", "initcheck", "synccheck"),
    plans=candidate_plans,
)


def draw(space: Space, count: int) -> list[Case]:
    random = Random(0)
    return [draw_case(random, space) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "feature", "value"),
    [
        ("bf16_int", "dtype", "bf16"),
        ("f32_int_fwd=tiled.i32", "forward plan", "tiled.i32"),
        ("f32_int", "grad_weight plan", "auto"),
        ("f32_s2_int", "stride", "2"),
        ("f32_s3x4x5_int", "stride", "above 2"),
        ("f32_s1x2x2_int", "stride", "mixed"),
        ("f32_d3_k2_int", "dilation", "above 2"),
        ("f32_i9_k4_int", "padding", "0"),
        ("f32_i9_k4_p2_int", "padding", "below k-1"),
        ("f32_i9_k4_p2x2x3_int", "padding", "k-1"),
        ("f32_i9_k4_p3x3x4_int", "padding", "k and more"),
        ("f32_i9_p1_int", "padding", "k and more"),
        ("f32_i9_k3_d2_p3_int", "padding", "k and more"),
        ("f32_i9_k3_d2_p4x0x0_int", "padding", "crops all"),
        ("f32_s3_int", "output_padding", "0"),
        ("f32_s3_op1_int", "output_padding", "between"),
        ("f32_s3_op1x1x2_int", "output_padding", "largest"),
        ("f32_d2_k2_op1_int", "output_padding", "largest"),
        ("f32_k1_int", "kernel", "1"),
        ("f32_k1x1x2_int", "kernel", "above 1"),
        ("f32_int", "groups", "dense"),
        ("f32_g2_ci4_co4_int", "groups", "grouped"),
        ("f32_g4_ci4_co8_int", "groups", "depthwise"),
        ("f32_n5_int", "batch", "above 2"),
        ("f32_int", "size", "voxel"),
        ("f32_i64x1x1_int", "size", "small"),
        ("f32_i65x1x1_int", "size", "wide"),
        ("f32_ci33_int", "size", "channels"),
        ("f32_ci32_co32_i9_int", "size", "small"),
        ("f32_ci33_co65_i3x1x11_int", "size", "weight tiles"),
        ("f32_ci33_co33_k2x1x1_i3x1x11_int", "size", "weight tiles"),
        ("f32_ci33_co64_i3x1x11_int", "size", "channels"),
        ("f32_ci32_co65_i3x1x11_int", "size", "channels"),
        ("f32_ci33_co65_i2x1x16_int", "size", "channels"),
        ("f32_g2_ci66_co128_i3x1x11_int", "size", "channels"),
        ("f32_ci33_co65_i3x1x32769_int", "size", "long"),
        ("f32_n32769_int", "size", "long"),
        ("f32_g32769_ci32769_co32769_int", "size", "long"),
        ("f32_i1x1x32768_int", "size", "wide"),
        ("f32_co33_i9x1x16_int", "size", "gather tiles"),  # a tile holds 8 rows of 16
        ("f32_co33_i8x1x16_int", "size", "channels"),
        ("f32_ci33_i9x1x16_int", "size", "gather tiles"),
        ("f32_co33_i4x1x16_s2x1x1_op1x0x0_int", "size", "channels"),  # 4 rows a phase
        ("f32_co33_k8x1x1_i1x1x16_s8x1x1_int", "size", "channels"),  # one row a phase
    ],
)
def test_a_feature_of_a_case(text: str, feature: str, value: str) -> None:
    assert features_of(parse_case(text))[feature] == value


@pytest.mark.parametrize("space", [EMULATOR, GPU])
def test_every_feature_of_a_drawn_case_is_one_of_its_values(space: Space) -> None:
    values = drawn_values(space)
    for case in draw(space, 500):
        features = features_of(case)
        assert list(features) == [feature.name for feature in FEATURES]
        assert all(value in values[name] for name, value in features.items())


def test_a_plan_that_is_no_value_is_not_counted() -> None:
    features = features_of(parse_case("f32_int_gwt=tiled.i32.split5"))
    assert "grad_weight plan" not in features and len(features) == len(FEATURES) - 1


def test_a_case_has_a_pair_for_every_two_of_its_features() -> None:
    case = draw(EMULATOR, 1)[0]
    features = list(features_of(case).items())
    pairs = list(named_pairs(pairs_of(case)))
    assert pairs == [(a, b) for i, a in enumerate(features) for b in features[i + 1 :]]


@pytest.mark.parametrize("space", [EMULATOR, GPU])
def test_no_drawn_case_has_an_impossible_pair(space: Space) -> None:
    possible = possible_pairs(space)
    for case in draw(space, 4_000):
        impossible = pairs_of(case) & ~possible
        assert not impossible, (str(case), list(named_pairs(impossible)))


def test_every_impossibility_has_a_reason_and_hides_pairs_of_real_features() -> None:
    values = {feature.name: feature.values for feature in FEATURES}
    order = list(values)
    rules = impossibilities(EMULATOR)
    assert sum(rule.pairs.bit_count() for rule in rules) < 100
    for rule in rules:
        assert rule.reason
        assert set(rule.values) <= set(values[rule.feature])
        assert set(rule.other_values) <= set(values[rule.other_feature])
        assert rule.pairs.bit_count() == len(rule.values) * len(rule.other_values)
        for (name, _), (other, _) in named_pairs(rule.pairs):
            assert order.index(name) < order.index(other)


def test_what_is_not_drawn_is_not_possible() -> None:
    narrow = Space(("f16",), ("int",), ("cl",), ("fast",), None)
    drawn = {name: value for name, value in features_of(parse_case("f16_cl_int")).items()}
    for pair in named_pairs(possible_pairs(narrow)):
        for name, value in pair:
            if name in ("dtype", "lane", "layout", "mode") or name.endswith("plan"):
                assert value == drawn[name]


@pytest.mark.parametrize("mode", ["fast", *MODE_MULTIPLY_ADDS])
def test_a_mode_with_little_work_has_no_large_sizes(mode: str) -> None:
    space = Space(("f32",), modes=(mode,))
    sizes = {
        value
        for pair in named_pairs(possible_pairs(space))
        if ("mode", mode) in pair
        for name, value in pair
        if name == "size"
    }
    most = space.multiply_adds_of(mode)
    assert ("weight tiles" in sizes) == (most >= 33 * 65 * 33)
    assert ("gather tiles" in sizes) == (most >= 33 * 129)
    assert sizes >= {"small", "voxel", "wide", "channels"}


@pytest.mark.parametrize("space", [EMULATOR, GPU])
@pytest.mark.parametrize("seed", ["0", "1"])
def test_few_cases_meet_all_pairs(space: Space, seed: str) -> None:
    covering = CoveringSet(space, seed)
    met = 0
    for case in covering.cases:
        assert case == parse_case(str(case))
        assert is_within(case, space.multiply_adds_of(case.mode))
        candidates = candidate_plans(case)
        for primitive, names in candidates.items():
            assert getattr(case, f"{primitive}_plan") in ("auto", *names)
        met |= pairs_of(case)
    assert met == possible_pairs(space) and not covering.missing
    # No set is smaller than the pairs of the two features that have most values.
    *_, second, most = sorted(len(values) for values in drawn_values(space).values())
    assert second * most <= len(covering.cases) < 1.6 * second * most


def test_the_covering_cases_follow_from_the_seed() -> None:
    space = replace(EMULATOR, modes=("fast",), layouts=("cl",), plans=None)
    one, same, other = (CoveringSet(space, seed).cases for seed in ("7", "7", "8"))
    assert one == same != other


def test_a_covering_case_that_proves_nothing_is_left_out() -> None:
    space = replace(EMULATOR, modes=("fast", "hostile"), plans=None)

    def is_telling(case: Case) -> bool:
        return case.lane != "special" or not proves_nothing(expect(case, generate(case)))

    covering = CoveringSet(space, "3", is_telling)
    assert not covering.missing and all(map(is_telling, covering.cases))
    space = replace(space, dtypes=("f32",))
    covering = CoveringSet(space, "3", lambda case: case.lane != "special")
    assert not any(case.lane == "special" for case in covering.cases)
    missing = list(named_pairs(covering.missing))
    assert missing and all(("lane", "special") in pair for pair in missing)


def test_the_report_names_what_is_missing_and_only_that() -> None:
    possible = possible_pairs(EMULATOR)
    (pair,) = named_pairs(lowest := possible & -possible)
    text = report(possible & ~lowest, possible)
    (name, value), (other_name, other) = pair
    assert text.endswith(f"  missing: 1\n    {name} x {other_name}: {value} x {other}")
    assert report(possible, possible).endswith("  missing: none")
    assert report(0, possible).count(" x ") > possible.bit_count()
    rows = [line.split() for line in text.splitlines()[1:]]
    assert rows[0] == ["dtype"] and rows[1] == ["lane", "14/15"] and rows[2][2] == "12/12"


def test_noting_the_pairs_of_a_case_takes_microseconds() -> None:
    cases = draw(EMULATOR, 1_000)
    start_s = time.process_time()
    for case in cases:
        pairs_of(case)
    assert time.process_time() - start_s < 0.3, "ten times what it takes on an idle core"
