"""An estimate of how long a tile takes on a GPU, with costs fitted to measured times. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from convt3d.matrix.tile import MatrixTile
from convt3d.matrix.work import WARP_COLUMNS, MatrixUnits, MatrixWork

SCHEDULERS = 4  # of a multiprocessor


@dataclass(frozen=True)
class Costs:
    """Cycles of one block, fitted to the times of thousands of tiles of the suite on an H200.

    They are for the choice between tiles: some stand for each other where what they count grows together.

    Args:
        product: a product of fragments, of the matrix units that a scheduler has; of a warpgroup's, a cycle.
        chain: the same, of the warp that waits for it, where the kernel knows the taps along W.
        chain_any: the same where it does not.
        step: a step of K at one tap along D and H.
        plane: to go on to another plane.
        phase: to begin and end the sums of a phase.
        store: a store of a warp.
        staged: eight channels on their way through staging.
        vector: a thread's load of a slab's channels, by the neighbours that it brings.
        unit: 16 bytes written to shared memory.
        load: to begin another plane.
        weight: 10 weights that come with a plane.
        stored: bytes that are written in a cycle.
        scattered: by how much a byte costs more where fewer than 8 lie together.
        place: to begin another place.
        block: to begin a block.
        block_weight: a weight that stays for the whole block, loaded alone; neighbours share the cost.
        overlap: at 1 what the parts of a block take adds up; the larger, the more only the longest counts.
        stall: share of the shorter of products and loads that is lost without a slot to spare.
    """

    product: float
    chain: float
    chain_any: float
    step: float
    plane: float
    phase: float
    store: float
    staged: float
    vector: float
    unit: float
    load: float
    weight: float
    stored: float
    scattered: float
    place: float
    block: float
    block_weight: float
    overlap: float
    stall: float


# Of numbers of 16 bits, of TF32, and of fp32 in two parts, then of 16 bits and of TF32 where warpgroups multiply.
_FITTED = {
    "product": (3.05, 1.85, 19.7, 0.95, 1.15),
    "chain": (5.1, 6.58, 0.75, 0.03, 0.03),
    "chain_any": (7.3, 8.56, 4.32, 0.322, 0.0868),
    "step": (32.4, 25.3, 48.0, 12.0, 12.0),
    "plane": (18.8, 127.0, 21.6, 121.0, 161.0),
    "phase": (1030.0, 1650.0, 43.8, 1000.0, 2500.0),
    "store": (2.9, 20.6, 1.89, 2.43, 13.2),
    "staged": (146.0, 62.7, 178.0, 29.2, 250.0),
    "vector": (1.16, 3.24, 0.295, 1.08, 2.57),
    "unit": (1.3, 0.505, 1.13, 1.45, 1.29),
    "load": (1070.0, 657.0, 1080.0, 1030.0, 889.0),
    "weight": (10.1, 11.0, 5.62, 6.42, 12.1),
    "stored": (13.1, 25.8, 27.1, 7.76, 23.4),
    "scattered": (2.1, 1.58, 9.78, 1.4, 1.66),
    "place": (1720.0, 1710.0, 3530.0, 976.0, 1200.0),
    "block": (22300.0, 24000.0, 24000.0, 30800.0, 25800.0),
    "block_weight": (0.35, 0.35, 0.4, 0.35, 0.35),
    "overlap": (1.49, 1.07, 2.06, 1.29, 1.39),
    "stall": (1.66, 1.32, 4.81, 0.719, 0.569),
}
HALF, TF32, SPLIT, HALF_WARPGROUP, TF32_WARPGROUP = (
    Costs(**{name: costs[kind] for name, costs in _FITTED.items()}) for kind in range(5)
)


def costs_of(units: MatrixUnits, tile: MatrixTile) -> Costs:
    """The costs of a tile for numbers of 16 bits, of TF32, or of fp32 in two parts."""
    if tile.warpgroups:
        return HALF_WARPGROUP if units.element_bytes == 2 else TF32_WARPGROUP
    if units.element_bytes == 2:
        return HALF
    return SPLIT if units.splits else TF32


def estimate(work: MatrixWork, tile: MatrixTile, multiprocessors: int) -> float:
    """An estimate of the cycles of a call."""
    costs = costs_of(work.units, tile)
    multiply, wait = _multiply(work, tile, costs)
    load = _load(work, tile, costs)
    parts = (multiply, wait, load, _store(work, tile, costs))
    step = sum(part**costs.overlap for part in parts) ** (1 / costs.overlap)
    slack = tile.slots - work.least_slots(tile)
    a_step = work.chunks(tile) * tile.depths if tile.mode == "hold" else 1
    step += min(wait, load) * costs.stall / (1 + slack / a_step)
    places = work.geometry.batch
    for count in work.places(tile):
        places *= count
    beside = work.blocks_beside(tile)
    at_once = max(1, min(places, multiprocessors // beside))
    turns = -(-beside // multiprocessors)
    weights = (
        0.0 if tile.mode == "both" else work.geometry.taps / tile.parts * _weights_a_tap(work, tile)
    ) / _staged_together(work, tile)
    in_turn = turns * -(-places // at_once)
    return in_turn * (tile.steps * step + costs.place) + turns * (
        costs.block + costs.block_weight * weights
    )


def _multiply(work: MatrixWork, tile: MatrixTile, costs: Costs) -> tuple[float, float]:
    """Cycles of a step: of the matrix units, and of a warp from its first product to its last store."""
    depth, height, width = work.geometry.kernel_size
    share = tile.parts * tile.sets
    steps = depth * height * (1 if tile.pattern else width) / share
    steps *= work.chunks(tile) * tile.chunk_slabs / 2
    products = steps * (width if tile.pattern else 1)
    if tile.warpgroups:
        together = tile.taps_together
        columns = together * tile.warp_channels
        # A product reads 64 rows and `columns` ones of 32 bytes each, 128 bytes a cycle. Measured on an H200: so it is.
        products *= 4 / together * max(columns / 2, 16 + columns / 4)
        units = products * work.warps(tile) / 4
    else:
        products *= 8 * tile.channel_tiles * (4 if work.units.splits else 1)
        units = products * work.warps(tile) / SCHEDULERS
    phases = _phases(work, tile) / share
    planes = _planes(work, tile) * work.chunks(tile) / tile.sets
    elements = phases * tile.warp_channels * WARP_COLUMNS * tile.stride
    wait = (
        products * (costs.chain if tile.pattern else costs.chain_any)
        + steps * costs.step
        + planes * costs.plane
        + phases * (costs.phase + tile.warp_channels / 8 * costs.staged)
        + elements / 32 / store_elements(work, tile) * costs.store
    )
    return units * costs.product, wait


def _load(work: MatrixWork, tile: MatrixTile, costs: Costs) -> float:
    """Cycles in which the warps that load bring what a step needs."""
    span = work.axes[0].span
    planes = tile.depths + span / tile.steps if tile.mode == "hold" else _planes(work, tile)
    planes *= work.chunks(tile)
    units = planes * tile.chunk_slabs * work.positions(tile)
    width = work.geometry.input_size[2]
    vector = next(size for size in (4, 2, 1) if width % size == 0)
    warps = 8 if tile.warpgroups and tile.channel_tiles * tile.stride <= 4 else 4
    cycles = units * (costs.vector / vector + costs.unit) * 4 / warps + planes * costs.load
    if tile.mode == "both":
        taps = work.geometry.taps / tile.parts
        vector = min(4, _staged_together(work, tile))
        cycles += taps * _weights_a_tap(work, tile) * costs.weight / 10 / vector**0.5
    return cycles


def _store(work: MatrixWork, tile: MatrixTile, costs: Costs) -> float:
    """Cycles in which memory takes what a step stores."""
    columns = tile.flats * tile.depths * WARP_COLUMNS
    elements = columns * (_phases(work, tile) / tile.parts) * tile.stride
    size = elements * tile.block_channels * work.element_bytes
    is_scattered = store_elements(work, tile) * work.element_bytes < 8
    return size / costs.stored * (costs.scattered if is_scattered else 1.0)


def _phases(work: MatrixWork, tile: MatrixTile) -> int:
    """Phases of all parts, those along W only where they are computed one by one."""
    along_d, along_h, along_w = work.geometry.stride
    return along_d * along_h * (1 if tile.pattern else along_w)


def _planes(work: MatrixWork, tile: MatrixTile) -> float:
    """Planes that the phases of a part meet at one column along D, each as often as a phase meets it."""
    return (
        work.geometry.kernel_size[0] * (_phases(work, tile) / work.geometry.stride[0]) / tile.parts
    )


def _weights_a_tap(work: MatrixWork, tile: MatrixTile) -> int:
    """Weights of a tap that a block has."""
    channels = work.chunks(tile) * tile.chunk_slabs * 16 // work.element_bytes
    return channels * tile.block_channels


def _staged_together(work: MatrixWork, tile: MatrixTile) -> int:
    """Weights that are staged at once where they lie as PyTorch makes them: taps of a row, or of all channels."""
    geometry = work.geometry
    staged, width = work.staged_taps(tile), geometry.kernel_size[2]
    run = geometry.taps * work.channels if staged == geometry.kernel_size else width
    if staged[2] != width:
        return 1
    return next(v for v in (8, 4, 2, 1) if run % v == 0 and v * work.element_bytes <= 16)


def store_elements(work: MatrixWork, tile: MatrixTile) -> int:
    """Neighbours that NCDHW output is stored in: as many as rows, or whole planes, are made of."""
    if not tile.pattern and work.geometry.stride[2] != 1:
        return 1
    _, height, width = work.geometry.output_size
    for vector in (16 // work.element_bytes, 8 // work.element_bytes, 4 // work.element_bytes):
        in_row = width % vector == 0 and tile.pitch * tile.stride % vector == 0
        if in_row or (work.is_gapless(tile) and height * width % vector == 0):
            return vector
    return 1  # Rows that start anywhere cost about as much, though most of their elements are stored together.
