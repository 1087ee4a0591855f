"""What is launched on which data, what is returned, and what is remembered from call to call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convt3d import launch, plan
from convt3d.geometry import Geometry
from convt3d.ops import autograd
from fuzz.mutation.mutant import PythonMutant

# Strides of source, weight and destination.
Strides = tuple[Sequence[int], Sequence[int], Sequence[int]]

# ---- results and operands -------------------------------------------------------------------------


@contextmanager
def _after_gather(
    damage: Callable[[str, Geometry, Tensor, Tensor, Tensor], object],
) -> Iterator[None]:
    """Does damage after every launch of forward or grad_input, to its source, its weight or its destination."""
    right = launch.gather

    def gather(
        primitive: str, whole: Geometry, source: Tensor, weight: Tensor, bias: Any, to: Tensor
    ) -> plan.Plan:
        ran = right(primitive, whole, source, weight, bias, to)
        damage(primitive, whole, source, weight, to)
        return ran

    launch.gather = gather  # type: ignore[assignment]
    yield


def _zero_output_padding(
    primitive: str, whole: Geometry, source: Tensor, weight: Tensor, to: Tensor
) -> None:
    if primitive == "forward":
        for axis, extra in enumerate(whole.output_padding, start=2):
            kept = max(0, to.shape[axis] - extra)
            to.narrow(axis, kept, to.shape[axis] - kept).zero_()


def _zero_grad_input(
    primitive: str, whole: Geometry, source: Tensor, weight: Tensor, to: Tensor
) -> None:
    if primitive == "grad_input":
        to.zero_()


def _overwrite_grad_output(
    primitive: str, whole: Geometry, source: Tensor, weight: Tensor, to: Tensor
) -> None:
    if primitive == "grad_input" and source.shape == to.shape:
        source.data.copy_(to)  # .data: as a kernel would, unseen by autograd


def _overwrite_weight(
    primitive: str, whole: Geometry, source: Tensor, weight: Tensor, to: Tensor
) -> None:
    weight.data.zero_()


@contextmanager
def _zero_grad_weight() -> Iterator[None]:
    right = launch.weight_gradient

    def weight_gradient(
        whole: Geometry, x: Any, grad_output: Tensor, grad_weight: Any, grad_bias: Any
    ) -> plan.Plan:
        ran = right(whole, x, grad_output, grad_weight, grad_bias)
        if grad_weight is not None:
            grad_weight.zero_()
        return ran

    launch.weight_gradient = weight_gradient  # type: ignore[assignment]
    yield


@contextmanager
def _swap_gradients() -> Iterator[None]:
    right = autograd._Forward.backward

    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_input, of_weight, *rest = right(ctx, gradient)
        return (of_weight, of_input, *rest)

    autograd._Forward.backward = staticmethod(backward)  # type: ignore[assignment]
    yield


# ---- what is remembered ---------------------------------------------------------------------------


@contextmanager
def _memoise(key_of: Callable[[Tensor, Tensor], object]) -> Iterator[None]:
    """Has forward and grad_input answer with what they computed first for a key made of source and weight."""
    right = launch.gather
    seen: dict[object, Tensor] = {}

    def gather(
        primitive: str, whole: Geometry, source: Tensor, weight: Tensor, bias: Any, to: Tensor
    ) -> plan.Plan:
        key = (primitive, source.dtype, to.shape, key_of(source, weight))
        if key in seen:
            to.copy_(seen[key])
            return plan.choose(primitive, whole)
        ran = right(primitive, whole, source, weight, bias, to)
        seen[key] = to.clone()
        return ran

    launch.gather = gather  # type: ignore[assignment]
    yield


def _by_shape(source: Tensor, weight: Tensor) -> object:
    return source.shape, weight.shape


def _by_data_ptr(source: Tensor, weight: Tensor) -> object:
    return source.data_ptr(), weight.data_ptr()


@contextmanager
def _cache_without_strides() -> Iterator[None]:
    right = launch._gather_template
    seen: dict[object, bytes] = {}

    def template(primitive: str, whole: Geometry, *strides: Any) -> bytes:
        if (primitive, whole) not in seen:
            seen[primitive, whole] = right(primitive, whole, *strides)
        return seen[primitive, whole]

    launch._gather_template = template  # type: ignore[assignment]
    yield


# ---- strides --------------------------------------------------------------------------------------


@contextmanager
def _gather_strides(changed: Callable[[str, Geometry, Strides], Strides]) -> Iterator[None]:
    """Has the kernels of forward and grad_input get changed strides."""
    right = launch._gather_template

    def template(primitive: str, whole: Geometry, *strides: Any) -> bytes:
        return right(primitive, whole, *changed(primitive, whole, strides))  # type: ignore[arg-type]

    launch._gather_template = template  # type: ignore[assignment]
    yield


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    n, d, h, w, c = _contiguous((shape[0], *shape[2:], shape[1]))
    return (n, c, d, h, w)


def _destination_shape(primitive: str, whole: Geometry) -> Sequence[int]:
    return whole.output_shape if primitive == "forward" else whole.input_shape


def _weight_transposed(_: str, whole: Geometry, strides: Strides) -> Strides:
    shape = (whole.out_channels, whole.in_channels_per_group, *whole.kernel_size)
    out, inner, *taps = _contiguous(shape)
    return strides[0], (inner, out, *taps), strides[2]


def _weight_contiguous(_: str, whole: Geometry, strides: Strides) -> Strides:
    return strides[0], _contiguous(whole.weight_shape), strides[2]


def _destination_contiguous(primitive: str, whole: Geometry, strides: Strides) -> Strides:
    return *strides[:2], _contiguous(_destination_shape(primitive, whole))


def _destination_channels_last(primitive: str, whole: Geometry, strides: Strides) -> Strides:
    return *strides[:2], _channels_last(_destination_shape(primitive, whole))


@contextmanager
def _grad_output_contiguous() -> Iterator[None]:
    right = launch._weight_template

    def template(whole: Geometry, splits: int, x: Any, grad_output: Any, grad_weight: Any) -> bytes:
        return right(whole, splits, x, _contiguous(whole.output_shape), grad_weight)

    launch._weight_template = template  # type: ignore[assignment]
    yield


@contextmanager
def _count_elements() -> Iterator[None]:
    launch._fit_32_bits = lambda *tensors: all(t.numel() < 2**31 for t in tensors)
    yield


# ---- streams and devices --------------------------------------------------------------------------


def _call(part: str, params: ctypes.Structure, flags: Any, tensor: Tensor, stream: int) -> None:
    entry = launch._entry(part, "cuda", tensor.device.index)
    if error := entry(ctypes.byref(params), *flags, stream):
        raise RuntimeError(error.decode())


@contextmanager
def _default_stream() -> Iterator[None]:
    def wrong(part: str, params: Any, flags: Any, tensor: Tensor, what: str) -> None:
        with torch.cuda.device(tensor.device):
            _call(part, params, flags, tensor, 0)

    launch._launch = wrong
    yield


@contextmanager
def _current_device() -> Iterator[None]:
    def wrong(part: str, params: Any, flags: Any, tensor: Tensor, what: str) -> None:
        _call(part, params, flags, tensor, torch.cuda.current_stream().cuda_stream)

    launch._launch = wrong
    yield


MUTANTS = (
    PythonMutant(
        "output_padding_filled_with_zeros",
        "as if it padded the output, where taps and bias reach: asked in tinygrad#875",
        partial(_after_gather, _zero_output_padding),
    ),
    PythonMutant(
        "grad_input_returned_as_zeros",
        "a backward that was never written",
        partial(_after_gather, _zero_grad_input),
    ),
    PythonMutant(
        "grad_weight_returned_as_zeros",
        "rocm-libraries#11188: every element of weight.grad is exactly zero for large inputs",
        _zero_grad_weight,
    ),
    PythonMutant(
        "gradients_in_the_wrong_order",
        "backward returns the gradient of the weight first",
        _swap_gradients,
    ),
    PythonMutant(
        "grad_output_overwritten",
        "apex#1430: backward computes in place where the shapes allow",
        partial(_after_gather, _overwrite_grad_output),
    ),
    PythonMutant(
        "weight_overwritten",
        "KernelBench#82: a kernel that zeroes its inputs",
        partial(_after_gather, _overwrite_weight),
    ),
    PythonMutant(
        "result_memoised_by_shape",
        "the previous call's result is returned: flashinfer-bench-starter-kit#21",
        partial(_memoise, _by_shape),
    ),
    PythonMutant(
        "result_memoised_by_data_ptr",
        "kernelbot#501: replay keyed on the address of the input",
        partial(_memoise, _by_data_ptr),
    ),
    PythonMutant(
        "plan_cached_without_strides",
        "a cache keyed by sizes alone gives one memory layout the plan of another",
        _cache_without_strides,
    ),
    PythonMutant(
        "weight_laid_out_output_channels_first",
        "(C_out, C_in/groups, ...) as for a convolution: tvm#9465, functorch#345",
        partial(_gather_strides, _weight_transposed),
    ),
    PythonMutant(
        "weight_read_as_contiguous",
        "pytorch#99519: garbage for a weight in channels_last; candle#3735",
        partial(_gather_strides, _weight_contiguous),
    ),
    PythonMutant(
        "grad_output_read_as_contiguous",
        "pytorch#708, flash-attention#355, flash-linear-attention#871",
        _grad_output_contiguous,
    ),
    PythonMutant(
        "channels_last_result_stored_as_ncdhw",
        "pytorch#82846: a result's strides are not those that were announced",
        partial(_gather_strides, _destination_contiguous),
    ),
    PythonMutant(
        "ncdhw_result_stored_as_channels_last",
        "the same, the other way round",
        partial(_gather_strides, _destination_channels_last),
    ),
    PythonMutant(
        "elements_counted_where_offsets_decide",
        "rocm-libraries#9568: the check that 32 bits suffice does not look at what the kernel computes",
        _count_elements,
    ),
    PythonMutant(
        "default_stream_used",
        "pytorch#182770, cudnn-frontend#483, fvdb-core#587: the launch races what the current stream does",
        _default_stream,
        needs="gpu",
    ),
    PythonMutant(
        "current_device_used",
        "pytorch#54077, vllm#1959, torchsparse#372: no guard makes the tensor's device the current one",
        _current_device,
        needs="two gpus",
    ),
)
