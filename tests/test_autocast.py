"""Autocast on a CPU: dtypes as native's, values those of operands that were cast by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests import autocast_checks
from tests.autocast_checks import LOWER, MIXES, NO_CPU_SCALER
from tests.operator_checks import name_of

DEVICE = "cpu"
# bfloat16 alone on an old version.
each_lower = pytest.mark.parametrize(
    "lower", LOWER if not NO_CPU_SCALER else LOWER[:1], ids=name_of
)


@pytest.mark.parametrize("lower", [*LOWER, None], ids=name_of)
@pytest.mark.parametrize("dtypes", MIXES, ids=autocast_checks.name_of_mix)
def test_a_mix_of_dtypes_is_taken_as_native_takes_it(
    dtypes: Sequence[torch.dtype], lower: torch.dtype | None
) -> None:
    autocast_checks.check_dtypes(lower, dtypes, DEVICE)


@each_lower
def test_values_are_those_of_operands_cast_by_hand(lower: torch.dtype) -> None:
    autocast_checks.check_values(lower, DEVICE)


@each_lower
def test_nothing_is_cast_where_autocast_is_disabled(lower: torch.dtype) -> None:
    autocast_checks.check_disabled_region(lower, DEVICE)


@each_lower
def test_a_backward_inside_the_region_is_that_outside(lower: torch.dtype) -> None:
    autocast_checks.check_backward_inside(lower, DEVICE)


@each_lower
def test_a_second_call_in_a_region_is_cast_like_the_first(lower: torch.dtype) -> None:
    autocast_checks.check_two_calls_in_one_region(lower, DEVICE)


@each_lower
def test_autocast_and_transforms_may_enclose_each_other(lower: torch.dtype) -> None:
    autocast_checks.check_transforms(lower, DEVICE)


@each_lower
def test_complex_numbers_are_not_cast(lower: torch.dtype) -> None:
    autocast_checks.check_complex_numbers(lower, DEVICE)


@pytest.mark.skipif(bool(NO_CPU_SCALER), reason=NO_CPU_SCALER)
def test_a_scaled_step_is_natives() -> None:
    autocast_checks.check_scaled_step(DEVICE)
