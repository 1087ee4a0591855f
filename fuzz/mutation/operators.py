"""The automatic mutants: operators over the kernel strings, at every place where they apply.

An operator looks at one node of the syntax tree that is computed at run time, and yields what could stand there
instead. What the compiler must know (a constexpr, an array's size, a template's argument) cannot be switched at run
time; where a named constant is used in an expression, that use is mutated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fuzz.mutation.alike import ALIKE, LIKE_MEMBERS
from fuzz.mutation.kernel_text import (
    MODULES,
    Function,
    functions,
    is_compile_time,
    parse,
    structs,
    walk,
)
from fuzz.mutation.mutant import EXPRESSION, STATEMENTS, Change, KernelMutant
from fuzz.mutation.shown import around, joined, shorten

# C++ that the operators' texts use; stands before params.py, within namespace convt3d.
HELPERS = """
template <typename narrow_t, typename T, typename = std::enable_if_t<std::is_integral_v<T>>>
inline T narrowed(T value) { return static_cast<T>(static_cast<narrow_t>(value)); }
template <typename scalar_t, typename acc_t>
inline acc_t rounded_to(acc_t value) { return acc_t(to_acc(from_acc<scalar_t>(value))); }
// Towards zero, where from_acc rounds to nearest.
template <typename scalar_t, typename acc_t>
inline scalar_t truncated(acc_t value) {
  scalar_t rounded = from_acc<scalar_t>(value);
  if constexpr (sizeof(scalar_t) == 2)
    if (to_acc(rounded) < -std::abs(value) || to_acc(rounded) > std::abs(value)) --rounded.bits;
  return rounded;
}
"""

RELATIONAL = {
    "<": ("<=", "!=", ">="),
    "<=": ("<", "==", ">"),
    ">": (">=", "!=", "<="),
    ">=": (">", "==", "<"),
    "==": ("!=", "<=", ">="),
    "!=": ("==", "<", ">"),
}
ARITHMETIC = {"+": "-", "-": "+", "*": "+", "/": "*", "%": "/"}
ASSIGNMENT = {"+=": "-=", "-=": "+=", "*=": "+=", "/=": "*=", "%=": "/="}
UPDATE = {"++": "--", "--": "++"}

# Arrays over the three axes: a number in their subscript is an axis, elsewhere a constant.
OVER_AXES = ("axis", "space", "weight_tap", "size")
# A name of one axis: size_d, phase_h, my_w, jd, w.
_AXIS_NAME = re.compile(r"((?:\w+_)?j?)([dhw])")
_A_STRIDE = r"\.(?:outer|channel|space\[\w\]|weight_\w+(?:\[\w\])?|bias_stride)\)$"
_OFFSET_OR_COORDINATE = (
    r"\.(?:outer|channel|space|weight_\w+|bias_stride)\b"
    r"|stride|padding|dilation|residue|source_\w*step|step_w|\bbase|\.base"
)
# A pointer as a condition has a value of its own type in its place.
_POINTERS = {"true": "static_cast<const void*>(&p)", "false": "nullptr"}


class Found(NamedTuple):
    """What could stand in the place of a node.

    Args:
        wrong: the text.
        shown: how to write the change for people: from, to.
        kind: as for Edit.
        node: what is replaced.
    """

    wrong: str
    shown: tuple[str, str]
    kind: str
    node: Any


Operator = Callable[[Function, Any], Iterator[Found]]


def automatic_mutants(file: str, source: str | None = None) -> list[KernelMutant]:
    """Returns all mutants of a kernel string, in the order of their places, by operator.

    Args:
        file: one of kernel_text.MODULES.
        source: text in the place of that module's SOURCE, for tests.
    """
    found: list[KernelMutant] = []
    seen: dict[str, int] = {}
    for function in functions(file, source):
        for operator, apply in OPERATORS.items():
            for node in _run_time_nodes(function):
                for wrong, shown, kind, target in apply(function, node):
                    change = Change(file, target.start_byte, target.end_byte, wrong, kind)
                    before, after = map(shorten, shown)
                    name = f"{file} {function.name}: {operator}: {before} -> {after}"
                    seen[name] = seen.get(name, 0) + 1
                    if seen[name] > 1:
                        name += f" (#{seen[name]})"
                    found.append(KernelMutant(name, operator, (change,)))
    return found


def compile_time_places(file: str, source: str | None = None) -> list[str]:
    """Returns what no operator can reach because the compiler must know it: texts with a number or a constant."""
    source = MODULES[file].SOURCE if source is None else source
    places: list[str] = []

    def visit(node: Any) -> None:
        for child in node.named_children:
            text = source[child.start_byte : child.end_byte]
            if not is_compile_time(child):
                visit(child)
            elif child.type in ("struct_specifier", "parameter_list"):
                pass  # no value is computed there
            elif re.search(r"\b(?:\d+|k[A-Z]\w+|true|false)\b", text):
                places.append(f"{file}:{child.start_point[0] + 1} {shorten(text)}")

    visit(parse(source))
    return places


def _run_time_nodes(function: Function) -> Iterator[Any]:
    return walk(function.node.child_by_field_name("body"))


def _relational(function: Function, node: Any) -> Iterator[Found]:
    if node.type == "binary_expression":
        left, sign, right = _binary(function, node)
        for other in RELATIONAL.get(sign, ()):
            yield _swapped(function, node, left, sign, other, right)


def _arithmetic(function: Function, node: Any) -> Iterator[Found]:
    if node.type == "binary_expression":
        left, sign, right = _binary(function, node)
        if sign in ARITHMETIC:
            yield _swapped(function, node, left, sign, ARITHMETIC[sign], right)
    elif node.type == "assignment_expression":
        left, sign, right = _binary(function, node)
        if sign in ASSIGNMENT:
            yield _swapped(function, node, left, sign, ASSIGNMENT[sign], right)
    elif node.type == "update_expression":
        text = function.text(node)
        other = UPDATE[text[:2]] + text[2:]
        yield Found(other, (text, other), EXPRESSION, node)
    elif node.type == "unary_expression" and function.text(node).startswith("-"):
        text = function.text(node)
        yield Found(text[1:], (text, text[1:]), EXPRESSION, node)


def _constant(function: Function, node: Any) -> Iterator[Found]:
    text = function.text(node)
    is_number = node.type == "number_literal" and text.isdigit()
    is_named = node.type == "identifier" and re.fullmatch(r"k[A-Z]\w*", text)
    if not (is_number or is_named) or text in ("kForward", "kOfInput"):
        return
    if is_number and _is_axis_subscript(function, node):
        return
    for other in (f"{text} + 1", f"{text} - 1"):
        shown = str(int(text) + (1 if "+" in other else -1)) if is_number else f"({other})"
        yield Found(
            other, (around(function, node), around(function, node, shown)), EXPRESSION, node
        )


def _index(function: Function, node: Any) -> Iterator[Found]:
    text = function.text(node)
    if node.type == "number_literal" and _is_axis_subscript(function, node):
        for other in sorted({"0", "1", "2"} - {text}):
            shown = (around(function, node), around(function, node, other))
            yield Found(other, shown, EXPRESSION, node)
    elif node.type == "identifier" and _is_axis_subscript(function, node):
        other = f"2 - {text}"
        yield Found(
            other, (around(function, node), around(function, node, other)), EXPRESSION, node
        )
    elif node.type == "identifier" and (match := _AXIS_NAME.fullmatch(text)):
        for letter in "dhw".replace(match[2], ""):
            other = match[1] + letter
            if _is_declared_alike(function, node, text, other):
                shown = (around(function, node), around(function, node, other))
                yield Found(other, shown, EXPRESSION, node)
    elif node.type == "subscript_expression":
        yield from _swapped_subscripts(function, node)


def _swapped_subscripts(function: Function, node: Any) -> Iterator[Found]:
    """a[i][j] -> a[j][i]."""
    inner = node.child_by_field_name("argument")
    if inner.type != "subscript_expression":
        return
    array = function.text(inner.child_by_field_name("argument"))
    first, second = (
        function.text(part.child_by_field_name("indices"))[1:-1] for part in (inner, node)
    )
    if first != second:
        other = f"{array}[{second}][{first}]"
        yield Found(other, (function.text(node), other), EXPRESSION, node)


def _statement(function: Function, node: Any) -> Iterator[Found]:
    if _called(function, node) in ("barrier", "async_wait", "async_commit"):
        return
    is_statement = node.type in ("expression_statement", "continue_statement", "break_statement")
    if is_statement or (node.type == "return_statement" and _is_conditional(node)):
        yield Found("", (function.text(node), "nothing"), STATEMENTS, node)


def _barrier(function: Function, node: Any) -> Iterator[Found]:
    if _called(function, node) == "barrier":
        yield Found("", ("barrier();", "nothing"), STATEMENTS, node)


def _wait(function: Function, node: Any) -> Iterator[Found]:
    if _called(function, node) in ("async_wait", "async_commit"):
        yield Found("", (function.text(node), "nothing"), STATEMENTS, node)


def _bounds_check(function: Function, node: Any) -> Iterator[Found]:
    if node.type == "if_statement":
        condition = node.child_by_field_name("condition").named_children[0]
        is_pointer = function.type_of(condition).endswith("pointer")
        for other in ("true", "false"):
            shown = (f"if ({function.text(condition)})", f"if ({other})")
            yield Found(_POINTERS[other] if is_pointer else other, shown, EXPRESSION, condition)
    elif node.type == "binary_expression":
        left, sign, right = _binary(function, node)
        if sign in ("&&", "||"):
            for kept in (left, right):
                yield Found(f"bool({kept})", (joined(left, sign, right), kept), EXPRESSION, node)
    elif node.type == "conditional_expression":
        condition = function.text(node.child_by_field_name("condition"))
        for branch, other in (("consequence", "true"), ("alternative", "false")):
            kept = function.text(node.child_by_field_name(branch))
            shown = (f"{condition} ? ...", f"{other} ? ...")
            yield Found(kept, shown, EXPRESSION, node)


def _narrow_integer(function: Function, node: Any) -> Iterator[Found]:
    """The largest wide sums and products, and each product in a sum: what can overflow; and strides by themselves.

    Offsets and coordinates are cut to 32 bits: a small tensor may lie far apart, and parameters may be large. Counts
    are cut to 16 bits, as the emulator can not compute 2^31 of anything: cases that have more than 32,767 must see it.
    """
    if node.type == "parenthesized_expression" or not _can_overflow(function, node):
        return
    parent = node.parent
    while parent.type == "parenthesized_expression":
        parent = parent.parent
    is_product = node.type == "binary_expression" and _binary(function, node)[1] == "*"
    is_term = parent.type == "binary_expression" and _binary(function, parent)[1] in "+-"
    if (is_product and is_term) or not _can_overflow(function, parent):
        text = function.text(node)
        narrow = "int32_t" if re.search(_OFFSET_OR_COORDINATE, text) else "int16_t"
        shown = (text, f"{narrow}({shorten(text, 48)})")
        yield Found(f"narrowed<{narrow}>({text})", shown, EXPRESSION, node)


def _narrow_accumulator(function: Function, node: Any) -> Iterator[Found]:
    if node.type != "assignment_expression" or function.type_of(node) != "acc":
        return
    left, sign, right = _binary(function, node)
    total = f"{left} + ({right})" if sign == "+=" else right
    roundings = {"float": "float", "scalar_t": "rounded_to<scalar_t, acc_t>"}
    if left.startswith("shared."):  # what is staged is a scalar_t still
        del roundings["scalar_t"]
    for name, function_name in roundings.items():
        wrong = f"{left} = {function_name}({total})"
        yield Found(wrong, (function.text(node), f"... rounded to {name}"), EXPRESSION, node)


def _rounding(function: Function, node: Any) -> Iterator[Found]:
    if node.type == "call_expression":
        called = function.text(node.child_by_field_name("function"))
        if called.startswith("from_acc<"):
            arguments = function.text(node.child_by_field_name("arguments"))
            other = "truncated" + called[len("from_acc") :] + arguments
            yield Found(other, (function.text(node), other), EXPRESSION, node)


def _stride_or_channel(function: Function, node: Any) -> Iterator[Found]:
    """A member, or a local name, in the place of one that it is easily taken for."""
    text = function.text(node)
    if node.type == "field_expression":
        struct = function.type_of(node.child_by_field_name("argument"))
        field = node.child_by_field_name("field")
        member = function.text(field)
        for other in _like_members(struct, member):
            wrong = text[: len(text) - len(member)] + other
            shown = (around(function, field), around(function, field, other))
            yield Found(wrong, shown, EXPRESSION, node)
    elif node.type == "identifier":
        for pair in ALIKE:
            if text in pair:
                other = pair[1 - pair.index(text)]
                if _is_declared_alike(function, node, text, other):
                    shown = (around(function, node), around(function, node, other))
                    yield Found(other, shown, EXPRESSION, node)


def _like_members(struct: str, member: str) -> tuple[str, ...]:
    members = structs().get(struct, {})
    if (struct, member) in LIKE_MEMBERS:
        return LIKE_MEMBERS[struct, member]
    if member not in members or struct.endswith("Shared"):
        return ()
    names = [name for name in members if members[name] == members[member]]
    other = names[(names.index(member) + 1) % len(names)]
    return () if other == member else (other,)


# Name -> operator, in the order of the report.
OPERATORS: dict[str, Operator] = {
    "relational": _relational,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "index or axis": _index,
    "statement": _statement,
    "barrier": _barrier,
    "wait": _wait,
    "bounds check": _bounds_check,
    "narrow integer": _narrow_integer,
    "narrow accumulator": _narrow_accumulator,
    "rounding": _rounding,
    "stride or channel": _stride_or_channel,
}


def _binary(function: Function, node: Any) -> tuple[str, str, str]:
    left, sign, right = (
        function.text(node.child_by_field_name(part)) for part in ("left", "operator", "right")
    )
    return left, sign, right


def _swapped(function: Function, node: Any, left: str, sign: str, other: str, right: str) -> Found:
    is_assignment = node.type == "assignment_expression"
    wrong = f"{left} {other} ({right})" if is_assignment else f"({left}) {other} ({right})"
    shown = (joined(left, sign, right), joined(left, other, right))
    return Found(wrong, shown, EXPRESSION, node)


def _called(function: Function, node: Any) -> str:
    """The function that a statement calls, without template arguments; empty if it is no call."""
    if node.type != "expression_statement" or not node.named_children:
        return ""
    call = node.named_children[0]
    if call.type != "call_expression":
        return ""
    return function.text(call.child_by_field_name("function")).partition("<")[0]


def _is_conditional(statement: Any) -> bool:
    """Whether a return leaves only under a condition, so that the function ends well without it."""
    parent = statement.parent
    if parent.type == "compound_statement":
        parent = parent.parent
    return bool(parent.type == "if_statement")


def _is_axis_subscript(function: Function, node: Any) -> bool:
    arguments = node.parent
    if arguments.type != "subscript_argument_list" or len(arguments.named_children) != 1:
        return False
    array = function.text(arguments.parent.child_by_field_name("argument"))
    return re.split(r"[.>]", array)[-1] in OVER_AXES


def _is_declared_alike(function: Function, node: Any, name: str, other: str) -> bool:
    """Whether `node` is a use of `name`, and `other` is declared before it with the same type."""
    declared = function.declared
    if name not in declared or other not in declared or _is_declaration(node):
        return False
    (_, own_type), (where, other_type) = declared[name], declared[other]
    return where < node.start_byte and own_type == other_type and _sees(function, node, where)


def _sees(function: Function, node: Any, where: int) -> bool:
    """Whether a declaration at an offset is in scope at a node; an initialiser does not see its own."""
    scope = node.parent
    while scope is not None:
        if scope.type == "declaration" and scope.start_byte == where:
            return False
        if scope.start_byte <= where and scope.type in (
            "compound_statement",
            "for_statement",
            "function_definition",
            "lambda_expression",
        ):
            break
        scope = scope.parent
    if scope is None:
        return False
    inner = [
        child
        for child in walk(scope, into_compile_time=True)
        if child.type in ("compound_statement", "for_statement", "lambda_expression")
        and child.id != scope.id
        and child.start_byte <= where < child.end_byte
    ]
    return not inner


def _is_declaration(node: Any) -> bool:
    parent = node.parent
    return bool(
        (parent.type == "init_declarator" and parent.child_by_field_name("declarator") == node)
        or parent.type in ("declaration", "parameter_declaration", "reference_declarator")
    )


def _can_overflow(function: Function, node: Any) -> bool:
    """Whether 32 bits may be too few for a node; a quotient or a remainder is smaller than what it is made of."""
    while node.type == "parenthesized_expression":
        node = node.named_children[0]
    if function.type_of(node) != "wide":
        return False
    if node.type == "binary_expression":
        return _binary(function, node)[1] in "+-*"
    is_cast = node.type == "call_expression" and function.text(node).startswith("static_cast<")
    return is_cast and re.search(_A_STRIDE, function.text(node)) is not None
