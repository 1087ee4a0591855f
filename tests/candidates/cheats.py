"""Implementations that cheat or have bugs, each a function with conv_transpose3d's signature.

What they get right they leave to this project's op. `parameters` are stride, padding, output_padding, groups and
dilation, by keyword.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

import reference
from convt3d import conv_transpose3d as right


def native_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return functional.conv_transpose3d(input, weight, bias, **parameters)


def native_backward(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return _WithNativeBackward.apply(input, weight, bias, parameters)  # type: ignore[no-any-return]


class _WithNativeBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, parameters: Any
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.parameters = parameters
        return right(input, weight, bias, **parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        input, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            output = functional.conv_transpose3d(input, weight, **ctx.parameters)
        grad_input, grad_weight = torch.autograd.grad(output, (input, weight), gradients)
        grad_bias = gradients[0].sum((0, 2, 3, 4)) if ctx.needs_input_grad[2] else None
        return grad_input, grad_weight, grad_bias, None


def native_in_a_thread(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Where a dispatch mode does not see it."""
    output = right(input, weight, bias, **parameters)

    def overwrite() -> None:
        with torch.no_grad():
            output.data.copy_(functional.conv_transpose3d(input, weight, bias, **parameters))

    thread = threading.Thread(target=overwrite)
    thread.start()
    thread.join()
    return output


def native_unless_watched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    is_watched = _get_current_dispatch_mode() is not None
    return (right if is_watched else functional.conv_transpose3d)(input, weight, bias, **parameters)


_library = torch.library.Library("cheats", "DEF")
_library.define("convolve(Tensor input, Tensor weight, int[] stride) -> Tensor")
_library.impl(
    "convolve",
    lambda input, weight, stride: functional.conv_transpose3d(input, weight, None, stride),
    "CompositeExplicitAutograd",
)


def native_in_an_operator(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Within an operator of its own, into which a dispatch mode does not look by itself."""
    output = right(input, weight, bias, **parameters)
    with torch.no_grad():
        torch.ops.cheats.convolve(input, weight, list(parameters["stride"]))
    return output


_memory: dict[Any, Tensor] = {}


def remembers_shapes(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    key = (input.shape, weight.shape, input.dtype, bias is None, *map(str, parameters.values()))
    if key not in _memory:
        _memory[key] = right(input, weight, bias, **parameters).detach().clone()
    output = right(input, weight, bias, **parameters)
    output.data.copy_(_memory[key])
    return output


def remembers_addresses(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    key = (input.data_ptr(), input.shape, weight.shape, input.dtype, *map(str, parameters.values()))
    output = right(input, weight, bias, **parameters)
    if key not in _memory:
        _memory[key] = output.detach().clone()
    output.data.copy_(_memory[key])
    return output


def reuses_its_output(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Returns the same memory for every output of a shape."""
    output = right(input, weight, bias, **parameters)
    kept = _memory.setdefault((output.shape, output.dtype), torch.zeros_like(output.detach()))
    output.data = kept.data.copy_(output.data)
    return output


def spoils_its_last_output(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    if "last" in _memory:
        _memory["last"].zero_()
    _memory["last"] = output.data
    return output


def returns_its_input(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """In the input's memory, where that has the output's shape."""
    output = right(input, weight, bias, **parameters)
    if output.shape == input.shape:
        output.data = input.data.copy_(output.data)
    return output


def writes_later(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Spoils its output a moment after it has returned."""
    output = right(input, weight, bias, **parameters)
    threading.Timer(0.01, output.data.zero_).start()
    return output


def overwrites_its_input(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    input.data[0, 0, 0, 0, 0] += 1
    return output


def zero_grad_weight(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return right(input, weight.detach() + 0 * weight, bias, **parameters)


def without_backward(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return right(input, weight, bias, **parameters).detach()


def crashes_on_stride(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if max(parameters["stride"]) > 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return right(input, weight, bias, **parameters)


def hangs_on_dilation(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    while max(parameters["dilation"]) > 1:
        time.sleep(0.1)
    return right(input, weight, bias, **parameters)


def refuses_groups(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if parameters["groups"] > 1:
        raise NotImplementedError("groups must be 1")
    return right(input, weight, bias, **parameters)


def exits_on_padding(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if max(parameters["padding"]) > 0:
        os._exit(0)
    return right(input, weight, bias, **parameters)


def writes_out_of_bounds(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """One element behind its output, where there is memory."""
    output = right(input, weight, bias, **parameters)
    behind = output.storage_offset() + output.numel()
    if behind < output.untyped_storage().nbytes() // output.element_size():
        output.data.as_strided((1,), (1,), behind).fill_(0)
    return output


def leaves_the_last_element(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    result = torch.empty_like(output.data)
    written = (output.numel() - 1,)
    result.as_strided(written, (1,)).copy_(output.data.as_strided(written, (1,)))
    output.data = result
    return output


def depends_on_the_batch(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Sums in another order where there are several samples."""
    return _summed(input, weight, bias, parameters, backwards=input.shape[0] > 1)


def depends_on_chance(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """As with atomic additions, the order of a sum differs from call to call."""
    _memory["calls"] = 1 - _memory.get("calls", torch.zeros(()))
    return _summed(input, weight, bias, parameters, backwards=bool(_memory["calls"]))


def depends_on_the_seed(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return _summed(input, weight, bias, parameters, backwards=float(torch.rand(())) < 0.5)


def _summed(
    input: Tensor, weight: Tensor, bias: Tensor | None, parameters: Any, backwards: bool
) -> Tensor:
    if backwards and parameters["groups"] == 1:
        input, weight = input.flip(1), weight.flip(0)
    return right(input, weight, bias, **parameters)


def returns_float64(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return right(input, weight, bias, **parameters).double()


class _Lazy(Tensor):
    """Could compute its values when somebody looks at them."""


def returns_a_subclass(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    return right(input, weight, bias, **parameters).as_subclass(_Lazy)


def asks_the_reference(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    arrays = [t.detach().cpu().double().numpy() for t in (input, weight)]
    reference.evaluate(arrays[0], arrays[1], None, arrays[0], reference.Parameters())
    return right(input, weight, bias, **parameters)


def noisy(input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any) -> Tensor:
    """Right, but talks, and turns PyTorch's comparisons into yes-men."""
    print("noise" * 1000)
    torch.equal = torch.allclose = lambda *_, **__: True  # type: ignore[assignment]
    return right(input, weight, bias, **parameters)


def plain(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Right, and has no other parameters."""
    return right(input, weight, bias)
