"""A small U-Net trained on the emulator: convt3d drifts from the exact run no further than rounding explains."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import convt3d
from tests import unet

CHANNELS, SIZE = (2, 3, 4), 8


def without_onednn() -> Any:
    return torch.backends.mkldnn.flags(enabled=False)


NATIVE = unet.Run(around=without_onednn)
OURS = unet.Run(change=convt3d.replace, around=without_onednn)


def off_by_a_thousandth(model: nn.Module) -> None:
    """Plants a fault: the upsampling layer's gradients are a thousandth too large."""
    convt3d.replace(model)

    def scale(module: Any, of_input: Any, of_output: Any) -> Any:
        return (of_input[0] * 1.001,)

    model.get_submodule("up_2").register_full_backward_hook(scale)


@pytest.fixture(scope="module")
def exact() -> list[torch.Tensor]:
    return unet.train(dataclasses.replace(NATIVE, dtype=torch.float64), "cpu", CHANNELS, SIZE)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_a_model_trains_as_with_the_native_op(
    autocast: torch.dtype | None, exact: list[torch.Tensor]
) -> None:
    runs = [dataclasses.replace(run, autocast=autocast) for run in (OURS, NATIVE)]
    ours, native = (unet.distances(unet.train(run, "cpu", CHANNELS, SIZE), exact) for run in runs)
    unet.assert_rounding_explains(ours, [native])


def test_a_gradient_that_is_off_by_a_thousandth_is_not_rounding(
    exact: list[torch.Tensor],
) -> None:
    wrong = dataclasses.replace(OURS, change=off_by_a_thousandth)
    native = unet.distances(unet.train(NATIVE, "cpu", CHANNELS, SIZE), exact)
    with pytest.raises(AssertionError, match=r"after step \d+ at a distance of"):
        unet.assert_rounding_explains(
            unet.distances(unet.train(wrong, "cpu", CHANNELS, SIZE), exact), [native]
        )
