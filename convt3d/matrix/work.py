"""A call of forward, and what a tile makes of it: plain integers. The notes are in kernels/matrix_params.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from convt3d.geometry import Axis, Geometry
from convt3d.matrix.tile import (
    MOST_CHANNEL_TILES,
    MOST_CHANNEL_TILES_SPLIT,
    MOST_TAPS_SPLIT,
    PATTERNS,
    MatrixTile,
    Pattern,
)

LARGEST_STRIDE = 4
LARGEST_KERNEL = 1024
LARGEST_PLANE = (
    2**30
)  # coordinates and offsets in a plane stay below: the kernel has 32 bits for them
RUN = 8
WARP_COLUMNS = 64
WARPS = 8  # that multiply
MOST_SHARES = 64  # of the phases
KEPT_PLACE_BYTES = 704  # at least that of kernels/matrix_store.py

PhaseOfAxes = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where things lie in shared memory, in bytes: MatrixShared of kernels/matrix_params.py, in its order."""

    tap: int
    slab: int
    slot: int
    staging_warp: int
    slots: int
    slot_weights: int
    staging: int
    signals: int
    work: int
    all: int


class AxisColumns:
    """One axis as columns and phases. See Note [Columns].

    Args:
        axis: the axis; its stride and kernel_size must be small, and some tap must reach some phase.

    Attributes:
        taps: of each phase, in order.
        count: of columns: outputs u * stride to u * stride + stride - 1.
        low, high: the smallest and the largest shift.
        span: their distance.
    """

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self.count = -(-axis.output_size // axis.stride)
        self.taps: list[list[int]] = [[] for _ in range(axis.stride)]
        found = []
        for tap in range(axis.kernel_size):
            phase = (tap * axis.dilation - axis.padding) % axis.stride
            self.taps[phase].append(tap)
            found.append(self.shift(phase, tap))
        self.low, self.high = min(found), max(found)
        self.span = self.high - self.low

    def shift(self, phase: int, tap: int) -> int:
        """Column u of the phase meets input u + shift through the tap."""
        axis = self.axis
        return (phase + axis.padding - tap * axis.dilation) // axis.stride


class MatrixWork:
    """A call, as far as it matters to a tile.

    Args:
        geometry: of the call; `has_matrix_form` must hold.
        element_bytes: of the dtype.

    Attributes:
        axes: D, H and W.
        pattern: that W follows, or None.
        slabs: 16-byte slabs of a group's source channels.
        channel_tiles: of 16 channels, that a group's destination channels fill.
    """

    def __init__(self, geometry: Geometry, element_bytes: int) -> None:
        self.geometry = geometry
        self.element_bytes = element_bytes
        self.axes = [AxisColumns(geometry.axis(index)) for index in range(3)]
        width = geometry.axis(2)
        wanted = (width.stride, width.kernel_size, width.padding % width.stride)
        split = element_bytes == 4
        is_known = width.dilation == 1 and wanted in PATTERNS
        is_known = is_known and not (split and width.kernel_size > MOST_TAPS_SPLIT)
        self.pattern: Pattern | None = wanted if is_known else None
        self.slabs = -(-geometry.in_channels_per_group * element_bytes // 16)
        self.channel_tiles = -(-geometry.out_channels_per_group // 16)
        self.most_channel_tiles = MOST_CHANNEL_TILES_SPLIT if split else MOST_CHANNEL_TILES

    @cached_property
    def most_taps_h(self) -> int:
        """Taps along H of the phase that has most."""
        return max(map(len, self.axes[1].taps))

    def phases(self, tile: MatrixTile) -> list[list[PhaseOfAxes]]:
        """The phases (e_D, e_H, e_W) that each set of each part computes, so that all have about as much to do.

        Where the kernel knows the taps along W it computes all phases along W at once, and e_W is 0.
        """
        depth, height, width = (axis.taps for axis in self.axes)
        along_w = [[0]] if tile.pattern else width
        found = [
            (len(taps_d) * len(taps_h) * len(taps_w), (e_d, e_h, e_w))
            for e_d, taps_d in enumerate(depth)
            for e_h, taps_h in enumerate(height)
            for e_w, taps_w in enumerate(along_w)
        ]
        shares: list[list[PhaseOfAxes]] = [[] for _ in range(tile.parts * tile.sets)]
        work = [0.0] * len(shares)
        for taps, phase in sorted(found, reverse=True):
            least = work.index(min(work))
            shares[least].append(phase)
            work[least] += taps + 0.25  # to store costs something too
        return shares

    def smallest_pitch(self, strip: int) -> int:
        """The least distance between two rows of a flat plane. See Note [Flat planes].

        A shift that leaves its row to the right must meet zeros, and so must one that leaves it to the left. In a
        strip of several the neighbours' inputs lie there, so that each row has its own; one strip's rows share zeros.
        """
        width = self.axes[2]
        if strip < width.count:
            return strip + width.span
        zeros_left = width.axis.input_size - width.low
        return min(
            strip + width.span, max(strip, zeros_left, strip + width.high - max(width.low, 0))
        )

    def chunks(self, tile: MatrixTile) -> int:
        """Into how many chunks of slabs the source channels are cut."""
        return -(-self.slabs // tile.chunk_slabs)

    def least_slots(self, tile: MatrixTile) -> int:
        """Slots without which the tile cannot go on."""
        if tile.mode != "hold":
            return 1
        return (tile.depths + self.axes[0].span) * self.chunks(tile)

    def positions(self, tile: MatrixTile) -> int:
        """Of a plane in shared memory: the columns of a block, and what the shifts reach beyond them."""
        return tile.flats * WARP_COLUMNS + self.axes[1].span * tile.pitch + self.axes[2].span

    def places(self, tile: MatrixTile) -> tuple[int, int, int]:
        """Of blocks: along D, in a flat plane, strips."""
        depth, height, width = (axis.count for axis in self.axes)
        flat = (height - 1) * tile.pitch + min(tile.strip, width)
        return (
            -(-depth // (tile.steps * tile.depths)),
            -(-flat // (tile.flats * WARP_COLUMNS)),
            -(-width // tile.strip),
        )

    def blocks_beside(self, tile: MatrixTile) -> int:
        """Blocks that work at one place: channel tiles, groups and parts of the phases."""
        tiles = -(-self.channel_tiles // tile.channel_tiles)
        return tile.parts * tiles * self.geometry.groups

    def is_gapless(self, tile: MatrixTile) -> bool:
        """Whether the flat plane is the output's plane, without anything in between."""
        width = self.axes[2].axis
        strides = self.geometry.stride[1], width.stride
        return strides == (1, 1) and tile.pitch == width.output_size <= tile.strip

    def layout(self, tile: MatrixTile) -> Layout:
        """Where everything lies in shared memory."""
        steps = tile.chunk_slabs // 2
        if tile.mode != "both":
            steps *= self.chunks(tile)
        # 16 more, so that the taps of a channel lie in different banks.
        tap = steps * tile.channel_tiles * 512 + 16
        reach = self.positions(tile)
        slab = (reach + reach // RUN + 1) * 16  # products may read one position more than they use
        plane = tile.chunk_slabs * slab
        slot, weights = plane, 0
        if tile.mode == "both":
            slot += self.most_taps_h * self.geometry.kernel_size[2] * tap
        else:
            weights = -(-self.geometry.taps * tap // 128) * 128
        along_w = 8 * (WARP_COLUMNS * tile.stride * self.element_bytes + 16)
        along_channels = 8 * (RUN * tile.stride * 32 + 16)
        staging_warp = max(along_w, along_channels) + KEPT_PLACE_BYTES
        staging = weights + tile.slots * slot
        signals = staging + WARPS * staging_warp
        block = signals + 16 * tile.slots + 16  # two a slot, and one
        return Layout(
            tap, slab, slot, staging_warp, weights, plane, staging, signals, block, block + 16
        )

    def can_run(self, tile: MatrixTile, most_shared_bytes: int) -> bool:
        """Whether a tile, perhaps one made for another call, fits this one.

        Args:
            tile: any.
            most_shared_bytes: that a block may have.
        """
        if tile.pattern not in (None, self.pattern):
            return False
        least = min(
            *(tile.channel_tiles, tile.flats, tile.depths, tile.sets, tile.parts, tile.strip),
            *(tile.chunk_slabs, tile.slots, tile.steps),
        )
        if least < 1 or tile.channel_tiles > self.most_channel_tiles[tile.stride]:
            return False
        if tile.flats * tile.depths * tile.sets != WARPS or tile.parts * tile.sets > MOST_SHARES:
            return False
        if tile.mode != "hold" and tile.depths * tile.sets != 1:
            return False
        if tile.strip < self.axes[2].count and tile.strip % RUN:
            return False
        if tile.chunk_slabs % 2 or tile.pitch < self.smallest_pitch(
            min(tile.strip, self.axes[2].count)
        ):
            return False
        columns = self.places(tile)[1] * tile.flats * WARP_COLUMNS
        if max(self.positions(tile), columns) >= LARGEST_PLANE:
            return False
        if tile.slots < self.least_slots(tile):
            return False
        return self.layout(tile).all <= most_shared_bytes


def has_matrix_form(geometry: Geometry) -> bool:
    """Whether the kernel for the matrix units can run a call at all."""
    if 0 in geometry.output_shape or 0 in geometry.input_shape:
        return False
    if max(geometry.stride) > LARGEST_STRIDE or max(geometry.kernel_size) > LARGEST_KERNEL:
        return False
    return all(geometry.axis(index).largest_coordinate < LARGEST_PLANE for index in range(3))
