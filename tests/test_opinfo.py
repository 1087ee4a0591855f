"""PyTorch's own samples for conv_transpose3d and ConvTranspose3d pass on convt3d, on the emulator."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from tests import moduleinfo_checks as module_checks
from tests import opinfo_checks as checks
from tests.operator_checks import name_of
from tests.opinfo_checks import OURS

pytestmark = pytest.mark.filterwarnings(
    "ignore:Complex modules are a new feature:UserWarning",
    # PyTorch 2.0 maps torch.complex in a loop, and says so.
    "ignore:There is a performance drop:UserWarning",
)

each_dtype = pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
each_double = pytest.mark.parametrize("dtype", checks.DOUBLES, ids=name_of)


def test_every_dtype_of_the_op_is_tried_except_integers() -> None:
    assert checks.op_info().dtypes - {*checks.DTYPES} == {torch.int64}


def test_integers_are_refused() -> None:
    checks.check_refusal("cpu", torch.int64)


@each_dtype
def test_output_and_gradients_are_right(dtype: torch.dtype) -> None:
    checks.check_results("cpu", dtype)


@each_dtype
def test_output_and_gradients_lie_as_those_of_native(dtype: torch.dtype) -> None:
    checks.check_layout("cpu", dtype)


@each_dtype
def test_tensors_that_are_not_contiguous_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cpu", dtype, checks.non_contiguous)


@each_double
def test_negative_views_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cpu", dtype, checks.negative_view)


@pytest.mark.parametrize("dtype", checks.COMPLEX, ids=name_of)
def test_conjugate_views_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cpu", dtype, checks.conjugate_view)


def test_negative_conjugate_views_give_the_same_bits() -> None:
    checks.check_view("cpu", torch.complex128, checks.negative_conjugate_view)


@each_double
def test_first_derivatives_match_finite_differences(dtype: torch.dtype) -> None:
    checks.check_first_derivatives("cpu", dtype)


# In complex numbers either takes 12 s, and gradients that are not contiguous ask more.
@pytest.mark.parametrize(
    ("dtype", "contiguous"),
    [(torch.float64, True), (torch.float64, False), (torch.complex128, False)],
    ids=name_of,
)
def test_second_derivatives_match_finite_differences(dtype: torch.dtype, contiguous: bool) -> None:
    checks.check_second_derivatives("cpu", dtype, contiguous)


@each_double
def test_tangents_are_those_of_native(dtype: torch.dtype) -> None:
    checks.check_forward_mode("cpu", dtype)


@each_double
def test_vmap_gives_what_a_loop_gives(dtype: torch.dtype) -> None:
    checks.check_vmap("cpu", dtype)


def test_vmap_of_gradients_gives_what_a_loop_gives() -> None:
    checks.check_vmap_of_gradients("cpu", torch.float64)


@pytest.mark.parametrize("dtype", module_checks.DTYPES, ids=name_of)
class TestModule:
    """What PyTorch's test_modules.py asks of torch.nn.ConvTranspose3d."""

    def test_output_and_gradients_are_right(self, dtype: torch.dtype) -> None:
        module_checks.check_results("cpu", dtype)

    def test_it_is_constructed_as_native_is(self, dtype: torch.dtype) -> None:
        module_checks.check_construction("cpu", dtype)

    def test_copies_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_copies("cpu", dtype)

    def test_memory_formats_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_memory_format("cpu", dtype)

    def test_tensors_that_are_not_contiguous_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_non_contiguous("cpu", dtype)


@each_double
def test_derivatives_of_the_module_match_finite_differences(dtype: torch.dtype) -> None:
    module_checks.check_derivatives("cpu", dtype)


def test_every_dtype_of_the_module_is_tried() -> None:
    assert {*module_checks.module_info().dtypes} == {*module_checks.DTYPES}


# ---- the checks themselves ----------------------------------------------------------------------


@each_dtype
def test_a_number_outside_its_bound_is_found(dtype: torch.dtype) -> None:
    sample = checks.samples("cpu", dtype)[0]
    ours, native = (checks.as_called(each, sample) for each in (checks.OURS, checks.NATIVE))
    operands = checks.operands_of(sample)
    grad_output = checks.random_like_output(ours, operands)
    results = checks.results(ours, operands, grad_output)
    for index, answer in enumerate(checks.exact(native, operands, grad_output)):
        bound = float(checks.allowed(*answer, dtype).flat[0])
        off = answer[0].clone()
        off.view(-1)[0] += 3 * bound  # off by twice the bound at least after rounding to dtype
        got = [*results[:index], off.to(dtype), *results[index + 1 :]]
        with pytest.raises(AssertionError, match=f"result {index}: 1 of"):
            checks.assert_right(got, native, operands, grad_output)


def inexact(*operands: Tensor, **options: Any) -> Tensor:
    return OURS(*operands, **options) * (1 + 1e-6)


def transposed(*operands: Tensor, **options: Any) -> Tensor:
    return OURS(*operands, **options).mT.contiguous().mT


def blind_to_negation(input: Tensor, *rest: Tensor, **options: Any) -> Tensor:
    return OURS(input.neg() if input.is_neg() else input, *rest, **options)


def half_a_gradient(*operands: Tensor, **options: Any) -> Tensor:
    output = OURS(*operands, **options)
    return (output + output.detach()) / 2


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (inexact, checks.check_results),
        (inexact, checks.check_forward_mode),
        (half_a_gradient, checks.check_results),
        (transposed, checks.check_layout),
        (blind_to_negation, functools.partial(checks.check_view, view=checks.negative_view)),
    ],
    ids=lambda value: getattr(value, "__name__", "check_view"),
)
def test_an_op_that_is_wrong_is_found(
    wrong: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "OURS", wrong)
    with pytest.raises((AssertionError, GradcheckError)):
        check("cpu", torch.float64)


def test_a_function_that_notices_vmap_is_found() -> None:
    def notices(tensor: Tensor) -> tuple[Tensor]:
        return (tensor + torch._C._functorch.is_batchedtensor(tensor),)

    with pytest.raises(AssertionError, match="not close"):
        checks.assert_maps(notices, [torch.ones(3)], (0,))
