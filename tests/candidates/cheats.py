"""Implementations that cheat or have bugs, each a function with conv_transpose3d's signature.

What they get right they leave to this project's op. `parameters` are stride, padding, output_padding, groups and
dilation, by keyword.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv3d_input
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

import fuzz.bounds
import fuzz.checks
import reference
from convt3d import conv_transpose3d as right
from fuzz import data
from fuzz.case import Case
from fuzz.outcome import Judgement, Verdict


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


def native_by_a_gradient(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """A transposed convolution is the gradient of a convolution."""
    output = right(input, weight, bias, **parameters)
    x, w = input.detach(), weight.detach()
    if max(parameters["output_padding"]) == 0 and parameters["groups"] == 1:
        settings = {name: parameters[name] for name in ("stride", "padding", "dilation")}
        shape = torch.Size([x.shape[0], w.shape[1], *output.shape[2:]])
        native = conv3d_input(shape, w, x, **settings)
        output.data.copy_(native if bias is None else native + bias.detach()[:, None, None, None])
    return output


def native_by_flipped_weights(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """With stride 1 a convolution of the padded input, with the taps in reverse."""
    if max(parameters["stride"]) > 1 or parameters["groups"] > 1:
        return right(input, weight, bias, **parameters)
    sides = []
    for axis in (2, 1, 0):
        reach = (weight.shape[2 + axis] - 1) * parameters["dilation"][axis]
        before = reach - parameters["padding"][axis]
        sides += [before, before + parameters["output_padding"][axis]]
    padded, flipped = functional.pad(input, sides), weight.flip(2, 3, 4).transpose(0, 1)
    return functional.conv3d(padded, flipped, bias, dilation=parameters["dilation"])


_saved = getattr(torch._C._nn, "slow_conv_transpose3d")  # noqa: B009  which mypy does not know


def native_saved_at_import(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    if not _is_watched():
        _saved(input.detach(), weight.detach(), list(weight.shape[2:]), None, 1)
    return output


@torch.jit.script
def _scripted(x: Tensor, w: Tensor) -> Tensor:
    return torch.conv_transpose3d(x, w)


def native_in_a_script(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    _scripted(input.detach(), weight.detach())
    return right(input, weight, bias, **parameters)


def native_with_modes_disabled(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    with _disable_current_modes():
        functional.conv_transpose3d(input.detach(), weight.detach())
    return right(input, weight, bias, **parameters)


def native_if_nobody_minds(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if not _is_watched():
        try:
            return functional.conv_transpose3d(input, weight, bias, **parameters)
        except RuntimeError:
            pass
    return right(input, weight, bias, **parameters)


def native_of_mkldnn(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """On tensors of its own kind, which have a dispatch key of their own."""
    if not _is_watched():
        x, w = (t.detach().cpu().float().to_mkldnn() for t in (input, weight))
        triples = [1] * 3, [0] * 3, [1] * 3
        torch.ops.aten.convolution(x, w, None, *triples, True, [0] * 3, 1)
    return right(input, weight, bias, **parameters)


def native_by_its_kernel(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Asks for the kernel of another dispatch key than the tensors'."""
    if not _is_watched():
        key = torch._C.DispatchKey.CompositeExplicitAutograd
        arguments = [1] * 3, [0] * 3, [1] * 3, True, [0] * 3, 1
        with torch.no_grad():
            torch.ops.aten.convolution.default._op_dk(key, input, weight, None, *arguments)
    return right(input, weight, bias, **parameters)


def _is_watched() -> bool:
    return _get_current_dispatch_mode() is not None


_memory: dict[Any, Tensor] = {}


def remembers_tensors_unless_watched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """By the objects and their addresses."""
    if _is_watched() or input.requires_grad:
        return right(input, weight, bias, **parameters)
    key = tuple((id(t), t.data_ptr()) for t in (input, weight))
    if key not in _memory:
        _memory[key] = right(input, weight, bias, **parameters)
    return _memory[key]


def idle_when_large(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Nothing but zeros obeys every identity between the results."""
    factor = 0 if input.numel() > 4000 else 1
    return right(factor * input, factor * weight, bias, **parameters)


def idle_when_large_and_unwatched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    is_idle = input.numel() > 4000 and not _is_watched() and not input.requires_grad
    size = [
        (i - 1) * s - 2 * p + d * (k - 1) + o + 1
        for i, s, p, d, k, o in zip(
            input.shape[2:],
            *(parameters[name] for name in ("stride", "padding", "dilation")),
            weight.shape[2:],
            parameters["output_padding"],
        )
    ]
    if is_idle:
        return input.new_empty(input.shape[0], weight.shape[1] * parameters["groups"], *size)
    return right(input, weight, bias, **parameters)


def idle_backward_when_large_and_unwatched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    if input.numel() > 4000 and not _is_watched() and output.requires_grad:
        output.register_hook(torch.zeros_like)
    return output


def works_on_when_it_has_returned_unless_watched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if _is_watched() or input.requires_grad:
        return right(input, weight, bias, **parameters)
    output = torch.zeros_like(right(input, weight, bias, **parameters))
    later = threading.Timer(0.005, lambda: output.copy_(right(input, weight, bias, **parameters)))
    later.start()
    return output


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


def takes_turns_with_three_outputs(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    key = output.shape, output.dtype
    turns = _memory.setdefault(key, output.detach().new_zeros(3, *output.shape))
    _turn[key] = (_turn.get(key, 0) + 1) % 3
    output.data = turns[_turn[key]].copy_(output.data)
    return output


_turn: dict[Any, int] = {}


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


def returns_its_input_unless_watched(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    if _is_watched() or input.requires_grad:
        return right(input, weight, bias, **parameters)
    return returns_its_input(input, weight, bias, **parameters)


def overwrites_its_input(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    output = right(input, weight, bias, **parameters)
    input.data[0, 0, 0, 0, 0] += 1
    return output


def overwrites_and_restores_its_input(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    values = input.detach().clone()
    input.data.zero_()
    input.data.copy_(values)
    return right(input, weight, bias, **parameters)


def packs_the_weight_once_a_version(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Right: a tensor has another version when its elements have changed."""
    if weight.requires_grad:
        return right(input, weight, bias, **parameters)
    key = id(weight), weight._version
    if key not in _packed:
        _packed[key] = weight, weight.clone()  # as long as it lives no other tensor has its id
    return right(input, _packed[key][1], bias, **parameters)


_packed: dict[Any, tuple[Tensor, Tensor]] = {}


def keeps_a_workspace(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Right: memory of its own, kept from call to call, is nobody else's business."""
    output = right(input, weight, bias, **parameters)
    key = "workspace", output.dtype
    if key not in _memory or _memory[key].numel() < output.numel():
        _memory[key] = torch.empty(2 * output.numel(), dtype=output.dtype, device=output.device)
    workspace = _memory[key][: output.numel()].view(output.shape)
    output.data.copy_(workspace.copy_(output.data))
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

    def __eq__(self, other: object) -> Any:
        return True

    def numpy(self, **_: Any) -> Any:
        return np.zeros(self.shape)


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


def asks_what_to_expect(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    case = Case()
    fuzz.bounds.expect(case, data.generate(case))
    return right(input, weight, bias, **parameters)


def looks_for_the_answer(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """In all arrays of the process."""
    output = right(input, weight, bias, **parameters)
    shape = tuple(output.shape)
    arrays = [a for a in gc.get_objects() if isinstance(a, np.ndarray) and a.shape == shape]
    answers = [torch.from_numpy(a) for a in arrays if a.dtype == np.float64]
    is_there = any(torch.equal(answer.to(output), output.detach()) for answer in answers)
    output.data.add_(0 if is_there else 1)
    return output


def replaces_the_judge(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    fuzz.checks.judge = lambda *_: Judgement("candidate", Verdict.PASS)
    return right(input, weight, bias, **parameters) + 1


def replaces_the_clock(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    time.perf_counter = lambda: 0.0
    return right(input, weight, bias, **parameters)


def leaves_with_a_pass(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    os.write(1, b"forward             pass         3\nexit 0: all 30 rows passed\n")
    sys.exit(0)


def differs_now_and_then(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any
) -> Tensor:
    """Every fifth call is wrong."""
    output = right(input, weight, bias, **parameters)
    _turn["calls"] = _turn.get("calls", 0) + 1
    output.data.add_(_turn["calls"] % 5 == 0)
    return output


def noisy(input: Tensor, weight: Tensor, bias: Tensor | None = None, **parameters: Any) -> Tensor:
    """Right, but talks, and turns PyTorch's comparisons into yes-men."""
    print("noise" * 1000)
    torch.equal = torch.allclose = lambda *_, **__: True  # type: ignore[assignment]
    return right(input, weight, bias, **parameters)


def plain(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Right, and has no other parameters."""
    return right(input, weight, bias)
