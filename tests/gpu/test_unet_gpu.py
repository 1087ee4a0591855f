"""A 3-D U-Net trained on a GPU: convt3d drifts from the run in float64 no further than rounding explains."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

import convt3d
from tests import unet

CHANNELS, SIZE = (16, 32, 64), 32


def cudnn(**options: Any) -> Any:
    """A context in which fp32 is fp32."""

    def around() -> AbstractContextManager[Any]:
        return torch.backends.cudnn.flags(**{"enabled": True, "allow_tf32": False, **options})

    return around


# What the native op can do: orders of summation that differ.
ALGORITHMS = {
    "heuristic": cudnn(),
    "benchmark": cudnn(benchmark=True),
    "deterministic": cudnn(deterministic=True),
    "without cuDNN": cudnn(enabled=False),
}


@pytest.fixture(scope="module")
def exact() -> list[torch.Tensor]:
    run = unet.Run(dtype=torch.float64, around=cudnn(enabled=False))
    return unet.train(run, "cuda", CHANNELS, SIZE)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_a_model_trains_as_with_the_native_op(
    autocast: torch.dtype | None, exact: list[torch.Tensor]
) -> None:
    native = [unet.Run(autocast=autocast, around=around) for around in ALGORITHMS.values()]
    ours = dataclasses.replace(native[0], change=convt3d.replace)
    found = {
        name: unet.distances(unet.train(run, "cuda", CHANNELS, SIZE), exact)
        for name, run in zip([*ALGORITHMS, "convt3d"], [*native, ours])
    }
    for name, drift in found.items():
        print(
            f"{autocast or 'fp32'} {name}: {drift[0]:.2e} after one step, {drift[-1]:.2e} after all"
        )
    unet.assert_rounding_explains(found.pop("convt3d"), list(found.values()))
