"""Memory for the tensors of a case that lie far apart: one axis of each has a stride above 2^31 elements.

A 64-bit plan that computes an offset in 32 bits somewhere is right on every small tensor whose elements lie side by
side. Here it reads or writes somewhere else. Address space that nobody touches costs nothing, so that a tensor of a
few elements may span terabytes.

A tensor is a row of slabs, one a coordinate of its far axis, each contiguous and between guard bands.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuzz.arena import ALIGNMENT, BITS, BYTES, GUARD_BYTES, POISON, Placed, poison
from fuzz.machine import reserve_address_space

# In elements. Cut to 32 bits, signed, it is a large negative number.
FAR_STRIDE = 2**31 + 2**12
# Each takes a page and more of memory, and 16 GiB of the 128 TiB of address space that a process has.
MOST_SLABS = 512


class _Block(NamedTuple):
    name: str
    slabs: NDArray[np.uint8]  # (far positions, guard + slab + guard) bytes
    memory: mmap.mmap
    tensor: Tensor
    content: NDArray[Any] | None  # raw bits of an input; it must not change


class FarMemory:
    """Serves one case; the interface is that of fuzz.arena.Arena.

    Args:
        first_axis: the far axis of the first tensor, counted among its axes of 2 to MOST_SLABS; it moves on with
            every tensor, so that over many cases each axis of each tensor is the far one.
    """

    def __init__(self, first_axis: int) -> None:
        self._next_axis = first_axis
        self._blocks: list[_Block] = []

    def begin(self, inputs: Sequence[Placed]) -> list[Tensor]:
        """Returns the inputs as tensors.

        Raises:
            OSError: there is no address space left.
        """
        return [self._place(name, raw.shape, dtype, raw) for name, raw, dtype, _ in inputs]

    def allocate(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        """Returns a tensor full of poison; without five axes it is a workspace or grad_bias, and contiguous."""
        return self._place(name, shape, dtype, None)

    def finish(self, results: Mapping[str, Tensor]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Returns the raw bits of the results and what damage was done, in sentences."""
        damage = []
        for block in self._blocks:
            guards = np.concatenate([block.slabs[:, :GUARD_BYTES], block.slabs[:, -GUARD_BYTES:]])
            if (changed := np.count_nonzero(guards != POISON)) > 0:
                damage.append(f"{changed} bytes written out of bounds, around {block.name}")
            if block.content is not None and not np.array_equal(_raw(block.tensor), block.content):
                damage.append(f"{block.name} was overwritten")
        raw = {name: _raw(tensor) for name, tensor in results.items()}
        for name, bits in raw.items():
            if unwritten := np.count_nonzero(bits == poison(bits.dtype)):
                damage.append(
                    f"{unwritten} of {bits.size} elements of {name} still hold the poison: "
                    "never written, or computed from memory that was not"
                )
        return raw, damage

    def _place(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, content: NDArray[Any] | None
    ) -> Tensor:
        size = BYTES[dtype]
        count, strides = self._lay_out(name, shape)
        slab_bytes = prod(shape) // count * size
        first = ALIGNMENT + GUARD_BYTES
        memory = reserve_address_space((count - 1) * FAR_STRIDE * size + slab_bytes + 2 * first)
        slabs: NDArray[np.uint8] = np.ndarray(
            (count, slab_bytes + 2 * GUARD_BYTES),
            np.uint8,
            memory,  # type: ignore[arg-type]
            first - GUARD_BYTES,
            (FAR_STRIDE * size, 1),
        )
        slabs.fill(POISON)
        flat = torch.frombuffer(memory, dtype=dtype)
        tensor = torch.as_strided(flat, tuple(shape), strides, first // size)
        if content is not None:
            _view(tensor)[...] = content
        self._blocks.append(_Block(name, slabs, memory, tensor, content))
        return tensor

    def _lay_out(self, name: str, shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Number of slabs and strides of a tensor; a slab is contiguous."""
        able = [axis for axis, size in enumerate(shape) if 1 < size <= MOST_SLABS]
        far = -1
        if able and (len(shape) == 5 or name == "bias"):
            far = able[self._next_axis % len(able)]
            self._next_axis += 1
        strides, step = [FAR_STRIDE] * len(shape), 1
        for axis in reversed(range(len(shape))):
            if axis != far:
                strides[axis] = step
                step *= shape[axis]
        return 1 if far < 0 else shape[far], tuple(strides)


def _view(tensor: Tensor) -> NDArray[Any]:
    """The raw bits of a tensor in their place; NumPy has no bfloat16."""
    bits = BITS[BYTES[tensor.dtype]]
    detached = tensor.detach()
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[BYTES[tensor.dtype]]
    return detached.view(as_integers).numpy().view(bits)


def _raw(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(_view(tensor))
