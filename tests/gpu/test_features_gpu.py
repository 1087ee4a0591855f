"""PyTorch's features on a GPU: the checks of the CPU, and streams, graphs, and a second GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convt3d import plan
from tests import autocast_checks, compile_checks, operator_checks, training_checks
from tests import backward_checks as backward
from tests import transform_checks as transforms
from tests.autocast_checks import LOWER
from tests.compile_checks import needs_compile, needs_export, needs_opcheck
from tests.feature_calls import LEAVES, PRIMITIVES
from tests.operator_checks import DTYPES, GEOMETRIES, MEMORY_FORMATS, name_of
from tests.training_checks import as_integers, decoder, example, steps_of

DEVICE = "cuda"
SECOND = "cuda:1"
# Keeps a stream busy for about a tenth of a second.
CYCLES = 100_000_000
two_gpus = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs"
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
each_format = pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
each_lower = pytest.mark.parametrize("lower", LOWER, ids=name_of)
each_primitive = pytest.mark.parametrize("name", PRIMITIVES)

# Checks of a device alone.
PLAIN: tuple[Any, ...] = (
    transforms.check_pulled_back_constants_are_constants,
    transforms.check_nested_vmap,
    transforms.check_vmap_options,
    transforms.check_ensemble,
    transforms.check_errors_of_primitives_under_vmap,
    backward.check_second_backward_computes_what_is_asked_for,
    backward.check_a_frozen_layer_passes_gradients_on,
    backward.check_a_kept_graph_accumulates,
    backward.check_hooks_of_tensors,
    backward.check_hooks_of_modules,
    backward.check_hooks_of_saved_tensors,
    compile_checks.check_traced,
    autocast_checks.check_scaled_step,
    training_checks.check_precision_switches,
    training_checks.check_hooked_norms,
    training_checks.check_pruning,
    training_checks.check_copies,
    training_checks.check_made_elsewhere,
)
COMPILED: tuple[Callable[[str], None], ...] = (
    compile_checks.check_few_graphs_serve_all_sizes,
    compile_checks.check_no_more_graphs_than_native,
    compile_checks.check_sizes_known_only_at_run_time,
    compile_checks.check_compiled_autograd,
    compile_checks.check_compiled_module,
    compile_checks.check_compiled_autocast,
    compile_checks.check_compiled_transforms,
    compile_checks.check_compiled_refusal,
)


@pytest.mark.parametrize("check", PLAIN)
def test_a_feature_works_as_on_a_cpu(check: Callable[[str], None]) -> None:
    check(DEVICE)


# ---- transforms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "moved"), transforms.MOVED, ids=str)
def test_forward_mode_is_natives(name: str, moved: Sequence[str]) -> None:
    transforms.check_forward_mode(PRIMITIVES[name], moved, DEVICE)


@each_primitive
@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
def test_a_transform_gives_what_it_gives_of_native(transform: str, name: str) -> None:
    transforms.check_transform(transform, PRIMITIVES[name], DEVICE)


@each_primitive
def test_derivatives_in_both_modes_and_batched_match_finite_differences(name: str) -> None:
    transforms.check_finite_differences(PRIMITIVES[name], DEVICE)


@pytest.mark.parametrize(("name", "axes"), transforms.MAPPINGS, ids=str)
def test_vmap_over_any_axes_is_a_loop_in_one_launch(name: str, axes: transforms.Axes) -> None:
    transforms.check_vmap(PRIMITIVES[name], axes, DEVICE)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=str)
def test_vmap_of_grad_gives_the_gradients_of_each_sample(wanted: Sequence[int]) -> None:
    transforms.check_gradients_of_each_sample(wanted, DEVICE)


@pytest.mark.parametrize("name", transforms.WRONG_CALLS)
def test_an_error_under_vmap_is_that_of_one_element(name: str) -> None:
    transforms.check_error_under_vmap(name, DEVICE)


@pytest.mark.parametrize("wanted", operator_checks.subsets(LEAVES), ids="-".join)
@pytest.mark.parametrize("way", backward.WAYS)
def test_a_backward_computes_what_is_asked_for_alone(way: str, wanted: Sequence[str]) -> None:
    backward.check_only_what_is_asked_for(way, wanted, DEVICE)


@pytest.mark.parametrize(("trained", "of"), backward.PENALTIES, ids=str)
def test_a_penalty_on_a_gradient_works_where_natives_does(trained: Sequence[str], of: str) -> None:
    backward.check_a_penalty_on_a_gradient(trained, of, DEVICE)


@pytest.mark.parametrize("incoming", backward.INCOMING)
@pytest.mark.parametrize("of_weight", MEMORY_FORMATS)
@pytest.mark.parametrize("of_input", MEMORY_FORMATS)
def test_gradients_lie_as_natives(of_input: str, of_weight: str, incoming: str) -> None:
    backward.check_gradients_lie_as_natives(of_input, of_weight, incoming, DEVICE)


# ---- compiling ----------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled_stays() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@needs_compile
@pytest.mark.usefixtures("nothing_compiled_stays")
@pytest.mark.parametrize("check", COMPILED)
def test_compiling_works_as_on_a_cpu(check: Callable[[str], None]) -> None:
    check(DEVICE)


@needs_compile
@pytest.mark.usefixtures("nothing_compiled_stays")
@each_format
@pytest.mark.parametrize("dynamic", [False, True, None])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_call_and_its_gradients_are_the_eager_ones(
    backend: str, dynamic: bool | None, memory_format: str
) -> None:
    compile_checks.check_compiled(backend, dynamic, memory_format, DEVICE)


@needs_compile
@pytest.mark.usefixtures("nothing_compiled_stays")
@pytest.mark.parametrize("name", compile_checks.VALUES)
def test_one_graph_serves_all_values_of_an_argument(name: str) -> None:
    compile_checks.check_one_graph_serves_all_values(name, DEVICE)


@each_format
@each_dtype
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_tensors_without_values_have_the_shapes_and_strides_of_real_ones(
    bias: bool, dtype: torch.dtype, memory_format: str
) -> None:
    for geometry in GEOMETRIES.values():
        compile_checks.check_tensors_without_values(geometry, dtype, memory_format, bias, DEVICE)


@pytest.mark.parametrize("name", transforms.WRONG_CALLS)
def test_tensors_without_values_are_refused_in_the_same_words(name: str) -> None:
    compile_checks.check_refusal_without_values(name, DEVICE)


@needs_export
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_an_exported_program_holds_the_call_as_one_operator(is_dynamic: bool) -> None:
    compile_checks.check_exported(is_dynamic, DEVICE)


@needs_opcheck
@each_format
@pytest.mark.parametrize("name", plan.PRIMITIVES)
def test_opcheck_finds_nothing_wrong(name: str, memory_format: str) -> None:
    compile_checks.check_opcheck(name, memory_format, True, DEVICE)


@pytest.mark.parametrize("mode", compile_checks.TRACING_MODES)
def test_make_fx_records_a_call_and_its_gradients(mode: str) -> None:
    compile_checks.check_make_fx(mode, DEVICE)


# ---- autocast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [*LOWER, None], ids=name_of)
@pytest.mark.parametrize("dtypes", autocast_checks.MIXES, ids=autocast_checks.name_of_mix)
def test_a_mix_of_dtypes_is_taken_as_native_takes_it(
    dtypes: Sequence[torch.dtype], lower: torch.dtype | None
) -> None:
    autocast_checks.check_dtypes(lower, dtypes, DEVICE)


@each_lower
@pytest.mark.parametrize("check", autocast_checks.CHECKS_OF_VALUES)
def test_autocast_works_as_on_a_cpu(
    check: Callable[[torch.dtype, str], None], lower: torch.dtype
) -> None:
    check(lower, DEVICE)


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", training_checks.OPTIMIZERS)
def test_the_steps_of_an_optimizer_are_natives(name: str) -> None:
    training_checks.check_optimizer(name, DEVICE)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_a_forward_that_is_run_again_gives_the_same_bits(use_reentrant: bool) -> None:
    training_checks.check_activation_checkpoint(use_reentrant, DEVICE)


@each_dtype
def test_deterministic_algorithms_are_what_runs_anyway(dtype: torch.dtype) -> None:
    training_checks.check_deterministic_algorithms(dtype, DEVICE)


@pytest.mark.parametrize("name", training_checks.NORMS)
def test_a_parametrized_weight_trains_as_natives(name: str) -> None:
    training_checks.check_norm(name, DEVICE)


@each_format
@each_dtype
def test_a_module_may_change_dtype_and_memory_format(
    dtype: torch.dtype, memory_format: str
) -> None:
    training_checks.check_conversions(dtype, memory_format, DEVICE)


# ---- streams and graphs -------------------------------------------------------------------------


def exact_steps(device: str) -> list[Tensor]:
    """Returns what two steps of training on integers give; the CPU and the GPU agree exactly."""
    return steps_of(as_integers(decoder(training_checks.OURS, device)), example(device))


def test_training_on_another_stream_than_the_default_is_exact() -> None:
    expected = exact_steps("cpu")
    model = as_integers(decoder(training_checks.OURS, DEVICE))
    values = example(DEVICE)
    late = torch.full_like(values, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(CYCLES)
        late.copy_(values)
        got = steps_of(model, late)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def training_step(model: nn.Module, input: Tensor) -> Callable[[], None]:
    """Returns a whole step on an input that stays where it is: forward, backward and optimizer."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input).square().mean().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name_of)
def test_a_captured_training_step_replays_as_the_eager_one(dtype: torch.dtype) -> None:
    models = [decoder(training_checks.OURS, DEVICE).to(dtype) for _ in range(2)]
    inputs = [torch.zeros_like(example(DEVICE), dtype=dtype) for _ in models]
    steps = [training_step(model, input) for model, input in zip(models, inputs)]
    values = [(example(DEVICE) / 8 * factor).to(dtype) for factor in (1, -1, 2)]
    captured, eager = steps
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # as PyTorch asks for, before a capture
            for step in steps:
                step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured()
    for value in values:
        for input in inputs:
            input.copy_(value)
        graph.replay()
        eager()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            operator_checks.assert_same_bits(one.detach(), other.detach(), "parameters")


# ---- a second GPU -------------------------------------------------------------------------------


@two_gpus
def test_training_runs_where_the_tensors_are_and_not_on_the_current_device() -> None:
    torch.cuda.set_device(0)
    for one, other in zip(exact_steps(SECOND), exact_steps("cpu"), strict=True):
        assert torch.equal(one, other)
    assert torch.cuda.current_device() == 0


@two_gpus
@each_primitive
def test_transforms_run_where_the_tensors_are(name: str) -> None:
    torch.cuda.set_device(0)
    primitive = PRIMITIVES[name]
    transforms.check_vmap(primitive, (0,) * len(primitive.operands), SECOND)
    transforms.check_forward_mode(primitive, primitive.operands, SECOND)
    transforms.check_transform("jacfwd of jacrev", primitive, SECOND)
    assert torch.cuda.current_device() == 0


@two_gpus
@needs_compile
@pytest.mark.usefixtures("nothing_compiled_stays")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_call_runs_where_the_tensors_are(backend: str) -> None:
    torch.cuda.set_device(0)
    compile_checks.check_compiled(backend, None, "contiguous", SECOND)
    assert torch.cuda.current_device() == 0


@two_gpus
def test_a_layer_may_lie_on_the_second_gpu_behind_one_on_the_first() -> None:
    model = as_integers(decoder(training_checks.OURS, DEVICE))
    expected = as_integers(decoder(training_checks.OURS, "cpu"))
    model[2].to(SECOND)
    input = example(DEVICE).requires_grad_()
    output = model[2](model[:2](input).to(SECOND))
    assert output.device == torch.device(SECOND)
    output.sum().backward()
    expected(example("cpu")).sum().backward()
    for one, other in zip(model.parameters(), expected.parameters()):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad.cpu(), other.grad)


@two_gpus
def test_two_processes_with_a_gpu_each_train_as_one(tmp_path: Path) -> None:
    training_checks.check_distributed_data_parallel(tmp_path, DEVICE)
