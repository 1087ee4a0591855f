"""forward on the matrix units: every kernel and many tiles on the emulator, and the integers of a tile."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re

import pytest
import torch
from torch import Tensor

from convt3d import conv_transpose3d, launch, plan
from convt3d.columns import PATTERNS, AxisColumns, Pattern
from convt3d.emulator import runtime
from convt3d.geometry import Axis, Geometry, output_size
from convt3d.matrix.choice import TileChoice, blocks_per_tile
from convt3d.matrix.tile import (
    MODES,
    MOST_TAPS_SPLIT,
    STYLES,
    MatrixTile,
    parse_tile,
)
from convt3d.matrix.work import MatrixUnits, MatrixWork

ONES, ZEROS = (1, 1, 1), (0, 0, 0)
SHARED_BYTES = plan.SHARED_BYTES[8, 0]
DTYPES = {
    "f32": torch.float32,
    "tf32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
KINDS = (*PATTERNS, None)
# Kernels of warpgroups take long to build. Those for patterns differ in constants alone, so that they take turns.
WARPGROUP_DTYPES = (("f16", "tf32"), ("bf16",))
# Those of fp32, whose factors come in two parts.
WARP_STYLES = tuple(style for style in STYLES if not style.startswith("wg."))


def units(dtype: str) -> MatrixUnits:
    return MatrixUnits(torch.finfo(DTYPES[dtype]).bits // 8, SHARED_BYTES, dtype == "tf32", True)


def geometry_of(pattern: Pattern | None, seed: int) -> Geometry:
    """A small layer whose taps along W follow a pattern, or none."""
    draw = random.Random(seed)
    while True:
        geometry = _draw_geometry(pattern, draw)
        if min(geometry.output_size) > 0:
            return geometry


def _draw_geometry(pattern: Pattern | None, draw: random.Random) -> Geometry:
    if pattern is None:
        pattern = Pattern(3, draw.randint(1, 3), draw.randint(0, 2), draw.randint(1, 2))
    stride, kernel, padding, dilation = pattern
    groups = draw.choice((1, 1, 2))
    return Geometry(
        batch=draw.randint(1, 2),
        in_channels=groups * draw.choice((3, 8, 16, 17, 40)),
        out_channels=groups * draw.choice((1, 8, 16, 20, 40)),
        groups=groups,
        input_size=(draw.randint(1, 4), draw.randint(2, 6), draw.choice((5, 8, 13, 24, 70))),
        kernel_size=(draw.randint(1, 3), draw.randint(1, 3), kernel),
        stride=(draw.randint(1, 3), draw.randint(1, 3), stride),
        padding=(draw.randint(0, 1), draw.randint(0, 1), padding),
        output_padding=(0, 0, 1 if stride > 1 else 0),
        dilation=(1, 2, dilation),
    )


def answer(geometry: Geometry, *operands: Tensor | None) -> Tensor:
    """PyTorch's op in fp64."""
    x, weight, bias = (None if t is None else t.double() for t in operands)
    with torch.backends.mkldnn.flags(enabled=False):
        return torch.nn.functional.conv_transpose3d(
            *(x, weight, bias, geometry.stride, geometry.padding, geometry.output_padding),  # type: ignore[arg-type]
            *(geometry.groups, geometry.dilation),
        )


def run(
    geometry: Geometry, tile: MatrixTile, *operands: Tensor | None, tf32: bool = False
) -> Tensor:
    with plan.forced({"forward": str(tile)}, tf32=tf32):
        return conv_transpose3d(
            *(*operands, geometry.stride, geometry.padding, geometry.output_padding),  # type: ignore[arg-type]
            *(geometry.groups, geometry.dilation),
        )


def integers(geometry: Geometry, dtype: torch.dtype, seed: int) -> list[Tensor | None]:
    """Input, weight and bias of small integers; every sum fits 24 bits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=generator).to(dtype)

    bias = draw(geometry.out_channels) if seed % 2 else None
    return [draw(*geometry.input_shape), draw(*geometry.weight_shape), bias]


def one_of_each(geometry: Geometry, dtype: str, seed: int) -> list[MatrixTile]:
    """For every style, channel tiles and share of the warps that a layer has, one tile.

    Of warpgroups only for every style and whether tiles are many: all else is drawn, for they take the emulator long.
    """
    found: dict[tuple[object, ...], list[MatrixTile]] = {}
    for tile in TileChoice(geometry, units(dtype)).tiles:
        shares = (tile.crews > 1, tile.depths > 1, tile.sets > 1, tile.parts > 1)
        kind: tuple[object, ...] = (tile.style, tile.channel_tiles, *shares)
        if tile.warpgroups:
            kind = (tile.style, tile.channel_tiles > 2)
        found.setdefault(kind, []).append(tile)
    draw = random.Random(seed)
    return [draw.choice(tiles) for tiles in found.values()]


# ---- the kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "hostile"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_every_kernel_gives_the_rounded_exact_answer(
    pattern: Pattern | None, dtype: str, mode: str
) -> None:
    channels_last = torch.channels_last_3d
    patterns = set()
    for seed in range(3):
        geometry = geometry_of(pattern, seed)
        operands = integers(geometry, DTYPES[dtype], seed)
        expected = answer(geometry, *operands).to(DTYPES[dtype])
        if seed % 2:
            operands[0] = operands[0].contiguous(memory_format=channels_last)  # type: ignore[union-attr]
        for tile in one_of_each(geometry, dtype, seed):
            patterns.add(tile.pattern)
            if tile.warpgroups and dtype not in WARPGROUP_DTYPES[KINDS.index(tile.pattern) % 2]:
                continue
            with runtime.schedule(mode, seed):
                got = run(geometry, tile, *operands, tf32=dtype == "tf32")
            assert torch.equal(got, expected), str(tile)
    has_kernel = (
        dtype != "f32" or pattern is None or pattern.taps <= MOST_TAPS_SPLIT[pattern.stride]
    )
    assert patterns == {pattern if has_kernel else None, None}


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("mode", runtime.SANITIZERS)
def test_the_kernels_give_no_report(mode: str, dtype: str) -> None:
    geometry = dataclasses.replace(geometry_of(Pattern(2, 3, 1), 0), batch=1, input_size=(2, 3, 9))
    operands = integers(geometry, DTYPES[dtype], 1)
    expected = answer(geometry, *operands).to(DTYPES[dtype])
    for tile in one_of_each(geometry, dtype, 0):
        with runtime.schedule(mode, 1):
            assert torch.equal(run(geometry, tile, *operands), expected), str(tile)


@pytest.mark.parametrize("style", ["fixed.hold", "any.both"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_above_16_bits(axis: int, style: str) -> None:
    size = tuple(2**16 + 9 if index == axis else 1 for index in range(3))
    geometry = Geometry(1, 2, 3, 1, size, (1, 1, 1), ONES, ZEROS, ZEROS, ONES)  # type: ignore[arg-type]
    operands = integers(geometry, torch.float16, 1)
    with plan.forced({"forward": f"matrix.{style}"}):
        got = conv_transpose3d(*operands)  # type: ignore[arg-type]
    assert torch.equal(got, answer(geometry, *operands).half())


def test_no_dense_dimension_and_offset_tensors() -> None:
    geometry = geometry_of(Pattern(2, 3, 1), 3)
    x, weight, _ = integers(geometry, torch.bfloat16, 2)
    assert x is not None and weight is not None
    room = torch.zeros(2, *x.shape[1:-1], 2 * x.shape[-1] + 3, dtype=x.dtype)
    strided = room[: len(x), ..., 3::2]
    strided.copy_(x)
    turned = weight.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    expected = answer(geometry, x, weight, None).to(x.dtype)
    for tile in one_of_each(geometry, "bf16", 5):
        assert torch.equal(run(geometry, tile, strided, turned, None), expected), str(tile)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("offset", range(4))
def test_rows_are_stored_whole_wherever_they_start_in_memory(
    offset: int, stride: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    padding = 0 if stride == 1 else 1
    geometry = Geometry(
        *(1, 16, 16, 1, (2, 4, 37), (3, 3, 3), (stride,) * 3, (padding,) * 3, (0,) * 3, (1,) * 3)
    )
    operands = integers(geometry, DTYPES[dtype], 3)
    expected = answer(geometry, *operands).to(DTYPES[dtype])
    room = torch.full((expected.numel() + 8,), 77.0).to(DTYPES[dtype])

    def allocate(*_: object) -> Tensor:
        return room[offset : offset + expected.numel()].view(expected.shape)

    monkeypatch.setattr(launch, "allocate", allocate)
    work = MatrixWork(geometry, units(dtype))
    for style, tiles in TileChoice(geometry, units(dtype)).by_style.items():
        shifting = [tile for tile in tiles if tile.pattern and work.can_shift(tile)]
        assert shifting or "any" in style
        for tile in shifting[:: len(shifting) // 3 + 1]:
            room.fill_(77)
            assert torch.equal(run(geometry, tile, *operands), expected), str(tile)
            assert set(room[:offset].tolist() + room[offset + expected.numel() :].tolist()) <= {77}


def test_fp32_is_as_exact_as_a_chain_of_fused_multiply_adds() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 24, 4, 5, 9), torch.randn(24, 16, 3, 3, 3)
    exact = torch.nn.functional.conv_transpose3d(x.double(), weight.double(), stride=2, padding=1)
    errors = {}
    for name in ("direct.i32", *(f"matrix.{style}" for style in WARP_STYLES)):
        with plan.forced({"forward": name}):
            got = conv_transpose3d(x, weight, stride=2, padding=1)
        errors[name] = float((got - exact).square().mean().sqrt())
    least = errors.pop("direct.i32")
    assert max(errors.values()) < least, errors


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_tf32_rounds_input_and_weight_to_nearest_and_nothing_else(
    style: str, channels_last: bool
) -> None:
    # Two TF32 numbers are 2^-10 apart here; the matrix units themselves would cut 1 + 2^-11 + 2^-12 down to 1.
    values = [1.0, 1 + 2**-10, 1 + 2**-11 + 2**-12, 1 + 2**-11 - 2**-13, -1 - 2**-11 - 2**-12]
    rounded = [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10]
    x = torch.tensor(values).reshape(1, 1, 1, 1, 5).expand(1, 4, 1, 1, 5).contiguous()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.full((4, 1, 1, 1, 1), 1 + 2**-11 + 2**-12)
    bias = torch.full((1,), 1 + 2**-12)
    with plan.forced({"forward": f"matrix.{style}"}, tf32=True):
        got = conv_transpose3d(x, weight, bias)
    expected = torch.tensor(rounded) * 4 * (1 + 2**-10) + bias
    assert torch.equal(got.flatten(), expected)


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan"), 3.4e38])
def test_tf32_keeps_what_is_not_finite_and_what_is_large(special: float) -> None:
    x, weight = torch.ones(1, 1, 1, 1, 3), torch.full((1, 1, 1, 1, 1), -0.5)
    x[..., 1] = special
    quiet = torch.tensor([0x7F800001], dtype=torch.int32).view(
        torch.float32
    )  # its last bit makes it a NaN
    if special != special:
        x[..., 1] = quiet
    with plan.forced({"forward": "matrix"}, tf32=True):
        got = conv_transpose3d(x, weight)
    torch.testing.assert_close(got, -0.5 * x, rtol=2**-10, atol=0, equal_nan=True)


def test_fp32_of_a_cpu_tensor_is_not_rounded_whatever_the_switches_say() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 16, 2, 3, 9), torch.randn(16, 16, 3, 3, 3)
    results = []
    for tf32 in (None, False, True):
        with plan.forced({"forward": "matrix"}, tf32=tf32):
            results.append(conv_transpose3d(x, weight))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("style", WARP_STYLES)
def test_fp32_loses_nothing_of_products_below_24_bits(style: str) -> None:
    x = torch.full((1, 1, 1, 1, 1), -2801.0)  # 12 bits: one more than TF32 has
    weight = torch.full((1, 1, 1, 1, 1), -2881.0)
    with plan.forced({"forward": f"matrix.{style}"}):
        assert float(conv_transpose3d(x, weight)) == 2801 * 2881


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan"), 3.4e38])
def test_fp32_keeps_what_is_not_finite_and_what_is_large(special: float) -> None:
    x, weight = torch.ones(1, 1, 1, 1, 3), torch.full((1, 1, 1, 1, 1), -0.5)
    x[..., 1] = special
    for style in WARP_STYLES:
        with plan.forced({"forward": f"matrix.{style}"}):
            got = conv_transpose3d(x, weight)
        torch.testing.assert_close(got, -0.5 * x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_the_styles_are_those_of_the_tiles(pattern: Pattern | None, dtype: str) -> None:
    for seed in range(3):
        choice = TileChoice(geometry_of(pattern, seed), units(dtype))
        assert choice.styles == set(choice.by_style) <= set(STYLES)


# ---- columns and phases -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters", [*itertools.product((1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 4), (1, 2, 3))]
)
def test_every_tap_meets_the_input_at_its_shift(parameters: tuple[int, int, int, int]) -> None:
    stride, kernel, padding, dilation = parameters
    size = 9
    (output, _, _) = output_size(*((n,) * 3 for n in (size, kernel, stride, padding, 0, dilation)))
    if output < 1:
        pytest.skip("no output")
    columns = AxisColumns(Axis(size, output, kernel, stride, padding, dilation))
    met = {
        (u * stride + phase, tap): u + columns.shift(phase, tap)
        for u in range(columns.count)
        for phase in range(stride)
        for tap in columns.taps[phase]
    }
    for i, tap in itertools.product(range(size), range(kernel)):
        o = i * stride - padding + tap * dilation
        if 0 <= o < output:
            assert met[o, tap] == i
    shifts = [columns.shift(p, tap) for p in range(stride) for tap in columns.taps[p]]
    assert (min(shifts), max(shifts)) == (columns.low, columns.high)


@pytest.mark.parametrize("seed", range(40))
def test_a_shift_over_the_edge_of_a_row_meets_zeros(seed: int) -> None:
    draw = random.Random(seed)
    geometry = geometry_of(draw.choice(KINDS), seed)
    work = MatrixWork(geometry, MatrixUnits(2, SHARED_BYTES))
    width = work.axes[2]
    strip = draw.choice((width.count, min(width.count, -(-width.count // 16) * 8)))
    pitch = work.smallest_pitch(strip)
    for x, shift in itertools.product(range(strip), range(width.low, width.high + 1)):
        place = x + shift - width.low  # in its row
        if place < pitch:
            continue
        # It is of the next row, where the same place is of this input, or of none.
        inputs = (x + shift, place - pitch + width.low)
        assert not any(0 <= i < geometry.input_size[2] for i in inputs)
        assert strip == width.count


@pytest.mark.parametrize("seed", range(40))
def test_all_phases_are_computed_once(seed: int) -> None:
    geometry = geometry_of(random.Random(seed).choice(KINDS), seed)
    choice = TileChoice(geometry, MatrixUnits(2, SHARED_BYTES))
    assert choice.work is not None
    for tile in random.Random(seed).choices(choice.tiles, k=5):
        shares = choice.work.phases(tile)
        assert len(shares) == tile.sets * tile.parts
        width = 1 if tile.pattern else geometry.stride[2]
        strides = (*geometry.stride[:2], width)
        assert sorted(itertools.chain(*shares)) == sorted(itertools.product(*map(range, strides)))


# ---- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_tile_is_read_back_from_its_name(seed: int) -> None:
    geometry = geometry_of(random.Random(seed).choice(KINDS), seed)
    names = [str(tile) for tile in TileChoice(geometry, MatrixUnits(4, SHARED_BYTES)).tiles]
    assert len(set(names)) == len(names) > 10
    for name in names:
        tile = parse_tile(name)
        assert tile is not None and str(tile) == name
        assert plan.parse_plan(name).tile == tile
        assert re.fullmatch(r"[a-z0-9.]+", name)


@pytest.mark.parametrize("change", ["matrix.s2k9p1", "matrix.s2k3p1.m01", "matrix.s2k3p1.m1.f8"])
def test_what_is_not_a_tiles_name_is_refused(change: str) -> None:
    assert parse_tile(change) is None
    with pytest.raises(RuntimeError, match=re.escape(f"plan={change!r}, but must be like")):
        plan.parse_plan(change)


def test_a_tile_that_does_not_fit_is_refused_before_anything_is_launched() -> None:
    wide, narrow = (geometry_of(Pattern(2, 3, 1), seed) for seed in (1, 2))
    tile = TileChoice(wide, MatrixUnits(2, SHARED_BYTES)).tiles[0]
    one_column = dataclasses.replace(tile, pitch=1, strip=1)
    for forced in (str(one_column), "matrix.fixed.hold"):
        x, weight, _ = integers(dataclasses.replace(narrow, dilation=(1, 1, 2)), torch.float16, 0)
        with (
            plan.forced({"forward": forced}),
            pytest.raises(RuntimeError, match="cannot run input of shape"),
        ):
            conv_transpose3d(x, weight, stride=(1, 1, 5), groups=narrow.groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["matrix", *(f"matrix.{style}" for style in STYLES)])
def test_fp64_and_gradients_have_no_plans_for_the_matrix_units(name: str) -> None:
    x, weight = torch.ones(1, 1, 2, 2, 2).double(), torch.ones(1, 1, 1, 1, 1).double()
    with plan.forced({"forward": name}), pytest.raises(RuntimeError, match="is forced on forward"):
        conv_transpose3d(x, weight)
    with (
        pytest.raises(RuntimeError, match="only forward has matrix plans"),
        plan.forced({"grad_input": name}),
    ):
        pass


def test_a_variation_is_another_tile_of_the_style() -> None:
    geometry = geometry_of(Pattern(2, 2, 0), 4)
    wanted = units("f16")
    tiles = TileChoice(geometry, wanted).by_style
    for style in STYLES:
        seen = set()
        for variation in range(len(tiles[style])):
            with plan.forced({"forward": f"matrix.{style}"}, variation=variation):
                chosen = plan.choose("forward", geometry, True, 1, wanted)
            assert chosen.tile is not None and chosen.tile.style == style
            seen.add(chosen.tile)
        assert seen == set(tiles[style])


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_summation_does_not_depend_on_the_batch(seed: int) -> None:
    geometry = geometry_of(random.Random(seed).choice(KINDS), seed)
    orders = set()
    for batch in (1, 2, 64):
        tile = TileChoice(
            dataclasses.replace(geometry, batch=batch), MatrixUnits(2, SHARED_BYTES)
        ).best(132)
        assert tile is not None
        orders.add((tile.pattern, tile.chunk_slabs))
    assert len(orders) == 1


def test_a_gpu_runs_forward_on_the_matrix_units_and_the_emulator_does_not() -> None:
    layer = Geometry(2, 64, 32, 1, (32, 32, 32), (3, 3, 3), (2, 2, 2), ONES, ONES, ONES)
    wanted = MatrixUnits(2, SHARED_BYTES)
    assert plan.choose("forward", layer, True, 132, wanted).kernel == "matrix"
    assert plan.choose("forward", layer, True, 1, wanted).kernel == "tiled"
    assert plan.choose("forward", layer, True, 132, None).kernel == "tiled"


def test_fp32_runs_on_the_matrix_units_where_it_sums_many_channels() -> None:
    for channels, tf32, kernel in (
        *((16, False, "matrix"), (15, False, "tiled")),
        *((16, True, "matrix"), (15, True, "matrix")),
    ):
        layer = Geometry(2, channels, 32, 1, (32, 32, 32), (3, 3, 3), ONES, ONES, ZEROS, ONES)
        wanted = MatrixUnits(4, SHARED_BYTES, tf32)
        assert plan.choose("forward", layer, True, 132, wanted).kernel == kernel


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
def test_the_best_tile_can_run_and_its_blocks_fill_the_card(multiprocessors: int) -> None:
    layer = Geometry(2, 64, 32, 1, (32, 32, 32), (3, 3, 3), (2, 2, 2), ONES, ONES, ONES)
    choice = TileChoice(layer, MatrixUnits(2, SHARED_BYTES))
    tile = choice.best(multiprocessors)
    assert tile is not None and choice.work is not None and choice.can_run(tile)
    assert tile.pattern == Pattern(2, 3, 1) and tile.mode in MODES
    blocks = blocks_per_tile(choice.work, tile, multiprocessors) * choice.work.blocks_beside(tile)
    assert blocks >= 0.8 * multiprocessors
