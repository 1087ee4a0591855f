"""The three subjects of fuzz.subjects, with a fault in the native one: the case's seed says which, 0 means none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuzz import subjects
from fuzz.case import Case
from fuzz.outcome import Outcome
from fuzz.subjects import convt3d, oracle, warm_up

__all__ = ["NATIVE_FAULTS", "convt3d", "native", "oracle", "warm_up"]

_right: Any = vars(subjects)["native_conv_transpose3d"]


def bias_forgotten(x: Tensor, weight: Tensor, bias: Tensor, **parameters: Any) -> Tensor:
    output: Tensor = _right(x, weight, **parameters)
    return output + 0 * bias.sum()


def kernel_flipped(x: Tensor, weight: Tensor, *bias: Tensor, **parameters: Any) -> Tensor:
    output: Tensor = _right(x, weight.flip(2, 3, 4), *bias, **parameters)
    return output


def groups_in_reverse(x: Tensor, weight: Tensor, *bias: Tensor, **parameters: Any) -> Tensor:
    groups = weight.unflatten(0, (parameters["groups"], -1))
    output: Tensor = _right(x, groups.flip(0).flatten(0, 1), *bias, **parameters)
    return output


def last_tap_missing(x: Tensor, weight: Tensor, *bias: Tensor, **parameters: Any) -> Tensor:
    kept = torch.ones_like(weight[0, 0])
    kept[-1, -1, -1] = 0
    output: Tensor = _right(x, weight * kept, *bias, **parameters)
    return output


def computed_in_fp32(x: Tensor, weight: Tensor, *bias: Tensor, **parameters: Any) -> Tensor:
    floats = [tensor.float() for tensor in (x, weight, *bias)]
    output: Tensor = _right(*floats, **parameters)
    return output.to(x.dtype)


def plane_missing(x: Tensor, *operands: Tensor, **parameters: Any) -> Tensor:
    output: Tensor = _right(x, *operands, **parameters)
    return output[:, :, :-1]


def gradients_of_one_sample(x: Tensor, *operands: Tensor, **parameters: Any) -> Tensor:
    output: Tensor = _right(x, *operands, **parameters)
    return torch.cat([output[:1], output[1:].detach()])


def input_overwritten(x: Tensor, *operands: Tensor, **parameters: Any) -> Tensor:
    output: Tensor = _right(x, *operands, **parameters)
    x.data.zero_()
    return output


def refused(x: Tensor, *operands: Tensor, **parameters: Any) -> Tensor:
    raise RuntimeError("could not create a primitive")


def segfault(x: Tensor, *operands: Tensor, **parameters: Any) -> Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


# Each with the verdict that it deserves.
NATIVE_FAULTS: tuple[tuple[Callable[..., Tensor], str], ...] = (
    (bias_forgotten, "wrong"),
    (kernel_flipped, "wrong"),
    (groups_in_reverse, "wrong"),
    (last_tap_missing, "wrong"),
    (computed_in_fp32, "wrong"),
    (plane_missing, "refused"),  # the gradient of the whole output does not fit
    (gradients_of_one_sample, "wrong"),
    (input_overwritten, "wrong"),
    (refused, "refused"),
    (segfault, "crashed"),
)


def native(case: Case) -> Outcome:
    fault = NATIVE_FAULTS[case.seed - 1][0] if case.seed else _right
    vars(subjects)["native_conv_transpose3d"] = fault
    return subjects.native(case)
