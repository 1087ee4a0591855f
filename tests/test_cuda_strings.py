"""The CUDA C++ strings: formatted, accepted by g++ without a warning and by nvcc without a spill."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from convt3d import build
from convt3d.kernels import __main__ as tools

needs_clang_format = pytest.mark.skipif(
    shutil.which(tools.clang_format()) is None,
    reason="needs clang-format: pip install clang-format",
)
needs_nvcc = pytest.mark.skipif(tools.nvcc() is None, reason="needs nvcc")
needs_host_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# `make check` compiles every part; of those for a pattern along W, which differ in constants alone, these do here.
PATTERN_SAMPLE = (
    *("matrix.s2k3p1_f32", "matrix.s2k3p1_f16"),
    *("lines.any_f64", "lines.any_f16", "lines.s2k5p0_bf16", "lines.s1k7p0_f32"),
)
SAMPLE = [p for p in build.PARTS if "." not in p or p in PATTERN_SAMPLE]
COMPILED = [
    *itertools.product(SAMPLE, tools.ARCHITECTURES),
    *itertools.product(["matrix.wg.s2k3p1_bf16"], tools.WARPGROUP_ARCHITECTURES),
]

PTXAS_LOG = """\
ptxas info    : 272 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function '_Z5clean6Params' for 'sm_80'
ptxas info    : Function properties for _Z5clean6Params
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 1024 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 4.711 ms
ptxas info    : Compiling entry function '_Z5spill6Params' for 'sm_80'
ptxas info    : Function properties for _Z5spill6Params
    1704 bytes stack frame, 1748 bytes spill stores, 1808 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1704 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5array6Params' for 'sm_80'
ptxas info    : Function properties for _Z5array6Params
    256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 364 bytes cmem[0]
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
SPILLING_KERNEL = """
__global__ void __launch_bounds__(1024, 2) spill_kernel(float* data, int n) {
  float values[80];
#pragma unroll
  for (int i = 0; i < 80; ++i) values[i] = data[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; ++i) data[i * n + threadIdx.x] = values[79 - i] * values[i * 7 % 80];
}
"""


@needs_clang_format
@pytest.mark.parametrize("path", tools.source_modules(), ids=lambda path: path.name)
def test_the_string_is_formatted(path: Path) -> None:
    module = path.read_text()
    assert tools.formatted(module) == module, "run `make format`"


@needs_clang_format
def test_formatting_changes_the_string_and_nothing_else() -> None:
    module = '"""Doc   string."""\n\nSOURCE = r"""\nint  f( ){return 1;}\n"""\nx   =  1\n'
    formatted = module.replace("int  f( ){return 1;}", "int f() { return 1; }")
    assert tools.formatted(module) == formatted
    assert tools.formatted(formatted) == formatted


def test_every_module_of_a_translation_unit_is_formatted() -> None:
    names = {path.stem for path in tools.source_modules()}
    assert {"primitives", "params", "host", *build.FAMILIES} <= names


@pytest.mark.parametrize("literal", ['"""\n"""', "''", 'r"""a""" + r"""b"""', 'rf"""{x}"""'])
def test_a_source_that_is_not_one_raw_string_is_refused(literal: str) -> None:
    with pytest.raises(ValueError, match="must be one r"):
        tools.find_source(f"SOURCE = {literal}\n")


def test_the_log_of_ptxas_gives_what_each_function_takes() -> None:
    usages = tools.parse_ptxas(PTXAS_LOG)
    figures = [(u.registers, u.shared_bytes, u.stack_bytes, u.spill_bytes) for u in usages]
    assert figures == [(24, 1024, 0, 0), (32, 0, 1704, 3556), (40, 0, 256, 0), (0, 0, 0, 0)]
    assert [usage.is_local for usage in usages] == [False, True, True, False]
    assert "clean" in usages[0].name


@needs_host_compiler
@pytest.mark.parametrize("part", SAMPLE)
def test_the_host_compiler_accepts_the_part_without_a_warning(part: str) -> None:
    assert tools.compile_part(part, "host") == []


@needs_host_compiler
def test_a_warning_of_the_host_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "translation_unit", lambda part, target: "int f(int unused) { }")
    with pytest.raises(tools.CompileError, match="unused parameter"):
        tools.compile_part("any", "host")


@needs_nvcc
@pytest.mark.parametrize(("part", "target"), COMPILED)
def test_no_kernel_of_the_part_uses_local_memory(part: str, target: str) -> None:
    usages = tools.compile_part(part, target)
    assert [usage for usage in usages if usage.is_too_local(part)] == []


@needs_nvcc
def test_a_kernel_that_spills_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "translation_unit", lambda part, target: SPILLING_KERNEL)
    (usage,) = tools.compile_part("any", "sm_80")
    assert usage.is_local


@needs_nvcc
def test_a_part_without_a_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "translation_unit", lambda part, target: "int f() { return 1; }")
    with pytest.raises(tools.CompileError, match="holds no kernel"):
        tools.compile_part("any", "sm_80")
