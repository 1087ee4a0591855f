"""The seven transposed 3-D convolutions of KernelBench's level 1: how each builds its model, and on what it calls it.

Source: KernelBench/level1 and src/kernelbench/eval.py of ScalingIntelligence/KernelBench, at 423217d.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

# Absolute and relative.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
CHANNELS = ("in_channels", "out_channels", "kernel_size")
USUAL_ORDER = (*CHANNELS, "stride", "padding", "output_padding", "groups", "bias")


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        order: the names of its model's constructor, "_" for one that the model ignores.
        arguments: what it passes, by position.
        input_shape: (N, C_in, D, H, W); drawn from [0, 1).
        native: how its model calls torch.nn.ConvTranspose3d beyond the channels and the kernel size.
    """

    order: tuple[str, ...]
    arguments: tuple[Any, ...]
    input_shape: tuple[int, ...]
    native: dict[str, Any] = field(default_factory=dict)


TASKS = {
    58: Task(USUAL_ORDER, (32, 16, (3, 5, 7)), (16, 32, 16, 32, 64)),
    61: Task(USUAL_ORDER, (48, 48, 3), (8, 48, 64, 64, 64)),
    68: Task(USUAL_ORDER, (32, 64, (3, 5, 5)), (16, 32, 64, 64, 64)),
    70: Task(
        (*CHANNELS, "stride", "padding", "output_padding", "dilation", "groups", "bias"),
        (48, 24, 3),
        (8, 48, 96, 96, 96),
    ),
    72: Task(
        USUAL_ORDER,
        (32, 32, (3, 5, 7), (2, 2, 2), (1, 2, 3), (1, 1, 1), 4),
        (8, 32, 12, 24, 48),
        {"stride": 2, "padding": (1, 2, 3), "output_padding": 1, "groups": 4},
    ),
    # Its groups stand where its model takes an output_padding, which it then does not use.
    73: Task(
        (*CHANNELS, "stride", "padding", "_", "groups", "bias"),
        (32, 32, 3, 2, 1, 4),
        (4, 32, 32, 64, 128),
        {"stride": 2, "padding": 1},
    ),
    77: Task(
        (*CHANNELS, "stride", "padding", "dilation", "bias"),
        (32, 64, 3, 2, 1, 2),
        (16, 32, 16, 32, 32),
        {"stride": 2, "padding": 1, "dilation": 2},
    ),
}


def native_model(task: Task) -> torch.nn.Module:
    """Returns the layer that the task's own model holds."""
    return torch.nn.ConvTranspose3d(*task.arguments[:3], **{**task.native, "bias": False})
