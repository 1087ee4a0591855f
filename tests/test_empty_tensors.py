"""Sizes of 0: taken where PyTorch's op takes them on a GPU, else refused with its type of exception."""

from __future__ import annotations

import pytest
import torch

import convt3d
from tests import empty_calls as calls
from tests import operator_checks as checks

TAKEN = {**calls.TAKEN, **calls.TAKEN_ON_A_GPU}


pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("name", calls.TAKEN)
def test_what_native_takes_is_taken(name: str) -> None:
    dtype = torch.float32  # oneDNN takes empty outputs in this one alone
    expected = calls.native(calls.TAKEN, name, "cpu", dtype)
    calls.assert_same(calls.ours(calls.TAKEN, name, "cpu", dtype), expected)


@pytest.mark.parametrize("dtype", checks.DTYPES, ids=checks.name_of)
@pytest.mark.parametrize("name", TAKEN)
def test_gradients_to_which_nothing_contributes_are_zero(name: str, dtype: torch.dtype) -> None:
    output, *gradients = calls.ours(TAKEN, name, "cpu", dtype)
    assert not output.numel()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", calls.REFUSED)
def test_what_native_refuses_is_refused_with_its_type(name: str) -> None:
    with pytest.raises((RuntimeError, IndexError)) as native:
        calls.native(calls.REFUSED, name, "cpu", torch.float32)
    with pytest.raises((RuntimeError, IndexError)) as ours:
        calls.ours(calls.REFUSED, name, "cpu", torch.float32)
    assert ours.type is native.type


@pytest.mark.parametrize("name", [*TAKEN, *calls.REFUSED])
def test_meta_tensors_are_treated_alike(name: str) -> None:
    if name in calls.REFUSED:
        with pytest.raises((RuntimeError, IndexError)):
            calls.ours(calls.REFUSED, name, "meta", torch.float32)
        return
    real, meta = (calls.ours(TAKEN, name, device, torch.float32) for device in ("cpu", "meta"))
    for one, other in zip(real, meta, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_second_derivatives_of_an_empty_output_are_zero() -> None:
    input = torch.ones(1, 2, 1, 3, 3, dtype=torch.float64).requires_grad_()
    weight = torch.ones(2, 3, 2, 2, 2, dtype=torch.float64).requires_grad_()
    output = convt3d.conv_transpose3d(input, weight, padding=(1, 0, 0))
    (first,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert not second.any()


@pytest.mark.parametrize("change", [{"output_padding": 1}, {"dilation": 0}, {"stride": 0}])
def test_a_wrong_argument_is_refused_on_an_empty_batch_too(change: dict[str, int]) -> None:
    name = next(iter(change))
    with pytest.raises(RuntimeError, match=rf"{name}\[0\]={change[name]}, but"):
        convt3d.conv_transpose3d(torch.ones(0, 2, 3, 3, 3), torch.ones(2, 3, 2, 2, 2), **change)  # type: ignore[arg-type]
