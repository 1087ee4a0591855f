"""The least time that a layer can take on a card whose ceilings have been measured. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from convt3d.geometry import Axis, Geometry
from fuzz.bench.suite import Layer

ELEMENT_BYTES = {"bf16": 2, "f16": 2, "tf32": 4, "f32": 4}


@dataclass(frozen=True)
class Ceilings:
    """What the card reached in the same run, see `timer.measure_ceilings`.

    Args:
        copy_tb_s: bytes read plus bytes written by the copy of a large tensor, TB/s.
        matmul_tflops: dtype -> TFLOP/s of a large matrix product, each multiply-add two operations.
    """

    copy_tb_s: float
    matmul_tflops: dict[str, float] = field(default_factory=dict)


def useful_products(geometry: Geometry) -> int:
    """Returns how many products of an input element and a weight reach the output, those that padding crops left out.

    All three directions have this many.
    """
    pairs = math.prod(_pairs(geometry.axis(index)) for index in range(3))
    channels = geometry.in_channels * geometry.out_channels_per_group
    return geometry.batch * channels * pairs


def _pairs(axis: Axis) -> int:
    """(input element, tap) pairs of one axis whose output element exists."""
    count = 0
    for tap in range(axis.kernel_size):
        shift = axis.padding - tap * axis.dilation  # the output is input * stride - shift
        first = max(0, -(-shift // axis.stride))
        last = min(axis.input_size - 1, (axis.output_size - 1 + shift) // axis.stride)
        count += max(0, last - first + 1)
    return count


def compulsory_bytes(layer: Layer, dtype: str) -> int:
    """Returns the bytes that any implementation moves: every operand read once, every result written once.

    All three directions have this many: two of input, weight and output are operands, the third is the result; bias or
    its gradient is one of either. Whole tensors count, also where a cropped element need not be read.
    """
    geometry = layer.geometry
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    elements = sum(math.prod(shape) for shape in shapes)
    return ELEMENT_BYTES[dtype] * (elements + layer.bias * geometry.out_channels)


def floor_ms(layer: Layer, dtype: str, ceilings: Ceilings) -> float:
    """Returns the larger of what the products take at the matrix rate and the bytes at the copy rate, in ms.

    In f32 the matrix rate is that of strict fp32; products of parts in TF32 may pass it.
    """
    compute_s = 2 * useful_products(layer.geometry) / (ceilings.matmul_tflops[dtype] * 1e12)
    memory_s = compulsory_bytes(layer, dtype) / (ceilings.copy_tb_s * 1e12)
    return 1e3 * max(compute_s, memory_s)
