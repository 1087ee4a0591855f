"""Derivatives of the three primitives, of any order, against finite differences and against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import plan
from convt3d.geometry import Geometry
from tests import operator_checks as checks

# Few elements: finite differences take two calls for each of them.
TINY = {
    "upsampling": checks.geometry(
        (2, 1, 2),
        (2, 2, 1),
        channels=(1, 2),
        stride=(2, 1, 2),
        padding=(1, 0, 0),
        output_padding=(1, 0, 0),
    ),
    "dilated_batch": checks.geometry(
        (1, 2, 1), (2, 1, 2), batch=2, dilation=(2, 1, 3), padding=(0, 0, 1)
    ),
    "depthwise": checks.geometry((2, 1, 1), (1, 1, 2), channels=(2, 2), groups=2),
    "phases_without_a_tap": checks.geometry((2, 1, 1), (1, 1, 1), stride=(3, 1, 2)),
}


def leaves(geometry: Geometry, *names: str) -> tuple[Tensor, ...]:
    """Returns random float64 leaves that require a gradient."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "input": geometry.input_shape,
        "weight": geometry.weight_shape,
        "bias": (geometry.out_channels,),
        "grad_output": geometry.output_shape,
    }
    return tuple(
        torch.randn(shapes[name], generator=generator, dtype=torch.float64).requires_grad_()
        for name in names
    )


@pytest.mark.parametrize("name", TINY)
class TestFiniteDifferences:
    """First and second derivatives of each primitive."""

    def check(self, function: Any, inputs: tuple[Tensor, ...]) -> None:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)

    def test_forward(self, name: str) -> None:
        rest = checks.parameters(TINY[name])
        self.check(
            lambda *operands: torch.ops.convt3d.forward(*operands, *rest),
            leaves(TINY[name], "input", "weight", "bias"),
        )

    def test_forward_without_a_bias(self, name: str) -> None:
        rest = checks.parameters(TINY[name])
        self.check(
            lambda input, weight: torch.ops.convt3d.forward(input, weight, None, *rest),
            leaves(TINY[name], "input", "weight"),
        )

    def test_grad_input(self, name: str) -> None:
        rest = checks.parameters(TINY[name])
        self.check(
            lambda *operands: torch.ops.convt3d.grad_input(*operands, *rest, False),
            leaves(TINY[name], "grad_output", "weight"),
        )

    @pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
    def test_grad_weight(self, name: str, wanted: tuple[bool, bool]) -> None:
        geometry = TINY[name]

        def function(input: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
            results = torch.ops.convt3d.grad_weight(
                input,
                grad_output,
                geometry.kernel_size,
                *checks.parameters(geometry),
                False,
                *wanted,
            )
            return tuple(result for result, is_wanted in zip(results, wanted) if is_wanted)

        inputs = leaves(geometry, "input", "grad_output")
        if wanted == (False, True):  # grad_bias does not depend on the input
            self.check(lambda grad_output: function(inputs[0], grad_output), inputs[1:])
        else:
            self.check(function, inputs)


def derivatives_of_third_order(function: Any, geometry: Geometry) -> list[Tensor]:
    """Differentiates three times, each time in input, weight and bias where they take part."""
    operands = leaves(geometry, "input", "weight", "bias")
    stride, padding, output_padding, dilation, groups = checks.parameters(geometry)
    value = function(*operands, stride, padding, output_padding, groups, dilation)
    found = []
    for _ in range(3):
        # The square makes every order of derivative depend on all operands.
        gradients = torch.autograd.grad((value**2).sum(), operands, create_graph=True)
        found += list(gradients)
        value = sum((gradient.sum() for gradient in gradients), torch.zeros(()))
    return found


# With output_padding the native op refuses its own third derivative.
@pytest.mark.parametrize("name", [name for name in TINY if not any(TINY[name].output_padding)])
def test_derivatives_of_third_order_are_those_of_the_native_op(name: str) -> None:
    ours = derivatives_of_third_order(convt3d.conv_transpose3d, TINY[name])
    with torch.backends.mkldnn.flags(enabled=False):
        native = derivatives_of_third_order(torch.nn.functional.conv_transpose3d, TINY[name])
    for got, expected in zip(ours, native, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "every_axis_of_its_own", "groups"])
def test_second_derivatives_are_exact_on_integers(name: str) -> None:
    geometry = checks.GEOMETRIES[name]

    def twice(function: Any, dtype: torch.dtype) -> list[Tensor]:
        operands = checks.operands(geometry, dtype).map(lambda t: t.detach().requires_grad_())
        assert operands.bias is not None
        inputs = (operands.input, operands.weight, operands.bias)
        stride, padding, output_padding, dilation, groups = checks.parameters(geometry)
        output = function(*inputs, stride, padding, output_padding, groups, dilation)
        first = torch.autograd.grad(output, inputs, operands.grad_output, create_graph=True)
        back = [torch.full_like(gradient, 2.0) for gradient in first]
        wanted = (operands.input, operands.weight, operands.grad_output)
        return list(torch.autograd.grad(first, wanted, back))

    with torch.backends.mkldnn.flags(enabled=False):
        native = twice(torch.nn.functional.conv_transpose3d, torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for got, exact in zip(twice(convt3d.conv_transpose3d, dtype), native, strict=True):
            checks.assert_same_bits(got, exact.to(dtype), f"{name} {dtype}")


def test_every_plan_serves_the_second_derivatives() -> None:
    geometry = TINY["upsampling"]
    rest = checks.parameters(geometry)
    for plans in checks.plan_sets(geometry):
        with plan.forced(plans):
            assert torch.autograd.gradgradcheck(
                lambda *operands: torch.ops.convt3d.forward(*operands, *rest),
                leaves(geometry, "input", "weight", "bias"),
            )


def test_gradients_accumulate_in_leaves_of_any_memory_format() -> None:
    geometry = checks.GEOMETRIES["upsampling"]
    for memory_format in checks.MEMORY_FORMATS.values():
        operands = checks.operands(geometry, torch.float32, memory_format=memory_format)
        expected = checks.native(geometry, operands)
        operands.weight.requires_grad_()
        for times in (1, 2):
            output = torch.ops.convt3d.forward(
                operands.input, operands.weight, operands.bias, *checks.parameters(geometry)
            )
            output.backward(operands.grad_output.contiguous())
            assert operands.weight.grad is not None
            assert torch.equal(operands.weight.grad.double(), times * expected.grad_weight)


def test_backward_runs_once_unless_the_graph_is_kept() -> None:
    input, weight = leaves(TINY["upsampling"], "input", "weight")
    output = convt3d.conv_transpose3d(input, weight)
    output.sum().backward(retain_graph=True)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        output.sum().backward()


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_an_operand_that_was_changed_before_backward_is_noticed(changed: str) -> None:
    input, weight = leaves(TINY["upsampling"], "input", "weight")
    operands = {"input": input * 1, "weight": weight * 1}
    output = convt3d.conv_transpose3d(**operands)
    operands[changed].detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
