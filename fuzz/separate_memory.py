"""Memory for the tensors of a case, each in an allocation of its own, so that a sanitizer sees where each one ends.

There is no poison and there are no guard bands: filling memory would hide from the sanitizer that nobody wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuzz.arena import BITS, BYTES, Placed

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class SeparateMemory:
    """Serves one case after the other; the interface is that of fuzz.arena.Arena.

    PyTorch must run with PYTORCH_NO_CUDA_MEMORY_CACHING=1, else tensors share an allocation after all.

    Args:
        device: CPU or CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inputs: list[tuple[Placed, Tensor]] = []

    def begin(self, inputs: Sequence[Placed]) -> list[Tensor]:
        """Forgets the last case and returns the inputs of the next as tensors."""
        self._inputs.clear()
        for placed in inputs:
            tensor = self.allocate(
                placed.name, placed.raw.shape, placed.dtype, placed.channels_last
            )
            size = BYTES[placed.dtype]
            # Signed integers of the same size: older versions of torch have no unsigned ones.
            bits = torch.from_numpy(placed.raw.view(f"int{8 * size}"))
            tensor.view(_INTEGERS[size]).copy_(bits)
            self._inputs.append((placed, tensor))
        return [tensor for _, tensor in self._inputs]

    def allocate(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        """Returns a tensor whose memory nobody has written."""
        memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        return torch.empty(
            tuple(shape), dtype=dtype, device=self._device, memory_format=memory_format
        )

    def finish(self, results: Mapping[str, Tensor]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Returns the raw bits of the results and which inputs were overwritten, in sentences."""
        damage = [
            f"{placed.name} was overwritten"
            for placed, tensor in self._inputs
            if not np.array_equal(_raw(tensor), placed.raw)
        ]
        return {name: _raw(tensor) for name, tensor in results.items()}, damage


def _raw(tensor: Tensor) -> NDArray[Any]:
    size = BYTES[tensor.dtype]
    in_order = tensor.detach().cpu().contiguous()
    bits: NDArray[Any] = in_order.view(_INTEGERS[size]).numpy().view(BITS[size])
    return bits
