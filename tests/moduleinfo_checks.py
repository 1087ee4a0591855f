"""PyTorch's own samples of ConvTranspose3d, from its ModuleInfo, run on convt3d.

What is asked of a sample is what PyTorch's test suite asks of its own module in test_modules.py. Each check takes a
device, "cpu" or "cuda", and a dtype. Note [Judging samples] in opinfo_checks.py says what is right.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import convt3d
from tests.operator_checks import MEMORY_FORMATS
from tests.opinfo_checks import (
    COMPLEX,
    Function,
    assert_right,
    assert_same_results,
    internal,
    non_contiguous,
    random_like_output,
    results,
)

DTYPES = (torch.float64, torch.float32, *COMPLEX)


@functools.cache
def module_info() -> Any:
    """Returns PyTorch's ModuleInfo for ConvTranspose3d."""
    module_db = internal("common_modules").module_db
    (found,) = (info for info in module_db if info.module_cls is nn.ConvTranspose3d)
    return found


def samples(
    device: str, dtype: torch.dtype, training: bool = True
) -> Iterator[tuple[Any, Any, Any, Tensor]]:
    """Yields each sample of the module with our module, native's, and the input; the same ones in every run."""
    torch.manual_seed(0)
    info = module_info()
    found = info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=True, training=training
    )
    assert found
    for sample in found:
        # Complex parameters cannot be initialised as such.
        ours, native = (
            built(kind, sample).to(device, dtype).train(training)
            for kind in (convt3d.ConvTranspose3d, nn.ConvTranspose3d)
        )
        yield sample, ours, native, *sample.forward_input.args


def built(kind: Any, sample: Any, **options: Any) -> Any:
    """Returns the module of a sample, with the same parameters in every run."""
    torch.manual_seed(1)
    arguments = sample.constructor_input
    return kind(*arguments.args, **arguments.kwargs, **options)


def as_function(module: Any) -> Function:
    """Returns a module as a function of its input and its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(input: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters)), (input,))

    return function


def results_of(module: Any, input: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Returns the output, and the gradients of the input and the parameters."""
    return results(lambda input, *_: module(input), [input, *module.parameters()], grad_output)


def check_results(device: str, dtype: torch.dtype) -> None:
    """In training and in evaluation output and gradients are right, and what PyTorch's reference makes of ours."""
    for training in (True, False):
        for sample, ours, native, input in samples(device, dtype, training):
            operands = [input, *ours.parameters()]
            grad_output = random_like_output(ours, [input])
            got = results_of(ours, input, grad_output)
            assert_right(got, as_function(native), operands, grad_output)
            if sample.reference_fn is not None:
                assert_same_results(got[:1], [sample.reference_fn(ours, input)])


def check_construction(device: str, dtype: torch.dtype) -> None:
    """One seed gives native's parameters, on the device and in the dtype asked for; repr and state_dict agree."""
    for sample, ours, native, _ in samples(device, dtype):
        assert repr(ours) == repr(native)
        assert [*ours.state_dict()] == [*native.state_dict()]
        assert_same_results([*ours.parameters()], [*native.parameters()])
        ours.load_state_dict(native.state_dict())
        native.load_state_dict(ours.state_dict())
        if not dtype.is_complex:
            ours, native = (
                built(kind, sample, device=device, dtype=dtype)
                for kind in (type(ours), type(native))
            )
            assert all(
                one.dtype == dtype and one.device.type == device for one in ours.parameters()
            )
            assert_same_results([*ours.parameters()], [*native.parameters()])


def pickled(module: Any) -> Any:
    """Returns a module as pickle hands it back."""
    return pickle.loads(pickle.dumps(module))


def saved(module: Any) -> Any:
    """Returns a module as torch.load hands it back."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_copies(device: str, dtype: torch.dtype) -> None:
    """A copy has the class of the module, parameters of its own, and gives the same bits."""
    # PyTorch cannot read a pickle of complex32, and version 2.0 not even save it.
    ways = (copy.deepcopy,) if dtype == torch.complex32 else (copy.deepcopy, saved, pickled)
    for _, ours, _, input in samples(device, dtype):
        for way in ways:
            copied = way(ours)
            assert type(copied) is type(ours)
            assert_same_results([copied(input)], [ours(input)])
            for one, other in zip(copied.parameters(), ours.parameters(), strict=True):
                assert one.data_ptr() != other.data_ptr()


def check_memory_format(device: str, dtype: torch.dtype) -> None:
    """The output is channels_last_3d where input or module is; the bits are the same."""
    for _, ours, _, input in samples(device, dtype):
        if input.dim() != 5:  # channels_last_3d has five axes
            continue
        expected = ours(input)
        for chosen in itertools.product(MEMORY_FORMATS.values(), repeat=2):
            output = ours.to(memory_format=chosen[0])(input.contiguous(memory_format=chosen[1]))
            is_last = torch.channels_last_3d in chosen
            wanted = torch.channels_last_3d if is_last else torch.contiguous_format
            assert output.is_contiguous(memory_format=wanted)
            assert_same_results([output], [expected])


def check_non_contiguous(device: str, dtype: torch.dtype) -> None:
    """An input and a grad_output that are not contiguous give the same bits."""
    for _, ours, _, input in samples(device, dtype):
        grad_output = random_like_output(ours, [input])
        expected = results_of(ours, input, grad_output)
        strided = non_contiguous(input.detach()).requires_grad_()
        for pair in itertools.product((input, strided), (grad_output, non_contiguous(grad_output))):
            assert_same_results(results_of(ours, *pair), expected)


def check_derivatives(device: str, dtype: torch.dtype) -> None:
    """First and second derivatives in the input with all parameters, and with each alone, match finite differences."""
    settings: Any = {"nondet_tol": 0.0, "fast_mode": True, "check_batched_grad": True}
    for _, ours, _, input in samples(device, dtype):
        parameters = [*ours.parameters()]
        for wanted in (parameters, *([one] for one in parameters)):
            for one in parameters:
                one.requires_grad_(any(one is other for other in wanted))
            operands = [input, *parameters]
            assert torch.autograd.gradcheck(as_function(ours), operands, **settings)
            assert torch.autograd.gradgradcheck(as_function(ours), operands, **settings)
