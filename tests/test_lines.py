"""forward with few channels a group: every kernel and many tiles on the emulator, and the integers of a tile."""

from __future__ import annotations

import dataclasses
import functools
import random
import re

import pytest
import torch
from torch import Tensor

from convt3d import conv_transpose3d, launch, plan
from convt3d.columns import PATTERNS, Pattern
from convt3d.emulator import runtime
from convt3d.geometry import Geometry
from convt3d.lines import (
    LINE_STYLES,
    THREADS,
    LineChoice,
    LineTile,
    LineUnits,
    line_choice,
    parse_line_tile,
)
from convt3d.matrix.work import MatrixUnits

SHARED_BYTES = plan.SHARED_BYTES[8, 0]
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
KINDS = (*PATTERNS, None)
CHANNELS = ((1, 1), (1, 1), (1, 2), (3, 2), (4, 4), (2, 5), (1, 9), (8, 1), (1, 32), (32, 1))
DEPTHWISE = Geometry(2, 64, 64, 64, (64,) * 3, (5,) * 3, (2,) * 3, (2,) * 3, (0,) * 3, (1,) * 3)


def geometry_of(pattern: Pattern | None, seed: int) -> Geometry:
    """A small layer of few channels a group whose taps along W follow a pattern, or none."""
    draw = random.Random(seed)
    while True:
        geometry = _draw_geometry(pattern, draw)
        if min(geometry.output_size) > 0:
            return geometry


def _draw_geometry(pattern: Pattern | None, draw: random.Random) -> Geometry:
    if pattern is None:
        pattern = Pattern(draw.randint(1, 4), draw.randint(1, 4), 1, draw.randint(1, 3))
    stride, kernel, padding, dilation = pattern
    strides = (draw.randint(1, 4), draw.randint(1, 3), stride)
    source, destination = draw.choice(CHANNELS)
    groups = draw.choice((1, 2, 3, 35))
    return Geometry(
        batch=draw.randint(1, 2),
        in_channels=groups * source,
        out_channels=groups * destination,
        groups=groups,
        input_size=(draw.randint(1, 5), draw.randint(1, 9), draw.choice((1, 3, 8, 9, 17, 70))),
        kernel_size=(draw.randint(1, 4), draw.randint(1, 3), kernel),
        stride=strides,
        padding=(draw.randint(0, 2), draw.randint(0, 1), padding + stride * draw.randint(0, 1)),
        output_padding=tuple(draw.randrange(step) for step in strides),  # type: ignore[arg-type]
        dilation=(draw.randint(1, 2), draw.randint(1, 3), dilation),
    )


def operands_of(geometry: Geometry, dtype: torch.dtype, seed: int) -> list[Tensor | None]:
    """Input, weight and bias of small integers, some of them channels_last_3d."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).to(dtype)

    x, weight = draw(*geometry.input_shape), draw(*geometry.weight_shape)
    if seed % 3 == 1:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    if seed % 6 == 4:
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    return [x, weight, draw(geometry.out_channels) if seed % 2 else None]


def answer(geometry: Geometry, *operands: Tensor | None) -> Tensor:
    """PyTorch's op in fp64."""
    x, weight, bias = (None if t is None else t.double() for t in operands)
    with torch.backends.mkldnn.flags(enabled=False):
        return torch.nn.functional.conv_transpose3d(
            *(x, weight, bias, geometry.stride, geometry.padding, geometry.output_padding),  # type: ignore[arg-type]
            *(geometry.groups, geometry.dilation),
        )


def run(geometry: Geometry, tile: LineTile | str, *operands: Tensor | None) -> Tensor:
    with plan.forced({"forward": str(tile)}):
        return conv_transpose3d(
            *(*operands, geometry.stride, geometry.padding, geometry.output_padding),  # type: ignore[arg-type]
            *(geometry.groups, geometry.dilation),
        )


def choice_of(geometry: Geometry, *operands: Tensor | None) -> LineChoice:
    """The tiles that a call on the emulator has."""
    x, weight = operands[0], operands[1]
    assert x is not None and weight is not None
    is_last = launch.is_channels_last(x, weight)
    output = launch.allocate(geometry.output_shape, x.dtype, x.device, is_last)
    units = LineUnits(x.element_size(), SHARED_BYTES, output.stride(4) != 1)
    return line_choice(geometry, units)


# ---- the kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "hostile"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_every_kernel_gives_the_rounded_exact_answer(
    pattern: Pattern | None, dtype: str, mode: str
) -> None:
    patterns = set()
    for seed in range(6):
        geometry = geometry_of(pattern, seed)
        operands = operands_of(geometry, DTYPES[dtype], seed)
        expected = answer(geometry, *operands).to(DTYPES[dtype])
        choice = choice_of(geometry, *operands)
        draw = random.Random(seed)
        for style in LINE_STYLES:
            tiles = choice.of_style(style)
            for tile in draw.sample(tiles, min(2, len(tiles))):
                patterns.add(tile.pattern)
                with runtime.schedule(mode, seed):
                    assert torch.equal(run(geometry, tile, *operands), expected), str(tile)
    if pattern:  # else some of these layers have one by chance
        assert patterns == ({None} if dtype == "f64" else {pattern, None})


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("mode", runtime.SANITIZERS)
def test_the_kernels_give_no_report(mode: str, dtype: str) -> None:
    for seed in (1, 2):
        geometry = dataclasses.replace(geometry_of(Pattern(2, 3, 1), seed), input_size=(2, 3, 9))
        operands = operands_of(geometry, DTYPES[dtype], seed)
        expected = answer(geometry, *operands).to(DTYPES[dtype])
        for style in LINE_STYLES:
            with runtime.schedule(mode, 1):
                assert torch.equal(run(geometry, f"lines.{style}", *operands), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("is_last", [False, True])
def test_an_axis_above_16_bits(axis: int, is_last: bool) -> None:
    size = [1, 1, 1]
    size[axis] = 2**16 + 9
    ones, zeros = (1, 1, 1), (0, 0, 0)
    geometry = Geometry(1, 2, 2, 2, tuple(size), ones, ones, zeros, zeros, ones)  # type: ignore[arg-type]
    x = torch.arange(2 * (2**16 + 9)).remainder(7).reshape(1, 2, *size).half()
    if is_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.tensor([2.0, 3.0]).half().reshape(2, 1, 1, 1, 1)
    got = run(geometry, "lines", x, weight, None)
    assert torch.equal(got, answer(geometry, x, weight, None).half())


def test_no_dense_dimension_and_offset_tensors() -> None:
    geometry = geometry_of(Pattern(2, 3, 1), 3)
    x, weight, _ = operands_of(geometry, torch.bfloat16, 2)
    assert x is not None and weight is not None
    room = torch.zeros(2, *x.shape[1:-1], 2 * x.shape[-1] + 3, dtype=x.dtype)
    strided = room[: len(x), ..., 3 : 3 + 2 * x.shape[-1] : 2]
    strided.copy_(x)
    turned = weight.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    expected = answer(geometry, x, weight, None).to(x.dtype)
    for style in LINE_STYLES:
        assert torch.equal(run(geometry, f"lines.{style}", strided, turned, None), expected)


@pytest.mark.parametrize("offset", range(5))
def test_rows_are_stored_whole_wherever_they_start_in_memory(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = Geometry(
        1, 1, 1, 1, (3, 5, 21), (3, 3, 3), (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1)
    )
    operands = operands_of(geometry, torch.float16, 3)
    expected = answer(geometry, *operands).half()
    room = torch.full((expected.numel() + 10,), 77.0).half()

    def allocate(shape: object, dtype: object, device: object, channels_last: bool) -> Tensor:
        return room[offset : offset + expected.numel()].view(expected.shape)

    monkeypatch.setattr(launch, "allocate", allocate)
    for tile in choice_of(geometry, *operands).tiles[::7]:
        room.fill_(77)
        assert torch.equal(run(geometry, tile, *operands), expected), str(tile)
        assert set(room[:offset].tolist() + room[offset + expected.numel() :].tolist()) == {77.0}


def test_fp32_sums_a_few_lines_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 30, 1, 1, 40, generator=generator)
    weight = torch.randn(30, 1, 1, 1, 1, generator=generator)
    geometry = Geometry(1, 30, 1, 1, (1, 1, 40), (1, 1, 1), (1,) * 3, (0,) * 3, (0,) * 3, (1,) * 3)
    products = x[0, :, 0, 0] * weight.view(30, 1)
    expected = functools.reduce(
        torch.add, [functools.reduce(torch.add, lines) for lines in products.split(4)]
    )
    for style in LINE_STYLES:
        assert torch.equal(run(geometry, f"lines.{style}", x, weight, None).view(40), expected)


# ---- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_last", [False, True])
def test_a_tile_is_read_back_from_its_name_and_covers_all_columns(seed: int, is_last: bool) -> None:
    geometry = geometry_of(random.Random(seed).choice(KINDS), seed)
    choice = LineChoice(geometry, LineUnits(2, SHARED_BYTES, is_last))
    names = [str(tile) for tile in choice.tiles]
    assert len(set(names)) == len(names) > 0
    assert choice.work is not None
    for name, tile in zip(names, choice.tiles):
        assert parse_line_tile(name) == tile and plan.parse_plan(name).tile == tile
        places, axes = choice.work.places(tile), choice.work.axes
        sizes = (tile.depths * tile.steps, tile.rows, tile.strip)
        for count, size, axis in zip(places, sizes, axes):
            assert (count - 1) * size < axis.count <= count * size
        assert choice.work.items(tile) <= choice.work.threads(tile) <= THREADS
        assert choice.work.layout(tile).all <= SHARED_BYTES


@pytest.mark.parametrize("name", ["lines.s2k9p1", "lines.s2k3p1.w08h1d1x1", "lines.some", "lines."])
def test_what_is_not_a_tiles_name_is_refused(name: str) -> None:
    assert parse_line_tile(name) is None
    with pytest.raises(RuntimeError, match=re.escape(f"plan={name!r}, but must be like")):
        plan.parse_plan(name)


@pytest.mark.parametrize(
    "name", ["lines.fixed", "lines.s2k3p1.w8h1d1x1", "lines.any.w7h1d1x1", "lines.any.w512h8d8x8"]
)
def test_a_tile_that_does_not_fit_is_refused_before_anything_is_launched(name: str) -> None:
    x, weight = torch.ones(1, 2, 3, 3, 9).half(), torch.ones(2, 1, 3, 3, 3).half()
    with plan.forced({"forward": name}), pytest.raises(RuntimeError, match="cannot run input of"):
        conv_transpose3d(x, weight, stride=1, dilation=3, groups=2)


def test_many_channels_and_gradients_have_no_such_plans() -> None:
    x, weight = torch.ones(1, 9, 2, 2, 2), torch.ones(9, 8, 1, 1, 1)
    with plan.forced({"forward": "lines"}), pytest.raises(RuntimeError, match="cannot run input"):
        conv_transpose3d(x, weight)
    with (
        pytest.raises(RuntimeError, match="only forward has lines plans"),
        plan.forced({"grad_input": "lines"}),
    ):
        pass


def test_a_gpu_runs_few_channels_in_lines_and_the_emulator_does_not() -> None:
    lines, units = LineUnits(2, SHARED_BYTES, False), MatrixUnits(2, SHARED_BYTES)
    assert plan.choose("forward", DEPTHWISE, True, 132, units, lines).kernel == "lines"
    assert plan.choose("forward", DEPTHWISE, True, 1, units, lines).kernel == "direct"
    wider = dataclasses.replace(DEPTHWISE, groups=8)
    assert plan.choose("forward", wider, True, 132, units, lines).kernel == "matrix"
    single = LineUnits(4, SHARED_BYTES, False)
    assert plan.choose("forward", DEPTHWISE, True, 132, None, single).kernel == "lines"
    for tf32, kernel in ((False, "lines"), (True, "matrix")):  # 8 channels by 8 a group
        units = MatrixUnits(4, SHARED_BYTES, tf32)
        assert plan.choose("forward", wider, True, 132, units, single).kernel == kernel


@pytest.mark.parametrize("is_last", [False, True])
def test_the_best_tile_of_a_large_layer_fills_the_card(is_last: bool) -> None:
    choice = LineChoice(DEPTHWISE, LineUnits(2, SHARED_BYTES, is_last))
    tile = choice.best(132)
    assert tile is not None and choice.work is not None
    assert tile.pattern == Pattern(2, 5, 0)
    assert choice.work.blocks(tile) >= 2 * 132
    if not is_last:
        assert choice.work.items(tile) >= 0.7 * choice.work.threads(tile) >= 0.7 * 128
