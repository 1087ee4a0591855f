"""Writes the one-file version: takes from the package's modules what ModelNew needs, as it stands there.

A definition is taken when ModelNew reaches it through names; statements that register operators always are. References
to other modules (`launch.gather`) become plain names, so that all names must be unique; SOURCE, which each module of
kernels has, takes the module's name. Module docstrings become comments, for they hold the notes that code refers to.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

# In this order they stand in the file: what runs on import must find what it needs above it.
MODULES = (
    "convt3d.geometry",
    "convt3d.columns",
    "convt3d.lines",
    "convt3d.matrix.tile",
    "convt3d.matrix.work",
    "convt3d.matrix.estimate",
    "convt3d.matrix.choice",
    "convt3d.plan",
    "convt3d.kernels.primitives",
    "convt3d.kernels.params",
    "convt3d.kernels.gather",
    "convt3d.kernels.weight",
    "convt3d.kernels.columns",
    "convt3d.kernels.lines",
    "convt3d.kernels.matrix_params",
    "convt3d.kernels.matrix_load",
    "convt3d.kernels.matrix_multiply",
    "convt3d.kernels.matrix_store",
    "convt3d.kernels.matrix_warpgroup",
    "convt3d.kernels.matrix",
    "convt3d.emulator.watch",
    "convt3d.emulator.host",
    "convt3d.emulator.host_matrix",
    "convt3d.emulator.runtime",
    "convt3d.build",
    "convt3d.export.own_build",
    "convt3d.params",
    "convt3d.line_launch",
    "convt3d.matrix.launch",
    "convt3d.launch",
    "convt3d.ops.guards",
    "convt3d.ops.primitives",
    "convt3d.ops.autograd",
    "convt3d.ops.batching",
    "convt3d.ops.autocast",
    "convt3d.functional",
    "convt3d.export.own_module",
    "convt3d.modules",
)
Name = tuple[str, str]  # module, name in it

ROOT: Name = ("convt3d.modules", "ModelNew")
# What the file has instead of a definition of the package.
SUBSTITUTES: dict[Name, Name] = {
    ("convt3d.build", "library"): ("convt3d.export.own_build", "library"),
    ("convt3d.launch", "_emulate"): ("convt3d.export.own_build", "emulate"),
    ("convt3d.ops.primitives", "NAMESPACE"): ("convt3d.export.own_build", "NAMESPACE"),
    ("convt3d.modules", "ConvTranspose3d"): ("convt3d.export.own_module", "ConvTranspose3d"),
}
WITHOUT_EMULATOR: dict[Name, Name] = {
    ("convt3d.launch", "_emulate"): ("convt3d.export.own_build", "refuse_to_emulate"),
    ("convt3d.export.own_build", "MACHINES"): (
        "convt3d.export.own_build",
        "MACHINES_WITHOUT_EMULATOR",
    ),
}
# A place of --init that a model takes and does not use.
IGNORED = "_"

HEADER = """A transposed 3-D convolution in hand-written CUDA: `ModelNew`, with all that it needs but torch.

Written by `{command}`, version {version}, from the package convt3d, where the same code is tested; change it there.
Licence: Apache-2.0.

Needs PyTorch 2.0 or newer and, for CUDA tensors, nvcc and a GPU of compute capability 8.0 or newer. torch compiles the
kernels on the first call. {machine} Differentiable to any order; every result is bitwise repeatable."""
EMULATOR = "CPU tensors run on a slow emulator of the same kernels, which takes a C++ compiler."
GPU = "There is no kernel for CPU tensors."


@dataclass(frozen=True)
class Module:
    """One module of the package, read and not imported."""

    name: str
    text: str
    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, ast.Import | ast.ImportFrom] = field(
        default_factory=dict
    )  # of what is not the package's
    aliases: dict[str, str | Name] = field(
        default_factory=dict
    )  # name here -> module, or name in it


def read(name: str) -> Module:
    """Reads a module of the package and sorts its top-level statements."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text()
    module = Module(name, text, ast.parse(text))
    for node in module.tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _sort_import(module, node)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            module.definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                module.definitions.update({each.id: node for each in _names(target)})
        elif isinstance(node, ast.AnnAssign):
            module.definitions.update({each.id: node for each in _names(node.target)})
        elif node is not module.tree.body[0]:  # the docstring
            module.effects.append(node)
    return module


def _names(node: ast.AST) -> Iterator[ast.Name]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Name))


def _sort_import(module: Module, node: ast.Import | ast.ImportFrom) -> None:
    origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    for alias in node.names:
        here = alias.asname or alias.name
        if origin.partition(".")[0] != "convt3d":
            if origin != "__future__":
                only = ast.Import([alias])
                single = ast.ImportFrom(origin, [alias], 0) if origin else only
                module.imports[here.partition(".")[0]] = single
        elif (PACKAGE.joinpath(*origin.split(".")[1:], alias.name)).with_suffix(".py").exists():
            module.aliases[here] = f"{origin}.{alias.name}"
        else:
            module.aliases[here] = (origin, alias.name)


class Writer:
    """Collects what ModelNew needs, then writes it.

    Args:
        emulator: whether the file is to run CPU tensors too.
    """

    def __init__(self, emulator: bool = True) -> None:
        self.substitutes = SUBSTITUTES if emulator else {**SUBSTITUTES, **WITHOUT_EMULATOR}
        self.modules = {name: read(name) for name in (*MODULES, "convt3d.ops")}
        self.taken: set[Name] = set()
        self.imports: dict[str, ast.Import | ast.ImportFrom] = {}
        for module in self.modules.values():
            for node in module.effects:
                self._take_what_it_needs(module, node)
        self._take(ROOT)

    def _take(self, name: Name) -> None:
        name = self.resolved(name)
        if name in self.taken:
            return
        self.taken.add(name)
        module = self.modules[name[0]]
        self._take_what_it_needs(module, module.definitions[name[1]])

    def resolved(self, name: Name) -> Name:
        """Returns where a name is defined, or what takes its place."""
        while True:
            if name in self.substitutes:
                name = self.substitutes[name]
            elif name[1] in self.modules[name[0]].definitions:
                return name
            else:  # imported there from elsewhere
                alias = self.modules[name[0]].aliases[name[1]]
                assert isinstance(alias, tuple), f"{name} is a module"
                name = alias

    def _take_what_it_needs(self, module: Module, node: ast.stmt) -> None:
        for _, name in self.references(module, node):
            self._take(name)
        for each in _names(node):
            if each.id in module.imports and each.id not in self.imports:
                self.imports[each.id] = module.imports[each.id]

    def references(self, module: Module, node: ast.AST) -> Iterator[tuple[ast.expr, Name]]:
        """Yields the expressions that stand for a definition of the package, and which."""
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
                alias = module.aliases.get(each.value.id)
                if isinstance(alias, str):
                    yield each, (alias, each.attr)
            elif isinstance(each, ast.Name):
                alias = module.aliases.get(each.id)
                if each.id in module.definitions:
                    yield each, (module.name, each.id)
                elif isinstance(alias, tuple):
                    yield each, alias

    def unique(self, name: Name) -> str:
        """Returns what a definition is called in the file."""
        module, here = self.resolved(name)
        if here == "SOURCE":
            return f"{module.rpartition('.')[2].upper()}_SOURCE"
        return here

    def sections(self) -> Iterator[str]:
        """Yields the modules' parts of the file."""
        for module in self.modules.values():
            nodes = [
                node
                for node in module.tree.body
                if node in module.effects or self._defines_something_taken(module, node)
            ]
            if nodes:
                pieces = [self._heading(module)]
                for before, node in zip([None, *nodes], nodes):
                    pieces += [_gap(before, node), self._text(module, node)]
                yield "".join(pieces)

    def _defines_something_taken(self, module: Module, node: ast.stmt) -> bool:
        return any(
            defining is node and (module.name, name) in self.taken
            for name, defining in module.definitions.items()
        )

    def _heading(self, module: Module) -> str:
        docstring = ast.get_docstring(module.tree) or ""
        title = f"---- {module.name.partition('.')[2]} "
        lines = [title.ljust(98, "-"), "", *docstring.splitlines()]
        return "\n".join(f"# {line}".rstrip() for line in lines)

    def _text(self, module: Module, node: ast.stmt) -> str:
        """Returns a statement as it stands in its module, the comment above it included, with the file's names."""
        lines = module.text.splitlines()
        found = sorted(self.references(module, node), key=lambda each: _position(each[0]))
        for expression, name in reversed(found):
            _replace(lines, expression, self.unique(name))
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        while lines[first - 2].startswith("#"):
            first -= 1
        return "\n".join(lines[first - 1 : node.end_lineno])

    def check_names(self) -> None:
        """Raises ValueError when two definitions have one name, or a local variable hides one."""
        owners: dict[str, Name] = {}
        for name in sorted(self.taken):
            other = owners.setdefault(self.unique(name), name)
            if other != name:
                raise ValueError(f"{other} and {name} would have one name in the file")
            module = self.modules[name[0]]
            for function in ast.walk(module.definitions[name[1]]):
                if isinstance(function, ast.FunctionDef):
                    self._check_locals(module, function)

    def _check_locals(self, module: Module, function: ast.FunctionDef) -> None:
        hiding = {each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg)}
        hiding |= {each.id for each in _names(function) if isinstance(each.ctx, ast.Store)}
        for expression, name in self.references(module, function):
            if isinstance(expression, ast.Attribute) and self.unique(name) in hiding:
                raise ValueError(
                    f"{module.name}, line {expression.lineno}: a local variable would hide "
                    f"{self.unique(name)}"
                )


def _gap(before: ast.stmt | None, node: ast.stmt) -> str:
    """Returns the line ends between two statements: two empty lines around what has a body."""
    if before is None or isinstance(before, _BLOCKS) or isinstance(node, _BLOCKS):
        return "\n\n\n"
    return "\n"


_BLOCKS = (ast.FunctionDef, ast.ClassDef, ast.For)


def _position(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _replace(lines: list[str], node: ast.expr, text: str) -> None:
    """Puts a text in the place of an expression of one line."""
    assert node.lineno == node.end_lineno and node.end_col_offset is not None
    line = lines[node.lineno - 1].encode()  # columns count bytes
    changed = line[: node.col_offset] + text.encode() + line[node.end_col_offset :]
    lines[node.lineno - 1] = changed.decode()


def with_arguments(model: str, names: Sequence[str]) -> str:
    """Returns the class ModelNew with the arguments of its constructor in another order.

    Args:
        model: the source text of the class.
        names: of the positional arguments; what is left out follows as keywords, and IGNORED takes a place in vain.

    Raises:
        ValueError: a name is unknown, repeated, or missing though it has no default.
    """
    constructor = next(
        each
        for each in ast.walk(ast.parse(model))
        if isinstance(each, ast.FunctionDef) and each.name == "__init__"
    )
    known = _parameters(constructor)
    for name in names:
        if name != IGNORED and name not in known:
            raise ValueError(f"--init has {name!r}, but must be of {[*known, IGNORED]}")
        if name != IGNORED and names.count(name) > 1:
            raise ValueError(f"--init has {name!r} more than once")
    missing = [name for name, (_, default) in known.items() if not default and name not in names]
    if missing:
        raise ValueError(f"--init lacks {missing}, which have no default")
    last_required = max(
        index for index, name in enumerate(names) if known.get(name, ("", " "))[1] == ""
    )
    signature = ["self"]
    for index, name in enumerate(names):
        annotation, default = known.get(name, ("object", "None"))
        argument = f"{name if name in known else f'ignored_{index}'}: {annotation}"
        signature.append(argument if index <= last_required else f"{argument} = {default}")
    others = [name for name in known if name not in names]
    signature += ["*"] if others else []
    signature += [f"{name}: {known[name][0]} = {known[name][1]}" for name in others]
    lines = model.splitlines()
    header = ["    def __init__(", *(f"        {each}," for each in signature), "    ) -> None:"]
    lines[constructor.lineno - 1 : constructor.body[0].lineno - 1] = header
    return "\n".join(lines)


def _parameters(function: ast.FunctionDef) -> dict[str, tuple[str, str]]:
    """Returns annotation and default, "" for none, of each parameter but self."""
    arguments = function.args.args[1:]
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + function.args.defaults
    return {
        each.arg: (
            ast.unparse(each.annotation) if each.annotation else "object",
            ast.unparse(default) if default else "",
        )
        for each, default in zip(arguments, defaults)
    }


def write(names: Sequence[str] = (), emulator: bool = True, command: str = "convt3d.export") -> str:
    """Returns the text of the one-file version.

    Args:
        names: of ModelNew's positional arguments, as for `with_arguments`; none keeps their order.
        emulator: whether the file is to run CPU tensors too.
        command: for the header.

    Raises:
        ValueError: as for `with_arguments`; or the package's names would collide in one file.
    """
    writer = Writer(emulator)
    writer.check_names()
    *sections, last = writer.sections()
    if names:
        heading, model = last.split("\n\n\n")
        last = f"{heading}\n\n\n{with_arguments(model, names)}"
    about = HEADER.format(
        command=command, version=_version(), machine=EMULATOR if emulator else GPU
    )
    paragraphs = [textwrap.fill(each, 118) for each in about.split("\n\n")]
    header = '"""' + "\n\n".join(paragraphs) + '\n"""'
    return "\n\n\n".join([f"{header}\n\n{_imports(writer)}", *sections, last]) + "\n"


def _imports(writer: Writer) -> str:
    """Returns the imports in two blocks, the standard library's and torch's."""
    modules: set[str] = set()
    names: dict[str, set[str]] = {}
    for node in writer.imports.values():
        for alias in node.names:
            if isinstance(node, ast.Import):
                modules.add(alias.name)
            else:
                names.setdefault(node.module or "", set()).add(alias.name)
    lines = [(name, f"import {name}") for name in sorted(modules)]
    lines += [
        (origin, f"from {origin} import {', '.join(sorted(names[origin]))}")
        for origin in sorted(names)
    ]
    blocks = [
        [line for name, line in lines if name.startswith("torch") == torchs]
        for torchs in (False, True)
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _version() -> str:
    module = ast.parse((PACKAGE / "__init__.py").read_text())
    return next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )
