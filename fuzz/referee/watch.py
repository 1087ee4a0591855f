"""Watches what an implementation does: which operators it calls, and what it does to memory; runs in the worker.

Note [Native]
PyTorch's own convolution is looked for twice. Watch, a TorchDispatchMode around forward and backward, sees every
operator of its thread, also those called within the implementation's own registered operators and by autograd.
native_forbidden replaces the convolutions in the dispatcher of the whole process by functions that raise: no thread
and no way of disabling a mode gets past it, and nothing else is changed, so that it stays in place while time is
measured. What calls a library past the dispatcher (cuDNN through ctypes, say) is not seen.

Note [Memory]
What the implementation gets from aten::empty and its like while it is watched lies in an arena, poisoned and between
guard bands. Not seen: out-of-bounds reads; writes further out than the guard bands; memory that comes from
elsewhere (cudaMalloc, the allocator itself, numpy); what an operator of PyTorch allocates within itself. For these
the allocator's free memory is dirtied first, so that what was never written is at least not zero.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fuzz.arena import BYTES, Arena, ArenaFull

# Namespaces of operators that are PyTorch's, not the implementation's own.
_PYTORCH = re.compile(
    r"_?(aten|prims?|mkldnn\w*|onednn|quantized|mkl|xnnpack|prepacked|profiler|inductor|vulkan\w*)"
)
_CONVOLUTION = re.compile(r"conv(?!ert)")
# Allowed, for a convolution may well be made of them; but a reader should know.
_LIBRARY = re.compile(r"(mm|bmm|addmm\w*|baddbmm|addbmm|mv|addmv|dot|linear|col2im|im2col)(_out)?")
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
DIRTY_BYTES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18)


class Watch(TorchDispatchMode):
    """Notes the convolutions and library calls of its thread, and puts what is allocated into an arena."""

    def __init__(self, arena: Arena, device: torch.device) -> None:
        super().__init__()
        self._arena = arena
        self._device = device
        self._allocated = 0
        self.stage = "forward"
        self.native: dict[str, None] = {}  # ordered: operator and stage, a sentence each
        self.library: dict[str, None] = {}
        self.lacks_room = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if not _PYTORCH.fullmatch(namespace):
            return self._call_watched(func, args, kwargs)
        if _CONVOLUTION.search(name):
            self.native[f"{namespace}::{name} called in {self.stage}"] = None
        elif _LIBRARY.fullmatch(name):
            self.library[f"{namespace}::{name}"] = None
        result = func(*args, **kwargs)
        if name in _EMPTY and isinstance(result, Tensor):
            return self._guarded(result)
        return result

    def _call_watched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator of the implementation's own with this mode on within it, where that is possible."""
        devices = {t.device.type for t in args if isinstance(t, Tensor)} or {self._device.type}
        backend = "CUDA" if "cuda" in devices else "CPU"
        # Only a key that was registered can be asked for; any other is a segmentation fault.
        for key in (backend, "CompositeExplicitAutograd", "CompositeImplicitAutograd"):
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                with self:
                    return func._op_dk(getattr(torch._C.DispatchKey, key), *args, **kwargs)
        return func(*args, **kwargs)

    def _guarded(self, fresh: Tensor) -> Tensor:
        """A poisoned tensor like a freshly allocated one, in the arena if that can hold it."""
        if fresh.layout is not torch.strided or not fresh.numel():
            return fresh
        is_plain = fresh.is_contiguous()
        is_last = fresh.dim() == 5 and fresh.is_contiguous(memory_format=torch.channels_last_3d)
        if (
            fresh.device == self._device
            and fresh.dtype in BYTES
            and (is_plain or is_last)
            and not (fresh.device.type == "cpu" and fresh.is_pinned())
        ):
            self._allocated += 1
            name = f"allocation {self._allocated}"
            try:
                return self._arena.allocate(name, fresh.shape, fresh.dtype, not is_plain)
            except ArenaFull:
                self.lacks_room = True
        if fresh.dtype.is_floating_point:
            fresh.fill_(float("nan"))
        return fresh


@contextmanager
def native_forbidden() -> Iterator[dict[str, None]]:
    """Makes every convolution of PyTorch's raise, in every thread; yields the names of those that were called."""
    called: dict[str, None] = {}

    def forbidden(name: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            called[f"{name.partition('.')[0]} called"] = None
            raise RuntimeError(f"{name} is PyTorch's own convolution, which must not be called")

        return refuse

    libraries: dict[str, torch.library.Library] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        for name in torch._C._dispatch_get_all_op_names():
            namespace, _, operator = name.partition("::")
            if _PYTORCH.fullmatch(namespace) and _CONVOLUTION.search(operator):
                if namespace not in libraries:
                    libraries[namespace] = torch.library.Library(namespace, "IMPL")
                for key in ("CPU", "CUDA"):
                    libraries[namespace].impl(operator, forbidden(name), key)
    try:
        yield called
    finally:
        # torch 2.0 has no such method yet, and does it when the object goes.
        for library in libraries.values():
            getattr(library, "_destroy", lambda: None)()


def dirty_free_memory(device: torch.device) -> None:
    """Leaves NaN and large numbers in memory that the allocator will hand out next."""
    dirty = [
        torch.full((size // 4,), value, device=device)
        for size in DIRTY_BYTES
        for value in (float("nan"), 1e30)
    ]
    del dirty
