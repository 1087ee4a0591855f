"""Faults in the reference and in the native leg: the verdict names who is wrong, and nobody else."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest

import reference
from fuzz.case import parse_case
from fuzz.legs import Legs
from fuzz.outcome import Verdict
from reference import scatter
from tests.faulty_subjects import NATIVE_FAULTS

# In float64, which native computes without oneDNN, so that a defect of native's own is no part of this.
CASE = parse_case("f64_n2_g2_ci4_co6_i3x4x5_k3x2x3_s2x3x1_p1x1x0_op1x0x0_d1x2x2_bias_int")

# name -> a text that occurs once in reference/scatter.py, and what stands there instead.
REFERENCE_FAULTS = {
    "output_padding_subtracted_from_the_coordinate": (
        "parameters.dilation[axis] - parameters.padding[axis]\n",
        "parameters.dilation[axis] - parameters.padding[axis] - parameters.output_padding[axis]\n",
    ),
    "dilation_ignored": ("shift = tap * parameters.dilation[axis]", "shift = tap"),
    "stride_of_the_first_axis": (
        "stride = parameters.stride[axis]\n",
        "stride = parameters.stride[0]\n",
    ),
    "last_tap_missing": ("range(weight_shape[2 + axis])", "range(weight_shape[2 + axis] - 1)"),
    "groups_in_reverse": ("k = weight[tap]", "k = weight[tap][::-1]"),
    "bias_forgotten": ("output += bias[:, None, None, None]", "pass"),
    "bias_of_the_wrong_channel": ("output += bias[", "output += bias[::-1]["),
    "last_contribution_wins_in_grad_input": ("to_input += ", "to_input[...] = "),
    "grad_weight_of_the_first_sample": (
        "grad_weight[tap] = x @ g.swapaxes(1, 2)",
        "grad_weight[tap] = x[..., : positions // n] @ g[..., : positions // n].swapaxes(1, 2)",
    ),
    "grad_bias_of_the_first_sample": (
        "grad_output.sum(axis=(0, 2, 3, 4))",
        "grad_output[0].sum(axis=(1, 2, 3))",
    ),
}


@pytest.fixture(scope="module")
def legs() -> Iterator[Legs]:
    with Legs("tests.faulty_subjects") as three:
        three.await_ready()
        yield three


def plant(right: str, wrong: str, patch: pytest.MonkeyPatch) -> None:
    """Plants a fault in the reference of this process, which judges; the subjects' processes have none."""
    text = inspect.getsource(scatter)
    assert text.count(right) == 1, f"{right!r} occurs {text.count(right)} times"
    faulty = ModuleType("faulty_scatter")
    patch.setitem(sys.modules, "faulty_scatter", faulty)
    exec(compile(text.replace(right, wrong), "faulty_scatter.py", "exec"), vars(faulty))
    for name in ("evaluate", "magnitude", "products"):
        patch.setattr(reference, name, getattr(faulty, name))


def test_without_a_fault_all_pass(legs: Legs) -> None:
    assert legs.examine(CASE).failing_legs() == ()


@pytest.mark.parametrize("lane", ["int", "normal"])
@pytest.mark.parametrize("name", REFERENCE_FAULTS)
def test_a_fault_in_the_reference_is_the_references(
    legs: Legs, monkeypatch: pytest.MonkeyPatch, name: str, lane: str
) -> None:
    with monkeypatch.context() as patch:
        plant(*REFERENCE_FAULTS[name], patch)
        examination = legs.examine(replace(CASE, lane=lane))
    assert examination.failing_legs() == ("reference",), examination.card("here")
    assert examination.judgements["reference"].verdict is Verdict.WRONG
    assert examination.card("here", "reference").startswith("WRONG      reference")


def test_bounds_that_are_too_tight_are_the_references(
    legs: Legs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are right; what it says of their magnitude, which the bounds come from, is not."""
    with monkeypatch.context() as patch:
        absolute = (
            "return evaluate(np.abs(input), np.abs(weight), absolute_bias, np.abs(grad_output)"
        )
        plant(absolute, absolute.replace("np.abs(weight)", "0 * weight"), patch)
        examination = legs.examine(replace(CASE, lane="normal"))
    assert examination.failing_legs() == ("reference",), examination.card("here")
    assert examination.judgements["reference"].check == "bound"


@pytest.mark.parametrize("seed", range(1, len(NATIVE_FAULTS) + 1), ids=lambda seed: _name(seed))
def test_a_fault_in_native_is_natives(legs: Legs, seed: int) -> None:
    examination = legs.examine(replace(CASE, seed=seed))
    assert examination.failing_legs() == ("native",)
    assert examination.judgements["native"].verdict == NATIVE_FAULTS[seed - 1][1]
    for leg in ("convt3d", "oracle"):
        assert examination.judgements[leg].verdict is Verdict.PASS


def _name(seed: int) -> str:
    return NATIVE_FAULTS[seed - 1][0].__name__
