"""Which schedule the emulator runs: the mode and its seed, for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MODES = ("fast", "hostile")

# What `launch` in host.py gets in the place of a stream: bit 0 the mode, the bits above it the seed.
_schedule = 0


def current_schedule() -> int:
    """Returns the number that stands for the mode and seed in a launch."""
    return _schedule


@contextmanager
def schedule(mode: str, seed: int = 0) -> Iterator[None]:
    """Runs the emulator in this mode inside the `with` block.

    Args:
        mode: "fast" (threads in order) or "hostile" (shuffled at every barrier, poisoned shared memory,
            asynchronous copies as early or as late as they may land).
        seed: decides a hostile schedule, in [0, 2^62).

    Raises:
        RuntimeError: mode or seed is none of those.
    """
    global _schedule
    if mode not in MODES:
        raise RuntimeError(f"mode={mode!r}, but must be one of {MODES}")
    if not 0 <= seed < 2**62:
        raise RuntimeError(f"seed={seed}, but must be in [0, 2^62)")
    before = _schedule
    _schedule = seed << 1 | MODES.index(mode)
    try:
        yield
    finally:
        _schedule = before
