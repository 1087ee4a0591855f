"""A small 3-D U-Net, trained for a few steps, and how far rounding takes a run from the one in float64.

Runs that differ only in rounding (another order of summation, another algorithm) drift apart as training goes on. What
drift rounding explains is measured: how far PyTorch's own op takes a run from the one in float64, by its algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 20
# Another run may be unluckier than a handful of them; a wrong gradient is off by far more.
LEEWAY = 2.0


def block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01),
    )


class UNet(nn.Module):
    """Three levels; upsampling by a transposed convolution of each usual kind.

    Args:
        channels: of the levels.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        one, two, three = channels
        self.down_1 = block(1, one)
        self.down_2 = block(one, two, stride=2)
        self.bottom = block(two, three, stride=2)
        self.up_2 = nn.ConvTranspose3d(three, two, 2, stride=2)
        self.join_2 = block(2 * two, two)
        self.up_1 = nn.ConvTranspose3d(
            two, one, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.join_1 = block(2 * one, one)
        self.refine = nn.ConvTranspose3d(one, one, 3, padding=1, groups=one)
        self.head = nn.Conv3d(one, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (N, 2, D, H, W) of x (N, 1, D, H, W); sizes are multiples of 4."""
        first = self.down_1(x)
        second = self.down_2(first)
        up = self.up_2(self.bottom(second))
        up = self.join_2(torch.cat([up, second], 1))
        up = self.join_1(torch.cat([self.up_1(up), first], 1))
        return self.head(self.refine(up))


@dataclass(frozen=True)
class Run:
    """How to train.

    Args:
        change: applied to the model before it is trained, for example convt3d.replace.
        dtype: of the parameters.
        autocast: the lower precision, or None.
        around: a context that decides the algorithms.
    """

    change: Callable[[nn.Module], Any] = lambda model: None
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def train(run: Run, device: str, channels: Sequence[int], size: int) -> list[Tensor]:
    """Trains from a fixed seed. Returns all parameters in float64, before the first step and after each."""
    torch.manual_seed(11)
    model = UNet(channels).to(device, run.dtype)
    run.change(model)
    x = torch.randn(2, 1, size, size, size).to(device, run.dtype)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scale = (
        2.0**10 if run.autocast == torch.float16 else 1.0
    )  # gradients of fp16 must not underflow
    history = [flat(model)]
    with run.around():
        for _ in range(STEPS):
            with torch.autocast(device, dtype=run.autocast, enabled=run.autocast is not None):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.to(run.dtype), target)
            optimizer.zero_grad()
            (scale * loss).backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad /= scale
            optimizer.step()
            history.append(flat(model))
    return history


def flat(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().double().cpu().flatten() for each in model.parameters()])


def distances(history: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Returns after each step the distance from the exact run, as a share of the way that training has gone."""
    start = exact[0]
    return [
        float((got - right).norm() / (right - start).norm())
        for got, right in zip(history[1:], exact[1:], strict=True)
    ]


def assert_rounding_explains(got: list[float], others: list[list[float]]) -> None:
    """Asserts that after no step a run is further from the exact one than LEEWAY times the furthest of others."""
    for step, (distance, *theirs) in enumerate(zip(got, *others, strict=True), 1):
        assert distance <= LEEWAY * max(theirs), (
            f"after step {step} at a distance of {distance:.3g}, others at {max(theirs):.3g}"
        )
