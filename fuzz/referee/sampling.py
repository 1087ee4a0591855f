"""A part of the results of a large case, small enough to be checked after every timed call. No torch here.

A part belongs to one sample and one pair of channels, drawn at random once the call has returned, so that nobody can
compute just that. The reference has a cropped case for each result: with the channels, or the samples, that are summed
over, and none of the others.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import numpy as np

from fuzz.case import Case
from fuzz.data import Inputs

# A result has the axes of this tensor.
_LIKE = {
    "output": "grad_output",
    "grad_input": "input",
    "grad_weight": "weight",
    "grad_bias": "bias",
}

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Part:
    """Some samples and channels.

    Args:
        samples, in_channels, out_channels: of the tensors.
        weight_columns: the output channels in the weight, where they count from 0 in each group.
    """

    samples: slice
    in_channels: slice
    out_channels: slice
    weight_columns: slice

    def of(self, name: str) -> Slices:
        """Its index into an input or a result."""
        return {
            "input": (self.samples, self.in_channels),
            "weight": (self.in_channels, self.weight_columns),
            "bias": (self.out_channels,),
            "grad_output": (self.samples, self.out_channels),
        }[_LIKE.get(name, name)]

    def crop(self, case: Case, inputs: Inputs) -> tuple[Case, Inputs]:
        """The case of this part alone, and its data."""
        cropped = Inputs(
            inputs.input[self.of("input")],
            inputs.weight[self.of("weight")],
            None if inputs.bias is None else inputs.bias[self.of("bias")],
            inputs.grad_output[self.of("grad_output")],
        )
        n, in_channels = cropped.input.shape[:2]
        out_channels = cropped.weight.shape[1]
        case = replace(case, n=n, groups=1, in_channels=in_channels, out_channels=out_channels)
        return case, cropped


@dataclass(frozen=True)
class Sample:
    """One sample of the batch, and one pair of channels of one group.

    Args:
        n: index of the sample.
        group: index of the group.
        in_channel, out_channel: within the group.
    """

    n: int
    group: int
    in_channel: int
    out_channel: int

    @classmethod
    def draw(cls, case: Case) -> Sample:
        """One at random; no seed foretells it."""
        groups = case.groups
        sizes = case.n, groups, case.in_channels // groups, case.out_channels // groups
        return cls(*map(secrets.randbelow, sizes))

    def part(self, case: Case, result: str) -> Part:
        """What one of fuzz.outcome.RESULTS is looked at, and what is summed in it."""
        of_group_in = case.in_channels // case.groups
        of_group_out = case.out_channels // case.groups
        first_in, first_out = self.group * of_group_in, self.group * of_group_out
        samples = _one(self.n)
        ins, outs = _one(first_in + self.in_channel), _one(first_out + self.out_channel)
        columns = _one(self.out_channel)
        if result == "output":
            return Part(samples, slice(first_in, first_in + of_group_in), outs, columns)
        if result == "grad_input":
            whole = slice(first_out, first_out + of_group_out)
            return Part(samples, ins, whole, slice(None))
        return Part(slice(None), ins, outs, columns)


def shifted(inputs: Inputs, step: int) -> Inputs:
    """Other data of the same values: each tensor's elements moved on by so many places, in NCDHW order."""
    bias = None if inputs.bias is None else np.roll(inputs.bias, step)
    input, weight, grad_output = (
        np.roll(array, step) for array in (inputs.input, inputs.weight, inputs.grad_output)
    )
    return Inputs(input, weight, bias, grad_output)


def _one(index: int) -> slice:
    return slice(index, index + 1)
