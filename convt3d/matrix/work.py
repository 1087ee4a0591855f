"""A call of forward, and what a tile makes of it: plain integers. The notes are in kernels/matrix_params.py."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from convt3d.columns import RUN, AxisColumns, Pattern, pattern_of
from convt3d.geometry import Geometry
from convt3d.matrix.tile import (
    CHANNEL_TILES,
    CHANNEL_TILES_SPLIT,
    CHANNEL_TILES_WARPGROUP,
    MOST_TAPS_SPLIT,
    MatrixTile,
)

LARGEST_PLANE = 2**30  # offsets in a plane stay below: the kernel has 32 bits for them
WARP_COLUMNS = 64
SHIFTED_BYTES = 8  # that a lane stores at once where rows of output start anywhere
MOST_SHARES = 64  # of the phases
# At least those of kernels/matrix_store.py.
MOST_ENDS = 16  # of rows, of a warp's columns
KEPT_PLACE_BYTES, PHASE_WORK_BYTES, BLOCK_WORK_BYTES = 720, 80, 16

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
    bias: int
    phases: int
    work: int
    all: int


@dataclass(frozen=True)
class MatrixUnits:
    """What a device and a dtype leave to the kernel for the matrix units.

    Args:
        element_bytes: of the dtype: 2, or 4 for fp32.
        shared_bytes: that a block may have.
        tf32: whether factors are rounded to TF32; else an fp32 one is multiplied in two parts.
        warpgroups: whether four warps can multiply together.
    """

    element_bytes: int
    shared_bytes: int
    tf32: bool = False
    warpgroups: bool = False

    @property
    def splits(self) -> bool:
        """Whether factors come in two parts."""
        return self.element_bytes == 4 and not self.tf32


def warps_for(channel_tiles: int, stride: int, splits: bool, warpgroups: bool) -> int:
    """Warps that multiply, each so many channel tiles and phases along W: their registers limit them."""
    return 12 if not splits and not warpgroups and channel_tiles * stride <= 2 else 8


class MatrixWork:
    """A call, as far as it matters to a tile.

    Args:
        geometry: of the call; `has_column_form` must hold.
        units: where it runs.

    Attributes:
        axes: D, H and W.
        pattern: that W follows, or None.
        slabs: 16-byte slabs of a group's source channels.
        channels: destination channels of a group.
    """

    def __init__(self, geometry: Geometry, units: MatrixUnits) -> None:
        self.geometry, self.units = geometry, units
        self.element_bytes = element_bytes = units.element_bytes
        self.axes = [AxisColumns(geometry.axis(index)) for index in range(3)]
        split = units.splits
        pattern = pattern_of(geometry.axis(2))
        has_kernel = pattern and not (split and pattern.taps > MOST_TAPS_SPLIT[pattern.stride])
        self.pattern: Pattern | None = pattern if has_kernel else None
        self.has_warpgroups = units.warpgroups and not split
        self.slabs = -(-geometry.in_channels_per_group * element_bytes // 16)
        self.channels = geometry.out_channels_per_group

    def warps(self, tile: MatrixTile) -> int:
        """That multiply: multiplying_warps of kernels/matrix_params.py."""
        return warps_for(tile.channel_tiles, tile.stride, self.units.splits, tile.warpgroups)

    def channel_tiles(self, stride: int, warpgroups: bool) -> tuple[int, ...]:
        """Channel tiles of a warp that there are kernels for."""
        if warpgroups:
            return CHANNEL_TILES_WARPGROUP[stride] if self.has_warpgroups else ()
        return (CHANNEL_TILES_SPLIT if self.units.splits else CHANNEL_TILES)[stride]

    def splits(self, tile: MatrixTile) -> tuple[bool, bool, bool] | None:
        """Of which axes each part has a single phase; None where there is no such number of parts."""
        return self.possible_parts(tile.pattern).get(tile.parts)

    def possible_parts(self, pattern: Pattern | None) -> dict[int, tuple[bool, bool, bool]]:
        """Numbers of parts -> as for splits: one part, one for each phase along D, or one for each phase.

        Where the kernel knows the taps along W it computes all phases along W at once.
        """
        along_d, along_h, along_w = self.geometry.stride
        if pattern:
            along_w = 1
        found = {
            along_d * along_h * along_w: (True, True, pattern is None),
            along_d: (True, False, False),
        }
        return {**found, 1: (False, False, False)}

    def phases(self, tile: MatrixTile) -> list[list[PhaseOfAxes]]:
        """The phases (e_D, e_H, e_W) that each set of each part computes, so that sets have about as much to do.

        Where the kernel knows the taps along W it computes all phases along W at once, and e_W is 0.
        """
        splits = self.splits(tile)
        assert splits  # as can_run has seen
        taps = [axis.taps for axis in self.axes]
        if tile.pattern:
            taps[2] = [[0]]
        shares: list[list[PhaseOfAxes]] = []
        for part in itertools.product(*(range(len(t) if s else 1) for t, s in zip(taps, splits))):
            own = [[e] if s else range(len(t)) for e, t, s in zip(part, taps, splits)]
            shares += self._share_out([(d, h, w) for d, h, w in itertools.product(*own)], tile)
        return shares

    def _share_out(self, phases: list[PhaseOfAxes], tile: MatrixTile) -> list[list[PhaseOfAxes]]:
        """The phases of a part, by set."""
        shares: list[list[PhaseOfAxes]] = [[] for _ in range(tile.sets)]
        work = [0.0] * tile.sets
        found = [(self._taps_of(phase, tile), phase) for phase in phases]
        for taps, phase in sorted(found, reverse=True):
            least = work.index(min(work))
            shares[least].append(phase)
            work[least] += taps + 0.25  # to store costs something too
        return shares

    def _taps_of(self, phase: PhaseOfAxes, tile: MatrixTile) -> int:
        along_d, along_h, along_w = (len(axis.taps[e]) for axis, e in zip(self.axes, phase))
        return along_d * along_h * (1 if tile.pattern else along_w)

    def staged_taps(self, tile: MatrixTile) -> tuple[int, int, int]:
        """Taps on each axis whose weights lie in shared memory together, at most."""
        splits = self.splits(tile)
        assert splits
        streams = tile.mode == "both"
        only = (splits[0], splits[1] or streams, splits[2] or (streams and not tile.pattern))
        found = [
            max(map(len, axis.taps)) if own else axis.axis.kernel_size
            for axis, own in zip(self.axes, only)
        ]
        return 1 if streams else found[0], found[1], found[2]

    def phases_together(self, tile: MatrixTile) -> int:
        """Phases of a part, at most."""
        splits = self.splits(tile)
        assert splits
        count = 1
        for stride, split in zip((*self.geometry.stride[:2], self._phases_w(tile)), splits):
            count *= 1 if split else stride
        return count

    def _phases_w(self, tile: MatrixTile) -> int:
        """Phases along W that are computed one by one."""
        return 1 if tile.pattern else self.geometry.stride[2]

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

    def can_shift(self, tile: MatrixTile) -> bool:
        """Whether rows of the output may start anywhere in memory and are yet stored SHIFTED_BYTES at once."""
        rows = WARP_COLUMNS // tile.pitch + 2  # of a warp's columns
        return tile.pitch % self.shifted_columns == 0 and 2 * rows <= MOST_ENDS

    @property
    def shifted_columns(self) -> int:
        """Columns that SHIFTED_BYTES of a row hold."""
        elements = SHIFTED_BYTES // self.element_bytes
        return max(1, elements // self.geometry.stride[2])

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
        tiles = -(-self.channels // tile.block_channels)
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
        tap = steps * tile.block_channels * 32 + 16
        reach = self.positions(tile)
        # Products may read one position more than they use; those of warpgroups do not, nor do they leave any out.
        slab = (reach if tile.warpgroups else reach + reach // RUN + 1) * 16
        plane = tile.chunk_slabs * slab
        slot, weights = plane, 0
        staged = math.prod(self.staged_taps(tile)) * tap
        if tile.mode == "both":
            slot += staged
        else:
            weights = -(-staged // 128) * 128
        along_w = 8 * (WARP_COLUMNS * tile.stride * self.element_bytes + 16)
        along_channels = 8 * (RUN * tile.stride * 32 + 16)
        staging_warp = max(along_w, along_channels) + KEPT_PLACE_BYTES
        staging = weights + tile.slots * slot
        signals = staging + self.warps(tile) * staging_warp
        bias = signals + 16 * tile.slots + 16  # two a slot, and one
        phases = bias + 4 * -(-tile.block_channels // 16) * 16
        block = phases + PHASE_WORK_BYTES * self.phases_together(tile)
        return Layout(
            *(tap, slab, slot, staging_warp, weights, plane, staging, signals, bias, phases),
            *(block, block + BLOCK_WORK_BYTES),
        )

    def can_run(self, tile: MatrixTile) -> bool:
        """Whether a tile, perhaps one made for another call, fits this one."""
        if tile.pattern not in (None, self.pattern):
            return False
        least = min(
            *(tile.channel_tiles, tile.crews, tile.flats, tile.depths, tile.sets, tile.parts),
            *(tile.strip, tile.chunk_slabs, tile.slots, tile.steps),
        )
        if least < 1 or tile.channel_tiles not in self.channel_tiles(tile.stride, tile.warpgroups):
            return False
        if tile.warpgroups and tile.flats % 4:
            return False
        if tile.crews * tile.flats * tile.depths * tile.sets != self.warps(tile):
            return False
        if tile.parts * tile.sets > MOST_SHARES:
            return False
        if tile.mode != "hold" and tile.depths * tile.sets != 1:
            return False
        if self.splits(tile) is None:
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
        return self.layout(tile).all <= self.units.shared_bytes
