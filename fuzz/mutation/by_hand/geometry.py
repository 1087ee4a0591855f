"""Sizes of tensors, and the parameters that kernels get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from convt3d import geometry
from convt3d.geometry import Axis, Geometry, Triple
from fuzz.mutation.mutant import PythonMutant

# input_size, kernel_size, stride, padding, output_padding, dilation
Sizes = tuple[Triple, Triple, Triple, Triple, Triple, Triple]

_right_size = geometry.output_size


@contextmanager
def _size_of(changed: Callable[[Sizes], Sizes]) -> Iterator[None]:
    """Has the size of the output computed from changed parameters."""
    geometry.output_size = lambda *sizes: _right_size(*changed(sizes))  # type: ignore[assignment, arg-type]
    yield


def _without_dilation(sizes: Sizes) -> Sizes:
    return (*sizes[:5], (1, 1, 1))


def _without_output_padding(sizes: Sizes) -> Sizes:
    return (*sizes[:4], (0, 0, 0), sizes[5])


def _without_output_padding_of_depth(sizes: Sizes) -> Sizes:
    return (*sizes[:4], (0, *sizes[4][1:]), sizes[5])


@contextmanager
def _axis_of(changed: Callable[[Geometry, int, Axis], Axis]) -> Iterator[None]:
    """Has kernels get a changed axis, made of the geometry, the axis's number and the right axis. Sizes stay right."""
    right = Geometry.axis
    Geometry.axis = lambda self, index: changed(self, index, right(self, index))  # type: ignore[method-assign]
    yield


def _with_output_padding_in_front(whole: Geometry, index: int, axis: Axis) -> Axis:
    return replace(axis, padding=axis.padding + whole.output_padding[index])


def _with_the_first_dilation(whole: Geometry, _: int, axis: Axis) -> Axis:
    return replace(axis, dilation=whole.dilation[0])


def _with_the_first_stride(whole: Geometry, _: int, axis: Axis) -> Axis:
    return replace(axis, stride=whole.stride[0])


def _without_padding_for_one_tap(whole: Geometry, _: int, axis: Axis) -> Axis:
    return replace(axis, padding=0) if whole.taps == 1 else axis


MUTANTS = (
    PythonMutant(
        "output_size_without_dilation",
        "pytorch#14099, torch/nn#857: the size counts kernel_size, not the reach of its taps",
        partial(_size_of, _without_dilation),
    ),
    PythonMutant(
        "output_padding_ignored",
        "tvm#19524: the argument is taken and has no effect",
        partial(_size_of, _without_output_padding),
    ),
    PythonMutant(
        "output_padding_of_height_and_width_only",
        "TensorRT#415: the two innermost axes take it, depth does not",
        partial(_size_of, _without_output_padding_of_depth),
    ),
    PythonMutant(
        "output_padding_subtracted_from_the_coordinate",
        "torch-mlir#4650: the crop at the near side depends on output_padding",
        partial(_axis_of, _with_output_padding_in_front),
    ),
    PythonMutant(
        "dilation_of_the_first_axis_for_all",
        "djl#384: stride and dilation only ever use index 0",
        partial(_axis_of, _with_the_first_dilation),
    ),
    PythonMutant(
        "stride_of_the_first_axis_for_all",
        "mxnet#2365, djl#384: right for equal strides only",
        partial(_axis_of, _with_the_first_stride),
    ),
    PythonMutant(
        "shortcut_for_one_tap_ignores_padding",
        "pytorch#51185: the test for a 1x1x1 kernel forgets a parameter; tvm#8087 has wrong gradients for one",
        partial(_axis_of, _without_padding_for_one_tap),
    ),
)
