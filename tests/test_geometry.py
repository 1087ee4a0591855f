"""The integers of a transposed convolution, against counting by hand and by brute force."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convt3d.geometry import (
    Axis,
    Geometry,
    Triple,
    check_geometry,
    grad_input_geometry,
    output_size,
    triple,
)

ROOT = Path(__file__).parents[1]
VALID = Geometry(
    batch=2,
    in_channels=4,
    out_channels=6,
    groups=2,
    input_size=(3, 4, 5),
    kernel_size=(3, 2, 1),
    stride=(2, 1, 3),
    padding=(1, 0, 0),
    output_padding=(1, 0, 2),
    dilation=(1, 2, 1),
)
STEPS = list(itertools.product(range(1, 8), range(1, 8)))  # (stride, dilation)


def small_axes() -> Iterator[Axis]:
    """Yields every axis of small integers that has an output."""
    sizes, strides, paddings = range(1, 5), range(1, 5), range(4)
    for i, k, s, p, d in itertools.product(sizes, sizes, strides, paddings, strides):
        for op in range(max(s, d)):
            length = output_size([i] * 3, [k] * 3, [s] * 3, [p] * 3, [op] * 3, [d] * 3)[0]
            if length >= 1:
                yield Axis(i, length, k, s, p, d)


def axis(kernel_size: int, stride: int, dilation: int) -> Axis:
    return Axis(1, 1, kernel_size, stride, 0, dilation)


def test_output_size_is_the_reach_of_the_last_tap_cropped_and_extended() -> None:
    for i, k, s, p, d in itertools.product(range(1, 4), repeat=5):
        for op in range(3):
            last = max(x * s + tap * d for x in range(i) for tap in range(k))
            sizes = output_size((i, 1, 1), (k, 1, 1), (s, 1, 1), (p, 0, 0), (op, 0, 0), (d, 1, 1))
            assert sizes == (last + 1 - 2 * p + op, 1, 1)


def test_output_size_takes_each_axis_for_itself() -> None:
    assert VALID.output_size == (6, 6, 15)
    assert VALID.output_shape == (2, 6, 6, 6, 15)


def test_shapes_follow_from_the_fields() -> None:
    assert VALID.input_shape == (2, 4, 3, 4, 5)
    assert VALID.weight_shape == (4, 3, 3, 2, 1)
    assert (VALID.in_channels_per_group, VALID.out_channels_per_group, VALID.taps) == (2, 3, 6)
    assert VALID.axis(1) == Axis(4, 6, 2, 1, 0, 2)


@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_taps_share_their_outputs_exactly_when_they_are_a_tap_step_apart(
    stride: int, dilation: int
) -> None:
    step = axis(1, stride, dilation).tap_step
    for first, second in itertools.product(range(9), repeat=2):
        share = (first * dilation - second * dilation) % stride == 0
        assert share == ((first - second) % step == 0)


@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_the_dilation_inverse_gives_the_first_tap_of_every_residue(
    stride: int, dilation: int
) -> None:
    one = axis(1, stride, dilation)
    for residue in range(stride):
        taps = [tap for tap in range(stride) if tap * dilation % stride == residue]
        if residue % one.stride_dilation_gcd:
            assert taps == []
        else:
            first = residue // one.stride_dilation_gcd * one.dilation_inverse % one.tap_step
            assert taps == list(range(first, stride, one.tap_step))


def test_the_dilation_inverse_is_a_residue() -> None:
    for stride, dilation in STEPS:
        one = axis(1, stride, dilation)
        assert 0 <= one.dilation_inverse < max(1, one.tap_step)


def coordinates(axis: Axis) -> Iterator[int]:
    """Yields the coordinates before cropping that the kernels form on an axis, and their phase's end."""
    for i, k in itertools.product(range(axis.input_size), range(axis.kernel_size)):
        yield i * axis.stride + k * axis.dilation
    for o, k in itertools.product(range(axis.output_size), range(axis.kernel_size)):
        yield o + axis.padding
        yield o + axis.padding - k * axis.dilation
        yield o + axis.stride  # where the loop over a phase ends
    for i, k in itertools.product(range(axis.input_size), range(axis.kernel_size)):
        yield i * axis.stride - axis.padding + k * axis.dilation


def test_no_coordinate_is_above_the_largest() -> None:
    axes = list(small_axes())
    assert len(axes) > 2000
    for one in axes:
        assert max(abs(c) for c in coordinates(one)) <= one.largest_coordinate


def test_the_largest_coordinate_is_not_far_above_the_true_one() -> None:
    for one in small_axes():
        largest = max(abs(c) for c in coordinates(one))
        assert one.largest_coordinate <= largest + 2 * one.padding + one.stride + one.dilation


def test_the_geometry_of_grad_input_undoes_output_size() -> None:
    for i, k, s, p, d in itertools.product(range(1, 4), range(1, 4), range(1, 4), range(3), (1, 3)):
        for op in range(max(s, d)):
            one = dataclasses.replace(
                VALID,
                input_size=(i, 2, 3),
                kernel_size=(k, 1, 2),
                stride=(s, 2, 1),
                padding=(p, 0, 1),
                output_padding=(op, 1, 0),
                dilation=(d, 1, 2),
            )
            again = grad_input_geometry(
                one.output_shape,
                one.weight_shape,
                one.stride,
                one.padding,
                one.output_padding,
                one.dilation,
                one.groups,
            )
            assert again == one


@pytest.mark.parametrize("wrong_axis", [0, 1, 2])
def test_a_grad_output_that_no_input_gives_is_refused(wrong_axis: int) -> None:
    shape = [1, 1, 5, 5, 5]  # stride 2, kernel 3: sizes 3, 5, 7, ...
    shape[2 + wrong_axis] = 6
    zeros, ones = (0, 0, 0), (1, 1, 1)
    with pytest.raises(
        RuntimeError, match=f"grad_output has size 6 on axis {wrong_axis}, which no"
    ):
        grad_input_geometry(shape, (1, 1, 3, 3, 3), (2, 2, 2), zeros, zeros, ones, 1)


@pytest.mark.parametrize("field", ["stride", "dilation"])
def test_the_geometry_of_grad_input_refuses_a_step_of_zero(field: str) -> None:
    parameters: dict[str, Triple] = {
        "stride": (1, 1, 1),
        "padding": (0, 0, 0),
        "output_padding": (0, 0, 0),
        "dilation": (1, 1, 1),
    }
    parameters[field] = (1, 0, 1)
    with pytest.raises(RuntimeError, match=rf"{field}\[1\]=0, but must be at least 1"):
        check_geometry(
            grad_input_geometry((1, 1, 3, 3, 3), (1, 1, 1, 1, 1), **parameters, groups=1)
        )


@pytest.mark.parametrize("value", [2, (2,), [2], (2, 2, 2), [2, 2, 2]])
def test_one_number_stands_for_three(value: int | tuple[int, ...] | list[int]) -> None:
    assert triple("stride", value) == (2, 2, 2)


def test_three_numbers_are_kept_in_order() -> None:
    assert triple("padding", [1, 2, 3]) == (1, 2, 3)


@pytest.mark.parametrize("value", [(), (1, 2), [1, 2, 3, 4]])
def test_any_other_count_of_numbers_is_refused(value: tuple[int, ...] | list[int]) -> None:
    with pytest.raises(RuntimeError) as caught:
        triple("dilation", value)
    assert f"dilation={value!r} has {len(value)} values, but must have 1 or 3" == str(caught.value)


@pytest.mark.parametrize("value", [1.0, "1", None, "111", {1}, b"\1\1\1", True, False], ids=repr)
def test_what_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError) as caught:
        triple("stride", value)  # type: ignore[arg-type]
    assert f"stride={value!r}" in str(caught.value)


@pytest.mark.parametrize("value", [(1, 1.0, 1), ["1", 1, 1], (None,), (True, 1, 1)], ids=repr)
def test_a_sequence_that_holds_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="in it is not an int"):
        triple("stride", value)  # type: ignore[arg-type]


def test_a_number_of_another_integer_type_is_taken() -> None:
    class Index:
        def __index__(self) -> int:
            return 2

    assert triple("stride", Index()) == (2, 2, 2)  # type: ignore[arg-type]
    assert triple("stride", (1, Index(), 3)) == (1, 2, 3)  # type: ignore[arg-type]


def test_a_valid_geometry_is_accepted() -> None:
    check_geometry(VALID)


def test_the_largest_output_padding_is_accepted() -> None:
    for stride, dilation in itertools.product(range(1, 4), repeat=2):
        largest = (max(stride, dilation) - 1,) * 3
        steps = (stride,) * 3, (dilation,) * 3
        check_geometry(
            dataclasses.replace(
                VALID, stride=steps[0], dilation=steps[1], output_padding=largest, padding=(0, 0, 0)
            )
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 0}, "groups=0, but must be at least 1"),
        ({"groups": -2}, "groups=-2, but must be at least 1"),
        ({"groups": 3}, "in_channels=4 is not divisible by groups=3"),
        ({"groups": 4}, "out_channels=6 is not divisible by groups=4"),
        ({"in_channels": 0}, "in_channels=0, but must be at least 1"),
        ({"input_size": (3, 0, 5)}, "input_size[1]=0, but must be at least 1"),
        ({"kernel_size": (0, 2, 1)}, "kernel_size[0]=0, but must be at least 1"),
        ({"stride": (2, 0, 3)}, "stride[1]=0, but must be at least 1"),
        ({"stride": (2, 1, -1)}, "stride[2]=-1, but must be at least 1"),
        ({"dilation": (0, 2, 1)}, "dilation[0]=0, but must be at least 1"),
        ({"padding": (1, -1, 0)}, "padding[1]=-1, but must be at least 0"),
        ({"output_padding": (1, 0, -2)}, "output_padding[2]=-2, but must be at least 0"),
        (
            {"output_padding": (2, 0, 0)},
            "output_padding[0]=2, but must be less than stride[0]=2 or dilation[0]=1",
        ),
        (
            {"output_padding": (0, 2, 0)},
            "output_padding[1]=2, but must be less than stride[1]=1 or dilation[1]=2",
        ),
        ({"padding": (5, 0, 0)}, "output size (-2, 6, 15) is negative"),
        ({"padding": (1, 0, 9)}, "padding=(1, 0, 9)"),
    ],
)
def test_a_wrong_geometry_is_refused_by_argument_and_value(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        check_geometry(dataclasses.replace(VALID, **change))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_batch_of_nothing_is_accepted() -> None:
    check_geometry(dataclasses.replace(VALID, batch=0))


def test_the_integers_need_no_torch() -> None:
    code = "import sys; import convt3d.plan, convt3d.geometry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_tap_step_and_the_gcd_rebuild_the_stride() -> None:
    for stride, dilation in STEPS:
        one = axis(1, stride, dilation)
        assert one.tap_step * one.stride_dilation_gcd == stride
        assert one.stride_dilation_gcd == math.gcd(stride, dilation)
