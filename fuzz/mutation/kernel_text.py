"""The kernel strings as syntax trees, and just enough of their types for operators to know what they change.

Types are words: "wide" for what is 64 bits in some instantiation (int64_t, index_t), "int", "bool", "acc", "scalar",
"pointer" and "const pointer" (to void), the name of a struct, each followed by a "*" for every pointer or array level;
"" when unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convt3d import build, plan
from convt3d.kernels import gather, params, weight

MODULES = {"params.py": params, "gather.py": gather, "weight.py": weight}
# Strings of convt3d/kernels that are not mutated, and why.
LEFT_OUT = {
    "primitives.py": "CUDA's machine layer: the emulator, which runs the mutants, has its own",
    **dict.fromkeys(
        (
            "columns.py",
            "lines.py",
            "matrix.py",
            "matrix_load.py",
            "matrix_multiply.py",
            "matrix_params.py",
            "matrix_store.py",
            "matrix_warpgroup.py",
        ),
        "the emulator chooses these kernels for no call: only cases that name such a plan run them",
    ),
}
MUTATED_PARTS = tuple(part for part in build.PARTS if not part.startswith(tuple(plan.TILE_KERNELS)))

# tree-sitter knows C++, not CUDA: these are blanked, character by character, before it parses.
_NOT_CPP = re.compile(
    r"\b__(?:global|device|host)__\b|\b__launch_bounds__\([^()]*\)|^#pragma.*$", re.MULTILINE
)
# What the compiler needs to know; a switch cannot reach it.
COMPILE_TIME = frozenset(
    {
        "alias_declaration",
        "array_declarator",
        "parameter_list",
        "sizeof_expression",
        "static_assert_declaration",
        "struct_specifier",
        "template_argument_list",
        "template_parameter_list",
        "type_descriptor",
    }
)
_TYPE_WORDS = {
    "int64_t": "wide",
    "index_t": "wide",
    "int32_t": "int",
    "int": "int",
    "bool": "bool",
    "acc_t": "acc",
    "Accumulator": "acc",  # Accumulator<scalar_t>::type
    "scalar_t": "scalar",
    "void": "pointer",  # only ever void*
    "char": "char",
}
# Functions of the machine layer, which have no string of their own here.
_MACHINE_LAYER = {
    "thread_index": "int",
    "block_index": "wide",
    "to_acc": "acc",
    "from_acc": "scalar",
    "launch": "char*",
}
_ORDER = {"bool": 0, "int": 1, "wide": 2, "scalar": 3, "acc": 4}


@dataclass(frozen=True)
class Function:
    """One function of a kernel string.

    Args:
        file: name of the module's file.
        name: of the function.
        node: its definition in the syntax tree.
        source: the SOURCE that it stands in.
    """

    file: str
    name: str
    node: Any
    source: str

    def text(self, node: Any) -> str:
        """The text of a node."""
        return self.source[node.start_byte : node.end_byte]

    @functools.cached_property
    def declared(self) -> Mapping[str, tuple[int, str]]:
        """Local names and parameters: name -> where it is declared, and its type."""
        found: dict[str, tuple[int, str]] = {}
        for node in walk(self.node, into_compile_time=True):
            if node.type in ("declaration", "parameter_declaration"):
                for name, where, type_name in _declared_names(self.source, node):
                    found.setdefault(name, (where, type_name))
        return found

    def type_of(self, node: Any) -> str:
        """The type of an expression, as a word; "" when unknown."""
        return _type_of(self, node)


def parse(source: str) -> Any:
    """Returns the root of a SOURCE's syntax tree.

    Raises:
        RuntimeError: tree-sitter is missing, or the text is not what it knows as C++.
    """
    try:
        import tree_sitter
        import tree_sitter_cpp
    except ImportError as error:
        raise RuntimeError(
            "automatic mutants need tree-sitter and tree-sitter-cpp; pip install '.[dev]'"
        ) from error
    if not source.isascii():
        raise RuntimeError("a kernel string must be ASCII, so that bytes count as characters")
    blanked = _NOT_CPP.sub(lambda match: " " * len(match[0]), source)
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))
    root = parser.parse(blanked.encode()).root_node
    for node in walk(root, into_compile_time=True):
        if node.is_error or node.is_missing:
            text = source[node.start_byte : node.end_byte][:80]
            raise RuntimeError(f"line {node.start_point[0] + 1}: not understood: {text!r}")
    return root


def functions(file: str, source: str | None = None) -> list[Function]:
    """Every function with a body, in order.

    Args:
        file: one of MODULES.
        source: text in the place of that module's SOURCE, for tests.
    """
    source = MODULES[file].SOURCE if source is None else source
    found = []
    for node in walk(parse(source), into_compile_time=True):
        if node.type == "function_definition":
            declarator = node.child_by_field_name("declarator")
            while declarator.type != "function_declarator":
                declarator = declarator.child_by_field_name("declarator") or declarator.children[-1]
            name = declarator.child_by_field_name("declarator")
            found.append(Function(file, source[name.start_byte : name.end_byte], node, source))
    return found


def walk(node: Any, into_compile_time: bool = False) -> Iterator[Any]:
    """Yields a node and all below it, but for what the compiler must know."""
    yield node
    for child in node.named_children:
        if into_compile_time or not is_compile_time(child):
            yield from walk(child, into_compile_time)


def is_compile_time(node: Any) -> bool:
    """Whether the compiler must know the values in a node."""
    if node.type in COMPILE_TIME:
        return True
    return node.type == "declaration" and any(
        child.type == "type_qualifier" and child.text == b"constexpr" for child in node.children
    )


def _declared_names(source: str, node: Any) -> Iterator[tuple[str, int, str]]:
    word = node.child_by_field_name("type")
    if word is None:
        return
    base = _type_word(source[word.start_byte : word.end_byte])
    if base == "pointer" and any(child.text == b"const" for child in node.children):
        base = "const pointer"
    for declarator in node.children_by_field_name("declarator"):
        value = declarator.child_by_field_name("value")
        if word.type == "placeholder_type_specifier" and value is not None:
            base = _auto_type(source[value.start_byte : value.end_byte])
        stars, target = "", declarator
        while target.type not in ("identifier", "field_identifier"):
            stars += "*" if target.type in ("pointer_declarator", "array_declarator") else ""
            inner = target.child_by_field_name("declarator")
            target = inner if inner is not None else target.named_children[-1]
            if not target.named_children and target.type not in ("identifier", "field_identifier"):
                return
        name = source[target.start_byte : target.end_byte]
        yield name, node.start_byte, base + (stars if not base.endswith("pointer") else "")


def _type_word(text: str) -> str:
    name = re.sub(r"<.*|\bconst\b|\btypename\b|\s", "", text, flags=re.DOTALL)
    return _TYPE_WORDS.get(name, name)


def _auto_type(initialiser: str) -> str:
    """Of `auto& shared = *static_cast<T<...>*>(...)`: T; of others unknown."""
    match = re.match(r"\*\s*static_cast<(\w+)", initialiser)
    return _type_word(match[1]) if match else ""


@functools.cache
def structs() -> Mapping[str, Mapping[str, str]]:
    """The structs of all kernel strings: name -> member -> type, in the order of declaration."""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES.values():
        for node in walk(parse(module.SOURCE), into_compile_time=True):
            body = node.child_by_field_name("body") if node.type == "struct_specifier" else None
            if body is None:
                continue
            name = node.child_by_field_name("name")
            members = found.setdefault(_type_word(name.text.decode()), {})
            for field in body.named_children:
                if field.type == "field_declaration":
                    for member, _, type_name in _declared_names(module.SOURCE, field):
                        members[member] = type_name
    return found


@functools.cache
def _returned() -> Mapping[str, str]:
    """What the functions of all kernel strings return."""
    found = dict(_MACHINE_LAYER)
    for file, module in MODULES.items():
        for function in functions(file):
            word = function.node.child_by_field_name("type")
            found[function.name] = _type_word(module.SOURCE[word.start_byte : word.end_byte])
    return found


def _type_of(function: Function, node: Any) -> str:
    text = function.text(node)
    if node.type == "number_literal":
        return "int"
    if node.type == "identifier":
        if re.match(r"k[A-Z]", text):
            return "int"
        return function.declared.get(text, (0, ""))[1]
    if node.type in ("parenthesized_expression", "condition_clause"):
        return _type_of(function, node.named_children[0])
    if node.type == "binary_expression":
        return _type_of_binary(function, node)
    if node.type == "conditional_expression":
        return _type_of(function, node.child_by_field_name("consequence"))
    if node.type == "unary_expression":
        return _type_of(function, node.child_by_field_name("argument"))
    if node.type in ("assignment_expression", "compound_assignment_expression"):
        return _type_of(function, node.child_by_field_name("left"))
    if node.type in ("subscript_expression", "pointer_expression"):
        inner = _type_of(function, node.child_by_field_name("argument"))
        if node.type == "pointer_expression" and text.startswith("&"):
            return inner + "*"
        return inner[:-1] if inner.endswith("*") else ""
    if node.type == "field_expression":
        members = structs().get(_type_of(function, node.child_by_field_name("argument")), {})
        return members.get(function.text(node.child_by_field_name("field")), "")
    if node.type == "call_expression":
        return _type_of_call(function, node)
    return ""


def _type_of_binary(function: Function, node: Any) -> str:
    if function.text(node.child_by_field_name("operator")) in "<= >= == != && ||":
        return "bool"
    left, right = (_type_of(function, node.child_by_field_name(side)) for side in ("left", "right"))
    if left.endswith("*"):
        return left
    if left not in _ORDER or right not in _ORDER:
        return ""
    return max(left, right, key=_ORDER.__getitem__)


def _type_of_call(function: Function, node: Any) -> str:
    called = function.text(node.child_by_field_name("function"))
    cast = re.fullmatch(r"static_cast<(?:const )?(\w+)(\*?)>", called)
    if cast:
        return _type_word(cast[1]) + cast[2]
    name = called.partition("<")[0]
    return _TYPE_WORDS.get(name) or _returned().get(name, "")
