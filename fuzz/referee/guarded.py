"""What an implementation allocates while it is watched: poisoned, and each between guard bands; runs in the worker.

Each allocation has memory of its own, and not a place in an arena: an implementation may keep a workspace from call to
call, which must stay its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuzz.arena import BITS, BYTES, POISON, TAIL_BYTES, poison

FRONT_BYTES = 512  # a multiple of what allocators align to


class _Allocation(NamedTuple):
    name: str
    memory: Tensor  # of bytes
    end: int  # of the tensor in it

    def holds(self, tensor: Tensor) -> bool:
        offset = tensor.data_ptr() - self.memory.data_ptr()
        return FRONT_BYTES <= offset < self.end


class Guarded:
    """The allocations of one run."""

    def __init__(self) -> None:
        self._allocations: list[_Allocation] = []

    def replace(self, fresh: Tensor) -> Tensor:
        """A tensor like a freshly allocated one, full of poison and between guard bands.

        Args:
            fresh: dense, of a dtype of fuzz.arena.BYTES; not empty.
        """
        end = FRONT_BYTES + fresh.numel() * BYTES[fresh.dtype]
        memory = torch.full((end + TAIL_BYTES,), POISON, dtype=torch.uint8, device=fresh.device)
        name = f"allocation {len(self._allocations) + 1}"
        self._allocations.append(_Allocation(name, memory, end))
        start = FRONT_BYTES // BYTES[fresh.dtype]
        # No view, which would share a version counter with others.
        empty = torch.empty(0, dtype=fresh.dtype, device=fresh.device)
        return empty.set_(memory.untyped_storage(), start, fresh.shape, fresh.stride())

    def damage(self) -> list[str]:
        """Where the guard bands were written to, a sentence each. Waits for the device."""
        sentences = []
        for name, memory, end in self._allocations:
            # Of a large allocation only the guards are fetched.
            front, tail = (part.cpu().numpy() for part in (memory[:FRONT_BYTES], memory[end:]))
            for guard, where in ((front, "before the start"), (tail, "after the end")):
                changed = np.flatnonzero(guard != POISON)
                if changed.size:
                    distance = FRONT_BYTES - 1 - changed[-1] if guard is front else changed[0]
                    sentences.append(
                        f"{changed.size} bytes written out of bounds, nearest {distance} bytes "
                        f"{where} of {name}"
                    )
        return sentences

    def unwritten(
        self, results: Mapping[str, Tensor], raw: Mapping[str, NDArray[Any]]
    ) -> list[str]:
        """Which results still hold the poison, a sentence each.

        Args:
            results: name -> tensor.
            raw: name -> its raw bits.
        """
        sentences = []
        for name, tensor in results.items():
            if not any(allocation.holds(tensor) for allocation in self._allocations):
                continue
            bits = raw[name]
            count = int(np.count_nonzero(bits == poison(np.dtype(BITS[bits.itemsize]))))
            if count:
                sentences.append(
                    f"{count} of {bits.size} elements of {name} still hold the poison: never "
                    "written, or computed from memory that was not"
                )
        return sentences
