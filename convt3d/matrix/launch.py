"""From shapes, strides and a tile to the parameter struct of the kernel for the matrix units."""

from __future__ import annotations

import functools

from torch import Tensor

from convt3d.geometry import Geometry
from convt3d.matrix.choice import blocks_per_tile
from convt3d.matrix.tile import MatrixTile
from convt3d.matrix.work import (
    LARGEST_PLANE,
    SHIFTED_BYTES,
    MatrixUnits,
    MatrixWork,
    PhaseOfAxes,
)
from convt3d.params import MatrixParams, MatrixShared, PhaseTaps, make_strides

# As in kernels/matrix_params.py.
RUN_ALONG_W, RUN_OF_TAPS, RUN_OF_CHANNELS = range(3)


def matrix_params(
    geometry: Geometry,
    tile: MatrixTile,
    units: MatrixUnits,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    destination: Tensor,
    multiprocessors: int,
) -> MatrixParams:
    """Returns the struct for forward from source (input) to destination (output), without its addresses."""
    template = _template(
        geometry,
        tile,
        units,
        multiprocessors,
        (source.stride(), _alignment(source)),
        (weight.stride(), _alignment(weight)),
        (destination.stride(), _alignment(destination)),
    )
    params = MatrixParams.from_buffer_copy(template)
    params.bias_stride = 0 if bias is None else bias.stride(0)
    return params


def planes_fit(*tensors: Tensor) -> bool:
    """Whether offsets in a plane (H and W) of every tensor, and to its next channel, have the kernel's 32 bits."""
    return all(
        abs(tensor.stride(1)) < LARGEST_PLANE
        and sum(
            (size - 1) * abs(stride) for size, stride in zip(tensor.shape[3:], tensor.stride()[3:])
        )
        < LARGEST_PLANE
        for tensor in tensors
    )


def _alignment(tensor: Tensor) -> int:
    """Bytes, at most 16, that a tensor's address is a multiple of."""
    address = tensor.data_ptr() | 16
    return address & -address


@functools.lru_cache(maxsize=4096)
def _template(
    geometry: Geometry,
    tile: MatrixTile,
    units: MatrixUnits,
    multiprocessors: int,
    source: tuple[tuple[int, ...], int],
    weight: tuple[tuple[int, ...], int],
    destination: tuple[tuple[int, ...], int],
) -> bytes:
    """Returns the struct but for the stride of the bias; of a tensor there are strides and alignment."""
    work = MatrixWork(geometry, units)
    params = MatrixParams(
        batch=geometry.batch,
        groups=geometry.groups,
        source_channels=geometry.in_channels_per_group,
        destination_channels=geometry.out_channels_per_group,
        source=make_strides(source[0]),
        destination=make_strides(destination[0]),
        weight_group=geometry.in_channels_per_group * weight[0][0],
        weight_source=weight[0][0],
        weight_destination=weight[0][1],
        weight_tap=weight[0][2:],
        **{name: getattr(tile, name) for name in ("pitch", "strip", "crews", "flats")},
        **{name: getattr(tile, name) for name in ("depths", "sets", "parts")},
        **{name: getattr(tile, name) for name in ("steps", "chunk_slabs", "slots")},
        places=work.places(tile),
        positions=work.positions(tile),
        chunks=work.chunks(tile),
        splits=work.splits(tile),
        holds=tile.mode == "hold",
        streams_weights=tile.mode == "both",
        blocks_per_tile=blocks_per_tile(work, tile, multiprocessors),
        at=MatrixShared(*vars(work.layout(tile)).values()),
    )
    for index, columns in enumerate(work.axes):
        axis = columns.axis
        params.input_size[index], params.output_size[index] = axis.input_size, axis.output_size
        params.kernel_size[index], params.stride[index] = axis.kernel_size, axis.stride
        params.columns[index] = columns.count
        params.low[index], params.span[index] = columns.low, columns.span
        for phase in range(axis.stride):
            params.taps[index][phase] = PhaseTaps(*columns.phase_taps(phase))
    if tile.pattern:  # the kernel knows the taps along W; some there are
        params.taps[2][0] = PhaseTaps(tile.pattern[1], 0, 1, 0, 0)
    _set_phases(params, work.phases(tile))
    params.weight_run, params.weight_vector = _weight_vector(work, tile, *weight)
    params.load_channels_last, params.load_vector = _load_vector(
        geometry, units.element_bytes, *source
    )
    params.store_channels_last, params.store_vector, params.store_shifts = _store_vector(
        work, tile, *destination
    )
    return bytes(params)


def _set_phases(params: MatrixParams, shares: list[list[PhaseOfAxes]]) -> None:
    number = 0
    for share, phases in enumerate(shares):
        for e_d, e_h, e_w in phases:
            params.phase_of[number] = e_d | e_h << 8 | e_w << 16
            number += 1
        params.phases_before[share + 1] = number


def _weight_vector(
    work: MatrixWork, tile: MatrixTile, strides: tuple[int, ...], alignment: int
) -> tuple[int, int]:
    """What weights that are neighbours in memory are neighbours along, and how many are loaded at once."""
    geometry = work.geometry
    _, height, width = geometry.kernel_size
    staged = work.staged_taps(tile)
    if strides[1] == 1 and geometry.taps > 1:
        run, length, others = RUN_OF_CHANNELS, geometry.out_channels_per_group, [0, 2, 3, 4]
    elif (
        strides[1:] == (geometry.taps, height * width, width, 1) and staged == geometry.kernel_size
    ):
        run, length, others = RUN_OF_TAPS, geometry.taps * geometry.out_channels_per_group, [0]
    elif strides[4] == 1 and staged[2] == width:
        run, length, others = RUN_ALONG_W, width, [0, 1, 2, 3]
    else:
        return RUN_ALONG_W, 1
    for vector in (8, 4, 2):
        whole = all(number % vector == 0 for number in (length, *(strides[i] for i in others)))
        if whole and vector * work.element_bytes <= alignment:
            return run, vector
    return RUN_ALONG_W, 1


def _load_vector(
    geometry: Geometry, element_bytes: int, strides: tuple[int, ...], alignment: int
) -> tuple[bool, int]:
    """Whether input is loaded along its channels, and how many neighbours at once."""
    slab = 16 // element_bytes
    others = [stride for axis, stride in enumerate(strides) if axis != 1]
    if (
        strides[1] == 1
        and geometry.in_channels_per_group % slab == 0
        and alignment == 16
        and all(stride % slab == 0 for stride in others)
    ):
        return True, slab
    if strides[4] != 1:
        return False, 1
    for vector in (4, 2):
        whole = all(size % vector == 0 for size in (*strides[:4], geometry.input_size[2]))
        if whole and alignment >= vector * element_bytes:
            return False, vector
    return False, 1


def _store_vector(
    work: MatrixWork, tile: MatrixTile, strides: tuple[int, ...], alignment: int
) -> tuple[bool, int, bool]:
    """Whether output is stored along its channels, how many neighbours at once, and whether rows start anywhere."""
    geometry = work.geometry
    vectors = [v for v in (8, 4, 2) if v * work.element_bytes <= alignment]
    if strides[1] == 1 and strides[4] != 1:
        channels = geometry.out_channels_per_group
        others = [stride for axis, stride in enumerate(strides) if axis != 1]
        for vector in vectors:
            if channels % vector == 0 and all(stride % vector == 0 for stride in others):
                return True, vector, False
        return True, 1, False
    if strides[4] != 1 or not (tile.pattern or geometry.stride[2] == 1):
        return False, 1, False
    _, height, width = geometry.output_size
    rows = tile.pitch * geometry.stride[2]
    is_gapless = work.is_gapless(tile) and strides[3] == width
    found = 1
    for vector in vectors:
        if any(stride % vector for stride in strides[:3]):
            continue
        in_row = strides[3] % vector == 0 and width % vector == 0 and rows % vector == 0
        if in_row or (is_gapless and height * width % vector == 0):
            found = vector
            break
    unit = SHIFTED_BYTES // work.element_bytes
    if found < unit and work.can_shift(tile):
        return False, unit, True
    return False, found, False
