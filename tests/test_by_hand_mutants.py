"""Every bug that was planted by hand is killed within 2,000 cases."""

from __future__ import annotations

import re

from fuzz import machine
from fuzz.mutation.by_hand import MUTANTS
from fuzz.mutation.runner import Run
from fuzz.mutation.server import Options

CASES = 2_000
# What real kernels did wrong, and the mutants that do it.
REAL_BUGS = {
    "output size without dilation": ["output_size_without_dilation"],
    "weight laid out (C_out, C_in/groups)": ["weight_laid_out_output_channels_first"],
    "output_padding subtracted from the coordinate": [
        "output_padding_subtracted_from_the_coordinate"
    ],
    "division instead of divisibility by the stride": ["division_instead_of_divisibility"],
    "weight index without the input channel": ["weight_without_the_input_channel"],
    "bias added once per tap": ["bias_added_once_per_tap"],
    "bias of the wrong group": ["bias_of_the_wrong_group"],
    "partial sums by racing atomics": [
        "partial_sums_lost_in_a_race",
        "partial_sums_read_before_they_are_complete",
    ],
    "gradients returned as zeros": [
        "grad_input_returned_as_zeros",
        "grad_weight_returned_as_zeros",
    ],
    "gradients in the wrong order": ["gradients_in_the_wrong_order"],
    "groups ignored": ["groups_ignored"],
    "int32 overflow": [
        "wide_plan_runs_narrow_kernel",
        "wide_plan_runs_narrow_kernel_in_grad_weight",
        "offset_of_the_sample_in_32_bits",
        "offset_of_the_store_in_32_bits",
        "offset_of_a_position_in_32_bits",
        "elements_counted_where_offsets_decide",
    ],
    "tail tile unguarded": [
        "tail_tile_of_channels_unguarded",
        "tail_rows_of_grad_weight_unguarded",
    ],
    "last K slice dropped when it is not a multiple": [
        "last_k_slice_dropped",
        "last_k_slice_of_grad_weight_dropped",
    ],
    "NaN lost by multiplying with zero": ["products_with_zero_skipped"],
    "inf from an fp16 intermediate": ["inf_from_an_fp16_intermediate"],
    "stale shared memory": [
        "stale_rows_of_the_last_k_slice",
        "stale_shared_memory_in_grad_weight",
        "uninitialised_shared_memory",
    ],
    "the previous call's result returned": [
        "result_memoised_by_shape",
        "result_memoised_by_data_ptr",
    ],
    "the default stream used": ["default_stream_used"],
    "the wrong device": ["current_device_used"],
    "inputs overwritten": ["grad_output_overwritten", "weight_overwritten"],
}


def test_every_mutant_that_a_cpu_can_show_is_killed() -> None:
    mutants = [mutant for mutant in MUTANTS if not mutant.needs]
    run = Run(mutants, Options(cases=CASES, jobs=machine.usable_cores()))
    results = {result.name: result for result in run.results()}
    assert run.stillborn == []
    survivors = [
        f"{mutant.name}: {mutant.why}"
        for mutant in mutants
        if mutant.name not in results or not results[mutant.name].is_killed
    ]
    assert not survivors, f"{len(survivors)} of {len(mutants)} survive:\n" + "\n".join(survivors)
    assert max(result.cases for result in results.values()) <= CASES


def test_every_kind_of_bug_has_a_mutant() -> None:
    names = {mutant.name for mutant in MUTANTS}
    assert {name for mutants in REAL_BUGS.values() for name in mutants} <= names
    assert len(names) == len(MUTANTS) >= 100


def test_only_streams_and_devices_need_a_gpu() -> None:
    needs = {mutant.name: mutant.needs for mutant in MUTANTS if mutant.needs}
    assert needs == {"default_stream_used": "gpu", "current_device_used": "two gpus"}


def test_every_mutant_says_what_it_is() -> None:
    for mutant in MUTANTS:
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", mutant.name)
        assert len(mutant.why) > 10, mutant.name
