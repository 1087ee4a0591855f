"""The judge judged: by hand, by brute force, by a second formulation, by torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from reference import Parameters, Results, evaluate, magnitude, output_size, products
from reference.scatter import Array, Triple
from tests.brute_force import evaluate_by_brute_force, meetings
from tests.zero_insert import evaluate_by_zero_insertion

RESULTS = tuple(field.name for field in fields(Results))


@dataclass(frozen=True)
class Draw:
    """The arguments of evaluate."""

    input: Array
    weight: Array
    bias: Array | None
    grad_output: Array
    parameters: Parameters

    def arguments(self) -> tuple[Array, Array, Array | None, Array, Parameters]:
        return self.input, self.weight, self.bias, self.grad_output, self.parameters

    def absolute(self) -> Draw:
        bias = None if self.bias is None else np.abs(self.bias)
        return Draw(
            np.abs(self.input), np.abs(self.weight), bias, np.abs(self.grad_output), self.parameters
        )


def draw(
    rng: np.random.Generator,
    values: Callable[[Any], Array],
    longest: int = 4,
    most_channels: int = 3,
) -> Draw:
    """A small legal configuration; axes up to longest long, up to most_channels in a group."""
    size, kernel, stride = (1 + rng.integers(longest, size=3) for _ in range(3))
    dilation = 1 + rng.integers(3, size=3)
    output_padding = rng.integers(np.maximum(stride, dilation))
    uncropped = (size - 1) * stride + dilation * (kernel - 1) + output_padding + 1
    reach = dilation * (kernel - 1)
    padding = np.minimum(rng.integers(reach + 2), (uncropped - 1) // 2)
    n, groups = (int(1 + rng.integers(min(3, most_channels))) for _ in range(2))
    in_channels, out_channels = (int(1 + rng.integers(most_channels)) for _ in range(2))
    parameters = Parameters(
        triple(stride), triple(padding), triple(output_padding), triple(dilation), groups
    )
    output = (n, groups * out_channels, *output_size(size.tolist(), kernel.tolist(), parameters))
    return Draw(
        values((n, groups * in_channels, *size)),
        values((groups * in_channels, out_channels, *kernel)),
        values((groups * out_channels,)) if rng.integers(2) else None,
        values(output),
        parameters,
    )


def triple(values: Array) -> Triple:
    depth, height, width = values.tolist()
    return depth, height, width


def draw_integers(rng: np.random.Generator, amplitude: int = 9, **limits: int) -> Draw:
    return draw(rng, lambda shape: rng.integers(-amplitude, amplitude + 1, shape), **limits)


def assert_identical(actual: Results, expected: Results, about: object) -> None:
    for name in RESULTS:
        got, wanted = getattr(actual, name), getattr(expected, name)
        assert got.dtype == wanted.dtype and got.shape == wanted.shape, f"{name} of {about}"
        if not np.array_equal(got, wanted, equal_nan=got.dtype.kind == "f"):
            raise AssertionError(f"{name} of {about}\nactual {got}\nexpected {wanted}")


# --- By hand -------------------------------------------------------------------------------------


def line(values: list[int], axis: int, leading: tuple[int, int] = (1, 1)) -> Array:
    """Values along one spatial axis, behind two leading axes."""
    size = [1, 1, 1]
    size[axis] = len(values) // (leading[0] * leading[1])
    return np.array(values, np.int64).reshape(*leading, *size)


def along(axis: int, value: int, elsewhere: int) -> Triple:
    depth, height, width = (value if axis == other else elsewhere for other in range(3))
    return depth, height, width


@pytest.mark.parametrize("axis", range(3), ids=["depth", "height", "width"])
@pytest.mark.parametrize(
    ("s", "p", "op", "d", "kernel", "grad_output", "output", "grad_input", "grad_weight"),
    [
        (1, 0, 0, 1, [3], [5, 7], [3, 6], [15, 21], [19]),
        (2, 0, 0, 1, [1, 10, 100], [1, 2, 3, 4, 5], [1, 10, 102, 20, 200], [321, 543], [7, 10, 13]),
        (2, 1, 0, 1, [1, 10, 100], [2, 3, 4], [10, 102, 20], [320, 43], [6, 10, 3]),
        (2, 1, 1, 1, [1, 10, 100], [2, 3, 4, 5], [10, 102, 20, 200], [320, 543], [6, 10, 13]),
        (2, 0, 1, 1, [1, 10], [1, 2, 3, 4, 5], [1, 10, 2, 20, 0], [21, 43], [7, 10]),
        (3, 0, 2, 1, [1], [1, 2, 3, 4, 5, 6], [1, 0, 0, 2, 0, 0], [1, 4], [9]),
        (1, 0, 0, 2, [1, 10], [1, 2, 3, 4], [1, 2, 10, 20], [31, 42], [5, 11]),
        (2, 0, 0, 2, [1, 10], [1, 2, 3, 4, 5], [1, 0, 12, 0, 20], [31, 53], [7, 13]),
        (1, 2, 2, 3, [1, 10], [1, 2, 3], [0, 10, 20], [20, 30], [0, 8]),
    ],
    ids=[
        "one_tap",
        "stride",
        "padding",
        "output_padding",
        "output_padding_past_the_last_tap",
        "stride_above_kernel",
        "dilation",
        "stride_and_dilation_leave_empty_phases",
        "padding_removes_a_tap",
    ],
)
def test_input_1_2_gives_by_hand(
    axis: int,
    s: int,
    p: int,
    op: int,
    d: int,
    kernel: list[int],
    grad_output: list[int],
    output: list[int],
    grad_input: list[int],
    grad_weight: list[int],
) -> None:
    parameters = Parameters(along(axis, s, 1), along(axis, p, 0), along(axis, op, 0))
    parameters = replace(parameters, dilation=along(axis, d, 1))
    arguments = line([1, 2], axis), line(kernel, axis)
    expected = Results(
        line(output, axis),
        line(grad_input, axis),
        line(grad_weight, axis),
        np.array([sum(grad_output)]),
    )
    assert_identical(
        evaluate(*arguments, None, line(grad_output, axis), parameters), expected, "no bias"
    )
    with_bias = replace(expected, output=expected.output + 1000)
    assert_identical(
        evaluate(*arguments, np.array([1000]), line(grad_output, axis), parameters),
        with_bias,
        "bias",
    )


def test_native_defect_a_has_the_truth_found_by_hand() -> None:
    parameters = Parameters(stride=(2, 1, 1), padding=(3, 0, 0))
    input = line([*range(1, 10)], axis=0, leading=(3, 1))
    weight, grad_output = line([1] * 4, axis=0), line([1] * 6, axis=0, leading=(3, 1))
    results = evaluate(input, weight, None, grad_output, parameters)
    assert results.grad_weight.ravel().tolist() == [18, 15, 15, 12]
    assert results.output.reshape(3, 2).tolist() == [[3, 5], [9, 11], [15, 17]]
    assert results.grad_input.reshape(3, 3).tolist() == [[1, 2, 1]] * 3
    assert results.grad_bias.tolist() == [6]


def test_one_voxel_paints_an_asymmetric_kernel() -> None:
    weight = np.arange(24).reshape(1, 1, 2, 3, 4)
    parameters = Parameters(stride=(3, 1, 2))
    grad_output = np.zeros_like(weight)
    grad_output[0, 0, 1, 2, 0] = 1
    results = evaluate(np.full((1, 1, 1, 1, 1), 7), weight, None, grad_output, parameters)
    assert np.array_equal(results.output, 7 * weight)
    assert results.grad_input.item() == weight[0, 0, 1, 2, 0]
    assert np.array_equal(results.grad_weight, 7 * grad_output)


def test_one_tap_spreads_the_input_by_an_asymmetric_stride() -> None:
    input = np.arange(1, 13).reshape(1, 1, 2, 3, 2)
    parameters = Parameters(stride=(1, 2, 3), output_padding=(0, 1, 2))
    expected = np.zeros((1, 1, 2, 6, 6), np.int64)
    expected[:, :, :, ::2, ::3] = 5 * input
    weight = np.full((1, 1, 1, 1, 1), 5)
    results = evaluate(input, weight, None, np.ones_like(expected), parameters)
    assert np.array_equal(results.output, expected)
    assert np.array_equal(results.grad_input, np.full_like(input, 5))
    assert results.grad_weight.item() == input.sum()
    assert results.grad_bias.tolist() == [72]


def test_groups_share_nothing_and_bias_is_of_the_output_channel() -> None:
    input = np.array([1, 2, 3, 4]).reshape(1, 4, 1, 1, 1)
    weight = np.array([[1, 10], [2, 20], [3, 30], [4, 40]]).reshape(4, 2, 1, 1, 1)
    bias = np.array([1000, 2000, 3000, 4000])
    grad_output = np.array([1, 2, 3, 4]).reshape(1, 4, 1, 1, 1)
    results = evaluate(input, weight, bias, grad_output, Parameters(groups=2))
    assert results.output.ravel().tolist() == [1005, 2050, 3025, 4250]
    assert results.grad_input.ravel().tolist() == [21, 42, 129, 172]
    assert results.grad_weight.ravel().tolist() == [1, 2, 2, 4, 9, 12, 12, 16]
    assert results.grad_bias.tolist() == [1, 2, 3, 4]


def test_int64_is_exact_where_float64_is_not() -> None:
    odd = 2**53 + 1
    arrays = [np.full((1, 1, 1, 1, 1), value) for value in (odd, 1, odd)]
    results = evaluate(arrays[0], arrays[1], None, arrays[2], Parameters())
    assert [results.output.item(), results.grad_input.item()] == [odd, odd]


# --- By a second formulation, by brute force, by torch -------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_zero_insertion_agrees_bit_for_bit_on_2500_integer_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(2500):
        drawn = draw_integers(rng, amplitude=2**26, longest=3)
        expected = evaluate_by_zero_insertion(*drawn.arguments())
        assert_identical(evaluate(*drawn.arguments()), expected, drawn)


@pytest.mark.parametrize("seed", range(40))
def test_brute_force_agrees_on_values_counts_and_magnitudes(seed: int) -> None:
    drawn = draw_integers(np.random.default_rng(seed), longest=3, most_channels=2)
    values, counts = evaluate_by_brute_force(*drawn.arguments())
    sums, _ = evaluate_by_brute_force(*drawn.absolute().arguments())
    assert_identical(evaluate(*drawn.arguments()), values, drawn)
    assert_identical(magnitude(*drawn.arguments()), sums, drawn)
    shapes = drawn.input.shape, drawn.weight.shape
    assert_identical(products(*shapes, drawn.parameters), counts, drawn)


@pytest.mark.parametrize("most_channels", [2, 20])
@pytest.mark.parametrize("seed", range(10))
def test_nan_and_infinity_reach_only_the_elements_they_are_behind(
    seed: int, most_channels: int
) -> None:
    rng = np.random.default_rng(seed)
    menu = np.array([0.0, -0.0, 1.0, 2.0, -3.0] * 6 + [np.nan, np.inf, -np.inf])
    drawn = draw(rng, lambda shape: rng.choice(menu, shape), longest=2, most_channels=most_channels)
    with np.errstate(invalid="ignore"):
        expected, _ = evaluate_by_brute_force(*drawn.arguments())
    assert_identical(evaluate(*drawn.arguments()), expected, drawn)


def evaluate_by_torch(drawn: Draw) -> Results:
    input, weight, grad_output = (
        torch.from_numpy(array).requires_grad_()
        for array in (drawn.input, drawn.weight, drawn.grad_output)
    )
    given_bias = np.zeros(grad_output.shape[1]) if drawn.bias is None else drawn.bias
    bias = torch.from_numpy(given_bias).requires_grad_()
    p = drawn.parameters
    with torch.backends.mkldnn.flags(enabled=False):
        output = torch.nn.functional.conv_transpose3d(
            input, weight, bias, p.stride, p.padding, p.output_padding, p.groups, p.dilation
        )
        gradients = torch.autograd.grad(output, (input, weight, bias), grad_output.detach())
    return Results(*(tensor.detach().numpy() for tensor in (output, *gradients)))


@pytest.mark.parametrize("seed", range(4))
def test_torch_float64_agrees_bit_for_bit_on_100_integer_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        drawn = draw(rng, lambda shape: rng.integers(-99, 100, shape).astype(np.float64))
        assert_identical(evaluate(*drawn.arguments()), evaluate_by_torch(drawn), drawn)


@pytest.mark.parametrize("seed", range(4))
def test_torch_float64_agrees_within_two_summation_bounds_on_100_real_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        drawn = draw(rng, rng.standard_normal, longest=5, most_channels=4)
        ours, torchs = evaluate(*drawn.arguments()), evaluate_by_torch(drawn)
        sums = magnitude(*drawn.arguments())
        counts = products(drawn.input.shape, drawn.weight.shape, drawn.parameters)
        for name in RESULTS:
            # n products and the bias, summed in any order: no term is rounded more than n + 1 times
            # (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). One more for
            # the terms of second order, and twice, as either side may be off.
            bound = 2 * (getattr(counts, name) + 2) * 2.0**-53 * getattr(sums, name)
            error = np.abs(getattr(ours, name) - getattr(torchs, name))
            assert (error <= bound).all(), f"{name} of {drawn}"


def test_a_result_that_is_off_by_one_is_not_identical() -> None:
    drawn = draw_integers(np.random.default_rng(0))
    results = evaluate(*drawn.arguments())
    for name in RESULTS:
        wrong = getattr(results, name).copy()
        wrong.flat[-1] += 1
        with pytest.raises(AssertionError, match=name):
            assert_identical(replace(results, **{name: wrong}), results, drawn)


# --- Identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_the_three_primitives_are_adjoint(seed: int) -> None:
    drawn = replace(draw_integers(np.random.default_rng(seed)), bias=None)
    results = evaluate(*drawn.arguments())
    form = np.vdot(results.output, drawn.grad_output)
    assert form == np.vdot(drawn.input, results.grad_input)
    assert form == np.vdot(drawn.weight, results.grad_weight)
    assert np.array_equal(results.grad_bias, drawn.grad_output.sum(axis=(0, 2, 3, 4)))


def test_every_product_is_counted_once_for_each_result() -> None:
    drawn = draw_integers(np.random.default_rng(1))
    counts = products(drawn.input.shape, drawn.weight.shape, drawn.parameters)
    shapes = drawn.input.shape, drawn.weight.shape, drawn.grad_output.shape
    total = sum(1 for _ in meetings(*shapes, drawn.parameters))
    assert counts.output.sum() == counts.grad_input.sum() == counts.grad_weight.sum() == total


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_an_empty_batch_has_empty_results_and_zero_gradients(dtype: Any) -> None:
    input, grad_output = np.ones((0, 2, 2, 3, 1), dtype), np.ones((0, 4, 3, 4, 2), dtype)
    weight, bias = np.ones((2, 2, 2, 2, 2), dtype), np.ones(4, dtype)
    arguments = input, weight, bias, grad_output, Parameters(groups=2)
    for results in (evaluate(*arguments), magnitude(*arguments)):
        zeros = (np.zeros_like(a) for a in (grad_output, input, weight, bias))
        assert_identical(results, Results(*zeros), "an empty batch")
    counts = products(input.shape, weight.shape, Parameters(groups=2))
    assert counts.output.shape == grad_output.shape and not counts.grad_weight.any()
    assert counts.grad_bias.tolist() == [0] * 4


def test_arguments_are_left_as_they_were_and_results_are_contiguous_and_apart() -> None:
    drawn = draw_integers(np.random.default_rng(2))
    before = [array.copy() for array in (drawn.input, drawn.weight, drawn.grad_output)]
    results = evaluate(*drawn.arguments())
    for array, kept in zip((drawn.input, drawn.weight, drawn.grad_output), before, strict=True):
        assert np.array_equal(array, kept)
        assert not any(np.shares_memory(array, getattr(results, name)) for name in RESULTS)
    assert all(getattr(results, name).flags.c_contiguous for name in RESULTS)


def test_memory_layout_of_the_arguments_changes_nothing() -> None:
    drawn = draw_integers(np.random.default_rng(3))
    input, weight, bias, grad_output, parameters = drawn.arguments()
    turned = [
        np.ascontiguousarray(np.moveaxis(array, 1, 4)) for array in (input, weight, grad_output)
    ]
    input, weight, grad_output = (np.moveaxis(array, 4, 1) for array in turned)
    actual = evaluate(input, weight, bias, grad_output, parameters)
    assert_identical(actual, evaluate(*drawn.arguments()), drawn)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f2", "i4", "u8", "c16", "?", "O", ">f8", ">i8"])
def test_every_dtype_but_float64_and_int64_is_refused(dtype: str) -> None:
    arrays = [np.ones((1, 1, 1, 1, 1)).astype(dtype) for _ in range(3)]
    with pytest.raises(TypeError, match=r"input has dtype .* must be float64 or int64"):
        evaluate(arrays[0], arrays[1], None, arrays[2], Parameters())


@pytest.mark.parametrize("name", ["weight", "bias", "grad_output"])
def test_mixed_dtypes_are_refused(name: str) -> None:
    shape = (1, 1, 1, 1, 1)
    drawn = Draw(np.ones(shape), np.ones(shape), np.ones(1), np.ones(shape), Parameters())
    mixed = replace(drawn, **{name: getattr(drawn, name).astype(np.int64)})
    evaluate(*drawn.arguments())
    with pytest.raises(TypeError, match=f"{name} has dtype int64, but must be float64"):
        evaluate(*mixed.arguments())


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("input", np.ones((1, 2, 1, 1)), r"input has shape .* 5 dimensions"),
        ("weight", np.ones((2, 1)), r"weight has shape .* 5 dimensions"),
        ("weight", np.ones((1, 1, 1, 1, 2)), r"weight has shape .* C_in=2"),
        ("bias", np.ones(1), r"bias has shape \(1,\), but must be \(2,\)"),
        ("grad_output", np.ones((1, 2, 1, 1, 1)), r"grad_output has .* must be \(1, 2, 1, 1, 2\)"),
        ("parameters", Parameters(groups=3), r"groups=3, .* divisor of C_in=2"),
        ("parameters", Parameters(groups=0), r"groups=0, .* divisor of C_in=2"),
        ("parameters", Parameters(padding=(1, 0, 0), groups=2), r"must be \(1, 2, -1, 1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, wrong: Any, message: str) -> None:
    drawn = Draw(
        np.ones((1, 2, 1, 1, 1)),
        np.ones((2, 1, 1, 1, 2)),
        np.ones(2),
        np.ones((1, 2, 1, 1, 2)),
        Parameters(groups=2),
    )
    evaluate(*drawn.arguments())
    with pytest.raises(ValueError, match=message):
        evaluate(*replace(drawn, **{name: wrong}).arguments())
