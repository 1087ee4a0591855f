"""Whatever native refuses is refused, with the same type of exception, and nothing else; drawn by Hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, note

import convt3d
from tests import invalid_calls

native: Any = torch.nn.functional.conv_transpose3d


@given(call=invalid_calls.calls())
def test_calls_are_refused_where_native_refuses_them_and_with_its_type(
    call: dict[str, Any],
) -> None:
    note(invalid_calls.described(call))
    with torch.backends.mkldnn.flags(enabled=False):
        expected = invalid_calls.outcome(native, call, "cpu")
    got = invalid_calls.outcome(convt3d.conv_transpose3d, call, "cpu")
    if isinstance(got, tuple) and 0 in got[0]:
        return  # test_empty_tensors.py compares these
    assert got == expected


@given(call=invalid_calls.calls())
def test_meta_tensors_are_refused_where_real_ones_are(call: dict[str, Any]) -> None:
    note(invalid_calls.described(call))
    expected = invalid_calls.outcome(convt3d.conv_transpose3d, call, "cpu")
    assert invalid_calls.outcome(convt3d.conv_transpose3d, call, "meta") == expected


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70])
@pytest.mark.parametrize("name", [*invalid_calls.PER_AXIS, "groups"])
def test_an_integer_beyond_64_bits_is_a_value_error(name: str, value: int) -> None:
    call = {"input": torch.ones(1, 1, 1, 1, 1), "weight": torch.ones(1, 1, 1, 1, 1), name: value}
    assert invalid_calls.outcome(convt3d.conv_transpose3d, call, "cpu") is ValueError
    if not invalid_calls.IS_TORCH_2_0:  # which raises RuntimeError
        assert invalid_calls.outcome(native, call, "cpu") is ValueError
