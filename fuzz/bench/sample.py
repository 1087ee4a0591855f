"""Random layers, drawn broadly, to look for cliffs: shapes on which nobody has tuned anything. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from convt3d.geometry import Geometry, Triple, check_geometry
from fuzz.bench.floor import compulsory_bytes, useful_products
from fuzz.bench.suite import Layer, Point

MOST_CHANNELS = 512
# Native in ms, as `estimated_native_ms` has it.
SHORTEST_MS, LONGEST_MS = 0.01, 20.0
# A measurement holds each element in its dtype, in float64 and in intermediate results of the comparison: 24 bytes.
MOST_ELEMENTS = (4 << 30) // 24
# A crude fit to cuDNN 9.19 on an H200, bf16 and TF32: with one channel a group 4e8 products a ms (mednext_dw_k5), with
# 3 to 16 channels 1e9 (kb2_50_cin3), with many 2e10 and more; and about 1e9 bytes a ms.
PRODUCTS_PER_MS, MOST_PRODUCTS_PER_MS, BYTES_PER_MS = 4e8, 2e10, 1e9


def sample(
    count: int, seed: int, dtypes: Sequence[str], layouts: Sequence[str], directions: Sequence[str]
) -> list[Point]:
    """Returns random points; with the same arguments, but more of them, the first ones are the same.

    Args:
        count: how many.
        seed: decides everything.
        dtypes, layouts, directions: one of each is drawn for a point.
    """
    points = []
    for index in range(count):
        draw = random.Random(f"{seed}:{index}")
        layer = _draw_layer(draw, f"sample{index}")
        points.append(
            Point(layer, draw.choice(dtypes), draw.choice(layouts), draw.choice(directions))
        )
    return points


def is_measurable(layer: Layer) -> bool:
    """Whether a layer is legal, has an output, fits the memory and is neither too short nor too long for native."""
    geometry = layer.geometry
    try:
        check_geometry(geometry)
    except RuntimeError:
        return False
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    if min(geometry.output_size) < 1 or sum(math.prod(shape) for shape in shapes) > MOST_ELEMENTS:
        return False
    return useful_products(geometry) > 0 and SHORTEST_MS < estimated_native_ms(layer) < LONGEST_MS


def estimated_native_ms(layer: Layer) -> float:
    """Returns about what native takes; wrong by several times either way."""
    geometry = layer.geometry
    channels = geometry.in_channels_per_group * geometry.out_channels_per_group
    rate = min(MOST_PRODUCTS_PER_MS, PRODUCTS_PER_MS * max(1.0, channels / 32))
    moved = compulsory_bytes(layer, "f32") / BYTES_PER_MS
    return max(useful_products(geometry) / rate, moved)


def _draw_layer(draw: random.Random, name: str) -> Layer:
    """Draws until a layer is measurable."""
    while True:
        layer = Layer(name, _draw_geometry(draw), draw.random() < 0.5)
        if is_measurable(layer):
            return layer


def _draw_geometry(draw: random.Random) -> Geometry:
    in_channels, out_channels, groups = _draw_channels(draw)
    kernel_size = _draw_triple(draw, (1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7))
    stride = _draw_triple(draw, (1, 1, 2, 2, 3, 4))
    dilation = _draw_triple(draw, (1, 1, 1, 1, 2, 3))
    longest = draw.choice((8, 32, 160))
    return Geometry(
        batch=_log_uniform(draw, 1, 32),
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        input_size=_each(lambda: _log_uniform(draw, 2, longest)),
        kernel_size=kernel_size,
        stride=stride,
        padding=_zip(lambda k, d: draw.randint(0, d * (k - 1)), kernel_size, dilation),
        output_padding=_zip(lambda s, d: draw.randint(0, max(s, d) - 1), stride, dilation),
        dilation=dilation,
    )


def _draw_channels(draw: random.Random) -> tuple[int, int, int]:
    """Returns C_in, C_out and groups: one group, some, or depthwise with one or two outputs a channel."""
    kind = draw.choice(("one", "one", "one", "some", "depthwise"))
    if kind == "one":
        return _log_uniform(draw, 1, MOST_CHANNELS), _log_uniform(draw, 1, MOST_CHANNELS), 1
    if kind == "some":
        groups = _log_uniform(draw, 2, 32)
        most = MOST_CHANNELS // groups
        per_group = (_log_uniform(draw, 1, most), _log_uniform(draw, 1, most))
        return groups * per_group[0], groups * per_group[1], groups
    channels, multiplier = _log_uniform(draw, 2, MOST_CHANNELS // 2), draw.choice((1, 1, 2))
    return channels, channels * multiplier, channels


def _log_uniform(draw: random.Random, least: int, most: int) -> int:
    """An integer, as likely to be between 2 and 4 as between 64 and 128; half of those above 8 are multiples of 8."""
    value = min(most, int(math.exp(draw.uniform(math.log(least), math.log(most + 1)))))
    return value // 8 * 8 if value > 8 and draw.random() < 0.5 else value


def _draw_triple(draw: random.Random, values: Sequence[int]) -> Triple:
    """The same for all axes, or each for itself."""
    if draw.random() < 0.6:
        value = draw.choice(values)
        return (value, value, value)
    return _each(lambda: draw.choice(values))


def _each(value: Callable[[], int]) -> Triple:
    return (value(), value(), value())


def _zip(value: Callable[[int, int], int], first: Triple, second: Triple) -> Triple:
    depth, height, width = (value(a, b) for a, b in zip(first, second))
    return (depth, height, width)
