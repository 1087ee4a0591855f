"""Types of arguments of the command line, with messages that say what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def positive_int(text: str) -> int:
    return _at_least(1, text)


def count(text: str) -> int:
    """An integer that is not negative."""
    return _at_least(0, text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}, but must be a number above 0")
    return value


def names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A parser of names that are separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        for name in given:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r}, but must be of {', '.join(allowed)}")
        return given

    return parse


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r}, but must be an integer of at least {least}")
    return value
