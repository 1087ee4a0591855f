"""Damage done to an arena is seen; what a subject may do is not called damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuzz.arena import DTYPES, GUARD_BYTES, POISON, TAIL_BYTES, Arena, ArenaFull, Placed
from fuzz.number import encode

SHAPE = (2, 3, 1, 2, 2)


@pytest.fixture
def arena() -> Arena:
    return Arena(torch.device("cpu"), 1 << 20)


def placed(dtype: str = "f32", channels_last: bool = False, name: str = "input") -> Placed:
    values = np.arange(24, dtype=np.float64).reshape(SHAPE)
    return Placed(name, encode(values, dtype), DTYPES[dtype], channels_last)


def bytes_around(tensor: Tensor, before: int, after: int) -> NDArray[np.uint8]:
    """The memory around a tensor, to be written to as a kernel out of bounds would."""
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.element_size()
    end = start + tensor.numel() * tensor.element_size()
    view: NDArray[np.uint8] = storage[start - before : end + after].numpy()
    return view


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES])
def test_an_input_holds_its_values_in_its_layout(
    arena: Arena, dtype: str, channels_last: bool
) -> None:
    (tensor,) = arena.begin([placed(dtype, channels_last)])
    assert tensor.dtype is DTYPES[dtype]
    assert tensor.shape == SHAPE
    assert tensor.double().flatten().tolist() == list(range(24))
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert tensor.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_written_result_comes_back_bit_for_bit_and_without_damage(
    arena: Arena, channels_last: bool
) -> None:
    arena.begin([placed()])
    result = arena.allocate("output", SHAPE, torch.float32, channels_last)
    result.copy_(torch.arange(24.0).reshape(SHAPE))
    raw, damage = arena.finish({"output": result})
    assert damage == []
    assert raw["output"].dtype == np.uint32
    assert raw["output"].view(np.float32).ravel().tolist() == list(range(24))


def test_a_result_in_memory_of_its_own_comes_back_too(arena: Arena) -> None:
    arena.begin([placed()])
    own = torch.arange(6.0, dtype=torch.float16).reshape(2, 3).t()
    raw, damage = arena.finish({"own": own, "other": torch.tensor([2.5], dtype=torch.float64)})
    assert damage == []
    assert raw["own"].view(np.float16).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert raw["other"].view(np.float64).tolist() == [2.5]


def test_a_result_that_is_one_element_of_a_strided_tensor_comes_back_too(arena: Arena) -> None:
    arena.begin([placed()])
    raw, damage = arena.finish({"element": torch.arange(4.0)[1::2][1:]})
    assert damage == []
    assert raw["element"].view(np.float32).tolist() == [3]


@pytest.mark.parametrize("dtype", [*DTYPES])
def test_one_element_that_was_never_written_is_seen(arena: Arena, dtype: str) -> None:
    arena.begin([])
    result = arena.allocate("output", SHAPE, DTYPES[dtype], False)
    result.view(-1)[1:] = float("nan")  # a computed NaN is no poison
    _, damage = arena.finish({"output": result})
    assert damage == [
        "1 of 24 elements of output still hold the poison: "
        "never written, or computed from memory that was not"
    ]


@pytest.mark.parametrize("distance", [1, GUARD_BYTES, TAIL_BYTES])
def test_a_write_behind_the_last_tensor_is_seen(arena: Arena, distance: int) -> None:
    (tensor,) = arena.begin([placed()])
    bytes_around(tensor, 0, distance)[-1] = 0
    _, damage = arena.finish({})
    assert len(damage) == 1
    assert f"1 bytes written out of bounds, first {distance - 1} bytes after the end" in damage[0]


def test_a_write_before_the_first_tensor_and_one_between_two_are_seen(arena: Arena) -> None:
    first, _ = arena.begin([placed(), placed(name="weight")])
    around = bytes_around(first, 1, 1)
    around[0] = around[-1] = 0
    _, damage = arena.finish({})
    assert len(damage) == 2
    assert "before input" in damage[0]
    assert "after the end of input, before weight" in damage[1]


def test_a_changed_input_is_seen(arena: Arena) -> None:
    (tensor,) = arena.begin([placed(channels_last=True)])
    tensor[1, 2, 0, 1, 1] = -1
    assert arena.finish({})[1] == ["input was overwritten"]


def test_damage_is_gone_with_the_case_that_did_it(arena: Arena) -> None:
    (tensor,) = arena.begin([placed()])
    bytes_around(tensor, 100, 4000)[:] = 0
    arena.begin([placed()])
    result = arena.allocate("output", (1000,), torch.float32, False)
    assert (bytes_around(result, 0, 0) == POISON).all()
    result.zero_()
    assert arena.finish({"output": result})[1] == []


def test_a_far_write_does_not_reach_the_next_case(arena: Arena) -> None:
    (tensor,) = arena.begin([placed()])
    bytes_around(tensor, 0, 50_000)[-1] = 0
    arena.begin([placed()])
    result = arena.allocate("output", (20_000,), torch.float32, False)
    assert (bytes_around(result, 0, 0) == POISON).all()


def test_a_full_arena_grows(arena: Arena) -> None:
    arena.begin([])
    with pytest.raises(ArenaFull, match=r"output of shape \(1000000,\)"):
        arena.allocate("output", (1_000_000,), torch.float32, False)
    for _ in range(3):
        arena.grow()
    arena.begin([])
    result: Any = arena.allocate("output", (1_000_000,), torch.float32, False)
    result.zero_()
    assert arena.finish({"output": result})[1] == []
