"""Which calls are taken and which refused, against PyTorch's op with cuDNN; empty tensors and invalid arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, note

import convt3d
from tests import empty_calls, invalid_calls
from tests import operator_checks as checks

EMPTY = {**empty_calls.TAKEN, **empty_calls.TAKEN_ON_A_GPU}
native: Any = torch.nn.functional.conv_transpose3d


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=checks.name_of)
@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors_that_native_takes_are_taken(name: str, dtype: torch.dtype) -> None:
    input, weight, bias, options = EMPTY[name]
    operands = [torch.ones(shape, device="cuda", dtype=dtype) for shape in (input, weight)]
    of_channels = None if bias is None else torch.ones(bias, device="cuda", dtype=dtype)
    expected = native(*operands, of_channels, **options)
    # Native's own backward fails on some of these, inside cuDNN.
    output, *gradients = empty_calls.ours(EMPTY, name, "cuda", dtype)
    empty_calls.assert_same([output], [expected])
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", empty_calls.REFUSED)
def test_empty_tensors_that_native_refuses_are_refused_with_its_type(name: str) -> None:
    with pytest.raises((RuntimeError, IndexError)) as expected:
        empty_calls.native(empty_calls.REFUSED, name, "cuda", torch.float32)
    with pytest.raises((RuntimeError, IndexError)) as got:
        empty_calls.ours(empty_calls.REFUSED, name, "cuda", torch.float32)
    assert got.type is expected.type


@given(call=invalid_calls.calls())
def test_calls_are_refused_where_native_refuses_them_and_with_its_type(
    call: dict[str, Any],
) -> None:
    note(invalid_calls.described(call))
    got = invalid_calls.outcome(convt3d.conv_transpose3d, call, "cuda")
    if isinstance(got, tuple) and 0 in got[0]:
        return  # whether native takes them depends on the algorithm that it picks
    assert got == invalid_calls.outcome(native, call, "cuda")


@pytest.mark.parametrize("on_cpu", ["input", "weight", "bias"])
def test_operands_on_two_devices_are_refused(on_cpu: str) -> None:
    call = {
        "input": torch.ones(1, 2, 2, 2, 2, device="cuda"),
        "weight": torch.ones(2, 3, 2, 2, 2, device="cuda"),
        "bias": torch.ones(3, device="cuda"),
    }
    call[on_cpu] = call[on_cpu].cpu()
    for function in (native, convt3d.conv_transpose3d):
        with pytest.raises(RuntimeError, match=r"cpu|same"):
            function(**call)
