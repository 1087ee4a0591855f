"""The three subjects run cases as the judge expects them to, in memory where damage shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from convt3d import launch, plan
from convt3d.emulator import runtime
from fuzz import bounds, checks, corpus, data, subjects
from fuzz.arena import Arena
from fuzz.case import Case, parse_case
from fuzz.outcome import Judgement, Outcome, Verdict

CASE = parse_case("f32_n2_g2_ci4_co6_i2x3x4_k3_s2_p1_op1_bias_int_seed1")


@pytest.fixture(autouse=True)
def on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    assert runtime.current_schedule() == 0


def judged(case: Case, outcome: Outcome, leg: str = "convt3d") -> Judgement:
    return checks.judge(case, bounds.expect(case, data.generate(case)), outcome, leg)


@pytest.mark.parametrize(
    "entry", corpus.load_all(corpus.DIRECTORY), ids=lambda entry: str(entry.case)
)
def test_convt3d_and_the_oracle_pass_the_corpus(entry: Any) -> None:
    for leg in ("convt3d", "oracle"):
        judgement = judged(entry.case, getattr(subjects, leg)(entry.case), leg)
        assert judgement.verdict in (Verdict.PASS, Verdict.MISTRUSTED), judgement


@pytest.mark.skipif(
    torch.__version__.startswith("2.0."), reason="native has no float16 on a CPU in PyTorch 2.0"
)
def test_native_runs_in_the_dtype_of_the_case() -> None:
    case = parse_case("f16_ci3_co2_i2_k2_normal")
    outcome = subjects.native(case)
    assert {raw.dtype.itemsize for raw in outcome.results.values()} == {2}
    assert judged(case, outcome, "native").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("seed", "gradient"), [(5, "grad_input"), (13, "grad_weight"), (21, "grad_bias"), (4, None)]
)
def test_a_gradient_is_asked_for_alone_where_the_seed_says_so(
    seed: int, gradient: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASE, seed=seed)
    assert subjects.gradient_alone(case) == gradient
    assert subjects.gradient_alone(replace(case, bias=False)) in (gradient, "grad_input")
    assert judged(case, subjects.convt3d(case)).verdict is Verdict.PASS
    weight_gradient = launch.weight_gradient

    def forgets(geometry: Any, *tensors: Any) -> Any:
        ran = weight_gradient(geometry, *tensors)
        if (tensors[2] is None) != (tensors[3] is None):  # one of the two
            for tensor in tensors[2:]:
                if tensor is not None:
                    tensor.zero_()
        return ran

    monkeypatch.setattr(launch, "weight_gradient", forgets)
    judgement = judged(case, subjects.convt3d(case))
    if gradient in ("grad_weight", "grad_bias"):
        assert judgement.check == "subset"
        assert judgement.detail == f"{gradient} is another when it is asked for alone"
    else:
        assert judgement.verdict is Verdict.PASS


@pytest.mark.parametrize("name", ["tiled.i64", "direct.i32"])
def test_the_plan_that_a_case_names_is_the_one_that_runs(name: str) -> None:
    text = f"{CASE}_fwd={name}_gin={name}_gwt={name}"
    assert subjects.convt3d(parse_case(text)).plans == dict.fromkeys(plan.PRIMITIVES, name)


def test_a_bias_gradient_comes_back_only_where_there_is_a_bias() -> None:
    assert "grad_bias" in subjects.convt3d(CASE).results
    assert "grad_bias" not in subjects.convt3d(parse_case("f32_i2_k2_int")).results


def test_a_case_that_does_not_fit_the_arena_runs_in_a_larger_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Arena(torch.device("cpu"), 1 << 13)
    monkeypatch.setattr(subjects, "_memory", lambda device: small)
    assert judged(CASE, subjects.convt3d(CASE)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, w, y: x.view(-1)[:1].fill_(7), "input was overwritten"),
        (lambda x, w, y: w.view(-1)[-1:].fill_(7), "weight was overwritten"),
        (lambda x, w, y: y.view(-1)[:2].view(torch.int32).fill_(-1), "2 of .* never written"),
        (
            lambda x, w, y: torch.as_strided(y, (1,), (1,), y.storage_offset() + y.numel()).zero_(),
            "4 bytes written out of bounds, first 0 bytes after the end of a result",
        ),
    ],
)
def test_what_a_launch_spoils_is_damage_and_wrong(
    spoil: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = launch.gather

    def spoiling(primitive: str, geometry: Any, source: Tensor, weight: Tensor, *rest: Any) -> Any:
        ran = gather(primitive, geometry, source, weight, *rest)
        if primitive == "forward":
            with torch.no_grad():
                spoil(source.detach(), weight.detach(), rest[-1])
        return ran

    monkeypatch.setattr(launch, "gather", spoiling)
    outcome = subjects.convt3d(CASE)
    assert len(outcome.damage) == 1
    judgement = judged(CASE, outcome)
    assert judgement.verdict is Verdict.WRONG
    assert re.search(message, judgement.detail), judgement.detail


def test_a_twin_runs_first_where_the_seed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Case] = []

    def run(case: Case) -> Outcome:
        ran.append(case)
        return Outcome("ok")

    monkeypatch.setattr(subjects, "_run_convt3d", run)
    case = replace(CASE, seed=19)
    subjects.convt3d(case)
    assert ran == [replace(case, seed=18), case]
    ran.clear()
    case = replace(CASE, seed=7)
    subjects.convt3d(case)
    assert ran == [replace(case, layout="cl"), case]
    ran.clear()
    subjects.convt3d(CASE)
    assert ran == [CASE]
