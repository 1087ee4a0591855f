"""The direction of the imports: tests -> fuzz -> {reference, convt3d}, read from the sources with `ast`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What the modules of a package may import besides the standard library and themselves.
ALLOWED = {
    "convt3d": {"torch"},
    "reference": {"numpy"},
    "fuzz": {
        "reference",
        "convt3d",
        "numpy",
        "hypothesis",
        "torch",
        "tree_sitter",
        "tree_sitter_cpp",
    },
    "tests": {"fuzz", "reference", "convt3d", "numpy", "hypothesis", "torch", "pytest", "conftest"},
}
# Of fuzz, only what runs in the processes of the subjects.
WITH_TORCH = (
    "arena.py",
    "far_memory.py",
    "sanitized_subjects.py",
    "separate_memory.py",
    "subjects.py",
)
# Parts that hold no torch of their own: plain integers and text, and whatever has a say in a verdict.
WITHOUT_TORCH = (
    "convt3d/__init__.py",
    "convt3d/geometry.py",
    "convt3d/plan.py",
    "convt3d/kernels/*.py",
    *(
        f"fuzz/referee/{name}.py"
        for name in (
            *("task", "pool", "properties", "starting"),
            *("verdicts", "sampling", "judging", "report", "command"),
        )
    ),
    *(f"fuzz/bench/{name}.py" for name in ("suite", "floor", "sample", "results", "report")),
    *(f"fuzz/bench/{name}.py" for name in ("picture", "command")),
    *(f"fuzz/{path.name}" for path in (ROOT / "fuzz").glob("*.py") if path.name not in WITH_TORCH),
)
NATIVE_CALL = re.compile(
    r"\b(?:torch|F|functional|nn|aten|at|_C)\s*(?:\.|::)\s*(?:\w+\s*(?:\.|::)\s*)*"
    r"_?(?:conv_transpose3d|conv3d|convolution\w*|cudnn_convolution\w*)\s*(?:\.\w+)?\("
)


def imported_packages(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the top-level package of every import, at any depth of the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else (node.module or "").partition(".")[0]


def forbidden_imports(source: str, package: str, allowed: set[str]) -> list[str]:
    """Returns a line for every import that is not allowed in a module of the package."""
    free = {*sys.stdlib_module_names, package, *allowed}
    return [
        f"line {line}: {package} must not import {name}"
        for line, name in imported_packages(source, package)
        if name not in free
    ]


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    modules = modules_of(package)
    assert modules, f"no modules in {package}/"
    wrong = {
        str(path.relative_to(ROOT)): lines
        for path in modules
        if (lines := forbidden_imports(path.read_text(), package, ALLOWED[package]))
    }
    assert not wrong


@pytest.mark.parametrize("pattern", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_import_it(pattern: str) -> None:
    modules = sorted(ROOT.glob(pattern))
    assert modules, f"{pattern} matches nothing"
    for path in modules:
        package = pattern.partition("/")[0]
        names = {name for _, name in imported_packages(path.read_text(), package)}
        assert "torch" not in names, f"{path.relative_to(ROOT)} imports torch"


def test_convt3d_never_calls_the_native_convolution() -> None:
    calls = {
        str(path.relative_to(ROOT)): found
        for path in modules_of("convt3d")
        if (found := NATIVE_CALL.findall(path.read_text()))
    }
    assert not calls


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("reference", "import numpy as np\nfrom numpy.typing import ArrayLike"),
        ("reference", "from reference.scatter import evaluate\nfrom . import scatter"),
        ("convt3d", "from __future__ import annotations\nimport math\nimport torch.nn"),
        ("fuzz", "from convt3d import plan\nimport reference"),
    ],
)
def test_allowed_imports_are_accepted(package: str, source: str) -> None:
    assert forbidden_imports(source, package, ALLOWED[package]) == []


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("reference", "import torch", "torch"),
        ("reference", "from convt3d.geometry import output_size", "convt3d"),
        ("convt3d", "import numpy as np", "numpy"),
        ("convt3d", "def f():\n    import reference.scatter", "reference"),
        ("convt3d", "if True:\n    from fuzz import case", "fuzz"),
        ("fuzz", "from tests.helpers import minimal", "tests"),
    ],
)
def test_forbidden_imports_are_found(package: str, source: str, name: str) -> None:
    (line,) = forbidden_imports(source, package, ALLOWED[package])
    assert line.endswith(f"{package} must not import {name}")


@pytest.mark.parametrize(
    "call",
    [
        "torch.nn.functional.conv_transpose3d(input, weight)",
        "F.conv3d(grad_output, weight)",
        "torch.ops.aten.convolution_backward.default(grad_output)",
        "at::conv_transpose3d(input, weight)",
    ],
)
def test_a_call_of_the_native_convolution_is_found(call: str) -> None:
    assert NATIVE_CALL.search(call)


@pytest.mark.parametrize(
    "call",
    [
        "conv_transpose3d(input, weight)",
        "convt3d.conv_transpose3d(input, weight)",
        "torch.ops.convt3d.forward(input)",
    ],
)
def test_a_call_of_our_own_op_is_not_taken_for_the_native_one(call: str) -> None:
    assert NATIVE_CALL.search(call) is None
