"""Compiles the kernel strings, one part at a time, on the first call that needs it.

A part is one family of kernels in one dtype, for example `gather_f32`. It is compiled by
`torch.utils.cpp_extension.load_inline`, by nvcc for a GPU ("cuda") and by g++ for the emulator ("host"), without a
torch header (that costs 25 s a part; a part without takes a few), into a library that `convt3d/launch.py` calls through
ctypes. The emulator under a sanitizer ("asan", "tsan") is compiled by g++ alone: its libraries are loaded by a process
without torch, see `convt3d/emulator/sanitized.py`. Libraries are cached on disk under a name that holds a hash of
everything that went in.
"""

from __future__ import annotations

import ast
import concurrent.futures
import ctypes
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from convt3d.columns import PATTERNS, Pattern
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
from convt3d.lines import line_family
from convt3d.matrix.tile import (
    CHANNEL_TILES,
    CHANNEL_TILES_SPLIT,
    CHANNEL_TILES_WARPGROUP,
    MOST_TAPS_SPLIT,
    family_of,
)

# dtype name -> C++ type
SCALARS = {
    "f64": "double",
    "f32": "float",
    "f16": "convt3d::half_t",
    "bf16": "convt3d::bfloat16_t",
}
MATRIX_SCALARS = {**SCALARS, "tf32": "convt3d::tf32_t"}
# Families that come in every dtype, and those that come for a pattern along W, name -> pattern; in fp64, which is rare,
# for any pattern, and not for the matrix units, which have none.
FAMILIES = ("gather", "weight")
LINE_FAMILIES = {line_family(pattern): pattern for pattern in (*PATTERNS, None)}
MATRIX_FAMILIES = {family_of(pattern): pattern for pattern in (*PATTERNS, None)}
WARPGROUP_FAMILIES = {family_of(pattern, True): pattern for pattern in (*PATTERNS, None)}
PARTS = (
    *(f"{family}_{dtype}" for family in (*FAMILIES, line_family(None)) for dtype in SCALARS),
    *(
        f"{family}_{dtype}"
        for family, pattern in LINE_FAMILIES.items()
        for dtype in ("f32", "f16", "bf16")
        if pattern
    ),
    *(
        f"{family}_{dtype}"
        for family in (*MATRIX_FAMILIES, *WARPGROUP_FAMILIES)
        for dtype in ("f16", "bf16", "tf32")
    ),
    *(
        f"{family}_f32"
        for family, pattern in MATRIX_FAMILIES.items()
        if pattern is None or pattern.taps <= MOST_TAPS_SPLIT[pattern.stride]
    ),
)
TARGETS = ("host", "cuda", "asan", "tsan")

HOST_FLAGS = ("-O2", "-g1", "-fvisibility=hidden", "-Wno-unknown-pragmas")
CUDA_FLAGS = ("-O3", "-lineinfo", "-Xcompiler", "-fvisibility=hidden")
_ALONE = ("-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas")
SANITIZER_FLAGS = {
    "asan": (
        *(*_ALONE, "-O1", "-g", "-fno-omit-frame-pointer"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ),
    "tsan": (*_ALONE, "-O1", "-g", "-fsanitize=thread"),
}
OLDEST_CAPABILITY = (8, 0)

# The instantiations of a part, see entry_text.
ENTRIES = {
    "gather": """
#define CONVT3D_EXPORT extern "C" __attribute__((visibility("default")))
CONVT3D_EXPORT const char* convt3d_gather(const convt3d::GatherParams* params, int forward,
                                          int tiled, int wide, void* stream) {{
  return convt3d::run_gather<{scalar}>(*params, forward, tiled, wide, stream);
}}
CONVT3D_EXPORT int64_t convt3d_params_bytes() {{ return sizeof(convt3d::GatherParams); }}
""",
    "weight": """
#define CONVT3D_EXPORT extern "C" __attribute__((visibility("default")))
CONVT3D_EXPORT const char* convt3d_weight(const convt3d::WeightParams* params, int tiled, int wide,
                                          void* stream) {{
  return convt3d::run_weight<{scalar}>(*params, tiled, wide, stream);
}}
CONVT3D_EXPORT int64_t convt3d_params_bytes() {{ return sizeof(convt3d::WeightParams); }}
""",
    "lines": """
#define CONVT3D_EXPORT extern "C" __attribute__((visibility("default")))
CONVT3D_EXPORT const char* convt3d_lines(const convt3d::LineParams* params, void* stream) {{
  return convt3d::run_lines<{scalar}, convt3d::{along}>(*params, stream);
}}
CONVT3D_EXPORT int64_t convt3d_params_bytes() {{ return sizeof(convt3d::LineParams); }}
""",
    "matrix": """
#define CONVT3D_EXPORT extern "C" __attribute__((visibility("default")))
CONVT3D_EXPORT const char* convt3d_matrix(const convt3d::MatrixParams* params, int channel_tiles,
                                          void* stream) {{
  return convt3d::run_matrix<{scalar}, convt3d::{along}, convt3d::Engine::{engine}, {tiles}>(
      *params, channel_tiles, stream);
}}
CONVT3D_EXPORT int64_t convt3d_params_bytes() {{ return sizeof(convt3d::MatrixParams); }}
""",
}


def translation_unit(part: str, target: str) -> str:
    """Returns the whole source text of a part for a target; needs no torch.

    Raises:
        RuntimeError: there is no such part or target.
    """
    if part not in PARTS:
        raise RuntimeError(f"part={part!r}, but must be one of {PARTS}")
    if target not in TARGETS:
        raise RuntimeError(f"target={target!r}, but must be one of {TARGETS}")
    family, dtype = part.split("_")
    machine = (primitives,) if target == "cuda" else (watch, host, host_matrix)
    pieces = [_with_line_directive(module) for module in (*machine, params, *_kernels(family))]
    return "\n".join([*pieces, f'#line 1 "{part}.entry"', entry_text(family, dtype)])


def _kernels(family: str) -> tuple[ModuleType, ...]:
    if family in MATRIX_FAMILIES or family in WARPGROUP_FAMILIES:
        shared = (columns, matrix_params, matrix_load, matrix_multiply, matrix_store)
        return (*shared, matrix_warpgroup, matrix)
    if family in LINE_FAMILIES:
        return (columns, lines)
    return (gather,) if family == "gather" else (weight,)


def entry_text(family: str, dtype: str) -> str:
    """The C functions of a part: the only text that is generated."""
    if family in FAMILIES:
        return ENTRIES[family].format(scalar=SCALARS[dtype])
    if family in LINE_FAMILIES:
        along = _along(LINE_FAMILIES[family])
        return ENTRIES["lines"].format(scalar=SCALARS[dtype], along=along)
    if family in WARPGROUP_FAMILIES:
        pattern, engine, tiles = WARPGROUP_FAMILIES[family], "kWarpgroup", CHANNEL_TILES_WARPGROUP
    elif dtype == "f32":
        pattern, engine, tiles = MATRIX_FAMILIES[family], "kSplit", CHANNEL_TILES_SPLIT
    else:
        pattern, engine, tiles = MATRIX_FAMILIES[family], "kWarp", CHANNEL_TILES
    return ENTRIES["matrix"].format(
        scalar=MATRIX_SCALARS[dtype],
        along=_along(pattern),
        engine=engine,
        tiles=", ".join(map(str, tiles[pattern.stride if pattern else 1])),
    )


def _along(pattern: Pattern | None) -> str:
    """The type of kernels/columns.py that a pattern is."""
    return "Along<{}, {}, {}, {}>".format(*pattern) if pattern else "AlongAny"


def _with_line_directive(module: ModuleType) -> str:
    """Returns the module's SOURCE so that compilers and sanitizers report lines of the .py file.

    The path starts at the package, so that clones of the repository share a cache.
    """
    path = module.__name__.replace(".", "/") + ".py"
    text = inspect.getsource(module)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SOURCE":
            # The text after the quotes starts on the next line.
            return f'#line {node.value.lineno + 1} "{path}"{module.SOURCE}'
    raise RuntimeError(f"{path} has no SOURCE")


@functools.cache
def library(part: str, target: str, device_index: int = 0) -> ctypes.CDLL:
    """Returns the compiled library of a part, compiling it if no earlier run has.

    Args:
        part: one of PARTS.
        target: "host" or "cuda".
        device_index: for "cuda", the device whose compute capability to compile for.

    Raises:
        RuntimeError: a compiler is missing or fails, or the GPU is older than compute capability 8.0.
    """
    return ctypes.CDLL(str(library_path(part, target, device_index)))


def library_path(part: str, target: str, device_index: int = 0) -> Path:
    """Returns the file of a part's compiled library, compiling it if no earlier run has.

    Args:
        part, device_index: as for `library`.
        target: one of TARGETS; what is built for "asan" or "tsan" does not load into an ordinary process.

    Raises:
        RuntimeError: as for `library`.
    """
    source = translation_unit(part, target)
    if target == "cuda":
        flags = [*CUDA_FLAGS, *architecture_flags(device_index, part.split("_")[0])]
    else:
        flags = [*SANITIZER_FLAGS.get(target, HOST_FLAGS)]
    return compiled(part, source, target, flags)


def load(part: str, source: str, target: str, flags: list[str]) -> ctypes.CDLL:
    """Returns the library that `compiled` makes of a source text, ready to be called."""
    return ctypes.CDLL(str(compiled(part, source, target, flags)))


def compiled(part: str, source: str, target: str, flags: list[str]) -> Path:
    """Returns the library of a source text under the name of a part, compiling it if no earlier run has.

    Args:
        part: one of PARTS; its name is part of the library's.
        source: a translation unit: the part's own, or a harness's variation of it.
        target: one of TARGETS.
        flags: for the compiler.

    Raises:
        RuntimeError: as for `library`.
    """
    check_compiler(target)
    import torch

    key = repr((source, flags, torch.__version__, sys.version_info[:2], os.environ.get("CXX")))
    name = f"convt3d_{part}_{target}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    directory = cache_directory() / name
    built = directory / f"{name}.so"
    finished = directory / "finished"
    if not finished.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "building", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                # Left by a build that was killed; load_inline would wait for it for ever.
                (directory / "lock").unlink(missing_ok=True)
                _compile(name, source, target, flags, directory)
                finished.touch()
    return built


def build_all(target: str, parts: Sequence[str] = PARTS) -> None:
    """Compiles parts for a target, as many at a time as there are cores.

    Raises:
        RuntimeError: as for `library`.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda part: library_path(part, target), parts))


def check_compiler(target: str) -> None:
    """Raises RuntimeError, saying what to install, when the target's compiler is missing."""
    from torch.utils import cpp_extension

    compiler = cxx_compiler()
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"convt3d compiles its kernels on first use and found no C++ compiler: {compiler!r} is not "
            "on the PATH; install g++ or set CXX"
        )
    if target == "cuda":
        home = cpp_extension.CUDA_HOME
        if home is None or not (Path(home) / "bin" / "nvcc").exists():
            raise RuntimeError(
                f"convt3d compiles its kernels on first use and found no nvcc (CUDA_HOME={home}); "
                "install the CUDA toolkit or set CUDA_HOME"
            )
    if target in SANITIZER_FLAGS:
        sanitizer_runtime(target)


def sanitizer_runtime(target: str) -> Path:
    """Returns the library that a process must load before all others, to run what "asan" or "tsan" built.

    Raises:
        RuntimeError: the compiler has none.
    """
    compiler, name = cxx_compiler(), f"lib{target}.so"
    command = [compiler, f"-print-file-name={name}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    path = Path(ran.stdout.strip())
    if not (path.is_absolute() and path.exists()):  # where there is none the bare name is printed
        raise RuntimeError(
            f"the emulator's mode {target!r} needs {name}, which {compiler} does not have; install it "
            f"(some systems have it in a package lib{target}), or set CXX to a g++ that has it"
        )
    return path


def has_sanitizer(target: str) -> bool:
    """Whether the compiler can build for "asan" or "tsan"."""
    try:
        sanitizer_runtime(target)
    except (RuntimeError, OSError):
        return False
    return True


def cxx_compiler() -> str:
    """The one that torch takes too."""
    return os.environ.get("CXX", "c++")


def check_capability(capability: tuple[int, int], device: object) -> None:
    """Raises RuntimeError when a GPU is older than the kernels support."""
    if capability < OLDEST_CAPABILITY:
        raise RuntimeError(
            f"{device} has compute capability {capability[0]}.{capability[1]}, but convt3d needs "
            f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or newer"
        )


def architecture_flags(device_index: int, family: str = "") -> list[str]:
    """nvcc flags for a device; CONVT3D_ARCH=8.0 runs that architecture's PTX on a newer card.

    Args:
        device_index: of the device.
        family: whose kernels are compiled; those of warpgroups have the instructions of compute capability 9.0 alone.

    Raises:
        RuntimeError: CONVT3D_ARCH is no version, or it or the device is below 8.0.
    """
    import torch

    if family in WARPGROUP_FAMILIES:
        return ["-gencode=arch=compute_90a,code=sm_90a"]
    asked = os.environ.get("CONVT3D_ARCH", "")
    if asked:
        number = asked.replace(".", "")
        if not number.isdigit() or int(number) < 80:
            raise RuntimeError(f"CONVT3D_ARCH={asked!r}, but must be like 8.0, and at least 8.0")
        return [f"-gencode=arch=compute_{number},code=compute_{number}"]
    capability = torch.cuda.get_device_capability(device_index)
    check_capability(capability, torch.cuda.get_device_name(device_index))
    number = f"{capability[0]}{capability[1]}"
    return [f"-gencode=arch=compute_{number},code=sm_{number}"]


def cache_directory() -> Path:
    """Where compiled parts are kept: CONVT3D_CACHE, else TORCH_EXTENSIONS_DIR, else ~/.cache/convt3d."""
    asked = os.environ.get("CONVT3D_CACHE") or os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(asked) if asked else Path.home() / ".cache" / "convt3d"


def _compile(name: str, source: str, target: str, flags: list[str], directory: Path) -> None:
    compile_ = _compile_alone if target in SANITIZER_FLAGS else _load_inline
    started = time.monotonic()
    try:
        compile_(name, source, target, flags, directory)
    except (RuntimeError, OSError) as error:
        kept = directory / ("cuda.cu" if target == "cuda" else "main.cpp")
        raise RuntimeError(
            f"compiling {name} failed after {time.monotonic() - started:.0f} s; its source is {kept}\n"
            f"{_first_errors(str(error))}"
        ) from error


def _compile_alone(name: str, source: str, target: str, flags: list[str], directory: Path) -> None:
    """Runs the C++ compiler without torch's headers and libraries."""
    (directory / "main.cpp").write_text(source)
    # Reports then name files as the #line directives do.
    flags = [*flags, f"-fdebug-prefix-map={directory}=."]
    command = [cxx_compiler(), *flags, "main.cpp", "-o", f"{name}.so"]
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise RuntimeError(ran.stdout + ran.stderr)


def _load_inline(name: str, source: str, target: str, flags: list[str], directory: Path) -> None:
    from torch.utils import cpp_extension

    options: dict[str, object] = {}
    if "no_implicit_headers" in inspect.signature(cpp_extension.load_inline).parameters:
        options["no_implicit_headers"] = True
    if target == "host":
        options |= {"cpp_sources": [source], "extra_cflags": flags}
    else:
        options |= {"cpp_sources": [""], "cuda_sources": [source], "extra_cuda_cflags": flags}
    try:
        cpp_extension.load_inline(
            name, build_directory=str(directory), is_python_module=False, **options
        )
    except (RuntimeError, OSError):
        # Else torch takes the next attempt for a module that it has built already.
        cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(name, None)
        raise


def _first_errors(log: str, count: int = 10) -> str:
    """Returns the lines of a compiler's log that say what is wrong, or its end."""
    lines = [line for line in log.splitlines() if "error" in line]
    return "\n".join(lines[:count] or log.splitlines()[-count:])
