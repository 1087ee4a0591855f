"""Tensors whose elements lie terabytes apart: they hold their values, and damage around them is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convt3d import launch, params
from fuzz import bounds, checks, data, subjects
from fuzz.arena import DTYPES, GUARD_BYTES, Placed
from fuzz.case import Case, CaseError, parse_case
from fuzz.far_memory import FAR_STRIDE, MOST_SLABS, FarMemory
from fuzz.machine import has_room_for_far_tensors
from fuzz.number import encode
from fuzz.outcome import Verdict
from fuzz.plans import candidate_plans, check_plans

pytestmark = pytest.mark.skipif(
    not has_room_for_far_tensors(), reason="the system never overcommits memory"
)

SHAPE = (2, 3, 1, 2, 2)
CASE = parse_case("f32_n2_g2_ci4_co6_i2x3x4_k3_s2_p1_op1_bias_far_int_seed1")


def placed(dtype: str = "f32") -> Placed:
    values = np.arange(24, dtype=np.float64).reshape(SHAPE)
    return Placed("input", encode(values, dtype), DTYPES[dtype], False)


@pytest.mark.parametrize("dtype", [*DTYPES])
def test_an_input_holds_its_values(dtype: str) -> None:
    (tensor,) = FarMemory(0).begin([placed(dtype)])
    assert tensor.double().flatten().tolist() == list(range(24))


def test_the_far_axis_moves_on_with_every_tensor_and_is_never_one_of_length_1() -> None:
    tensors = FarMemory(1).begin([placed()] * 4)
    far = [tensor.stride().index(FAR_STRIDE) for tensor in tensors]
    assert far == [1, 3, 4, 0]
    assert all(sorted(tensor.stride())[-2] < 24 for tensor in tensors)


def test_a_long_axis_is_no_far_axis() -> None:
    shape = (1, 2, 1, 1, MOST_SLABS + 1)
    tensors = [FarMemory(i).allocate("output", shape, torch.float32, False) for i in range(4)]
    assert [tensor.stride().index(FAR_STRIDE) for tensor in tensors] == [1] * 4
    alone = FarMemory(0).allocate("output", (1, 1, 1, 1, 70_000), torch.float32, False)
    assert alone.is_contiguous()


@pytest.mark.parametrize("shape", [(7,), (3, 40), (1, 1, 1, 1, 1), (0,)])
def test_a_workspace_a_bias_and_a_single_element_are_contiguous(shape: tuple[int, ...]) -> None:
    tensor = FarMemory(0).allocate("a result", shape, torch.float32, False)
    assert tensor.shape == shape
    assert tensor.is_contiguous()


def test_a_written_result_comes_back_without_damage() -> None:
    memory = FarMemory(0)
    memory.begin([placed()])
    result = memory.allocate("output", SHAPE, torch.float32, False)
    result.copy_(torch.arange(24.0).reshape(SHAPE))
    raw, damage = memory.finish({"output": result})
    assert damage == []
    assert raw["output"].view(np.float32).ravel().tolist() == list(range(24))


def test_an_element_that_was_not_written_is_damage() -> None:
    memory = FarMemory(0)
    result = memory.allocate("output", SHAPE, torch.float16, False)
    result[1:] = 1
    assert memory.finish({"output": result})[1] == [
        "12 of 24 elements of output still hold the poison: "
        "never written, or computed from memory that was not"
    ]


def test_a_changed_input_is_damage() -> None:
    memory = FarMemory(0)
    (tensor,) = memory.begin([placed()])
    tensor[1, 2, 0, 1, 1] = 5
    assert memory.finish({})[1] == ["input was overwritten"]


@pytest.mark.parametrize("offset", [-1, 12])
def test_a_write_beside_a_slab_is_damage(offset: int) -> None:
    memory = FarMemory(0)
    (tensor,) = memory.begin([placed()])
    start = tensor.storage_offset() + FAR_STRIDE + offset
    assert abs(offset) < GUARD_BYTES
    tensor.as_strided((1,), (1,), start).zero_()
    assert memory.finish({})[1] == ["4 bytes written out of bounds, around input"]


@pytest.mark.parametrize("seed", range(5))
def test_convt3d_is_right_on_far_tensors(seed: int) -> None:
    case = parse_case(
        f"{CASE}_fwd=tiled.i64_gin=tiled.i64_gwt=tiled.i64.split3".replace("seed1", f"seed{seed}")
    )
    outcome = subjects.convt3d(case)
    judgement = checks.judge(case, bounds.expect(case, data.generate(case)), outcome, "convt3d")
    assert judgement.verdict is Verdict.PASS, judgement


def test_a_kernel_that_drops_strides_is_wrong_on_far_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "make_strides", lambda strides: params.Strides(0, 0))
    # What is made now must not be remembered.
    monkeypatch.setattr(launch, "_ready", launch.Remembered())
    for template in ("_gather_template", "_weight_template"):
        monkeypatch.setattr(launch, template, getattr(launch, template).__wrapped__)
    outcome = subjects.convt3d(CASE)
    judgement = checks.judge(CASE, bounds.expect(CASE, data.generate(CASE)), outcome, "convt3d")
    assert judgement.verdict is Verdict.WRONG


def test_far_cases_have_64_bit_plans_only() -> None:
    names = [name for plans in candidate_plans(CASE).values() for name in plans]
    assert names and not any("i32" in name for name in names)
    with pytest.raises(CaseError, match=r"fwd=tiled.i32.*offsets of layout 'far' need 64 bits"):
        check_plans(parse_case(f"{CASE}_fwd=tiled.i32"))


@pytest.mark.parametrize("mode", ["asan", "tsan", "memcheck"])
def test_a_sanitizer_takes_no_far_case(mode: str) -> None:
    with pytest.raises(CaseError, match=f"mode='{mode}', but must be one of"):
        Case(layout="far", mode=mode)
