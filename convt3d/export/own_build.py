"""How the exported file compiles its kernels and calls the emulator, in the place of build.py and sanitizers."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import inspect
import itertools
from typing import Any

import torch
from torch.utils import cpp_extension

from convt3d import build, launch
from convt3d.emulator import host, host_matrix, watch
from convt3d.kernels import (
    columns,
    gather,
    lines,
    matrix,
    matrix_load,
    matrix_multiply,
    matrix_params,
    matrix_store,
    matrix_warpgroup,
    params,
    primitives,
    weight,
)


def _free_namespace() -> str:
    """Returns a name for the operators that is free: a process may run several such files."""
    taken = {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names()}
    names = (f"convt3d_model_new_{number}" for number in itertools.count())
    return next(name for name in names if name not in taken)


NAMESPACE = _free_namespace()

# What the kernels are compiled against: the GPU's functions, or the emulator's of the same names.
MACHINES = {"cuda": (primitives.SOURCE,), "host": (watch.SOURCE, host.SOURCE, host_matrix.SOURCE)}
MACHINES_WITHOUT_EMULATOR = {"cuda": (primitives.SOURCE,)}

KERNELS = {
    "gather": (gather.SOURCE,),
    "weight": (weight.SOURCE,),
    "lines": (columns.SOURCE, lines.SOURCE),
    "matrix": (
        columns.SOURCE,
        *(matrix_params.SOURCE, matrix_load.SOURCE, matrix_multiply.SOURCE),
        *(matrix_store.SOURCE, matrix_warpgroup.SOURCE, matrix.SOURCE),
    ),
}


@functools.cache
def library(part: str, target: str, device_index: int = 0) -> ctypes.CDLL:
    """Returns the compiled library of a part such as "gather_f32"; torch compiles it, unless it has before.

    Args:
        part: family and dtype.
        target: "cuda" or "host".
        device_index: for "cuda", the device whose compute capability to compile for.

    Raises:
        RuntimeError: a compiler is missing or fails, or the GPU is older than compute capability 8.0.
    """
    family, dtype = part.split("_")
    kernels = KERNELS[family.partition(".")[0]]
    entry = build.entry_text(family, dtype)
    source = "\n".join([*MACHINES[target], params.SOURCE, *kernels, entry])
    if target == "cuda":
        flags = [*build.CUDA_FLAGS, *build.architecture_flags(device_index, family)]
        options: dict[str, Any] = {"cpp_sources": [""], "cuda_sources": [source]}
        options["extra_cuda_cflags"] = flags
    else:
        flags = [*build.HOST_FLAGS]
        options = {"cpp_sources": [source], "extra_cflags": flags}
    if "no_implicit_headers" in inspect.signature(cpp_extension.load_inline).parameters:
        options["no_implicit_headers"] = True
    key = repr((source, flags, torch.__version__))
    name = f"convt3d_{part}_{target}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    directory = build.cache_directory() / name
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "building", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Left by a build that was killed; load_inline would wait for it for ever.
        (directory / "lock").unlink(missing_ok=True)
        cpp_extension.load_inline(
            name, build_directory=str(directory), is_python_module=False, **options
        )
    return ctypes.CDLL(str(directory / f"{name}.so"))


def emulate(part: str, params: ctypes.Structure, flags: tuple[int, ...]) -> str:
    """Calls a part on the emulator. Returns what went wrong, or ""."""
    launch._say_once_that_this_is_the_emulator()
    error = launch._entry(part, "host", 0)(ctypes.byref(params), *flags, None)
    return error.decode() if error else ""


def refuse_to_emulate(part: str, params: ctypes.Structure, flags: tuple[int, ...]) -> str:
    """Says that this file has no emulator."""
    return "there is no kernel for CPU tensors in this file; move the tensors to a GPU"
