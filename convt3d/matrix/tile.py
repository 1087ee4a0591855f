"""A tile: one way to cut forward for the matrix units, and its name. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convt3d.columns import PATTERN_NAME, PATTERNS, Pattern, parse_pattern, pattern_name

# Channel tiles of a warp that there are kernels for: those whose sums fit the registers, by stride along W. The tiles
# have 16 channels; in fp32 operands come in two parts. Those of warpgroups have 8.
CHANNEL_TILES: dict[int, tuple[int, ...]] = {1: (1, 2, 3), 2: (1,)}
CHANNEL_TILES_SPLIT: dict[int, tuple[int, ...]] = {1: (1,), 2: (1,)}
CHANNEL_TILES_WARPGROUP: dict[int, tuple[int, ...]] = {1: (1, 2, 3, 4, 6), 2: (1, 2, 4)}
# Most taps along W that a kernel of fp32 may know, by stride: with more its operands do not fit the registers.
MOST_TAPS_SPLIT = {1: 7, 2: 5}
# What stays in shared memory while a block computes the phases of some columns.
MODES = ("hold", "stream", "both")


def styles_of(pattern: Pattern | None, warpgroups: bool) -> tuple[str, ...]:
    """The kinds of tile of a kernel, for those who want one of each.

    They say whether warpgroups multiply, whether the kernel knows the taps along W and, where warps multiply, the mode.
    """
    kernel = "fixed" if pattern else "any"
    return (f"wg.{kernel}",) if warpgroups else tuple(f"{kernel}.{mode}" for mode in MODES)


STYLES = tuple(
    style
    for warpgroups in (False, True)
    for pattern in (PATTERNS[0], None)
    for style in styles_of(pattern, warpgroups)
)


@dataclass(frozen=True)
class MatrixTile:
    """One way to cut the work.

    Args:
        pattern: one of PATTERNS, or None for the kernel that takes one tap along W at a time.
        channel_tiles: of a warp: of 16 channels, of warpgroups of 8.
        crews: of warps; each computes other channel tiles of the same columns.
        flats: warps along the flat plane, 64 columns each.
        depths: warps along D, one column each.
        sets: of warps; each computes some of the phases.
        parts: of the phases; each is a block's.
        strip: columns along W of a strip.
        pitch: from row to row of the flat plane.
        chunk_slabs: 16-byte slabs of source channels that are loaded together, an even number.
        slots: planes of a chunk in shared memory.
        mode: "hold": all weights stay, and the planes of a step while all its phases are computed; "stream": the
            weights stay, planes come tap by tap; "both": weights and planes come tap by tap.
        steps: of `depths` columns along D of a block.
        warpgroups: whether four warps multiply together; flats are then a multiple of 4.
    """

    pattern: Pattern | None
    channel_tiles: int
    crews: int
    flats: int
    depths: int
    sets: int
    parts: int
    strip: int
    pitch: int
    chunk_slabs: int
    slots: int
    mode: str
    steps: int
    warpgroups: bool = False

    @property
    def stride(self) -> int:
        """Phases along W that are computed at once."""
        return self.pattern.stride if self.pattern else 1

    @property
    def taps_together(self) -> int:
        """Taps along W that share a product of a warpgroup: taps_together of kernels/matrix_warpgroup.py."""
        stride, taps, padding, dilation = self.pattern or Pattern(1, 1, 0)
        return stride if padding == 0 and dilation == 1 and taps % stride == 0 else 1

    @property
    def warp_channels(self) -> int:
        """Channels of a warp."""
        return self.channel_tiles * (8 if self.warpgroups else 16)

    @property
    def block_channels(self) -> int:
        """Channels of a block."""
        return self.warp_channels * self.crews

    @property
    def family(self) -> str:
        """The family of convt3d.build that runs it."""
        return family_of(self.pattern, self.warpgroups)

    @property
    def style(self) -> str:
        """One of STYLES."""
        styles = styles_of(self.pattern, self.warpgroups)
        return styles[0] if self.warpgroups else styles[MODES.index(self.mode)]

    def __str__(self) -> str:
        crews = f"x{self.crews}" if self.crews > 1 else ""
        return (
            f"{self.family}.m{self.channel_tiles}{crews}.f{self.flats}d{self.depths}s{self.sets}p{self.parts}"
            f".w{self.strip}x{self.pitch}.c{self.chunk_slabs}b{self.slots}.{self.mode}{self.steps}"
        )


_TILE_NAME = re.compile(
    rf"matrix\.(wg\.)?({PATTERN_NAME})\.m(\d+)(?:x(\d+))?\.f(\d+)d(\d+)s(\d+)p(\d+)\.w(\d+)x(\d+)\.c(\d+)b(\d+)"
    r"\.(hold|stream|both)(\d+)",
    re.ASCII,
)


def parse_tile(name: str) -> MatrixTile | None:
    """Returns the tile of that name, or None where it is none's."""
    match = _TILE_NAME.fullmatch(name)
    if match is None:
        return None
    pattern = parse_pattern(match[2])
    numbers = [int(number or 1) for number in match.groups()[2:-2]]
    tiles, crews, flats, depths, sets, parts, strip, pitch, slabs, slots = numbers
    tile = MatrixTile(
        *(pattern, tiles, crews, flats, depths, sets, parts, strip, pitch, slabs, slots),
        *(match[13], int(match[14]), match[1] is not None),
    )
    return tile if str(tile) == name and pattern in (None, *PATTERNS) else None


def family_of(pattern: Pattern | None, warpgroups: bool = False) -> str:
    """`matrix.s2k3p1`: the kernels for a pattern along W, or `matrix.any`; `matrix.wg.any` for warpgroups."""
    return f"matrix.{'wg.' if warpgroups else ''}{pattern_name(pattern)}"
