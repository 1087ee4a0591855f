"""Which schedule the emulator runs: the mode and its seed, for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

# Those that run a launch in a process of its own, under a sanitizer.
SANITIZERS = ("asan", "tsan")
MODES = ("fast", "hostile", *SANITIZERS)
# Who finds a fault of a kernel, and starts the message about it. What anyone else says is a launch that is refused.
FINDERS = ("emulator", "asan", "ubsan", "tsan")


class EmulatorError(RuntimeError):
    """A fault of a kernel that the emulator or a sanitizer found; the message starts with one of FINDERS."""

    is_defect: ClassVar[bool] = True


_mode = "fast"
# What `launch` in host.py gets in the place of a stream: bit 0 says hostile, the bits above it the seed.
_schedule = 0


def current_mode() -> str:
    """Returns the mode that launches run in, one of MODES."""
    return _mode


def current_schedule() -> int:
    """Returns the number that stands for the schedule in a launch."""
    return _schedule


@contextmanager
def schedule(mode: str, seed: int = 0) -> Iterator[None]:
    """Runs the emulator in this mode inside the `with` block.

    Args:
        mode: "fast" (threads in order), "hostile" (shuffled at every barrier, poisoned shared memory,
            asynchronous copies as early or as late as they may land), or the same schedule under "asan"
            (AddressSanitizer and UndefinedBehaviorSanitizer) or "tsan" (ThreadSanitizer).
        seed: decides the schedule, unless it is fast; in [0, 2^62).

    Raises:
        RuntimeError: mode or seed is none of those.
    """
    global _mode, _schedule
    if mode not in MODES:
        raise RuntimeError(f"mode={mode!r}, but must be one of {MODES}")
    if not 0 <= seed < 2**62:
        raise RuntimeError(f"seed={seed}, but must be in [0, 2^62)")
    before = _mode, _schedule
    _mode, _schedule = mode, seed << 1 | (mode != "fast")
    try:
        yield
    finally:
        _mode, _schedule = before
