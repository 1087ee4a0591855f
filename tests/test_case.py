"""Cases and case strings: round trips, and errors that name the token."""

from __future__ import annotations

import pickle
import re
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings

from convt3d.emulator import runtime
from fuzz.case import Case, CaseError, format_case, parse_case
from fuzz.number import DTYPES
from fuzz.strategies import cases
from reference import Parameters

EXAMPLE = (
    "f16_n1_g1_ci2_co3_i2x3x4_k3_s2_p1_op1_d1_bias_cl_int_seed7"
    "_fwd=tiled.i32_gin=direct.i64_gwt=tiled.i32.split4_hostile_sched5"
)
EXAMPLE_CASE = Case(
    dtype="f16",
    in_channels=2,
    out_channels=3,
    input_size=(2, 3, 4),
    kernel_size=(3, 3, 3),
    stride=(2, 2, 2),
    padding=(1, 1, 1),
    output_padding=(1, 1, 1),
    bias=True,
    layout="cl",
    seed=7,
    forward_plan="tiled.i32",
    grad_input_plan="direct.i64",
    grad_weight_plan="tiled.i32.split4",
    mode="hostile",
    schedule=5,
)
PLANS = {"forward": ("tiled.i32",), "grad_input": ("direct.i64",), "grad_weight": ("a.split2", "b")}


def test_the_canonical_form_prints_every_token() -> None:
    assert format_case(EXAMPLE_CASE, canonical=True) == EXAMPLE
    assert format_case(Case(), canonical=True) == (
        "f32_n1_g1_ci1_co1_i1_k1_s1_p0_op0_d1_nobias_ncdhw_int_seed0"
        "_fwd=auto_gin=auto_gwt=auto_fast_sched0"
    )


def test_the_minimal_form_leaves_out_defaults_but_not_dtype_and_lane() -> None:
    assert str(Case()) == "f32_int"
    assert str(Case(stride=(1, 2, 1), lane="special")) == "f32_s1x2x1_special"
    assert str(EXAMPLE_CASE) == EXAMPLE.replace("_n1_g1", "").replace("_d1", "")


def test_a_case_string_may_leave_out_anything_and_take_any_order() -> None:
    assert parse_case("int_bias_k3_bf16") == Case(dtype="bf16", kernel_size=(3, 3, 3), bias=True)
    assert parse_case("seed3") == Case(seed=3)
    shuffled = "_".join(reversed(EXAMPLE.split("_")))
    assert parse_case(shuffled) == EXAMPLE_CASE


@settings(database=None, deadline=None, max_examples=300)
@given(case=cases(dtypes=DTYPES, plans=lambda case: PLANS))
def test_both_forms_round_trip(case: Case) -> None:
    for canonical in (False, True):
        text = format_case(case, canonical)
        assert parse_case(text) == case
        assert re.fullmatch(r"[a-z0-9_=.]+", text), "safe in a shell, a file and a pytest id"
    assert str(parse_case(str(case))) == str(case)


def test_the_largest_numbers_round_trip() -> None:
    size = 2**31 - 1
    case = Case(n=size, input_size=(size, 1, 2), seed=2**63 - 1, schedule=2**62 - 1)
    assert parse_case(str(case)) == case
    with runtime.schedule("hostile", case.schedule):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "token '' is unknown"),
        ("f32__int", "token '' is unknown"),
        ("f32_foo3_int", "token 'foo3' is unknown, must be one of f64, "),
        ("f8_int", "token 'f8' is unknown"),
        ("F32", "token 'F32' is unknown"),
        ("f32 _int", "token 'f32 ' is unknown"),
        ("i8_int8", "token 'int8' is unknown"),
        ("fwdauto", "token 'fwdauto' is unknown"),
        ("k=3", "token 'k=3' is unknown"),
        ("3", "token '3' is unknown"),
        ("f32_k", "token 'k' has '' for a number"),
        ("k-1", "token 'k-1' has '-1' for a number"),
        ("k+1", "token 'k+1' has '+1' for a number"),
        ("k1.5", "token 'k1.5' has '1.5' for a number"),
        ("n01", "token 'n01' has '01' for a number"),
        ("n²", "token 'n²' has '²' for a number"),
        ("n٣", "for a number"),
        ("seed" + "9" * 5000, "for a number, but must have up to 19 digits"),
        ("k3x3", "token 'k3x3' has 2 axes, but must have 3, or 1 for all"),
        ("k1x2x3x4", "token 'k1x2x3x4' has 4 axes"),
        ("k1x2x", "token 'k1x2x' has '' for a number"),
        ("fwd=", "token 'fwd=': forward_plan='', but must be made of a-z, 0-9 and '.'"),
        ("gin=Tiled", "token 'gin=Tiled': grad_input_plan='Tiled'"),
        ("gwt=a;b", "token 'gwt=a;b'"),
        ("f32_f16", "token 'f16' repeats dtype: 'f32' gave it already"),
        ("k3_s2_k3", "token 'k3' repeats kernel_size: 'k3' gave it already"),
        ("bias_nobias", "token 'nobias' repeats bias: 'bias' gave it already"),
        ("int_special", "token 'special' repeats lane"),
        ("fast_hostile", "token 'hostile' repeats mode"),
        ("k3x0x3", "token 'k3x0x3': kernel_size=(3, 0, 3), but must be from 1 to 2147483647"),
        ("n0", "token 'n0': n=0, but must be from 1 to 2147483647"),
        ("ci2147483648", "token 'ci2147483648': in_channels=2147483648, but must be from 1"),
        ("seed9223372036854775808", "seed=9223372036854775808, but must be from 0 to 922"),
        (f"sched{2**62}", f"schedule={2**62}, but must be from 0 to {2**62 - 1}"),
        ("g2_ci3_co2", "token 'g2': groups=2, but must divide in_channels=3 (token 'ci3')"),
        ("g2_ci2_co5", "token 'g2': groups=2, but must divide out_channels=5 (token 'co5')"),
        ("g2", "token 'g2': groups=2, but must divide in_channels=1 (token 'ci1')"),
        ("k3_op1", "token 'op1': output_padding[0]=1, but must be less than stride[0]=1 or dil"),
        ("s2_d1x1x3_op1x1x3", "token 'op1x1x3': output_padding[2]=3, but must be less than st"),
        (
            "k3_p1x2x1",
            "token 'p1x2x1': padding[1]=2 makes output_size[1]=-1, but must be at most 1",
        ),
        ("i2_k2_p2", "token 'p2': padding[0]=2 makes output_size[0]=-1, but must be at most 1"),
        ("i2_s2_k1_op1_p2", "padding[0]=2 makes output_size[0]=0, but must be at most 1"),
    ],
)
def test_a_bad_case_string_is_refused_with_its_token(text: str, message: str) -> None:
    with pytest.raises(CaseError, match=re.escape(message)):
        parse_case(text)


@pytest.mark.parametrize(
    "text", ["g2_ci4_co2", "s2_op1", "d3_op2", "s2x1x1_d1x1x2_op1x0x1", "k3_p1", "i2_s2_op1_p1"]
)
def test_values_that_just_go_together_are_accepted(text: str) -> None:
    assert all(size >= 1 for size in parse_case(text).output_size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_size": [3, 3, 3]}, "kernel_size=[3, 3, 3], but must be a tuple of three numbers"),
        ({"kernel_size": 3}, "kernel_size=3, but must be a tuple of three numbers"),
        ({"stride": (1, 1)}, "stride=(1, 1), but must be a tuple of three numbers"),
        ({"n": 1.0}, "n=1.0, but must be from 1"),
        ({"n": True}, "n=True, but must be from 1"),
        ({"padding": (0, -1, 0)}, "padding=(0, -1, 0), but must be from 0"),
        ({"dtype": "fp16"}, "dtype='fp16', but must be one of ('f64', 'f32', 'tf32', "),
        ({"bias": 1}, "bias=1, but must be one of (False, True)"),
        ({"lane": "real"}, "lane='real', but must be one of ('int', 'normal', 'special')"),
        ({"forward_plan": "a_b"}, "forward_plan='a_b', but must be made of a-z, 0-9 and '.'"),
        ({"groups": 2}, "groups=2, but must divide in_channels=1"),
    ],
)
def test_no_case_can_be_made_that_its_string_would_not_give_back(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(CaseError, match=re.escape(message)):
        Case(**values)  # type: ignore[arg-type]
    with pytest.raises(CaseError, match=re.escape(message)):
        replace(Case(), **values)  # type: ignore[arg-type]


def test_properties_of_the_example() -> None:
    case = parse_case("n2_g2_ci4_co6_i2x3x4_k1x2x3_s2_p0x0x1_op1x0x0_d2")
    assert case.input_shape == (2, 4, 2, 3, 4)
    assert case.weight_shape == (4, 3, 1, 2, 3)
    assert case.output_size == (4, 7, 9)
    assert case.output_shape == (2, 6, 4, 7, 9)
    assert case.multiply_adds == 2 * 4 * 3 * (1 * 2 * 3) * (2 * 3 * 4)
    assert case.parameters == Parameters((2, 2, 2), (0, 0, 1), (1, 0, 0), (2, 2, 2), 2)


@pytest.mark.parametrize(
    ("text", "device", "there"),
    [
        ("f32_int_tsan_sched3", "emulator", "f32_int_tsan_sched3"),
        ("f32_int_tsan_sched3", "cuda", "f32_int_sched3"),
        ("f32_int_memcheck", "cuda", "f32_int_memcheck"),
        ("f32_int_delayed", "emulator", "f32_int"),
        ("f32_far_int", "emulator", "f32_far_int"),
        ("f32_far_int", "cuda", "f32_int"),
        ("f32_cl_int", "cuda", "f32_cl_int"),
    ],
)
def test_a_device_leaves_aside_the_mode_and_the_layout_that_it_has_not(
    text: str, device: str, there: str
) -> None:
    assert parse_case(text).on(device) == parse_case(there)


def test_cases_are_values() -> None:
    assert pickle.loads(pickle.dumps(EXAMPLE_CASE)) == EXAMPLE_CASE
    assert len({EXAMPLE_CASE, parse_case(EXAMPLE), Case()}) == 2
    with pytest.raises(FrozenInstanceError):
        EXAMPLE_CASE.n = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "is_beyond"),
    [
        ("f32_i5_k3_s2_p1_d2_int", False),
        ("f32_k3x1x1_d2147483639x1x1_p2147483638x0x0_int", False),  # both numbers overflow
        ("f32_k1x3x1_p0x1073736825x0_d1x1073741824x1_int", True),  # seen: the oracle refused
        ("f32_i3x1x1_s1073741824x1x1_p1073741824x0x0_int", True),
    ],
)
def test_a_case_that_torch_cannot_take_is_known_by_its_numbers(text: str, is_beyond: bool) -> None:
    assert parse_case(text).is_beyond_torch == is_beyond
