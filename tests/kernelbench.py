"""The seven transposed 3-D convolutions of KernelBench's level 1: how each builds its model, and on what it calls it.

    python -m tests.kernelbench

says on a GPU, with TF32 off and on, how far the exported file and PyTorch's op are from each other in fp32.

Source: KernelBench/level1 and src/kernelbench/eval.py of ScalingIntelligence/KernelBench, at 423217d.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convt3d.export import writer

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


def models(number: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns a task's own model and the exported one, both made from one seed; neither has seen the other."""
    task = TASKS[number]
    context: dict[str, Any] = {}
    exec("import os\n" + writer.write(task.order, emulator=False), context)
    torch.manual_seed(42)
    native = native_model(task)
    torch.manual_seed(42)
    return native, context["ModelNew"](*task.arguments)


def draw(number: int, seed: int) -> Tensor:
    """Returns the input of a task's model, on a CPU."""
    torch.manual_seed(seed)
    return torch.rand(TASKS[number].input_shape)


def compare_with_tf32() -> None:
    """Prints for each task in fp32 whether the answers agree at KernelBench's tolerance, and how far apart they are."""
    tolerance = TOLERANCES[torch.float32]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, tolerance {tolerance}")
    print("strict and tf32 are PyTorch's op with TF32 off and on")
    for number in TASKS:
        native, ours = (model.to("cuda") for model in models(number))
        x = draw(number, 0).to("cuda")
        outputs = {}
        with torch.no_grad():
            outputs["ours"] = ours(x)
            for name, allowed in (("strict", False), ("tf32", True)):
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
                    outputs[name] = native(x)
        for one, other in (("ours", "strict"), ("ours", "tf32"), ("tf32", "strict")):
            agree = torch.allclose(outputs[other], outputs[one], atol=tolerance, rtol=tolerance)
            apart = (outputs[one] - outputs[other]).abs().max().item()
            verdict = "agree" if agree else "do not agree"
            print(f"{number}  {one} and {other}: {verdict}, at most {apart:.2e} apart")


if __name__ == "__main__":
    compare_with_tf32()
