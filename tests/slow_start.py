"""Subjects that take long to get ready."""

import time

from tests.fake_subjects import convt3d, native, oracle

__all__ = ["convt3d", "native", "oracle"]


def warm_up(name: str, modes: tuple[str, ...]) -> None:
    time.sleep(8)
