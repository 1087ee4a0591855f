"""Plans of the kernel for few channels a group: how it cuts a call into blocks, which way is expected to be fastest.

No torch. The notes are in kernels/lines.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from convt3d.columns import (
    PATTERN_NAME,
    PATTERNS,
    RUN,
    AxisColumns,
    Pattern,
    has_column_form,
    parse_pattern,
    pattern_name,
    pattern_of,
)
from convt3d.geometry import Geometry

THREADS, WARP_SIZE = 256, 32  # of a block, at most; of a warp
# Products of channels of a group above which no call should come here.
MOST_CHANNEL_PRODUCTS = 64
MOST_CHANNELS = 32  # of a group, of either kind
LARGEST_GRID = 2**31 - 1
# Blocks that a multiprocessor holds at best, for their registers.
BLOCKS_AT_ONCE = 3
# Of a multiprocessor: threads that compute in a cycle, and threads from which on they hide each other's waits.
LANES, ENOUGH_THREADS = 128, 512
# What a thread does in a cycle of its own, for estimates: to read a line and its weights, to multiply and add, to bring
# a number to shared memory, to store one, to begin.
READ_CYCLES, PRODUCT_CYCLES, LOAD_CYCLES, STORE_CYCLES, START_CYCLES = 25.0, 1.0, 6.0, 4.0, 2000.0


@dataclass(frozen=True)
class LineTile:
    """One way to cut the work.

    Args:
        pattern: one of PATTERNS, or None for the kernel that takes one tap along W at a time.
        strip: columns of a block along W.
        rows: of them along H.
        depths: along D, in a step.
        steps: of a block.
    """

    pattern: Pattern | None
    strip: int
    rows: int
    depths: int
    steps: int

    @property
    def family(self) -> str:
        """The family of convt3d.build that runs it."""
        return line_family(self.pattern)

    @property
    def style(self) -> str:
        """`fixed` or `any`: whether the kernel knows the taps along W."""
        return "fixed" if self.pattern else "any"

    def __str__(self) -> str:
        return f"{self.family}.w{self.strip}h{self.rows}d{self.depths}x{self.steps}"


LINE_STYLES = ("fixed", "any")
_LINE_TILE_NAME = re.compile(rf"lines\.({PATTERN_NAME})\.w(\d+)h(\d+)d(\d+)x(\d+)", re.ASCII)


def parse_line_tile(name: str) -> LineTile | None:
    """Returns the tile of that name, or None where it is none's."""
    match = _LINE_TILE_NAME.fullmatch(name)
    if match is None:
        return None
    tile = LineTile(parse_pattern(match[1]), *map(int, match.groups()[1:]))
    return tile if str(tile) == name and tile.pattern in (None, *PATTERNS) else None


def line_family(pattern: Pattern | None) -> str:
    """`lines.s2k3p1`: the kernels for a pattern along W, or `lines.any`."""
    return f"lines.{pattern_name(pattern)}"


@dataclass(frozen=True)
class LineUnits:
    """What a device, a dtype and an output leave to the kernel.

    Args:
        element_bytes: of the dtype.
        shared_bytes: that a block may have.
        along_channels: whether the output's neighbours along W lie apart, so that threads share out channels.
    """

    element_bytes: int
    shared_bytes: int
    along_channels: bool


@dataclass(frozen=True)
class LineLayout:
    """Shared memory of a block in bytes: weights first, then input, then two stagings; and what follows from it.

    Args:
        runs: of RUN columns in a strip.
        pitch, staged_pitch: from line to line of the input, and of staged results, in elements.
        input: where it starts.
        staging, staging_bytes: where the first starts, and its size.
        all: of the block.
    """

    runs: int
    pitch: int
    staged_pitch: int
    input: int
    staging: int
    staging_bytes: int
    all: int


class LineWork:
    """A call, as far as it matters to a tile.

    Args:
        geometry: of the call; `has_column_form` must hold.
        units: of the call.

    Attributes:
        axes: D, H and W.
        pattern: that W follows, or None.
        block_groups: groups of a block.
    """

    def __init__(self, geometry: Geometry, units: LineUnits) -> None:
        self.geometry, self.units = geometry, units
        self.axes = [AxisColumns(geometry.axis(index)) for index in range(3)]
        is_fp64 = units.element_bytes == 8
        self.pattern = None if is_fp64 else pattern_of(geometry.axis(2))
        self.block_groups = 1
        if units.along_channels:
            most = MOST_CHANNELS // max(
                geometry.in_channels_per_group, geometry.out_channels_per_group
            )
            self.block_groups = min(geometry.groups, max(1, most))

    @property
    def has_few_channels(self) -> bool:
        """Whether the kernel is for such groups at all."""
        source, destination = (
            self.geometry.in_channels_per_group,
            self.geometry.out_channels_per_group,
        )
        return (
            source * destination <= MOST_CHANNEL_PRODUCTS
            and max(source, destination) <= MOST_CHANNELS
        )

    def items(self, tile: LineTile) -> int:
        """Of a step, each a thread's."""
        _, stride_h, stride_w = self.geometry.stride
        along_w = 1 if tile.pattern else stride_w
        return tile.depths * stride_h * along_w * tile.rows * -(-tile.strip // RUN)

    def threads(self, tile: LineTile) -> int:
        """Of a block."""
        if self.units.along_channels:
            return THREADS
        return -(-self.items(tile) // WARP_SIZE) * WARP_SIZE

    def places(self, tile: LineTile) -> tuple[int, int, int]:
        """Of blocks, along D, H and W."""
        depth, height, width = (axis.count for axis in self.axes)
        return (
            -(-depth // (tile.depths * tile.steps)),
            -(-height // tile.rows),
            -(-width // tile.strip),
        )

    def blocks(self, tile: LineTile) -> int:
        """Of the grid."""
        depth, height, width = self.places(tile)
        groups = -(-self.geometry.groups // self.block_groups)
        return depth * height * width * groups * self.geometry.batch

    def lines(self, tile: LineTile) -> int:
        """Of input that a block holds, of one source channel."""
        planes = tile.depths * tile.steps + self.axes[0].span
        return planes * (tile.rows + self.axes[1].span)

    def layout(self, tile: LineTile) -> LineLayout:
        """Where everything lies in shared memory."""
        geometry, size = self.geometry, self.units.element_bytes
        chunk = 16 // size
        runs = -(-tile.strip // RUN)
        pitch, staged_pitch = RUN * runs + self.axes[2].span, 0
        if not self.units.along_channels:
            # Whole chunks are read, an odd number a line, so that neighbouring lines lie in different banks.
            pitch = (-(-pitch // chunk) | 1) * chunk
            # A row may start anywhere in a chunk.
            staged_pitch = RUN * runs * geometry.stride[2] + chunk
        channels = geometry.out_channels_per_group * self.block_groups
        weights = geometry.taps * geometry.in_channels_per_group * channels * max(4, size)
        input_at = -(-weights // 16) * 16
        source_channels = geometry.in_channels_per_group * self.block_groups
        staging = input_at + -(-source_channels * self.lines(tile) * pitch * size // 16) * 16
        rows = tile.depths * tile.rows * geometry.stride[1]
        staging_bytes = rows * staged_pitch * size
        return LineLayout(
            runs,
            pitch,
            staged_pitch,
            input_at,
            staging,
            staging_bytes,
            staging + 2 * staging_bytes,
        )

    def can_run(self, tile: LineTile) -> bool:
        """Whether a tile, perhaps one made for another call, fits this one."""
        if tile.pattern not in (None, self.pattern) or not self.has_few_channels:
            return False
        if min(tile.strip, tile.rows, tile.depths, tile.steps) < 1:
            return False
        if tile.strip < self.axes[2].count and tile.strip % RUN:
            return False
        if self.items(tile) > THREADS or self.blocks(tile) > LARGEST_GRID:
            return False
        return self.layout(tile).all <= self.units.shared_bytes


class LineChoice:
    """The tiles of a call.

    Args:
        geometry: of the call.
        units: of the call.

    Attributes:
        work: the call; None where it has no tile.
    """

    def __init__(self, geometry: Geometry, units: LineUnits) -> None:
        self.work = LineWork(geometry, units) if has_column_form(geometry) else None

    @cached_property
    def tiles(self) -> list[LineTile]:
        """All that are worth a thought and fit; on a tie the first is the better one."""
        if self.work is None or not self.work.has_few_channels:
            return []
        return [tile for tile in dict.fromkeys(_line_tiles(self.work)) if self.work.can_run(tile)]

    def of_style(self, style: str) -> list[LineTile]:
        """Those of one of LINE_STYLES."""
        return [tile for tile in self.tiles if tile.style == style]

    def can_run(self, tile: LineTile) -> bool:
        """Whether a tile, perhaps one made for another call, fits this one."""
        return self.work is not None and self.work.can_run(tile)

    @cached_property
    def _best(self) -> dict[int, LineTile]:
        return {}

    def best(self, multiprocessors: int) -> LineTile | None:
        """The tile that is expected to be fastest, of those that know the taps along W if there are any."""
        work, tiles = self.work, self.of_style("fixed") or self.tiles
        if work is None or not tiles:
            return None
        if multiprocessors not in self._best:
            self._best[multiprocessors] = min(
                tiles, key=lambda tile: estimate_lines(work, tile, multiprocessors)
            )
        return self._best[multiprocessors]


@lru_cache(maxsize=4096)
def line_choice(geometry: Geometry, units: LineUnits) -> LineChoice:
    """The tiles of a call, made once."""
    return LineChoice(geometry, units)


def _line_tiles(work: LineWork) -> Iterator[LineTile]:
    depth, height, width = (axis.count for axis in work.axes)
    for pattern in dict.fromkeys((work.pattern, None)):
        for strip in _line_strips(width):
            for rows in dict.fromkeys(min(height, count) for count in (1, 2, 4, 8, 16, 32, height)):
                for depths in dict.fromkeys(min(depth, count) for count in (1, 2, 4, 8)):
                    for steps in dict.fromkeys(
                        min(-(-depth // depths), count) for count in (1, 2, 4, 8)
                    ):
                        yield LineTile(pattern, strip, rows, depths, steps)


def _line_strips(width: int) -> list[int]:
    """All of W, or equal strips of whole runs."""
    strips = [width]
    for count in (2, 3, 4, 8, 16):
        strip = -(-width // count // RUN) * RUN
        if strip < width:
            strips.append(strip)
    while strips[-1] > RUN * THREADS:  # a long axis
        strips.append(-(-strips[-1] // 2 // RUN) * RUN)
    return strips


def estimate_lines(work: LineWork, tile: LineTile, multiprocessors: int) -> float:
    """An estimate of the cycles of a call."""
    geometry, layout = work.geometry, work.layout(tile)
    channels = geometry.out_channels_per_group * work.block_groups
    phases_w = 1 if tile.pattern else geometry.stride[2]
    # Of one item in all phases along D; a run has RUN products for each tap, and one read for each line.
    taps = geometry.taps / (geometry.stride[1] * phases_w)
    reads = taps / (geometry.kernel_size[2] / phases_w) if tile.pattern else taps
    item = geometry.in_channels_per_group * (
        taps * RUN * PRODUCT_CYCLES + reads * READ_CYCLES * (1 if tile.pattern else 2)
    )
    stored = RUN * geometry.stride[0] * (geometry.stride[2] if tile.pattern else 1)
    is_whole = work.units.along_channels or tile.strip >= work.axes[2].count
    item += stored * STORE_CYCLES * (1.0 if is_whole else 1.5)  # rows of a strip are short runs
    threads = work.threads(tile)
    # along_channels: a thread a channel of an item; else all channels of an item in turn.
    rounds = channels * (work.items(tile) / threads if work.units.along_channels else 1.0)
    source_channels = geometry.in_channels_per_group * work.block_groups
    loads = source_channels * work.lines(tile) * layout.pitch / threads
    block = tile.steps * max(1.0, rounds) * item + loads * LOAD_CYCLES + START_CYCLES
    at_once = min(
        BLOCKS_AT_ONCE * THREADS // threads, max(1, work.units.shared_bytes // layout.all)
    )
    at_once = max(1, at_once)
    # Threads beyond the lanes take turns; fewer than it takes to hide each other's waits leave lanes idle.
    share = max(at_once * threads, ENOUGH_THREADS) / LANES
    turns = -(-work.blocks(tile) // (multiprocessors * at_once))
    return turns * share * block
