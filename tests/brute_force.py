"""The third formulation of the reference: one product at a time, and slow. Only for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from reference import Parameters, Results
from reference.scatter import Array

Index = tuple[int, ...]


def evaluate_by_brute_force(
    input: Array, weight: Array, bias: Array | None, grad_output: Array, parameters: Parameters
) -> tuple[Results, Results]:
    """Same arguments and results as reference.evaluate, and the number of products behind each."""
    output, grad_input, grad_weight = (np.zeros_like(a) for a in (grad_output, input, weight))
    counts = [np.zeros(a.shape, np.int64) for a in (grad_output, input, weight)]
    for indices in meetings(input.shape, weight.shape, grad_output.shape, parameters):
        at_output, at_input, at_weight = indices
        output[at_output] += input[at_input] * weight[at_weight]
        grad_input[at_input] += grad_output[at_output] * weight[at_weight]
        grad_weight[at_weight] += input[at_input] * grad_output[at_output]
        for count, index in zip(counts, indices, strict=True):
            count[index] += 1
    if bias is not None:
        for channel, value in enumerate(bias):
            output[:, channel] += value
    channels = [grad_output[:, channel] for channel in range(grad_output.shape[1])]
    grad_bias = np.array([sum(channel.flat) for channel in channels])
    summed = np.array([channel.size for channel in channels])
    products = Results(counts[0], counts[1], counts[2], summed)
    return Results(output, grad_input, grad_weight, grad_bias), products


def meetings(
    input_shape: Index, weight_shape: Index, output_shape: Index, parameters: Parameters
) -> Iterator[tuple[Index, Index, Index]]:
    """Indices into output, input and weight of every product, found from the output's side."""
    n, channels, *size = output_shape
    out_channels = weight_shape[1]
    in_channels = weight_shape[0] // parameters.groups
    for o in itertools.product(*map(range, size)):
        for k in itertools.product(*map(range, weight_shape[2:])):
            i = []
            for axis in range(3):
                offset = o[axis] + parameters.padding[axis] - k[axis] * parameters.dilation[axis]
                whole, rest = divmod(offset, parameters.stride[axis])
                if rest == 0 and 0 <= whole < input_shape[2 + axis]:
                    i.append(whole)
            if len(i) < 3:
                continue
            for sample, co, ci in itertools.product(range(n), range(channels), range(in_channels)):
                group, co_of_group = divmod(co, out_channels)
                input_channel = group * in_channels + ci
                yield (
                    (sample, co, *o),
                    (sample, input_channel, *i),
                    (input_channel, co_of_group, *k),
                )
