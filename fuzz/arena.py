"""Memory for the tensors of a case, in which damage shows.

Tensors lie between guard bands, and every byte that is not an input starts as the poison. What still holds it
where a result should be was never written; what does not where no tensor lies was written out of bounds.

A case costs one copy to the device and one back: with many processes on a GPU each wait is expensive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# All ones are a NaN in every dtype, and one that no arithmetic makes: a computed NaN has a payload of zeros (x86) or a
# clear sign (CUDA).
POISON = 0xFF
GUARD_BYTES = 256
TAIL_BYTES = 4096  # guard behind the last tensor; what is written further away goes unseen
ALIGNMENT = 256  # PyTorch's allocator on CUDA aligns to 512, on CPU to 64
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "tf32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
_CHANNELS_LAST = (0, 2, 3, 4, 1)  # order of the axes in memory
# How much of the allocator's free memory is dirtied before an op runs: more than a case's results take.
DIRTY_BYTES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18)
# By bytes of an element, and bytes of an element by dtype (torch 2.0 has no dtype.itemsize).
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
BYTES = {torch.float64: 8, torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}


class ArenaFull(Exception):
    """A tensor does not fit; `Arena.grow` makes room, for the case to be run again."""


class Placed(NamedTuple):
    """An input to be placed.

    Args:
        name: for messages.
        raw: raw bits, C-contiguous in NCDHW order.
        dtype: what the bits mean.
        channels_last: whether the tensor shall lie in memory as NDHWC.
    """

    name: str
    raw: NDArray[Any]
    dtype: torch.dtype
    channels_last: bool


class _Block(NamedTuple):
    name: str
    start: int  # in bytes from the arena's start
    end: int
    content: NDArray[np.uint8] | None  # of an input; it must not change


class Arena:
    """Memory on one device that serves one case after the other.

    Args:
        device: CPU or CUDA device.
        capacity_bytes: what it can hold at first; untouched pages of a CPU arena cost nothing.
    """

    def __init__(self, device: torch.device, capacity_bytes: int = 64 << 20) -> None:
        self._device = device
        self._create(capacity_bytes)

    def grow(self) -> None:
        """Doubles the capacity; the tensors of the last case are lost."""
        self._create(2 * self._memory.numel())

    def begin(self, inputs: Sequence[Placed]) -> list[Tensor]:
        """Forgets the last case, poisons what it used, and returns the inputs of the next as tensors.

        Raises:
            ArenaFull: they do not fit.
        """
        self._poisoned = self._used()
        self._memory[: self._poisoned].fill_(POISON)
        self._blocks.clear()
        tensors = []
        for name, raw, dtype, channels_last in inputs:
            in_memory = np.ascontiguousarray(
                raw.transpose(_CHANNELS_LAST) if channels_last else raw
            )
            content = in_memory.reshape(-1).view(np.uint8)
            tensors.append(self._allocate(name, raw.shape, dtype, channels_last, content))
        image = self._image[: self._used()]
        image.fill_(POISON)
        for block in self._blocks:
            image.numpy()[block.start : block.end] = block.content
        if self._device.type == "cuda":
            self._memory[: self._used()].copy_(image, non_blocking=True)
        return tensors

    def allocate(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        """Returns a tensor full of poison between guard bands.

        Raises:
            ArenaFull: it does not fit.
        """
        return self._allocate(name, shape, dtype, channels_last, None)

    def finish(self, results: Mapping[str, Tensor]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Returns the raw bits of the results and what damage was done to the arena, in sentences.

        Waits for the device.

        Args:
            results: name -> tensor, of this arena or in memory of its own.
        """
        outside = [tensor for tensor in results.values() if not self._holds(tensor)]
        image = self._fetch(outside)
        damage = [*self._broken_guards(image), *self._changed_inputs(image)]
        raw = {}
        end = self._used()
        for name, tensor in results.items():
            if self._holds(tensor):
                start = tensor.data_ptr() - self._memory.data_ptr()
                raw[name] = _bits_at(image, start, tensor, tensor.stride())
                unwritten = int(np.count_nonzero(raw[name] == poison(raw[name].dtype)))
                if unwritten:
                    damage.append(
                        f"{unwritten} of {raw[name].size} elements of {name} still hold the poison: "
                        "never written, or computed from memory that was not"
                    )
            else:
                raw[name] = _bits_at(image, end, tensor, _strides(tensor.shape, False))
                end += raw[name].nbytes
        return raw, damage

    def _create(self, capacity_bytes: int) -> None:
        self._memory = torch.empty(capacity_bytes, dtype=torch.uint8, device=self._device)
        self._typed = {torch.uint8: self._memory}
        # What is uploaded from: pinned, or on a CPU the arena itself.
        self._image = self._memory
        if self._device.type == "cuda":
            self._image = torch.empty(capacity_bytes, dtype=torch.uint8, pin_memory=True)
        self._poisoned = 0  # bytes [0, this) hold the poison or a block; what lies behind, anything
        self._blocks: list[_Block] = []

    def _used(self) -> int:
        return self._blocks[-1].end + TAIL_BYTES if self._blocks else 0

    def _holds(self, tensor: Tensor) -> bool:
        return 0 <= tensor.data_ptr() - self._memory.data_ptr() < self._used()

    def _allocate(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        channels_last: bool,
        content: NDArray[np.uint8] | None,
    ) -> Tensor:
        free = self._blocks[-1].end if self._blocks else 0
        start = -(-(free + GUARD_BYTES) // ALIGNMENT) * ALIGNMENT
        end = start + prod(shape) * BYTES[dtype]
        if end + TAIL_BYTES > self._memory.numel():
            raise ArenaFull(f"{name} of shape {tuple(shape)} does not fit")
        if end + TAIL_BYTES > self._poisoned:
            self._memory[self._poisoned : end + TAIL_BYTES].fill_(POISON)
            self._poisoned = end + TAIL_BYTES
        self._blocks.append(_Block(name, start, end, content))
        if dtype not in self._typed:
            self._typed[dtype] = self._memory.view(dtype)
        return torch.as_strided(
            self._typed[dtype], shape, _strides(shape, channels_last), start // BYTES[dtype]
        )

    def _fetch(self, outside: Sequence[Tensor]) -> NDArray[np.uint8]:
        """The bytes of the arena, then those of tensors outside it."""
        own = [_bytes_in_order(tensor) for tensor in outside]
        used = self._memory[: self._used()]
        return (torch.cat([used, *own]) if own else used).cpu().numpy()

    def _broken_guards(self, image: NDArray[np.uint8]) -> list[str]:
        damage = []
        free, before = 0, "the start"
        for name, start, end, _ in [*self._blocks, _Block("the end", self._used(), 0, None)]:
            changed = np.flatnonzero(image[free:start] != POISON)
            if changed.size:
                damage.append(
                    f"{changed.size} bytes written out of bounds, first {changed[0]} bytes after the "
                    f"end of {before}, before {name}"
                )
            free, before = end, name
        return damage

    def _changed_inputs(self, image: NDArray[np.uint8]) -> list[str]:
        return [
            f"{block.name} was overwritten"
            for block in self._blocks
            if block.content is not None
            and not np.array_equal(image[block.start : block.end], block.content)
        ]


def _bits_at(
    image: NDArray[np.uint8], start: int, tensor: Tensor, strides: Sequence[int]
) -> NDArray[Any]:
    size = BYTES[tensor.dtype]
    in_bytes = [stride * size for stride in strides]
    return np.ndarray(tuple(tensor.shape), BITS[size], image.data, start, in_bytes).copy()


def _bytes_in_order(tensor: Tensor) -> Tensor:
    # A view of one element is contiguous whatever its stride, and of another dtype only with a stride of 1.
    dense = tensor.detach().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def _strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    order = _CHANNELS_LAST if channels_last else range(len(shape))
    strides = [1] * len(shape)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def dirty_free_memory(device: torch.device) -> None:
    """Leaves NaN and large numbers in memory that the allocator will hand out next."""
    dirty = [
        torch.full((size // 4,), value, device=device)
        for size in DIRTY_BYTES
        for value in (float("nan"), 1e30)
    ]
    del dirty


def poison(dtype: np.dtype[Any]) -> Any:
    """The poison as a value of an unsigned integer dtype."""
    return np.full(dtype.itemsize, POISON, np.uint8).view(dtype)[0]
