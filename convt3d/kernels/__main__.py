"""Tools for the CUDA C++ strings: `python -m convt3d.kernels format | compile | dump`. None of them needs torch."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from convt3d import build

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
# Of kernels that have the instructions of compute capability 9.0 alone.
WARPGROUP_ARCHITECTURES = ("sm_90a",)
HOST_FLAGS = ("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# load_inline forbids these conversions and operators.
FORBIDDEN_BY_TORCH = (
    *("-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__"),
    *("-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__"),
)
# Local memory, in bytes, that the kernels for the matrix units may have: sums and operands take most registers, so that
# ptxas puts variables of the outer loops there, which are read once for hundreds of products. In fp32 operands come in
# two parts, and each step makes four times the products; products of warpgroups need no operands in registers.
MATRIX_LOCAL_BYTES, MATRIX_LOCAL_BYTES_MORE = 64, 144
CUDA_FLAGS = ("-std=c++17", "-cubin", "-Xptxas", "-v", "-o", os.devnull, *FORBIDDEN_BY_TORCH)

# What ptxas -v says of a function; a kernel's registers and static shared memory follow.
FUNCTION = re.compile(
    r"Function properties for (?P<name>\w+)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"(?:\nptxas info\s*: Used (?P<registers>\d+) registers(?:.*?, (?P<shared>\d+) bytes smem)?)?"
)


class CompileError(Exception):
    """A part does not compile; the message is what the compiler printed."""


@dataclass(frozen=True)
class Usage:
    """What one compiled function takes. registers is 0 for a function that is not a kernel."""

    name: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int

    @property
    def is_local(self) -> bool:
        """Whether it keeps anything in local memory, which is as slow as global memory."""
        return self.stack_bytes > 0 or self.spill_bytes > 0

    def is_too_local(self, part: str) -> bool:
        """Whether that is more than the part may have."""
        allowed = 0
        if part.startswith("matrix"):
            has_more = part.endswith("_f32") or ".wg." in part
            allowed = MATRIX_LOCAL_BYTES_MORE if has_more else MATRIX_LOCAL_BYTES
        return self.is_local and self.stack_bytes > allowed


def source_modules() -> list[Path]:
    """Returns the modules that hold a SOURCE string."""
    folders = (ROOT / "convt3d" / "kernels", ROOT / "convt3d" / "emulator")
    modules = (path for folder in folders for path in sorted(folder.glob("*.py")))
    return [path for path in modules if find_source(path.read_text())]


def find_source(module: str) -> str | None:
    """Returns the literal that a module assigns to SOURCE at its top level, with its quotes.

    Raises:
        ValueError: it is not one raw string in triple quotes.
    """
    for node in ast.parse(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCE":
            literal = ast.get_source_segment(module, node.value) or ""
            if not literal.startswith('r"""') or not isinstance(node.value, ast.Constant):
                raise ValueError(f'SOURCE = {literal[:20]}, but must be one r"""..."""')
            return literal
    return None


def formatted(module: str) -> str:
    """Returns the text of a module with its SOURCE as clang-format writes it."""
    literal = find_source(module)
    if literal is None:
        return module
    command = [clang_format(), f"--style=file:{ROOT / '.clang-format'}", "--assume-filename=a.cu"]
    text = literal.removeprefix('r"""').removesuffix('"""').strip("\n") + "\n"
    run = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return module.replace(literal, f'r"""\n{run.stdout}"""')


def clang_format() -> str:
    """Returns the path of clang-format: of this environment (PyPI has it), else on PATH."""
    beside_python = shutil.which("clang-format", path=Path(sys.executable).parent)
    return beside_python or "clang-format"


def nvcc() -> str | None:
    """Returns the path of nvcc, if there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def _target_flag(target: str) -> str:
    return f"-gencode=arch={target.replace('sm', 'compute')},code={target}"


def compile_part(part: str, target: str) -> list[Usage]:
    """Compiles a part without a GPU. Returns what its functions take; nothing for the host.

    Args:
        part: family and dtype, such as "gather_f16".
        target: "host" (as the emulator compiles it, warnings being errors) or an architecture, as "sm_80".

    Raises:
        CompileError: the compiler is missing or refuses the part, or the part holds no kernel.
    """
    command, suffix = [os.environ.get("CXX", "g++"), *HOST_FLAGS], "cpp"
    if target != "host":
        command, suffix = [nvcc() or "nvcc", *CUDA_FLAGS, _target_flag(target)], "cu"
    if shutil.which(command[0]) is None:
        raise CompileError(f"there is no {command[0]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{part}.{suffix}")
        path.write_text(build.translation_unit(part, "host" if target == "host" else "cuda"))
        run = subprocess.run([*command, path], capture_output=True, text=True, check=False)
    usages = parse_ptxas(run.stderr)
    if run.returncode != 0:
        raise CompileError(run.stdout + run.stderr)
    if target != "host" and not any(usage.registers for usage in usages):
        raise CompileError(f"part {part} holds no kernel")
    return usages


def parse_ptxas(log: str) -> list[Usage]:
    """Returns what `ptxas -v` reports of each function, in its order, names demangled where possible."""
    found = list(FUNCTION.finditer(log))
    names = [match["name"] for match in found]
    if names and shutil.which("c++filt"):
        filtered = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
        names = [name.split("(")[0].removeprefix("void ") for name in filtered.stdout.splitlines()]
    usages = []
    for name, match in zip(names, found):
        registers, shared = int(match["registers"] or 0), int(match["shared"] or 0)
        spilled = int(match["stores"]) + int(match["loads"])
        usages.append(Usage(name, registers, shared, int(match["stack"]), spilled))
    return usages


def run_format(check: bool) -> int:
    """Formats every SOURCE in place, or names those that it would change. Returns the exit status."""
    status = 0
    for path in source_modules():
        module = path.read_text()
        if module == formatted(module):
            continue
        if check:
            status = 1
            print(f"{path.relative_to(ROOT)}: SOURCE is not formatted; make format")
        else:
            path.write_text(formatted(module))
    return status


def targets_of(part: str) -> tuple[str, ...]:
    """What a part is compiled for here: the host and, where there is nvcc, architectures."""
    is_for_warpgroups = part.split("_")[0] in build.WARPGROUP_FAMILIES
    architectures = WARPGROUP_ARCHITECTURES if is_for_warpgroups else ARCHITECTURES
    return ("host", *architectures) if nvcc() else ("host",)


def run_compile() -> int:
    """Compiles every part for every target, side by side, and prints a table. Returns the exit status."""
    jobs = [(part, target) for part in build.PARTS for target in targets_of(part)]
    print("part               target registers shared stack spill  function")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(report_part, jobs))
    print("\n".join(text for _, text in reports))
    if not nvcc():
        print("There is no nvcc: nothing was compiled for a GPU.")
    return 0 if all(good for good, _ in reports) else 1


def report_part(job: tuple[str, str]) -> tuple[bool, str]:
    """Compiles (part, target). Returns whether it is good, and its lines of the table."""
    label = "{:18} {:6}".format(*job)
    try:
        usages = compile_part(*job)
    except CompileError as error:
        return False, f"{label} FAILS\n{error}"
    part = job[0]
    lines = [
        f"{label} {usage.registers:9} {usage.shared_bytes:6} {usage.stack_bytes:5} "
        f"{usage.spill_bytes:5}  {usage.name}{' LOCAL MEMORY' if usage.is_too_local(part) else ''}"
        for usage in usages
    ]
    is_good = not any(usage.is_too_local(part) for usage in usages)
    return is_good, "\n".join(lines) or f"{label} compiles"


def main() -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m convt3d.kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    format_parser = commands.add_parser("format", help="run clang-format over the strings in place")
    format_parser.add_argument("--check", action="store_true", help="only name what would change")
    commands.add_parser("compile", help="compile every part with g++ and, where there is one, nvcc")
    dump_parser = commands.add_parser("dump", help="print the complete source text of a part")
    dump_parser.add_argument("part", choices=build.PARTS)
    dump_parser.add_argument("--target", choices=("cuda", "host"), default="cuda")
    arguments = parser.parse_args()
    if arguments.command == "format":
        return run_format(arguments.check)
    if arguments.command == "compile":
        return run_compile()
    print(build.translation_unit(arguments.part, arguments.target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
