"""Which tile runs a call on the matrix units: those worth a thought, and the choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache

from convt3d.columns import RUN, Pattern, has_column_form
from convt3d.geometry import Geometry
from convt3d.matrix.estimate import estimate
from convt3d.matrix.tile import MODES, MatrixTile, styles_of
from convt3d.matrix.work import WARP_COLUMNS, MatrixUnits, MatrixWork, warps_for

# What the warps that multiply share among them: crews, flats, depths, sets.
SHARES = {
    warps: [
        share
        for share in itertools.product(range(1, 13), repeat=4)
        if math.prod(share) == warps and share[3] <= 4 and sum(s > 1 for s in share) <= 3
    ]
    for warps in (8, 12)
}
SHORTEST_STRIP = 32


class TileChoice:
    """The tiles of a call.

    Args:
        geometry: of the call.
        units: where it runs.
    """

    def __init__(self, geometry: Geometry, units: MatrixUnits) -> None:
        self.units = units
        self._best: dict[int, MatrixTile | None] = {}
        self.work = MatrixWork(geometry, units) if has_column_form(geometry) else None

    @cached_property
    def tiles(self) -> list[MatrixTile]:
        """Those worth a thought; none where the kernel cannot run the call."""
        if self.work is None:
            return []
        found = dict.fromkeys(_tiles(self.work))
        return [tile for tile in found if self.work.can_run(tile)]

    @cached_property
    def styles(self) -> set[str]:
        """Those that there are tiles of, without a look at every tile."""
        found: set[str] = set()
        for kernel in _kernels(self.work) if self.work else ():
            wanted = set(styles_of(kernel[0], kernel[2])) - found
            for tile in _tiles_of(self.work, *kernel):  # type: ignore[arg-type]
                if not wanted:
                    break
                if tile.style in wanted and self.work.can_run(tile):  # type: ignore[union-attr]
                    wanted.remove(tile.style)
                    found.add(tile.style)
        return found

    @cached_property
    def by_style(self) -> dict[str, list[MatrixTile]]:
        """The same, style by style; styles that have none are left out."""
        found: dict[str, list[MatrixTile]] = {}
        for tile in self.tiles:
            found.setdefault(tile.style, []).append(tile)
        return found

    @property
    def pattern(self) -> Pattern | None:
        """That W follows, of those for which there are kernels that know the taps."""
        return self.work.pattern if self.work else None

    def can_run(self, tile: MatrixTile) -> bool:
        """Whether a tile, perhaps one made for another call, fits this one."""
        return self.work is not None and self.work.can_run(tile)

    def best(self, multiprocessors: int) -> MatrixTile | None:
        """The tile that is expected to be fastest.

        What decides the order of summation, the kernel and the chunks of channels, is that of a batch of one, so that
        a sample's result does not depend on the rest of the batch.
        """
        if multiprocessors not in self._best:
            self._best[multiprocessors] = self._find_best(multiprocessors)
        return self._best[multiprocessors]

    def _find_best(self, multiprocessors: int) -> MatrixTile | None:
        work, tiles = self.work, self.tiles
        if work is None or not tiles:
            return None
        if work.geometry.batch > 1:
            alone = tile_choice(replace(work.geometry, batch=1), self.units).best(multiprocessors)
            assert alone is not None  # tiles fit whatever the batch
            order = alone.pattern, alone.chunk_slabs
            tiles = [tile for tile in tiles if (tile.pattern, tile.chunk_slabs) == order]
        if work.pattern and not _is_small(work, multiprocessors):
            # Taken one by one, taps along W load each column again; it pays where phases along W fill the card.
            tiles = [tile for tile in tiles if tile.pattern] or tiles
        return min(tiles, key=lambda tile: estimate(work, tile, multiprocessors))


def _is_small(work: MatrixWork, multiprocessors: int) -> bool:
    """Whether warps that compute all phases along W at once would leave multiprocessors idle."""
    depth, height, width = (axis.count for axis in work.axes)
    along_d, along_h, _ = work.geometry.stride
    planes = work.geometry.batch * depth * -(-height * width // WARP_COLUMNS)
    warps = planes * along_d * along_h * -(-work.channels // 16) * work.geometry.groups
    return warps < 8 * multiprocessors


@lru_cache(maxsize=4096)
def tile_choice(geometry: Geometry, units: MatrixUnits) -> TileChoice:
    """The tiles of a call, made once."""
    return TileChoice(geometry, units)


def _tiles(work: MatrixWork) -> Iterator[MatrixTile]:
    for kernel in _kernels(work):
        yield from _tiles_of(work, *kernel)


def _tiles_of(
    work: MatrixWork, pattern: Pattern | None, channel_tiles: int, warpgroups: bool
) -> Iterator[MatrixTile]:
    """Those of one kernel."""
    strides = work.geometry.stride
    stride = pattern.stride if pattern else 1
    phases = strides[0] * strides[1] * (1 if pattern else strides[2])
    channels = channel_tiles * (8 if warpgroups else 16)
    warps = warps_for(channel_tiles, stride, work.units.splits, warpgroups)
    for strip, pitch in _strips(work):
        for chunk_slabs in _chunk_slabs(work):
            for crews, flats, depths, sets in SHARES[warps]:
                if sets > phases or depths > work.axes[0].count:
                    continue
                if crews > -(-work.channels // channels) or (warpgroups and flats % 4):
                    continue
                base = MatrixTile(
                    *(pattern, channel_tiles, crews, flats, depths, sets, 1, strip, pitch),
                    *(chunk_slabs, 1, "hold", 1, warpgroups),
                )
                yield from _variations(work, base, phases)


def _kernels(work: MatrixWork) -> Iterator[tuple[Pattern | None, int, bool]]:
    """(what the kernel knows of W, channel tiles of a warp, whether warpgroups multiply)."""
    for pattern in dict.fromkeys((work.pattern, None)):
        for engine in _engines(work, pattern.stride if pattern else 1):
            yield (pattern, *engine)


def _engines(work: MatrixWork, stride: int) -> Iterator[tuple[int, bool]]:
    """(channel tiles of a warp, whether warpgroups multiply): those that divide the channels best, and one."""
    possible = work.channel_tiles(stride, False)
    tiles = -(-work.channels // 16)
    balanced = -(-tiles // -(-tiles // min(possible[-1], tiles)))
    yield from ((count, False) for count in dict.fromkeys((balanced, 1)))
    tiles = -(-work.channels // 8)

    def computed(count: int) -> tuple[int, int]:
        return -(-tiles // count) * count, -count

    best = sorted(work.channel_tiles(stride, True), key=computed)
    yield from ((count, True) for count in best[:3])


def _variations(work: MatrixWork, base: MatrixTile, phases: int) -> Iterator[MatrixTile]:
    chunks = work.chunks(base)
    for mode in MODES if base.depths * base.sets == 1 else ("hold",):
        choice = replace(base, mode=mode)
        least = work.least_slots(choice)
        depth = -(-work.axes[0].count // base.depths)
        marches = dict.fromkeys(
            (1, min(depth, 4), min(depth, 16), depth)[: 4 if mode == "hold" else 2]
        )
        for slots in dict.fromkeys(
            (least, least + 1, least + (base.depths * chunks if mode == "hold" else 3))
        ):
            for steps, parts in itertools.product(marches, work.possible_parts(base.pattern)):
                if parts * base.sets <= phases:
                    yield replace(choice, slots=slots, steps=steps, parts=parts)


def _strips(work: MatrixWork) -> Iterator[tuple[int, int]]:
    """(strip, pitch): all of W or equal strips; rows as near as may be, or as vectors or runs want them."""
    width = work.axes[2].count
    strips = [width]
    for count in (2, 4, 8, 16):
        strip = -(-width // count // RUN) * RUN
        if SHORTEST_STRIP <= strip < width:
            strips.append(strip)
    for strip in strips:
        smallest = work.smallest_pitch(strip)
        pitches = (-(-smallest // whole) * whole for whole in (1, work.shifted_columns, RUN))
        yield from ((strip, pitch) for pitch in dict.fromkeys(pitches))


def _chunk_slabs(work: MatrixWork) -> list[int]:
    parts = {-(-work.slabs // count) for count in range(1, 7)} | {2, 4}
    return sorted({size + size % 2 for size in parts if size <= work.slabs + 1})


def blocks_per_tile(work: MatrixWork, tile: MatrixTile, multiprocessors: int) -> int:
    """How many blocks share the places of a channel tile, so that the last ones end together."""
    all_places = work.geometry.batch
    for count in work.places(tile):
        all_places *= count
    beside = work.blocks_beside(tile)
    most = max(1, min(all_places, 8 * multiprocessors // beside))

    def places_in_turn(count: int) -> float:
        return -(-count * beside // multiprocessors) * (-(-all_places // count) + 0.5)

    return min(range(1, most + 1), key=places_in_turn)
