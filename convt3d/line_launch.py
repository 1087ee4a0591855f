"""From shapes, strides and a tile to the parameter struct of the kernel for few channels a group."""

from __future__ import annotations

import functools

from torch import Tensor

from convt3d.geometry import Geometry
from convt3d.lines import LineTile, LineUnits, LineWork
from convt3d.params import LineParams, PhaseTaps, make_strides


def line_params(
    geometry: Geometry,
    tile: LineTile,
    units: LineUnits,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    destination: Tensor,
) -> LineParams:
    """Returns the struct for forward from source (input) to destination (output), without its addresses."""
    template = _line_template(
        geometry, tile, units, source.stride(), weight.stride(), destination.stride()
    )
    params = LineParams.from_buffer_copy(template)
    params.bias_stride = 0 if bias is None else bias.stride(0)
    return params


@functools.lru_cache(maxsize=4096)
def _line_template(
    geometry: Geometry,
    tile: LineTile,
    units: LineUnits,
    source: tuple[int, ...],
    weight: tuple[int, ...],
    destination: tuple[int, ...],
) -> bytes:
    """Returns the struct but for the stride of the bias."""
    work = LineWork(geometry, units)
    layout = work.layout(tile)
    params = LineParams(
        batch=geometry.batch,
        groups=geometry.groups,
        source_channels=geometry.in_channels_per_group,
        destination_channels=geometry.out_channels_per_group,
        source=make_strides(source),
        destination=make_strides(destination),
        weight_group=geometry.in_channels_per_group * weight[0],
        weight_source=weight[0],
        weight_destination=weight[1],
        weight_tap=weight[2:],
        **{name: getattr(tile, name) for name in ("depths", "rows", "strip", "steps")},
        places=work.places(tile),
        along_channels=units.along_channels,
        block_groups=work.block_groups,
        threads=work.threads(tile),
        **{name: getattr(layout, name) for name in ("runs", "pitch", "staged_pitch")},
        input_at=layout.input,
        staging_at=layout.staging,
        staging_bytes=layout.staging_bytes,
        shared_bytes=layout.all,
    )
    for index, columns in enumerate(work.axes):
        axis = columns.axis
        params.input_size[index], params.output_size[index] = axis.input_size, axis.output_size
        params.kernel_size[index], params.stride[index] = axis.kernel_size, axis.stride
        params.columns[index] = columns.count
        params.low[index], params.span[index] = columns.low, columns.span
        for phase in range(axis.stride):
            params.taps[index][phase] = PhaseTaps(*columns.phase_taps(phase))
    return bytes(params)
