"""From tensors to one kernel launch: fills the parameter struct of a plan and calls the compiled part."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convt3d import build, plan
from convt3d.emulator import runtime, sanitized
from convt3d.geometry import Geometry
from convt3d.line_launch import line_params
from convt3d.lines import LineTile, LineUnits
from convt3d.matrix.launch import matrix_params, planes_fit
from convt3d.matrix.work import MatrixUnits
from convt3d.params import (
    AxisParams,
    GatherParams,
    LineParams,
    MatrixParams,
    Params,
    WeightParams,
    make_strides,
)
from convt3d.plan import Plan

DTYPE_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
}
# Of the kinds of parts: their struct, and how many integers their entry takes besides.
MIRRORS: dict[str, type[Params]] = {
    "gather": GatherParams,
    "weight": WeightParams,
    "lines": LineParams,
    "matrix": MatrixParams,
}
FLAGS = {"gather": 3, "weight": 2, "lines": 0, "matrix": 1}
# Offsets and loop counters of a 32-bit plan stay below 2^31 with room for a last, partial tile.
LARGEST_32_BIT_EXTENT = 2**31 - 2**20
# Bytes up to which the kernels look at alignment: the widest load.
ALIGNMENT = 16
# Entries of what is remembered from call to call, for as many kinds of call.
MOST_REMEMBERED = 4096


def allocate(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool
) -> Tensor:
    """Returns an uninitialised tensor; every result and workspace of the op comes from here.

    A harness may replace this function, to place results between guard bands and poison them.
    """
    if channels_last:
        return torch.empty(
            tuple(shape), dtype=dtype, device=device, memory_format=torch.channels_last_3d
        )
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def use_libraries(files: Mapping[tuple[str, str], Path]) -> None:
    """Has launches in this process call these libraries from now on, in the place of what build.py compiles.

    For a harness that compiles variations of the kernels. Another call replaces them, with {} by none.

    Args:
        files: compiled libraries by part and target, as for build.library_path; what is missing is as usual.
    """
    _libraries.clear()
    _libraries.update(files)
    _entry.cache_clear()


_libraries: dict[tuple[str, str], Path] = {}


class Remembered(dict[Any, Any]):
    """What was made for a key; starts anew when it is full. Threads may share it."""

    def keep(self, key: Any, value: Any) -> Any:
        """Returns the value, which `get` gives from now on."""
        if len(self) >= MOST_REMEMBERED:
            self.clear()
        self[key] = value
        return value

    def cache_clear(self) -> None:
        """As of functools.cache."""
        self.clear()


class _Ready(NamedTuple):
    """A launch but for the addresses: all that follows from what a call's tensors look like."""

    plan: Plan
    part: str
    flags: tuple[int, ...]
    what: str
    kind: type[Params]
    head: bytes  # of the struct, up to the addresses
    pack: Callable[..., bytes]  # makes the rest of it of them

    def launch(self, tensor: Tensor, *tensors: Tensor | None, addresses: list[int]) -> Plan:
        """Launches it on tensors at those addresses, where the first one is; returns the plan."""
        params = self.kind.from_buffer_copy(self.head + self.pack(*addresses))
        params.tensors = tensors
        _launch(self.part, params, self.flags, tensor, self.what)
        return self.plan


_ready = Remembered()  # of _Ready


def _make_ready(
    primitive: str, chosen: Plan, part: str, flags: tuple[int, ...], params: Params
) -> _Ready:
    kind, fields = type(params), params.address_fields()
    head = bytes(params)[: getattr(kind, fields[0]).offset]
    pack = struct.Struct(f"{len(fields)}Q").pack
    return _Ready(chosen, part, flags, f"{primitive} with plan {chosen}", kind, head, pack)


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def is_channels_last(*tensors: Tensor) -> bool:
    """Whether native would answer these operands in channels_last_3d: when one of them lies so."""
    return any(_has_channels_innermost(tensor) for tensor in tensors)


def _has_channels_innermost(tensor: Tensor) -> bool:
    """Whether the strides ascend in the order C, W, H, D, N, so that parts of tensors count too.

    Source: is_channels_last_strides_3d_s5 in PyTorch's c10/core/MemoryFormat.h, which native asks.
    """
    least = 0
    shape, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    for axis in (1, 4, 3, 2, 0):
        if shape[axis] == 0 or strides[axis] < least:
            return False
        if axis == 0 and least == strides[1]:  # all sizes are 1: ambiguous, so NCDHW
            return False
        least = strides[axis] * max(1, shape[axis])
    return True


def gather(
    primitive: str,
    geometry: Geometry,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    destination: Tensor,
) -> Plan:
    """Runs forward (source is input) or grad_input (source is grad_output) into destination.

    Returns:
        The plan that ran.

    Raises:
        RuntimeError: a build or a launch failed.
    """
    tf32 = primitive == "forward" and _rounds_to_tf32(source)
    addresses = _addresses(source, weight, bias, destination)
    key = (
        *(primitive, geometry, plan.in_force(primitive), tf32, source.dtype, source.get_device()),
        *(source.stride(), weight.stride(), bias is not None and bias.stride()),
        *(destination.stride(), *[address % ALIGNMENT for address in addresses]),
    )
    ready = _ready.get(key) or _ready.keep(
        key, _prepare_gather(primitive, geometry, tf32, source, weight, bias, destination)
    )
    return ready.launch(source, source, weight, bias, destination, addresses=addresses)


def _prepare_gather(
    primitive: str,
    geometry: Geometry,
    tf32: bool,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    destination: Tensor,
) -> _Ready:
    """Chooses the plan, and fills its struct."""
    for_matrix = primitive == "forward" and _may_use_matrix_units(source, destination)
    chosen = plan.choose(
        primitive,
        geometry,
        _fit_32_bits(source, weight, destination),
        _multiprocessors(source.device),
        _matrix_units(source, tf32) if for_matrix else None,
        _line_units(destination) if primitive == "forward" else None,
    )
    if isinstance(chosen.tile, LineTile):
        of_lines = _line_units(destination)
        lines = line_params(geometry, chosen.tile, of_lines, source, weight, bias, destination)
        part = f"{chosen.tile.family}_{DTYPE_NAMES[source.dtype]}"
        return _make_ready(primitive, chosen, part, (), lines)
    if chosen.tile:
        count = _multiprocessors(source.device)
        units = _matrix_units(source, tf32)
        matrix = matrix_params(
            *(geometry, chosen.tile, units, source, weight, bias, destination, count)
        )
        part = f"{chosen.tile.family}_{'tf32' if tf32 else DTYPE_NAMES[source.dtype]}"
        return _make_ready(primitive, chosen, part, (chosen.tile.channel_tiles,), matrix)
    template = _gather_template(
        primitive, geometry, source.stride(), weight.stride(), destination.stride()
    )
    params = GatherParams.from_buffer_copy(template)
    params.bias_stride = 0 if bias is None else bias.stride(0)
    is_forward = int(primitive == "forward")
    flags = (is_forward, int(chosen.kernel == "tiled"), int(chosen.index_bits == 64))
    part = f"gather_{DTYPE_NAMES[source.dtype]}"
    return _make_ready(primitive, chosen, part, flags, params)


def _may_use_matrix_units(source: Tensor, destination: Tensor) -> bool:
    return source.dtype != torch.float64 and planes_fit(source, destination)


def _matrix_units(source: Tensor, tf32: bool) -> MatrixUnits:
    """What the kernel for the matrix units has here."""
    return MatrixUnits(
        source.element_size(),
        _shared_bytes(source.device),
        tf32,
        _has_warpgroups(source.device),
    )


def _rounds_to_tf32(tensor: Tensor) -> bool:
    """Whether the tensor is to be multiplied in TF32: on a GPU, as PyTorch's switches for cuDNN's convolutions say."""
    if tensor.dtype != torch.float32:
        return False
    forced = plan.forced_tf32()
    return (tensor.is_cuda and _tf32_is_allowed()) if forced is None else forced


def _tf32_is_allowed() -> bool:
    if hasattr(torch._C, "_get_fp32_precision_getter"):  # since PyTorch 2.9
        return bool(torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32")
    return torch.backends.cudnn.allow_tf32


def _line_units(destination: Tensor) -> LineUnits:
    """What the kernel for few channels a group has here."""
    return LineUnits(
        destination.element_size(), _shared_bytes(destination.device), destination.stride(4) != 1
    )


def weight_gradient(
    geometry: Geometry,
    input: Tensor | None,
    grad_output: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> Plan:
    """Runs grad_weight, grad_bias or both in one launch; what is None is not computed.

    Returns:
        The plan that ran.

    Raises:
        RuntimeError: a build or a launch failed.
    """
    tensors = (input, grad_output, grad_weight, grad_bias)
    addresses = _addresses(*tensors)
    key = (
        *("grad_weight", geometry, plan.in_force("grad_weight"), grad_output.dtype),
        *(grad_output.get_device(), *[address % ALIGNMENT for address in addresses]),
        *(tensor is not None and tensor.stride() for tensor in tensors),
    )
    ready = _ready.get(key) or _ready.keep(key, _prepare_weight(geometry, *tensors))
    partials = None
    if ready.plan.splits > 1:
        elements = sum(t.numel() for t in (grad_weight, grad_bias) if t is not None)
        accumulator = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
        shape = (ready.plan.splits, elements)
        partials = allocate(shape, accumulator, grad_output.device, False)
    addresses += _addresses(partials)
    return ready.launch(grad_output, *tensors, partials, addresses=addresses)


def _prepare_weight(
    geometry: Geometry,
    input: Tensor | None,
    grad_output: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> _Ready:
    """Chooses the plan, and fills its struct."""
    strided = [t for t in (input, grad_output, grad_weight) if t is not None]
    chosen = plan.choose(
        "grad_weight", geometry, _fit_32_bits(*strided), _multiprocessors(grad_output.device)
    )
    template = _weight_template(
        geometry,
        chosen.splits,
        input.stride() if input is not None else (0,) * 5,
        grad_output.stride(),
        grad_weight.stride() if grad_weight is not None else (0,) * 5,
    )
    params = WeightParams.from_buffer_copy(template)
    params.want_weight, params.want_bias = grad_weight is not None, grad_bias is not None
    flags = (int(chosen.kernel == "tiled"), int(chosen.index_bits == 64))
    part = f"weight_{DTYPE_NAMES[grad_output.dtype]}"
    return _make_ready("grad_weight", chosen, part, flags, params)


def _launch(
    part: str,
    params: Params,
    flags: tuple[int, ...],
    tensor: Tensor,
    what: str,
) -> None:
    """Calls the part on the tensor's device, on its current stream."""
    if tensor.is_cuda:
        index = tensor.get_device()
        with _STAY if index == torch.cuda.current_device() else torch.cuda.device(index):
            entry = _entry(part, "cuda", index)
            error = entry(ctypes.byref(params), *flags, _current_stream(index))
        message = error.decode() if error else ""
    else:
        message = _emulate(part, params, flags)
    if not message:
        return
    if message.partition(":")[0] in runtime.FINDERS:
        raise runtime.EmulatorError(f"{message}; {what}")
    raise RuntimeError(f"convt3d: {what} failed on {tensor.device}: {message}")


_STAY = nullcontext()  # on the current device


def _stream_of(device_index: int) -> int:
    return torch.cuda.current_stream(device_index).cuda_stream


# What PyTorch's own generated code calls; it makes no object.
_current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of)


def _emulate(part: str, params: Params, flags: tuple[int, ...]) -> str:
    """Calls the part on the emulator, in its current mode. Returns what went wrong, or ""."""
    _say_once_that_this_is_the_emulator()
    mode, schedule = runtime.current_mode(), runtime.current_schedule()
    if mode not in runtime.SANITIZERS:
        error = _entry(part, "host", 0)(ctypes.byref(params), *flags, schedule)
        return error.decode() if error else ""
    library = _libraries.get((part, mode)) or _sanitized_library(part, mode)
    call = sanitized.Call(library, f"convt3d_{_kind(part)}", bytes(params), flags, schedule)
    regions = [
        sanitized.Region(
            field.removesuffix("_data"),
            getattr(type(params), field).offset,
            tensor.data_ptr(),
            _span_bytes(tensor),
        )
        for field, tensor in zip(params.address_fields(), params.tensors)
        if tensor is not None
    ]
    return sanitized.launch(mode, _sanitizer_runtime(mode), call, regions)


_sanitized_library = functools.cache(build.library_path)
_sanitizer_runtime = functools.cache(build.sanitizer_runtime)


def _span_bytes(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last one, gaps between them included."""
    if tensor.numel() == 0:
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return (1 + reach) * tensor.element_size()


@functools.cache
def _entry(part: str, target: str, device_index: int) -> Callable[..., bytes | None]:
    file = _libraries.get((part, target))
    loaded = ctypes.CDLL(str(file)) if file else build.library(part, target, device_index)
    kind = _kind(part)
    mirror = MIRRORS[kind]
    loaded.convt3d_params_bytes.restype = ctypes.c_int64
    if loaded.convt3d_params_bytes() != ctypes.sizeof(mirror):
        raise RuntimeError(f"{mirror.__name__} here and in convt3d/kernels differ in size")
    entry = getattr(loaded, f"convt3d_{kind}")
    entry.restype = ctypes.c_char_p
    flags = FLAGS[kind]
    entry.argtypes = [ctypes.POINTER(mirror), *[ctypes.c_int] * flags, ctypes.c_void_p]
    return entry


def _kind(part: str) -> str:
    """gather, weight, lines or matrix."""
    return part.partition("_")[0].partition(".")[0]


@functools.cache
def _say_once_that_this_is_the_emulator() -> None:
    warnings.warn(
        "convt3d runs CPU tensors on its kernel emulator, which is meant for verification and slow; "
        "move the tensors to a GPU for speed",
        stacklevel=2,
    )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have: what the device has, and no more than what CONVT3D_ARCH has.

    Source: CUDA C++ Programming Guide, technical specifications.
    """
    capability = (8, 0) if device.type != "cuda" else torch.cuda.get_device_capability(device)
    capabilities = [capability]
    asked = os.environ.get("CONVT3D_ARCH", "").replace(".", "")
    if device.type == "cuda" and asked.isdigit():  # else build.py refuses it
        capabilities.append(divmod(int(asked), 10))
    return min(plan.SHARED_BYTES.get(known, plan.SHARED_BYTES_ELSEWHERE) for known in capabilities)


@functools.cache
def _has_warpgroups(device: torch.device) -> bool:
    """Whether four warps can multiply together: on the emulator, and at compute capability 9.0 alone.

    Source: PTX ISA, wgmma: it needs the target sm_90a.
    """
    if device.type != "cuda":
        return True
    asked = os.environ.get("CONVT3D_ARCH", "").replace(".", "")
    return torch.cuda.get_device_capability(device) == (9, 0) and asked in ("", "90")


def _fit_32_bits(*tensors: Tensor) -> bool:
    """Whether every element count and every offset fits a 32-bit plan."""
    for tensor in tensors:
        reach = sum(
            (size - 1) * abs(stride)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        if max(reach, tensor.numel()) >= LARGEST_32_BIT_EXTENT:
            return False
    return True


@functools.lru_cache(maxsize=4096)
def _gather_template(
    primitive: str,
    geometry: Geometry,
    source: tuple[int, ...],
    weight: tuple[int, ...],
    destination: tuple[int, ...],
) -> bytes:
    """Returns the struct without its pointers; the rest depends on shapes and strides alone."""
    forward = primitive == "forward"
    params = GatherParams(batch=geometry.batch, groups=geometry.groups)
    per_group = (geometry.in_channels_per_group, geometry.out_channels_per_group)
    params.source_channels, params.destination_channels = per_group if forward else per_group[::-1]
    params.axis = _axes(geometry)
    params.source, params.destination = make_strides(source), make_strides(destination)
    params.weight_group = geometry.in_channels_per_group * weight[0]
    params.weight_source, params.weight_destination = (
        weight[:2] if forward else (weight[1], weight[0])
    )
    params.weight_tap = (ctypes.c_int64 * 3)(*weight[2:])
    width = (geometry.output_size if forward else geometry.input_size)[2]
    step = geometry.stride[2] if forward else 1
    params.tile_rows, params.tile_columns = plan.gather_tile(width, step)
    params.channels_innermost = destination[1] == 1 and destination[4] != 1
    return bytes(params)


@functools.lru_cache(maxsize=4096)
def _weight_template(
    geometry: Geometry,
    splits: int,
    input: tuple[int, ...],
    grad_output: tuple[int, ...],
    grad_weight: tuple[int, ...],
) -> bytes:
    params = WeightParams(
        batch=geometry.batch,
        groups=geometry.groups,
        in_channels=geometry.in_channels_per_group,
        out_channels=geometry.out_channels_per_group,
        splits=splits,
    )
    params.axis = _axes(geometry)
    params.input, params.grad_output = make_strides(input), make_strides(grad_output)
    params.grad_weight = make_strides(grad_weight)
    return bytes(params)


def _axes(geometry: Geometry) -> ctypes.Array[AxisParams]:
    axes = (AxisParams * 3)()
    for index in range(3):
        axis = geometry.axis(index)
        axes[index] = AxisParams(
            axis.input_size,
            axis.output_size,
            axis.kernel_size,
            axis.stride,
            axis.padding,
            axis.dilation,
            axis.stride_dilation_gcd,
            axis.tap_step,
            axis.dilation_inverse,
        )
    return axes
