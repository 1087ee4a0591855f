"""Compiling, exporting, tracing, and tensors without values, on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convt3d import plan
from fuzz.case import Case
from fuzz.strategies import cases
from tests import compile_checks, operator_checks
from tests.compile_checks import (
    COMPILED,
    SIZES,
    TRACING_MODES,
    VALUES,
    needs_compile,
    needs_compiled_autograd,
    needs_export,
    needs_flop_counter,
    needs_opcheck,
    needs_unbacked_sizes,
)
from tests.feature_calls import LEAVES
from tests.operator_checks import MEMORY_FORMATS
from tests.transform_checks import WRONG_CALLS

DEVICE = "cpu"
DTYPES = dict(zip(("f64", "f32", "f16", "bf16"), operator_checks.DTYPES))
each_format = pytest.mark.parametrize("memory_format", MEMORY_FORMATS)


@pytest.fixture(autouse=True)
def nothing_compiled_stays() -> Iterator[None]:
    """Drops what a test has compiled: it keeps memory, and counts against a limit."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


# ---- torch.compile ------------------------------------------------------------------------------


@needs_compile
@pytest.mark.parametrize(("dynamic", "memory_format"), COMPILED)
def test_a_compiled_call_and_its_gradients_are_the_eager_ones(
    dynamic: bool | None, memory_format: str
) -> None:
    compile_checks.check_compiled("aot_eager", dynamic, memory_format, DEVICE)


@needs_compile
def test_inductor_compiles_a_call_and_its_gradients() -> None:
    # One size: compiling C++ takes seconds.
    compile_checks.check_compiled("inductor", False, "channels_last", DEVICE, SIZES[:1])


@needs_compile
@pytest.mark.parametrize("frozen", operator_checks.subsets(LEAVES)[:-1], ids="-".join)
def test_a_compiled_call_leaves_frozen_operands_out(frozen: Sequence[str]) -> None:
    compile_checks.check_frozen_operands_compile(frozen, DEVICE)


@needs_compile
def test_two_graphs_serve_seven_sizes() -> None:
    compile_checks.check_few_graphs_serve_all_sizes(DEVICE)


@needs_compile
def test_layers_compile_no_more_graphs_than_natives() -> None:
    compile_checks.check_no_more_graphs_than_native(DEVICE)


@needs_unbacked_sizes
def test_sizes_may_be_known_at_run_time_only() -> None:
    compile_checks.check_sizes_known_only_at_run_time(DEVICE)


@needs_compiled_autograd
def test_compiled_autograd_takes_a_backward() -> None:
    compile_checks.check_compiled_autograd(DEVICE)


@needs_compile
@pytest.mark.parametrize("name", VALUES)
def test_one_graph_serves_all_values_of_an_argument(name: str) -> None:
    compile_checks.check_one_graph_serves_all_values(name, DEVICE)


@needs_compile
def test_a_module_compiles_with_output_size() -> None:
    compile_checks.check_compiled_module(DEVICE)


@needs_compile
def test_autocast_works_inside_compile() -> None:
    compile_checks.check_compiled_autocast(DEVICE)


@needs_compile
def test_vmap_and_grad_work_inside_compile() -> None:
    compile_checks.check_compiled_transforms(DEVICE)


@needs_compile
def test_a_wrong_call_is_refused_inside_compile() -> None:
    compile_checks.check_compiled_refusal(DEVICE)


# ---- fake and meta tensors ----------------------------------------------------------------------


@given(
    cases(dtypes=[*DTYPES], lanes=("int",), modes=("fast",), max_multiply_adds=2_000), st.booleans()
)
def test_tensors_without_values_have_the_shapes_and_strides_of_real_ones(
    case: Case, bias: bool
) -> None:
    geometry = operator_checks.geometry(
        case.input_size,
        case.kernel_size,
        batch=case.n,
        channels=(case.in_channels, case.out_channels),
        groups=case.groups,
        stride=case.stride,
        padding=case.padding,
        output_padding=case.output_padding,
        dilation=case.dilation,
    )
    memory_format = "channels_last" if case.layout == "cl" else "contiguous"
    dtype = DTYPES[case.dtype]
    compile_checks.check_tensors_without_values(geometry, dtype, memory_format, bias, DEVICE)


@each_format
def test_so_have_those_of_an_empty_batch(memory_format: str) -> None:
    geometry = operator_checks.geometry((2, 0, 2), (2, 1, 2), batch=0, channels=(2, 3))
    dtype = torch.float32
    compile_checks.check_tensors_without_values(geometry, dtype, memory_format, True, DEVICE)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_tensors_without_values_are_refused_in_the_same_words(name: str) -> None:
    compile_checks.check_refusal_without_values(name, DEVICE)


# ---- export and tracing -------------------------------------------------------------------------


@needs_export
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_an_exported_program_holds_the_call_as_one_operator(is_dynamic: bool) -> None:
    compile_checks.check_exported(is_dynamic, DEVICE)


@needs_opcheck
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@each_format
@pytest.mark.parametrize("name", plan.PRIMITIVES)
def test_opcheck_finds_nothing_wrong(name: str, memory_format: str, bias: bool) -> None:
    compile_checks.check_opcheck(name, memory_format, bias, DEVICE)


@pytest.mark.parametrize("mode", TRACING_MODES)
def test_make_fx_records_a_call_and_its_gradients(mode: str) -> None:
    compile_checks.check_make_fx(mode, DEVICE)


def test_a_traced_module_serves_other_sizes_and_trains() -> None:
    compile_checks.check_traced(DEVICE)


@pytest.mark.xfail(
    reason="torch.jit.script compiles the source, which is not in its part of Python"
)
def test_a_module_can_be_scripted() -> None:
    compile_checks.check_scripted(DEVICE)


def test_a_module_can_be_traced_symbolically() -> None:
    compile_checks.check_symbolically_traced(DEVICE)


@needs_flop_counter
def test_flops_are_counted_as_natives() -> None:
    compile_checks.check_flops_are_counted(DEVICE)
