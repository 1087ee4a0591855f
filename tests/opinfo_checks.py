"""PyTorch's own samples of conv_transpose3d, from its OpInfo, run on convt3d.

What is asked of a sample is what PyTorch's test suite asks of its own op in test_ops.py and
test_ops_gradients.py. Each check takes a device, "cpu" or "cuda", and a dtype.

Note [Judging samples]
    The sums of a sample round. A rounding error is in proportion to the sum of absolute values behind an element, but
    what torch.testing.assert_close allows by default is so to the element itself. Where terms cancel, neither convt3d
    nor PyTorch's op is always that close to the exact answer in float32, complex64 and complex32. Output and gradients
    are held to Note [Bound] of fuzz/bounds.py instead. The exact answer, the sum of absolute values and the number of
    terms all are PyTorch's own op in float64 or complex128 on the CPU, without oneDNN: on the operands, on their
    absolute values and on ones. Default tolerances are for what is tried in float64 and complex128 alone: they are
    far above the roundings of these.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import convt3d
from convt3d.launch import DTYPE_NAMES
from fuzz import bounds
from tests.operator_checks import assert_same_bits

REALS = tuple(DTYPE_NAMES)
COMPLEX = (torch.complex128, torch.complex64, torch.complex32)
DTYPES = (*REALS, *COMPLEX)
# Those that finite differences are for.
DOUBLES = (torch.float64, torch.complex128)

Function = Callable[..., Tensor]
OURS: Function = convt3d.conv_transpose3d
NATIVE: Function = nn.functional.conv_transpose3d


def internal(module: str) -> Any:
    """Returns a module of torch.testing._internal, or skips the test where a package that it imports is missing."""
    try:
        with warnings.catch_warnings():  # of what NumPy will not have for ever
            warnings.simplefilter("ignore", DeprecationWarning)
            found = importlib.import_module(f"torch.testing._internal.{module}")
            # Importing it forbids the whole process to set flags of torch.backends.
            torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
            return found
    except ModuleNotFoundError as missing:
        if (missing.name or "torch").startswith("torch"):
            raise
        pytest.skip(f"torch.testing._internal needs the package {missing.name}")


@functools.cache
def op_info() -> Any:
    """Returns PyTorch's OpInfo for conv_transpose3d."""
    op_db = internal("common_methods_invocations").op_db
    (found,) = (info for info in op_db if info.name == "nn.functional.conv_transpose3d")
    return found


# ---- samples ------------------------------------------------------------------------------------


def samples(device: str, dtype: torch.dtype, requires_grad: bool = True) -> list[Any]:
    """Returns the samples of the op, the same ones in every run."""
    torch.manual_seed(0)
    found = list(op_info().sample_inputs(device, dtype, requires_grad=requires_grad))
    assert found
    return found


def operands_of(sample: Any) -> list[Tensor]:
    """Returns input and weight, and the bias where the sample has one."""
    return [operand for operand in (sample.input, *sample.args) if operand is not None]


def as_called(function: Function, sample: Any) -> Function:
    """Returns a conv_transpose3d as a function of its operands alone."""
    return functools.partial(function, **sample.kwargs)


def results(function: Function, operands: Sequence[Tensor], grad_output: Tensor) -> list[Tensor]:
    """Returns the output, and the gradients of the operands."""
    output = function(*operands)
    return [output.detach(), *torch.autograd.grad(output, operands, grad_output)]


def wide(tensor: Tensor) -> Tensor:
    """Returns the same values in float64 or complex128."""
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def random_like_output(function: Function, operands: Sequence[Tensor]) -> Tensor:
    """Returns a random grad_output."""
    output = function(*operands)
    return torch.randn_like(wide(output)).to(output.dtype)


# ---- judging ------------------------------------------------------------------------------------


def as_real(tensor: Tensor) -> Tensor:
    """Returns a tensor of real numbers; complex ones become an axis of two."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def assert_same_results(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Asserts that two lists of results agree in dtype, in shape and in every bit."""
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert one.dtype == other.dtype
        assert_same_bits(as_real(one), as_real(other), f"result {index}")


def exact(
    function: Function, operands: Sequence[Tensor], grad_output: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for each result the exact values, the sums of absolute values and the numbers of terms."""

    def on(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [change(wide(operand).cpu()).requires_grad_() for operand in operands]
        with torch.backends.mkldnn.flags(enabled=False):
            return results(function, leaves, change(wide(grad_output).cpu()))

    return zip(on(torch.clone), on(torch.abs), on(lambda tensor: torch.ones_like(tensor.abs())))


def allowed(value: Tensor, magnitude: Tensor, terms: Tensor, dtype: torch.dtype) -> Any:
    """Returns the bound on every number of as_real(value).

    A part of a complex number is a sum or a difference of two results that are rounded already. By Cauchy and Schwarz
    the absolute values behind both add up to at most those behind the complex number.
    """
    part = torch.zeros((), dtype=dtype).real.dtype
    arithmetic = bounds.TABLE["convt3d", DTYPE_NAMES[part]]
    values, sums, counts = as_real(value).numpy(), magnitude.numpy(), terms.numpy()
    if not value.is_complex():
        summing = bounds.accumulation_bound(counts, sums, arithmetic)
        return bounds.element_bound(summing, values, arithmetic)
    summing = bounds.accumulation_bound(2 * counts, sums, arithmetic)
    both = bounds.element_bound(summing, sums, arithmetic)
    both += bounds.underflow(arithmetic.output, arithmetic.flushes)
    return bounds.element_bound(both[..., None], values, arithmetic)


def assert_right(
    got: Sequence[Tensor], native: Function, operands: Sequence[Tensor], grad_output: Tensor
) -> None:
    """Asserts that results have the operands' dtype and are native's, as Note [Judging samples] judges."""
    answers = exact(native, operands, grad_output)
    for index, (tensor, (value, magnitude, terms)) in enumerate(zip(got, answers, strict=True)):
        assert tensor.dtype == operands[0].dtype and tensor.shape == value.shape
        error = abs(as_real(tensor).cpu().double() - as_real(value)).numpy()
        used = error / allowed(value, magnitude, terms, tensor.dtype)
        wrong = ~(used <= 1)
        assert not wrong.any(), (
            f"result {index}: {wrong.sum()} of {wrong.size} numbers are off, by up to "
            f"{used.max():.3g} times what is allowed"
        )


# ---- the op -------------------------------------------------------------------------------------


def check_results(device: str, dtype: torch.dtype) -> None:
    """Output and gradients are right."""
    for sample in samples(device, dtype):
        operands, function = operands_of(sample), as_called(OURS, sample)
        grad_output = random_like_output(function, operands)
        got = results(function, operands, grad_output)
        assert_right(got, as_called(NATIVE, sample), operands, grad_output)


def layout(tensor: Tensor) -> tuple[torch.Size, list[int]]:
    """Returns the shape, and the strides along the axes that have more than one element."""
    return tensor.shape, [step for size, step in zip(tensor.shape, tensor.stride()) if size > 1]


def check_layout(device: str, dtype: torch.dtype) -> None:
    """Output and gradients lie in memory as native's do."""
    native_dtype = dtype
    if device == "cpu":  # where older versions lack native in these two
        lacking = {torch.float16: torch.float32, torch.complex32: torch.complex64}
        native_dtype = lacking.get(dtype, dtype)
    for sample in samples(device, dtype):
        layouts = []
        for function, chosen in ((OURS, dtype), (NATIVE, native_dtype)):
            operands = [one.detach().to(chosen).requires_grad_() for one in operands_of(sample)]
            output = function(*operands, **sample.kwargs)
            gradients = torch.autograd.grad(output, operands, torch.ones_like(output))
            layouts.append([layout(one) for one in (output, *gradients)])
        assert layouts[0] == layouts[1]


def non_contiguous(tensor: Tensor) -> Tensor:
    """Returns the same values with NaN between them, as SampleInput.noncontiguous does."""
    return internal("common_utils").noncontiguous_like(tensor)


def conjugate_view(tensor: Tensor) -> Tensor:
    """Returns the same values, conjugated in memory, which no sample of OpInfo is."""
    return tensor.conj_physical().conj()


def negative_view(tensor: Tensor) -> Tensor:
    """Returns the same values, negated in memory."""
    return torch._neg_view(tensor.neg())


def negative_conjugate_view(tensor: Tensor) -> Tensor:
    """Returns the same values, negated and conjugated in memory."""
    return torch._neg_view(tensor.neg().conj_physical()).conj()


def check_view(device: str, dtype: torch.dtype, view: Callable[[Tensor], Tensor]) -> None:
    """The same values seen through a view give the same bits: in each operand, in grad_output, and in all."""
    for sample in samples(device, dtype):
        function = as_called(OURS, sample)
        plain = operands_of(sample)
        plain.append(random_like_output(function, plain))
        expected = results(function, plain[:-1], plain[-1])
        views = [view(tensor.detach()).requires_grad_(tensor.requires_grad) for tensor in plain]
        one_view = ([*plain[:i], views[i], *plain[i + 1 :]] for i in range(len(plain)))
        for chosen in (views, *one_view):
            assert_same_results(results(function, chosen[:-1], chosen[-1]), expected)


def check_first_derivatives(device: str, dtype: torch.dtype) -> None:
    """Gradients and tangents match finite differences, under torch.vmap too, and repeat bit for bit."""
    info = op_info()
    for sample in samples(device, dtype):
        assert torch.autograd.gradcheck(
            as_called(OURS, sample),
            operands_of(sample),
            nondet_tol=0.0,
            check_grad_dtypes=True,
            fast_mode=info.gradcheck_fast_mode,
            check_batched_grad=info.check_batched_grad,
            check_forward_ad=info.supports_forward_ad,
            check_batched_forward_grad=info.check_batched_forward_grad,
        )


def check_second_derivatives(device: str, dtype: torch.dtype, contiguous: bool) -> None:
    """Likewise the derivatives of gradients, in reverse and in forward mode."""
    info = op_info()
    for sample in samples(device, dtype):
        assert torch.autograd.gradgradcheck(
            as_called(OURS, sample),
            operands_of(sample),
            gen_non_contig_grad_outputs=not contiguous,
            nondet_tol=0.0,
            check_grad_dtypes=True,
            fast_mode=info.gradcheck_fast_mode,
            check_batched_grad=info.check_batched_gradgrad,
            check_fwd_over_rev=info.supports_fwgrad_bwgrad,
            check_rev_over_rev=info.supports_gradgrad,
        )


def check_forward_mode(device: str, dtype: torch.dtype) -> None:
    """Tangents of any of the operands give native's output and tangent."""
    for sample in samples(device, dtype, requires_grad=False):
        operands = operands_of(sample)
        for has_tangent in itertools.product((False, True), repeat=len(operands)):
            if not any(has_tangent):
                continue
            answers = []
            for function in (OURS, NATIVE):
                with forward_ad.dual_level(), torch.backends.mkldnn.flags(enabled=False):
                    duals = [
                        forward_ad.make_dual(one, one.flip(0)) if has else one
                        for one, has in zip(operands, has_tangent)
                    ]
                    output = function(*duals, **sample.kwargs)
                    answers.append(tuple(forward_ad.unpack_dual(output)))
            torch.testing.assert_close(*answers)


def assert_maps(
    function: Callable[..., Any], operands: Sequence[Tensor], axes: Sequence[int]
) -> None:
    """Asserts that torch.vmap gives what a loop gives, each operand mapped along any of the axes or not at all."""
    for in_dims in itertools.product((None, *axes), repeat=len(operands)):
        if in_dims == (None,) * len(operands):
            continue
        pairs = [
            (one, one) if axis is None else (one, one.flip(0))
            for one, axis in zip(operands, in_dims)
        ]
        stacked = [
            pair[0] if axis is None else torch.stack(pair, axis)
            for pair, axis in zip(pairs, in_dims)
        ]
        loop = zip(*(function(*row) for row in zip(*pairs)))
        got = torch.func.vmap(function, in_dims)(*stacked)
        torch.testing.assert_close(got, tuple(torch.stack(each) for each in loop))


def check_vmap(device: str, dtype: torch.dtype) -> None:
    """The op maps over any of its operands."""
    # The batching rules see real numbers alone, so for complex ones a single axis will do.
    axes = (0,) if dtype.is_complex else (0, -1)
    for sample in samples(device, dtype, requires_grad=False):
        op = as_called(OURS, sample)
        assert_maps(lambda *operands, op=op: (op(*operands),), operands_of(sample), axes)


def check_vmap_of_gradients(device: str, dtype: torch.dtype) -> None:
    """The gradients map over any of grad_output and the operands."""

    def gradients(op: Function, grad_output: Tensor, *operands: Tensor) -> Any:
        return torch.func.vjp(op, *operands)[1](grad_output)

    for sample in samples(device, dtype, requires_grad=False):
        op, operands = as_called(OURS, sample), operands_of(sample)
        grad_output = random_like_output(op, operands)
        assert_maps(functools.partial(gradients, op), [grad_output, *operands], (0,))


def check_refusal(device: str, dtype: torch.dtype) -> None:
    """A dtype without kernels is refused, as native refuses it on a GPU."""
    for sample in samples(device, dtype, requires_grad=False):
        with pytest.raises(NotImplementedError, match=f"input has dtype {dtype}"):
            OURS(*operands_of(sample), **sample.kwargs)
