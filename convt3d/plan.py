"""Which kernel runs a call: plans are plain data, listed by `candidates` and picked by `choose`. No torch.

A plan's name is what case strings, logs and `convt3d.plan.forced` use: `tiled.i32`, `direct.i64`,
`tiled.i32.split4`. Its parts: the kernel, the width of the indices it computes with, and the split-K
factor, which only grad_weight has. Two kernels, which only forward has, cut a call into tiles, and their plans
are named after the tile: those for the matrix units (see convt3d/matrix/tile.py) and those for few channels
a group (convt3d/lines.py). `matrix.fixed.hold` stands for some tile of that style, `lines` for the best one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from convt3d.geometry import Geometry
from convt3d.lines import LINE_STYLES, LineTile, LineUnits, line_choice, parse_line_tile
from convt3d.matrix.choice import tile_choice
from convt3d.matrix.tile import STYLES, MatrixTile, parse_tile
from convt3d.matrix.work import MatrixUnits

T = TypeVar("T")

PRIMITIVES = ("forward", "grad_input", "grad_weight")
KERNELS = ("tiled", "direct")
# Kernels of forward that cut a call into tiles -> styles of tile.
TILE_KERNELS = {"matrix": STYLES, "lines": LINE_STYLES}

# Channels a group from which a shared-memory tile pays for itself. With fewer, most of a channel tile is
# idle and a thread an element is as fast.
SMALLEST_TILED_CHANNELS = 8
# grad_weight: a split shorter than this many products costs more in its reduction than it gains.
SMALLEST_SPLIT_PRODUCTS = 1024
LARGEST_SPLIT = 128
# Blocks a multiprocessor that split-K aims at.
BLOCKS_PER_MULTIPROCESSOR = 8
# Products of channels of a group up to which a call runs on the kernel for few channels, by bytes of an element: the
# matrix units multiply 16 channels by 16, in fp32 at a quarter of their rate and less, in fp64 not at all. And so many
# in TF32, which they multiply at once.
MOST_LINE_PRODUCTS, MOST_LINE_PRODUCTS_TF32 = {2: 16, 4: 64, 8: 64}, 32
# Source channels of a group from which on fp32 runs on the matrix units. There each operand is cut to 24 bits, in two
# parts: over so many products those errors drown in what rounding the sum costs in any fp32 kernel.
FEWEST_SPLIT_CHANNELS = 16
# The tiles of the kernels: see kernels/gather.py and kernels/weight.py.
GATHER_TILE, GATHER_PASS = 128, 64
# Columns below which a tile's stores along W are too short to be worth a fuller pass.
SHORTEST_GATHER_RUN = 16
WEIGHT_TILE_ROWS, WEIGHT_TILE_COLUMNS = 32, 64
# Shared memory that a block may have, by compute capability, in bytes; of newer ones what all of them have.
# Source: CUDA C++ Programming Guide, technical specifications per compute capability.
SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10}
SHARED_BYTES_ELSEWHERE = 99 << 10


@dataclass(frozen=True)
class Plan:
    """One way to run one primitive.

    Args:
        kernel: "tiled" (shared-memory tiles), "direct" (an element a thread), "matrix" (tensor cores) or "lines" (few
            channels a group).
        index_bits: 32 or 64, the width of every index and offset in the kernel; "matrix" has 64 between planes and
            32 within, "lines" 64 between the elements of a tensor.
        splits: split-K factor; above 1 a second launch adds the partial sums in order.
        tile: of "matrix" or "lines"; or None for one that is chosen for the call:
        style: from those of this style, one of matrix.tile.STYLES or lines.LINE_STYLES, or from all.
    """

    kernel: str
    index_bits: int
    splits: int = 1
    tile: MatrixTile | LineTile | None = None
    style: str = ""

    def __str__(self) -> str:
        if self.kernel in TILE_KERNELS:
            return str(self.tile or f"{self.kernel}.{self.style}".rstrip("."))
        name = f"{self.kernel}.i{self.index_bits}"
        return name if self.splits == 1 else f"{name}.split{self.splits}"


def parse_plan(name: str) -> Plan:
    """Returns the plan of that name.

    Raises:
        RuntimeError: it is not a plan's name.
    """
    if name in _STYLE_PLANS:
        return _STYLE_PLANS[name]
    if tile := parse_tile(name):
        return Plan("matrix", 64, tile=tile)
    if line_tile := parse_line_tile(name):
        return Plan("lines", 64, tile=line_tile)
    match = re.fullmatch(r"(tiled|direct)\.i(32|64)(?:\.split([1-9][0-9]*))?", name, re.ASCII)
    plan = Plan(match[1], int(match[2]), int(match[3] or 1)) if match else None
    if plan is None or str(plan) != name or plan.splits > LARGEST_SPLIT:
        raise RuntimeError(
            f"plan={name!r}, but must be like 'tiled.i32', 'direct.i64' or 'tiled.i32.split4', with at "
            f"most {LARGEST_SPLIT} splits, or one of {', '.join(_STYLE_PLANS)}, or a tile's name"
        )
    return plan


_STYLE_PLANS = {
    str(plan): plan
    for kernel, styles in TILE_KERNELS.items()
    for plan in (Plan(kernel, 64, style=style) for style in ("", *styles))
}


def gather_tile(width: int, step: int) -> tuple[int, int]:
    """Returns rows and columns of the tiled gather kernel's tile of destination positions.

    A block computes its positions in passes, each over up to GATHER_PASS positions of one W phase; the tile is chosen
    so that the passes are full.

    Args:
        width: destination positions along W.
        step: distance along W between two positions of a phase: the stride for forward, 1 for grad_input.
    """

    def fullness(columns: int) -> float:
        rows = GATHER_TILE // columns
        count, longer = divmod(columns, step)  # of a phase, and phases with one position more
        passes = longer * -(-rows * (count + 1) // GATHER_PASS)
        passes += (step - longer) * -(-rows * count // GATHER_PASS)
        computed = -(-width // columns) * passes * GATHER_PASS
        return width * rows / computed

    most = min(width, GATHER_TILE)
    least = min(width, SHORTEST_GATHER_RUN)
    columns = max(range(most, least - 1, -1), key=fullness)  # the longest of equals
    return GATHER_TILE // columns, columns


def reduction_length(primitive: str, geometry: Geometry) -> int:
    """Returns the largest number of products behind one element of the primitive's result."""
    if primitive == "forward":
        return geometry.taps * geometry.in_channels_per_group
    if primitive == "grad_input":
        return geometry.taps * geometry.out_channels_per_group
    depth, height, width = geometry.input_size
    return geometry.batch * depth * height * width


def candidates(
    primitive: str,
    geometry: Geometry,
    fits_32_bits: bool = True,
    units: MatrixUnits | None = None,
    lines: LineUnits | None = None,
) -> list[Plan]:
    """Returns every plan that can run the primitive; of the tiles for matrix units, a style for all that are of it.

    Args:
        primitive: one of PRIMITIVES.
        geometry: what is computed.
        fits_32_bits: whether every offset into every tensor stays below 2^31.
        units: of the matrix units; None where the dtype or the strides of a plane are not for them.
        lines: what the kernel for few channels a group has; None where it is not to be thought of.
    """
    widths = (32, 64) if fits_32_bits and _coordinates_fit(geometry) else (64,)
    kernels = KERNELS if _tiled_grid_fits(primitive, geometry) else ("direct",)
    plans = [Plan(kernel, width) for kernel in kernels for width in widths]
    if primitive == "grad_weight":
        length = reduction_length(primitive, geometry)
        splits = [count for count in (2, 3, 7) if count <= length]
        plans += [Plan("tiled", width, count) for width in widths for count in splits]
    if primitive == "forward" and units:
        styles = tile_choice(geometry, units).styles
        plans += [Plan("matrix", 64, style=style) for style in STYLES if style in styles]
    if primitive == "forward" and lines:
        choice = line_choice(geometry, lines)
        plans += [Plan("lines", 64, style=style) for style in LINE_STYLES if choice.of_style(style)]
    return plans


def choose(
    primitive: str,
    geometry: Geometry,
    fits_32_bits: bool = True,
    multiprocessors: int = 1,
    units: MatrixUnits | None = None,
    lines: LineUnits | None = None,
) -> Plan:
    """Returns the plan that is expected to be fastest; one a test forces with `forced` goes first.

    Args:
        primitive, geometry, fits_32_bits, units, lines: as for `candidates`.
        multiprocessors: of the device; 1 for the emulator, where tiles for the matrix units take too long.

    Raises:
        RuntimeError: a plan is forced on a call that it cannot run: its indices have 32 bits and must have 64, or no
            such tile fits.
    """
    if primitive in _forced:
        plan = _forced[primitive]
        if plan.kernel in TILE_KERNELS:
            return _with_tile(plan, geometry, multiprocessors, units, lines)
        if plan.index_bits == 32 and not (fits_32_bits and _coordinates_fit(geometry)):
            raise RuntimeError(f"plan {plan} is forced on {primitive}, but an offset needs 64 bits")
        return plan
    width = 32 if fits_32_bits and _coordinates_fit(geometry) else 64
    if primitive == "grad_weight":
        return Plan("tiled", width, _choose_splits(geometry, multiprocessors))
    sums, results = geometry.in_channels_per_group, geometry.out_channels_per_group
    if primitive == "grad_input":
        sums, results = results, sums
    if primitive == "forward" and multiprocessors > 1:
        tiled = _choose_tile(geometry, multiprocessors, units, lines)
        if tiled:
            return tiled
    is_thin = min(sums, results) < SMALLEST_TILED_CHANNELS
    kernel = "direct" if is_thin or not _tiled_grid_fits(primitive, geometry) else "tiled"
    return Plan(kernel, width)


def _choose_tile(
    geometry: Geometry, multiprocessors: int, units: MatrixUnits | None, lines: LineUnits | None
) -> Plan | None:
    """The plan with tiles that forward runs on a GPU; None where there is none."""
    if lines:
        products = geometry.in_channels_per_group * geometry.out_channels_per_group
        most = MOST_LINE_PRODUCTS[lines.element_bytes]
        if units and units.tf32:
            most = MOST_LINE_PRODUCTS_TF32
        is_for_lines = products <= most
        line_tile = line_choice(geometry, lines).best(multiprocessors) if is_for_lines else None
        if line_tile:
            return Plan("lines", 64, tile=line_tile)
    if units and _is_for_matrix_units(geometry, units):
        tile = tile_choice(geometry, units).best(multiprocessors)
        if tile:
            return Plan("matrix", 64, tile=tile)
    return None


def _is_for_matrix_units(geometry: Geometry, units: MatrixUnits) -> bool:
    return not units.splits or geometry.in_channels_per_group >= FEWEST_SPLIT_CHANNELS


def _with_tile(
    plan: Plan,
    geometry: Geometry,
    multiprocessors: int,
    units: MatrixUnits | None,
    lines: LineUnits | None,
) -> Plan:
    """A forced plan of one of TILE_KERNELS, with its tile."""
    fits = False
    tile: MatrixTile | LineTile | None = None
    if plan.kernel == "matrix" and units:
        choice = tile_choice(geometry, units)
        of_style = choice.by_style.get(plan.style, [])
        tile = (
            plan.tile or _varied(of_style)
            if plan.tile or plan.style
            else choice.best(multiprocessors)
        )
        fits = isinstance(tile, MatrixTile) and choice.can_run(tile)
    elif plan.kernel == "lines" and lines:
        few = line_choice(geometry, lines)
        tile = (
            plan.tile or _varied(few.of_style(plan.style))
            if plan.tile or plan.style
            else few.best(multiprocessors)
        )
        fits = isinstance(tile, LineTile) and few.can_run(tile)
    if not fits:
        raise RuntimeError(
            f"plan {plan} is forced on forward, but cannot run input of shape {geometry.input_shape} "
            f"with weight of shape {geometry.weight_shape} and strides and dtype as they are"
        )
    return replace(plan, tile=tile, style="")


def _varied(tiles: Sequence[T]) -> T | None:
    """The tile that a style stands for; None where there is none of it."""
    return tiles[_variation % len(tiles)] if tiles else None


@contextmanager
def forced(plans: dict[str, str], variation: int = 0, tf32: bool | None = None) -> Iterator[None]:
    """Makes `choose` return these plans, by primitive, in the whole process; for tests.

    Args:
        plans: primitive -> plan name; a primitive that is left out, or is "auto", is chosen as usual.
        variation: which tile a style of tiles stands for; any number.
        tf32: whether fp32 is rounded to TF32 where a plan can; None leaves it to PyTorch's switches, on a GPU.

    Raises:
        RuntimeError: a name is not a primitive's or a plan's.
    """
    global _variation, _tf32
    for primitive in plans:
        if primitive not in PRIMITIVES:
            raise RuntimeError(f"primitive={primitive!r}, but must be one of {PRIMITIVES}")
    wanted = {key: parse_plan(name) for key, name in plans.items() if name != "auto"}
    for primitive, plan in wanted.items():
        if plan.splits > 1 and primitive != "grad_weight":
            raise RuntimeError(f"plan {plan} for {primitive}, but only grad_weight has split-K")
        if plan.kernel in TILE_KERNELS and primitive != "forward":
            raise RuntimeError(
                f"plan {plan} for {primitive}, but only forward has {plan.kernel} plans"
            )
    before, variation_before, tf32_before = dict(_forced), _variation, _tf32
    _forced.update(wanted)
    _variation, _tf32 = variation, tf32
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        _variation, _tf32 = variation_before, tf32_before


def forced_tf32() -> bool | None:
    """What `forced` says of TF32."""
    return _tf32


def in_force(primitive: str) -> tuple[Plan, int] | None:
    """Returns what decides `choose` besides its arguments: a forced plan and its variation, or None."""
    return (_forced[primitive], _variation) if primitive in _forced else None


# Process-wide, not a context variable: autograd runs backward on threads of its own.
_forced: dict[str, Plan] = {}
_variation = 0
_tf32: bool | None = None


def _coordinates_fit(geometry: Geometry) -> bool:
    return all(geometry.axis(index).largest_coordinate < 2**31 for index in range(3))


def _tiled_grid_fits(primitive: str, geometry: Geometry) -> bool:
    """Whether the tiled kernel's grid has at most 2^31 - 1 blocks.

    Only forward's can have more: it has a block for each (D, H) phase, and a large stride makes every row a phase.
    """
    if primitive != "forward":
        return True
    depth, height, width = geometry.output_size
    return geometry.batch * geometry.out_channels * depth * height * -(-width // 16) < 2**31


def _choose_splits(geometry: Geometry, multiprocessors: int) -> int:
    rows = -(-geometry.in_channels_per_group // WEIGHT_TILE_ROWS)
    columns = -(-geometry.out_channels_per_group * geometry.taps // WEIGHT_TILE_COLUMNS)
    blocks = geometry.groups * rows * columns
    wanted = -(-multiprocessors * BLOCKS_PER_MULTIPROCESSOR // blocks) if multiprocessors > 1 else 1
    affordable = reduction_length("grad_weight", geometry) // SMALLEST_SPLIT_PRODUCTS
    return max(1, min(wanted, affordable, LARGEST_SPLIT))
