"""Training on a CPU: optimizers, checkpoints, data parallel, switches, and what wraps or changes a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import training_checks
from tests.operator_checks import DTYPES, MEMORY_FORMATS, name_of
from tests.training_checks import NORMS, OPTIMIZERS

DEVICE = "cpu"
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_of_an_optimizer_are_natives(name: str) -> None:
    training_checks.check_optimizer(name, DEVICE)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_a_forward_that_is_run_again_gives_the_same_bits(use_reentrant: bool) -> None:
    training_checks.check_activation_checkpoint(use_reentrant, DEVICE)


@each_dtype
def test_deterministic_algorithms_are_what_runs_anyway(dtype: torch.dtype) -> None:
    training_checks.check_deterministic_algorithms(dtype, DEVICE)


def test_no_switch_for_less_precision_changes_a_bit() -> None:
    training_checks.check_precision_switches(DEVICE)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    training_checks.check_distributed_data_parallel(tmp_path, DEVICE)


@pytest.mark.parametrize("name", NORMS)
def test_a_parametrized_weight_trains_as_natives(name: str) -> None:
    training_checks.check_norm(name, DEVICE)


def test_the_older_norms_train_as_natives() -> None:
    training_checks.check_hooked_norms(DEVICE)


def test_a_pruned_weight_trains_as_natives() -> None:
    training_checks.check_pruning(DEVICE)


def test_copies_share_nothing_and_may_be_averaged() -> None:
    training_checks.check_copies(DEVICE)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@each_dtype
def test_a_module_may_change_dtype_and_memory_format(
    dtype: torch.dtype, memory_format: str
) -> None:
    training_checks.check_conversions(dtype, memory_format, DEVICE)


def test_a_module_may_be_made_on_meta_and_filled_later() -> None:
    training_checks.check_made_elsewhere(DEVICE)
