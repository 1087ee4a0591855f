"""How a change is written for people: short, in one line, and the same as long as the code around it is."""

from __future__ import annotations

import re
from typing import Any

from fuzz.mutation.kernel_text import Function

_STATEMENTS = frozenset(
    {
        "compound_statement",
        "declaration",
        "expression_statement",
        "for_statement",
        "if_statement",
        "return_statement",
    }
)


def joined(left: str, sign: str, right: str) -> str:
    """Both operands, of a long one only what stands next to the operator."""
    left, right = plain(left), plain(right)
    left = left if len(left) <= 32 else "..." + left[-29:]
    right = right if len(right) <= 32 else right[:29] + "..."
    return f"{left} {sign} {right}"


def around(function: Function, node: Any, instead: str | None = None) -> str:
    """A node, or what stands instead, within the smallest expression that is long enough to be recognised."""
    outer = node
    while outer.end_byte - outer.start_byte < 20 and outer.parent.type not in _STATEMENTS:
        outer = outer.parent
    before = plain(function.source[outer.start_byte : node.start_byte])
    after = plain(function.source[node.end_byte : outer.end_byte])
    middle = function.text(node) if instead is None else instead
    whole = plain(before + middle + after)
    return whole if len(whole) <= 64 else before[-24:] + middle + after[:24]


def plain(text: str) -> str:
    """One line, without the casts that every offset has."""
    text = re.sub(r"//.*", "", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"static_cast<(?:index_t|int64_t)>\(([^()]*)\)", r"\1", text)


def shorten(text: str, most: int = 72) -> str:
    text = plain(text).strip()
    return text if len(text) <= most else f"{text[: most // 2 - 2]} ... {text[-(most // 2 - 3) :]}"
