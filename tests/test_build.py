"""Compiling the kernel strings: what is compiled, once, how it is kept, and what is said when it does not work."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from convt3d import build, launch
from convt3d.emulator import host, host_matrix, watch
from convt3d.kernels import gather, lines, matrix, params, primitives, weight
from convt3d.matrix.tile import MOST_TAPS_SPLIT

PART = "gather_f32"
# A library that is loaded anyway, in the place of one that was compiled.
LIBRARY = Path(torch.__file__).parent / "lib" / "libc10.so"
# Small enough to compile in a second.
ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer() { return %d; }\n'
BROKEN = '#line 7 "kernels/broken.py"\nint broken() { return undeclared; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the libraries of one test."""
    monkeypatch.setenv("CONVT3D_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were compiled so far, into an empty cache; compiling takes no compiler."""
    seen: list[str] = []

    def compile_nothing(
        name: str, source: str, target: str, flags: list[str], directory: Path
    ) -> None:
        seen.append(name)
        (directory / f"{name}.so").symlink_to(LIBRARY)

    monkeypatch.setattr(build, "_compile", compile_nothing)
    return seen


def uncached_library(part: str = PART, target: str = "host") -> ctypes.CDLL:
    """Returns a library as a process does that has not loaded it yet."""
    return build.library.__wrapped__(part, target)


def give_source(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(build, "translation_unit", lambda part, target: source)


# ---- what is compiled ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", build.PARTS)
def test_a_part_is_one_family_in_one_dtype(part: str) -> None:
    family, dtype = part.split("_")
    for target, machine in (("host", (watch, host, host_matrix)), ("cuda", (primitives,))):
        text = build.translation_unit(part, target)
        kind = family.partition(".")[0]
        kernels = {"gather": gather, "weight": weight, "lines": lines, "matrix": matrix}[kind]
        for module in (*machine, params, kernels):
            assert text.count(module.SOURCE) == 1
        assert f"convt3d_{kind}(" in text
        assert re.search(rf"run_{kind}<{build.MATRIX_SCALARS[dtype]}[,>]", text)


@pytest.mark.parametrize("target", build.SANITIZER_FLAGS)
def test_the_text_under_a_sanitizer_is_that_of_the_emulator(target: str) -> None:
    assert build.translation_unit(PART, target) == build.translation_unit(PART, "host")


def test_every_family_comes_in_every_dtype() -> None:
    few_taps = [
        p
        for p in build.MATRIX_FAMILIES.values()
        if p is None or p.taps <= MOST_TAPS_SPLIT[p.stride]
    ]
    matrix_parts = 6 * len(build.MATRIX_FAMILIES) + len(few_taps)  # without fp64
    line_parts = 3 * len(build.LINE_FAMILIES) + 1  # one with fp64
    assert len(set(build.PARTS)) == (
        len(build.FAMILIES) * len(build.SCALARS) + line_parts + matrix_parts
    )


@pytest.mark.parametrize(
    ("part", "target", "message"),
    [
        ("gather_f8", "host", "part='gather_f8', but must be one of"),
        ("gather", "host", "part='gather', but must be one of"),
        (PART, "sm_80", "target='sm_80', but must be one of"),
    ],
)
def test_a_part_or_target_that_does_not_exist_is_refused(
    part: str, target: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        build.translation_unit(part, target)


@pytest.mark.parametrize("target", build.TARGETS)
@pytest.mark.parametrize("family", build.FAMILIES)
def test_every_line_is_attributed_to_its_place_in_the_python_file(family: str, target: str) -> None:
    attributed = 0
    file, number = "", 0
    for line in build.translation_unit(f"{family}_f16", target).split("\n"):
        directive = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if directive:
            number, file = int(directive[1]), directive[2]
            continue
        if file.endswith(".py"):
            original = Path(file).read_text().split("\n")[number - 1]
            assert line in (original, "")  # "": where the closing quotes stand
            attributed += bool(line)
        number += 1
    assert attributed > 300


# ---- what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", build.TARGETS)
def test_no_host_compiler_is_said_with_what_to_install(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    message = r"found no C\+\+ compiler: '\S+' is not on the PATH; install g\+\+ or set CXX"
    with pytest.raises(RuntimeError, match=message):
        build.check_compiler(target)


def test_the_compiler_that_is_looked_for_is_the_one_that_torch_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    # PyTorch 2.0 has no function for it.
    name = getattr(cpp_extension, "get_cxx_compiler", lambda: "c++")()
    compiler = tmp_path / name
    compiler.touch(mode=0o755)
    build.check_compiler("host")


def test_the_compiler_that_cxx_names_is_the_one_that_must_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="'no-such-compiler' is not on the PATH"):
        build.check_compiler("host")


@pytest.mark.parametrize("home", [None, "an empty folder"])
def test_no_nvcc_is_said_with_what_to_install(
    home: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = None if home is None else str(tmp_path)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", found)
    message = f"found no nvcc (CUDA_HOME={found}); install the CUDA toolkit or set CUDA_HOME"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        build.check_compiler("cuda")


@pytest.mark.parametrize("target", build.SANITIZER_FLAGS)
def test_a_compiler_without_the_sanitizer_is_named_and_what_to_do(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "old-g++"
    compiler.write_text("#!/bin/sh\necho ${1#*=}\n")  # prints the bare name, as g++ does
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    message = rf"mode '{target}' needs lib{target}\.so, which {re.escape(str(compiler))} does not have; install"
    with pytest.raises(RuntimeError, match=message):
        build.check_compiler(target)


@pytest.mark.parametrize("target", build.SANITIZER_FLAGS)
def test_the_runtime_of_a_sanitizer_is_the_compilers(target: str) -> None:
    assert build.sanitizer_runtime(target).name == f"lib{target}.so"
    build.check_compiler(target)


def test_compilers_that_are_there_are_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build.check_compiler("host")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    build.check_compiler("cuda")


@pytest.mark.parametrize("capability", [(7, 5), (7, 0), (3, 7)])
def test_an_older_gpu_is_refused_by_name_and_capability(capability: tuple[int, int]) -> None:
    version = ".".join(map(str, capability))
    message = f"Some GPU has compute capability {version}, but convt3d needs 8.0 or newer"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        build.check_capability(capability, "Some GPU")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_a_gpu_from_8_0_on_is_accepted(capability: tuple[int, int]) -> None:
    build.check_capability(capability, "Some GPU")


def test_the_architecture_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVT3D_ARCH", raising=False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9, index))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    assert build.architecture_flags(0) == ["-gencode=arch=compute_90,code=sm_90"]
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (7, 5))
    with pytest.raises(RuntimeError, match=r"GPU 3 has compute capability 7\.5"):
        build.architecture_flags(3)


def test_an_architecture_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, number in (("8.0", "80"), ("80", "80"), ("10.0", "100")):
        monkeypatch.setenv("CONVT3D_ARCH", asked)
        flags = build.architecture_flags(0)
        assert flags == [f"-gencode=arch=compute_{number},code=compute_{number}"]
    for asked in ("7.5", "ampere", "8", "-9.0"):
        monkeypatch.setenv("CONVT3D_ARCH", asked)
        with pytest.raises(RuntimeError, match=f"CONVT3D_ARCH='{asked}', but must be like 8.0"):
            build.architecture_flags(0)


@pytest.mark.parametrize(
    ("asked", "capability", "kilobytes"),
    [
        ("", (9, 0), 227),
        ("8.0", (9, 0), 163),
        ("80", (9, 0), 163),
        ("9.0", (8, 0), 163),
        ("8.0", (8, 6), 99),
        ("8.6", (9, 0), 99),
        ("10.0", (9, 0), 227),
        ("ampere", (9, 0), 227),
    ],
)
def test_plans_count_with_the_shared_memory_of_device_and_architecture(
    asked: str, capability: tuple[int, int], kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVT3D_ARCH", asked)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    count = launch._shared_bytes.__wrapped__
    assert count(torch.device("cuda")) == kilobytes << 10
    assert count(torch.device("cpu")) == 163 << 10


@pytest.mark.usefixtures("cache")
def test_a_missing_ninja_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    give_source(monkeypatch, ANSWER % 2)
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    with pytest.raises(RuntimeError, match="Ninja is required"):
        uncached_library()


# ---- what does not compile ----------------------------------------------------------------------


@pytest.mark.usefixtures("cache")
def test_a_compile_error_gives_the_compilers_words_and_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_source(monkeypatch, BROKEN)
    with pytest.raises(RuntimeError) as caught:
        uncached_library()
    message = str(caught.value)
    assert re.match(
        rf"compiling convt3d_{PART}_host_\w+ failed after \d+ s; its source is ", message
    )
    assert re.search(r"kernels/broken\.py:7:.*error: .undeclared. was not", message)
    assert len(message.splitlines()) < 12
    kept = re.search(r"its source is (\S+)", message)
    assert kept and "undeclared" in Path(kept[1]).read_text()


@pytest.mark.usefixtures("cache")
def test_a_compile_error_is_said_again_on_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    give_source(monkeypatch, BROKEN.replace("broken", "again"))
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"kernels/again\.py:7:.*error: .undeclared. was not"
        ):
            uncached_library()


@pytest.mark.usefixtures("cache")
def test_a_mended_source_compiles_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    give_source(monkeypatch, BROKEN.replace("broken", "mended"))
    with pytest.raises(RuntimeError, match="failed after"):
        uncached_library()
    give_source(monkeypatch, ANSWER % 42)
    assert uncached_library().answer() == 42


def test_the_first_errors_of_a_log_are_kept_or_else_its_end() -> None:
    noise = [f"line {i}" for i in range(30)]
    errors = [f"a.cu:{i}: error: wrong {i}" for i in range(20)]
    assert build._first_errors("\n".join(noise + errors + noise)).splitlines() == errors[:10]
    assert build._first_errors("\n".join(noise)).splitlines() == noise[-10:]
    assert build._first_errors("") == ""


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("target", build.SANITIZER_FLAGS)
def test_a_sanitized_part_compiles_without_torch_and_says_what_is_wrong(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_source(monkeypatch, ANSWER % 1)
    path = build.library_path(PART, target)
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert f"lib{target}.so" in needed and "torch" not in needed
    give_source(monkeypatch, BROKEN)
    with pytest.raises(RuntimeError, match="failed after") as caught:
        build.library_path(PART, target)
    message = str(caught.value)
    assert re.search(r"kernels/broken\.py:7:.*error: .undeclared. was not", message)
    kept = re.search(r"its source is (\S+)", message)
    assert kept and "undeclared" in Path(kept[1]).read_text()


# ---- what is kept -------------------------------------------------------------------------------


def test_a_library_is_compiled_once(compiles: list[str], cache: Path) -> None:
    for _ in range(3):
        uncached_library()
    assert len(compiles) == 1
    assert [path.name for path in cache.iterdir()] == compiles


def test_a_build_that_did_not_finish_is_done_again(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build._compile

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_compile", killed)
    with pytest.raises(KeyboardInterrupt):
        uncached_library()
    monkeypatch.setattr(build, "_compile", right)
    uncached_library()
    assert len(compiles) == 1


def test_what_goes_into_a_build_decides_its_name(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uncached_library(PART)
    uncached_library("gather_f16")
    give_source(monkeypatch, "another source")
    uncached_library(PART)
    monkeypatch.setattr(build, "HOST_FLAGS", (*build.HOST_FLAGS, "-DMORE"))
    uncached_library(PART)
    monkeypatch.setenv("CXX", "/usr/bin/g++")
    uncached_library(PART)
    assert len(set(compiles)) == 5
    for name in compiles:
        assert re.fullmatch(r"convt3d_gather_f(16|32)_host_[0-9a-f]{16}", name)


def test_processes_that_want_the_same_library_compile_it_once(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, inside = build._compile, threading.Semaphore(1)

    def slow(*arguments: Any) -> None:
        assert inside.acquire(blocking=False), "two at a time"
        threading.Event().wait(0.2)
        quick(*arguments)
        inside.release()

    monkeypatch.setattr(build, "_compile", slow)
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: uncached_library(), range(4)))
    assert len(libraries) == 4 and len(compiles) == 1


def test_the_lock_of_a_build_that_was_killed_does_not_hang_the_next(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_source(monkeypatch, ANSWER % 43)
    names: list[str] = []
    real = build._compile

    def locked(name: str, *rest: Any) -> None:
        names.append(name)
        # Fails here, with a message, where the lock is still there: load_inline would wait for ever.
        assert not (cache / name / "lock").exists()
        real(name, *rest)

    monkeypatch.setattr(build, "_compile", lambda name, *rest: names.append(name))
    with pytest.raises(OSError, match=r"\.so"):
        uncached_library()
    (cache / names[0] / "finished").unlink()
    (cache / names[0] / "lock").touch()
    monkeypatch.setattr(build, "_compile", locked)
    assert uncached_library().answer() == 43


def test_the_cache_lies_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    monkeypatch.setenv("CONVT3D_CACHE", str(tmp_path / "own"))
    assert build.cache_directory() == tmp_path / "own"
    monkeypatch.delenv("CONVT3D_CACHE")
    assert build.cache_directory() == tmp_path / "torch"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_directory() == tmp_path / ".cache" / "convt3d"


def test_a_library_keeps_its_own_symbols_to_itself() -> None:
    library = build.library(PART, "host")
    names = subprocess.run(
        ["nm", "-D", "--defined-only", library._name], capture_output=True, text=True, check=True
    ).stdout
    own = [line.split()[-1] for line in names.splitlines() if "convt3d" in line]
    assert sorted(own) == ["convt3d_gather", "convt3d_params_bytes"]


# Those of warpgroups take longest: tests/test_matrix.py builds and runs them by turns, and `make check` compiles all.
USUAL_PARTS = [p for p in build.PARTS if p.split("_")[0] not in build.WARPGROUP_FAMILIES]


@pytest.mark.parametrize("part", USUAL_PARTS)
def test_every_part_compiles_for_the_emulator_and_says_the_size_of_its_struct(part: str) -> None:
    kind = part.partition("_")[0].partition(".")[0]
    mirror = launch.MIRRORS[kind]
    library = build.library(part, "host")
    library.convt3d_params_bytes.restype = ctypes.c_int64
    assert library.convt3d_params_bytes() == ctypes.sizeof(mirror)
