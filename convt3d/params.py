"""The kernels' parameter structs in ctypes: they mirror those of convt3d/kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from convt3d.matrix.work import Layout


class AxisParams(ctypes.Structure):
    """Axis of kernels/params.py."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "input_size",
            "output_size",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "gcd",
            "tap_step",
            "dilation_inverse",
        )
    ]


class Strides(ctypes.Structure):
    """Strides of kernels/params.py."""

    _fields_ = [
        ("outer", ctypes.c_int64),
        ("channel", ctypes.c_int64),
        ("space", ctypes.c_int64 * 3),
    ]


def make_strides(strides: Sequence[int]) -> Strides:
    """The struct of a 5-D tensor's strides."""
    return Strides(strides[0], strides[1], (ctypes.c_int64 * 3)(*strides[2:]))


class Params(ctypes.Structure):
    """A parameter struct, which ends with the addresses of its tensors and knows them."""

    tensors: tuple[Tensor | None, ...]  # in the order of the addresses

    @classmethod
    def address_fields(cls) -> list[str]:
        """Names of the fields that are addresses."""
        return [field[0] for field in cls._fields_ if field[1] is ctypes.c_void_p]


class GatherParams(Params):
    """Mirrors GatherParams of kernels/params.py."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("source_channels", ctypes.c_int64),
        ("destination_channels", ctypes.c_int64),
        ("axis", AxisParams * 3),
        ("source", Strides),
        ("destination", Strides),
        ("weight_group", ctypes.c_int64),
        ("weight_source", ctypes.c_int64),
        ("weight_destination", ctypes.c_int64),
        ("weight_tap", ctypes.c_int64 * 3),
        ("bias_stride", ctypes.c_int64),
        ("tile_rows", ctypes.c_int64),
        ("tile_columns", ctypes.c_int64),
        ("channels_innermost", ctypes.c_int64),
        ("source_data", ctypes.c_void_p),
        ("weight_data", ctypes.c_void_p),
        ("bias_data", ctypes.c_void_p),
        ("destination_data", ctypes.c_void_p),
    ]


class WeightParams(Params):
    """Mirrors WeightParams of kernels/params.py."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        ("axis", AxisParams * 3),
        ("input", Strides),
        ("grad_output", Strides),
        ("grad_weight", Strides),
        ("splits", ctypes.c_int64),
        ("want_weight", ctypes.c_int64),
        ("want_bias", ctypes.c_int64),
        ("input_data", ctypes.c_void_p),
        ("grad_output_data", ctypes.c_void_p),
        ("grad_weight_data", ctypes.c_void_p),
        ("grad_bias_data", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
    ]


class PhaseTaps(ctypes.Structure):
    """PhaseTaps of kernels/columns.py."""

    _fields_ = [(name, ctypes.c_int32) for name in ("count", "first", "step", "base", "shift")]


class MatrixShared(ctypes.Structure):
    """MatrixShared of kernels/matrix_params.py."""

    _fields_ = [(name, ctypes.c_int32) for name in Layout.__dataclass_fields__]


class MatrixParams(Params):
    """Mirrors MatrixParams of kernels/matrix_params.py."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("batch", "groups", "source_channels", "destination_channels")
        ),
        *(
            (name, ctypes.c_int32 * 3)
            for name in ("input_size", "output_size", "kernel_size", "stride")
        ),
        ("source", Strides),
        ("destination", Strides),
        *(
            (name, ctypes.c_int64)
            for name in ("weight_group", "weight_source", "weight_destination")
        ),
        ("weight_tap", ctypes.c_int64 * 3),
        ("bias_stride", ctypes.c_int64),
        *((name, ctypes.c_int32 * 3) for name in ("columns", "low", "span")),
        *((name, ctypes.c_int32) for name in ("pitch", "strip")),
        ("places", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in ("crews", "flats", "depths", "sets")),
        *((name, ctypes.c_int32) for name in ("steps", "positions")),
        *(
            (name, ctypes.c_int32)
            for name in ("chunk_slabs", "chunks", "slots", "holds", "streams_weights")
        ),
        ("parts", ctypes.c_int32),
        ("splits", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in ("weight_run", "weight_vector")),
        *((name, ctypes.c_int32) for name in ("load_vector", "store_vector", "store_shifts")),
        *(
            (name, ctypes.c_int32)
            for name in ("load_channels_last", "store_channels_last", "blocks_per_tile")
        ),
        ("taps", PhaseTaps * 4 * 3),
        ("phase_of", ctypes.c_int32 * 64),
        ("phases_before", ctypes.c_int32 * 65),
        ("at", MatrixShared),
        *(
            (f"{name}_data", ctypes.c_void_p)
            for name in ("source", "weight", "bias", "destination")
        ),
    ]


class LineParams(Params):
    """Mirrors LineParams of kernels/lines.py."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("batch", "groups", "source_channels", "destination_channels")
        ),
        *(
            (name, ctypes.c_int32 * 3)
            for name in ("input_size", "output_size", "kernel_size", "stride")
        ),
        ("source", Strides),
        ("destination", Strides),
        *(
            (name, ctypes.c_int64)
            for name in ("weight_group", "weight_source", "weight_destination")
        ),
        ("weight_tap", ctypes.c_int64 * 3),
        ("bias_stride", ctypes.c_int64),
        *((name, ctypes.c_int32 * 3) for name in ("columns", "low", "span")),
        *((name, ctypes.c_int32) for name in ("depths", "rows", "strip", "steps")),
        ("places", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in ("runs", "along_channels", "block_groups", "threads")),
        *((name, ctypes.c_int32) for name in ("pitch", "staged_pitch")),
        *(
            (name, ctypes.c_int32)
            for name in ("input_at", "staging_at", "staging_bytes", "shared_bytes")
        ),
        ("taps", PhaseTaps * 4 * 3),
        *(
            (f"{name}_data", ctypes.c_void_p)
            for name in ("source", "weight", "bias", "destination")
        ),
    ]
