"""TF32 on a GPU: PyTorch's switches for cuDNN's convolutions decide, as they do for native."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import convt3d
from convt3d import plan

SHAPES = {
    "matrix": ((2, 32, 5, 6, 9), (32, 24, 3, 3, 3)),
    "few channels": ((2, 3, 5, 6, 9), (3, 4, 3, 3, 3)),
}


def operands(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, weight = (torch.randn(shape, device="cuda") for shape in shapes)
    return x, weight


def forward(x: Tensor, weight: Tensor, tf32: bool | None) -> Tensor:
    with plan.forced({}, tf32=tf32):
        return convt3d.conv_transpose3d(x, weight, stride=2, padding=1)


def error(got: Tensor, x: Tensor, weight: Tensor) -> float:
    exact = torch.nn.functional.conv_transpose3d(x.double(), weight.double(), stride=2, padding=1)
    return float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_switch_decides(name: str, allowed: bool) -> None:
    x, weight = operands(SHAPES[name])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        got = forward(x, weight, None)
    assert torch.equal(got, forward(x, weight, allowed))


def test_tf32_is_rounded_and_strict_fp32_is_not() -> None:
    x, weight = operands(SHAPES["matrix"])
    strict, rounded = (error(forward(x, weight, tf32), x, weight) for tf32 in (False, True))
    assert strict < 1e-6 < 1e-5 < rounded < 1e-3


def test_tf32_is_no_less_accurate_than_natives() -> None:
    x, weight = operands(SHAPES["matrix"])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        native = torch.nn.functional.conv_transpose3d(x, weight, stride=2, padding=1)
    # Both have the errors of the rounded factors; the order of the sums moves the last digits.
    assert error(forward(x, weight, True), x, weight) <= 1.001 * error(native, x, weight)
