"""Derivatives in both modes, torch.func, vmap, hooks and memory formats on a CPU, beside native's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests import backward_checks, operator_checks, transform_checks
from tests.backward_checks import INCOMING, PENALTIES, WAYS
from tests.feature_calls import LEAVES, PRIMITIVES, TORCH
from tests.transform_checks import MAPPINGS, MOVED, TRANSFORMS, WRONG_CALLS, Axes

DEVICE = "cpu"
SUBSETS = operator_checks.subsets(LEAVES)
each_primitive = pytest.mark.parametrize("name", PRIMITIVES)


@pytest.mark.parametrize(("name", "moved"), MOVED, ids=str)
def test_forward_mode_is_natives(name: str, moved: Sequence[str]) -> None:
    transform_checks.check_forward_mode(PRIMITIVES[name], moved, DEVICE)


@each_primitive
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_gives_what_it_gives_of_native(transform: str, name: str) -> None:
    transform_checks.check_transform(transform, PRIMITIVES[name], DEVICE)


def test_a_pulled_back_constant_is_a_constant() -> None:
    transform_checks.check_pulled_back_constants_are_constants(DEVICE)


@each_primitive
def test_derivatives_in_both_modes_and_batched_match_finite_differences(name: str) -> None:
    transform_checks.check_finite_differences(PRIMITIVES[name], DEVICE)


# ---- vmap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axes"), MAPPINGS, ids=str)
def test_vmap_over_any_axes_is_a_loop_in_one_launch(name: str, axes: Axes) -> None:
    transform_checks.check_vmap(PRIMITIVES[name], axes, DEVICE)


def test_vmap_may_be_nested() -> None:
    transform_checks.check_nested_vmap(DEVICE)


def test_options_of_vmap_and_unbatched_calls_change_no_value() -> None:
    transform_checks.check_vmap_options(DEVICE)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=str)
def test_vmap_of_grad_gives_the_gradients_of_each_sample(wanted: Sequence[int]) -> None:
    transform_checks.check_gradients_of_each_sample(wanted, DEVICE)


def test_an_ensemble_of_modules_runs_as_one() -> None:
    transform_checks.check_ensemble(DEVICE)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_an_error_under_vmap_is_that_of_one_element(name: str) -> None:
    transform_checks.check_error_under_vmap(name, DEVICE)


def test_an_error_of_a_gradient_under_vmap_is_that_of_one_element() -> None:
    transform_checks.check_errors_of_primitives_under_vmap(DEVICE)


# ---- only what is asked for ---------------------------------------------------------------------


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
@pytest.mark.parametrize("way", WAYS)
def test_a_backward_computes_what_is_asked_for_alone(way: str, wanted: Sequence[str]) -> None:
    backward_checks.check_only_what_is_asked_for(way, wanted, DEVICE)


def test_a_second_backward_computes_what_is_asked_for_alone() -> None:
    backward_checks.check_second_backward_computes_what_is_asked_for(DEVICE)


def test_a_frozen_layer_launches_the_gradient_of_its_input_alone() -> None:
    backward_checks.check_a_frozen_layer_passes_gradients_on(DEVICE)


@pytest.mark.parametrize(("trained", "of"), PENALTIES, ids=str)
def test_a_penalty_on_a_gradient_works_where_natives_does(trained: Sequence[str], of: str) -> None:
    backward_checks.check_a_penalty_on_a_gradient(trained, of, DEVICE)


# ---- graphs, hooks, memory ----------------------------------------------------------------------


def test_a_kept_graph_adds_the_same_gradients_again() -> None:
    backward_checks.check_a_kept_graph_accumulates(DEVICE)


def test_hooks_of_tensors_see_natives_gradients_and_may_change_them() -> None:
    backward_checks.check_hooks_of_tensors(DEVICE)


def test_hooks_of_modules_see_what_natives_see() -> None:
    backward_checks.check_hooks_of_modules(DEVICE)


def test_saved_tensors_pass_through_their_hooks() -> None:
    backward_checks.check_hooks_of_saved_tensors(DEVICE)


@pytest.mark.skipif(
    TORCH < (2, 13) or not torch.backends.mkldnn.is_available(),
    reason=f"native lays gradients out in other ways on a CPU with torch {torch.__version__}",
)
@pytest.mark.parametrize("incoming", INCOMING)
@pytest.mark.parametrize("of_weight", operator_checks.MEMORY_FORMATS)
@pytest.mark.parametrize("of_input", operator_checks.MEMORY_FORMATS)
def test_gradients_lie_as_natives(of_input: str, of_weight: str, incoming: str) -> None:
    backward_checks.check_gradients_lie_as_natives(of_input, of_weight, incoming, DEVICE)
