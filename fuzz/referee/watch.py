"""Watches what an implementation does: which operators it calls, and what it does to memory; runs in the worker.

Note [Native]
PyTorch's own convolution is looked for twice. Watch, a TorchDispatchMode around forward and backward, sees every
operator of its thread, also those called within the implementation's own registered operators and by autograd.
native_forbidden replaces the convolutions in the dispatcher of the whole process by functions that raise: no thread
and no way of disabling a mode gets past it, and nothing else is changed, so that it stays in place while time is
measured. Not seen: what calls a library past the dispatcher (cuDNN through ctypes, at::native in C++), and what
another process does.

Note [Memory]
What the implementation gets from aten::empty and its like while it is watched is poisoned and lies between guard bands
(fuzz.referee.guarded); what it keeps of that is watched in the first run only. Not seen: out-of-bounds reads; writes
further out than the guard bands; memory that comes from elsewhere (cudaMalloc, the allocator itself, numpy); what an
operator of PyTorch allocates within itself. For these the allocator's free memory is dirtied first, so that what was
never written is at least not zero.

An operator of PyTorch that writes to an input is noted even if the old values are back at the end; a kernel that does
so is not seen.
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

from fuzz.arena import BYTES
from fuzz.referee.guarded import Guarded

# Namespaces of operators that are PyTorch's, not the implementation's own.
_PYTORCH = re.compile(
    r"_?(aten|prims?|mkldnn\w*|onednn|quantized|mkl|xnnpack|prepacked|profiler|inductor|vulkan\w*)"
)
_CONVOLUTION = re.compile(r"conv(?!ert)")
# Allowed, for a convolution may well be made of them; but a reader should know.
_LIBRARY = re.compile(r"(mm|bmm|addmm\w*|baddbmm|addbmm|mv|addmv|dot|linear|col2im|im2col)(_out)?")
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Of the operators that a schema says write to an argument, these change no element.
_OF_METADATA = re.compile(
    r"(detach|requires_grad|as_strided|squeeze|unsqueeze|transpose|t|swapaxes|swapdims|set)_"
    r"|record_stream|set_data|retain_grad"
)
# Where kernels of convolutions live: mkldnn's own kind of tensors, and quantized ones, have keys of their own.
_FORBIDDEN_KEYS = ("CPU", "CUDA", "MkldnnCPU", "QuantizedCPU", "QuantizedCUDA")


class Watch(TorchDispatchMode):
    """Notes what its thread calls of convolutions and libraries, and what it does to memory.

    Args:
        device: where the implementation runs.
        inputs: the memory in which the inputs lie, and nothing else.
    """

    def __init__(self, device: torch.device, inputs: Tensor) -> None:
        super().__init__()
        self._device = device
        self._inputs = inputs.untyped_storage().data_ptr()
        self.stage = "forward"
        self.native: dict[str, None] = {}  # ordered: operator and stage, a sentence each
        self.library: dict[str, None] = {}
        self.written: dict[str, None] = {}  # sentences on operators that wrote to an input
        self.guarded = Guarded()

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
        self._note_writes(func, args, kwargs)
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

    def _note_writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        schema = func._schema
        if not schema.is_mutable or _OF_METADATA.fullmatch(schema.name.partition("::")[2]):
            return
        for position, argument in enumerate(schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if is_written and isinstance(tensor, Tensor) and self._is_input(tensor):
                    self.written[f"an input was overwritten by {schema.name}"] = None

    def _is_input(self, tensor: Tensor) -> bool:
        return (
            tensor.layout is torch.strided
            and tensor.untyped_storage().data_ptr() == self._inputs
            and tensor.numel() > 0
        )

    def _guarded(self, fresh: Tensor) -> Tensor:
        """A poisoned tensor in the place of a freshly allocated one, between guard bands where it can be."""
        if fresh.layout is not torch.strided or not fresh.numel():
            return fresh
        if (
            fresh.device == self._device
            and fresh.dtype in BYTES
            and _is_dense(fresh)
            and not (fresh.device.type == "cpu" and fresh.is_pinned())
        ):
            return self.guarded.replace(fresh)
        if fresh.dtype.is_floating_point:
            fresh.fill_(float("nan"))
        return fresh


def _is_dense(tensor: Tensor) -> bool:
    """Whether no two elements share memory, and there are no gaps."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride()), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


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
                for key in _FORBIDDEN_KEYS:
                    libraries[namespace].impl(operator, forbidden(name), key)
    try:
        yield called
    finally:
        # torch 2.0 has no such method yet, and does it when the object goes.
        for library in libraries.values():
            getattr(library, "_destroy", lambda: None)()
