"""PyTorch's own samples for conv_transpose3d and ConvTranspose3d pass on convt3d, on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests import moduleinfo_checks as module_checks
from tests import opinfo_checks as checks
from tests.operator_checks import name_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:Complex modules are a new feature:UserWarning",
    # PyTorch 2.0 maps torch.complex in a loop, and says so.
    "ignore:There is a performance drop:UserWarning",
)

each_dtype = pytest.mark.parametrize("dtype", checks.DTYPES, ids=name_of)
each_double = pytest.mark.parametrize("dtype", checks.DOUBLES, ids=name_of)


def test_every_dtype_of_the_op_is_tried() -> None:
    assert {*checks.op_info().dtypesIfCUDA} == {*checks.DTYPES}


def test_integers_are_refused() -> None:
    checks.check_refusal("cuda", torch.int64)


@each_dtype
def test_output_and_gradients_are_right(dtype: torch.dtype) -> None:
    checks.check_results("cuda", dtype)


@each_dtype
def test_output_and_gradients_lie_as_those_of_native(dtype: torch.dtype) -> None:
    checks.check_layout("cuda", dtype)


@each_dtype
def test_tensors_that_are_not_contiguous_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cuda", dtype, checks.non_contiguous)


@each_double
def test_negative_views_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cuda", dtype, checks.negative_view)


@pytest.mark.parametrize("dtype", checks.COMPLEX, ids=name_of)
def test_conjugate_views_give_the_same_bits(dtype: torch.dtype) -> None:
    checks.check_view("cuda", dtype, checks.conjugate_view)


def test_negative_conjugate_views_give_the_same_bits() -> None:
    checks.check_view("cuda", torch.complex128, checks.negative_conjugate_view)


@each_double
def test_first_derivatives_match_finite_differences(dtype: torch.dtype) -> None:
    checks.check_first_derivatives("cuda", dtype)


@pytest.mark.parametrize("contiguous", [True, False])
@each_double
def test_second_derivatives_match_finite_differences(dtype: torch.dtype, contiguous: bool) -> None:
    checks.check_second_derivatives("cuda", dtype, contiguous)


@each_double
def test_tangents_are_those_of_native(dtype: torch.dtype) -> None:
    checks.check_forward_mode("cuda", dtype)


@each_double
def test_vmap_gives_what_a_loop_gives(dtype: torch.dtype) -> None:
    checks.check_vmap("cuda", dtype)


@each_double
def test_vmap_of_gradients_gives_what_a_loop_gives(dtype: torch.dtype) -> None:
    checks.check_vmap_of_gradients("cuda", dtype)


@pytest.mark.parametrize("dtype", module_checks.DTYPES, ids=name_of)
class TestModule:
    """What PyTorch's test_modules.py asks of torch.nn.ConvTranspose3d."""

    def test_output_and_gradients_are_right(self, dtype: torch.dtype) -> None:
        module_checks.check_results("cuda", dtype)

    def test_it_is_constructed_as_native_is(self, dtype: torch.dtype) -> None:
        module_checks.check_construction("cuda", dtype)

    def test_copies_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_copies("cuda", dtype)

    def test_memory_formats_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_memory_format("cuda", dtype)

    def test_tensors_that_are_not_contiguous_give_the_same_bits(self, dtype: torch.dtype) -> None:
        module_checks.check_non_contiguous("cuda", dtype)


@each_double
def test_derivatives_of_the_module_match_finite_differences(dtype: torch.dtype) -> None:
    module_checks.check_derivatives("cuda", dtype)
