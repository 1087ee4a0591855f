"""The derivatives of the three operators, in reverse and in forward mode, each made of the other two.

All three are linear in each operand, so that, with x the input, w the weight and g the gradient of the output,

    forward(x, w, b)    d x = grad_input(g, w)   d w = grad_weight(x, g)   d b = its grad_bias
    grad_input(g, w)    d g = forward(v, w)      d w = grad_weight(v, g)
    grad_weight(x, g)   d x = grad_input(g, v)   d g = forward(x, v, bias=v_bias)

and any order of derivative, in any mix of modes, needs no further kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from convt3d import launch
from convt3d.ops import guards
from convt3d.ops.primitives import (
    LIBRARY,
    OPERATORS,
    as_tuples,
    plain_forward,
    plain_grad_input,
    plain_grad_weight,
)


def run_forward(input: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Any) -> Any:
    """Calls the forward operator, by the short way if it is open; parameters are tuples."""
    if guards.is_plain(input, weight, bias):
        return _Forward.run((input, weight, bias), parameters)
    return OPERATORS.forward(input, weight, bias, *parameters)


def run_grad_input(grad_output: Tensor, weight: Tensor, *rest: Any) -> Any:
    """Calls the operator grad_input likewise."""
    if guards.is_plain(grad_output, weight):
        return _GradInput.run((grad_output, weight), rest)
    return OPERATORS.grad_input(grad_output, weight, *rest)


def run_grad_weight(input: Tensor, grad_output: Tensor, *rest: Any) -> Any:
    """Calls the operator grad_weight likewise."""
    if guards.is_plain(input, grad_output):
        return _GradWeight.run((input, grad_output), rest)
    return OPERATORS.grad_weight(input, grad_output, *rest)


class _Node(torch.autograd.function._SingleLevelFunction):
    """Records an operator in the graph of autograd.

    torch.autograd.Function, which this is the base class of, is called before the transforms of torch.func and applies
    all of them. An operator's Autograd kernel, which applies this one, is called by each transform in its turn.
    """

    apply: Any  # of the base class; its stubs know nothing of it

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[Any, ...]:
        """Tells compiled autograd nodes apart, as torch.autograd.Function does, which alone has it."""
        return (ctx._autograd_function_id,)

    name: str
    operands: int  # tensors that it takes before the rest
    plain: Callable[..., Any]  # its kernel for plain tensors

    @classmethod
    def run(cls, operands: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> Any:
        """Runs the operator on plain tensors; see Note [The short way]."""
        if guards.is_recorded(*operands):
            return cls.apply(*operands, *rest, True)
        return cls.plain(*operands, *rest)

    @classmethod
    def record(cls, *arguments: Any) -> Any:
        """Runs the operator on any tensors; the Autograd kernel."""
        operands, rest = arguments[: cls.operands], as_tuples(arguments[cls.operands :])
        if guards.is_plain(*operands):
            return cls.run(operands, rest)
        if not torch._C._are_functorch_transforms_active():
            return cls.apply(*operands, *rest, False)
        with enable_single_level_autograd_function():
            return cls.apply(*operands, *rest, False)


def _run_below(node: type[_Node], is_plain: bool, *arguments: Any) -> Any:
    """Runs what is below a node: its kernel if the tensors are plain."""
    if is_plain:
        return node.plain(*arguments)
    with _below():
        return getattr(OPERATORS, node.name)(*arguments)


def _below() -> AbstractContextManager[Any]:
    """Within it an operator runs on what is below this node: the next transform if there is one, else the kernels."""
    below = guards.below_autograd()
    if not torch._C._are_functorch_transforms_active():
        return below
    stack = ExitStack()  # a node runs without gradients, but the next transform computes its own
    stack.enter_context(torch.enable_grad())
    stack.enter_context(forward_ad._set_fwd_grad_enabled(True))
    stack.enter_context(below)
    return stack


def _wanted(ctx: Any, operands: int) -> list[bool]:
    """Whether the gradient of each of the first operands is asked for in this backward."""
    # An edge for each operand that is a tensor; only the last, the bias, may be None.
    edges = [*ctx.next_functions, *((None, 0),) * operands]
    needs = ctx.needs_input_grad[:operands]
    return [need and _is_reached(edge[0]) for need, edge in zip(needs, edges)]


def _is_reached(node: Any) -> bool:
    """Whether this backward comes to a node; torch.autograd.grad leaves out what its inputs do not need."""
    with suppress(RuntimeError):  # raised for a leaf that is one of its inputs
        return bool(torch._C._will_engine_execute_node(node))
    return True


def _linked(result: Tensor | None, operand: Tensor) -> Tensor | None:
    """The derivative with respect to an operand, marked as one that may depend on that operand.

    It does not, but where the graph is kept native's requires a gradient, and code that goes on to differentiate it
    must not fail because the other operands are constants.
    """
    if result is None or not torch.is_grad_enabled() or result.requires_grad:
        return result
    if (
        torch._C._are_functorch_transforms_active()
    ):  # gradients of constants are zero there, no error
        return result
    operand = torch._C._functorch.unwrap_if_dead(operand)  # left of a transform that is over
    return _Link.apply(result, operand) if operand.requires_grad else result


class _Link(_Node):
    @staticmethod
    def forward(ctx: Any, result: Tensor, operand: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.kind = result.shape, {"dtype": result.dtype, "device": result.device}
        with _below():
            return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, result: Any, _: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            if result is None:
                return torch.zeros(ctx.shape, **ctx.kind)
            return result.view_as(result)


class _Forward(_Node):
    name, operands, plain = "forward", 3, staticmethod(plain_forward)

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        *parameters, is_plain = rest
        _save(ctx, is_plain, input, weight)
        ctx.parameters = tuple(parameters)
        output = _run_below(_Forward, is_plain, input, weight, bias, *parameters)
        ctx.output_shape = output.shape
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:
        of_input = of_weight = of_bias = None
        if gradient is not None:
            input, weight = ctx.saved_tensors
            wants_input, wants_weight, wants_bias = _wanted(ctx, 3)
            # Not as the incoming gradient lies, which may be one number expanded to all elements.
            rest = (*ctx.parameters, launch.is_channels_last(input, weight))
            if wants_input:
                of_input = run_grad_input(gradient, weight, *rest)
            if wants_weight or wants_bias:
                of_weight, of_bias = run_grad_weight(
                    input, gradient, weight.shape[2:], *rest, wants_weight, wants_bias
                )
            of_weight = of_weight if wants_weight else None
            of_bias = of_bias if wants_bias else None
            of_input, of_weight = _linked(of_input, input), _linked(of_weight, weight)
            of_bias = _linked(_linked(of_bias, input), weight)
        return (of_input, of_weight, of_bias, *(None,) * len(ctx.parameters), None)

    @staticmethod
    def jvp(ctx: Any, input: Any, weight: Any, bias: Any, *_: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            at_input, at_weight = _primals(ctx)
            terms = []
            if input is not None:
                terms.append(OPERATORS.forward(input, at_weight, None, *ctx.parameters))
            if weight is not None:
                terms.append(OPERATORS.forward(at_input, weight, None, *ctx.parameters))
            if bias is not None:
                terms.append(bias[:, None, None, None].expand(ctx.output_shape))
            return _total(terms)


class _GradInput(_Node):
    name, operands, plain = "grad_input", 2, staticmethod(plain_grad_input)

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, *rest: Any) -> Any:
        *ctx.rest, is_plain = rest
        _save(ctx, is_plain, grad_output, weight)
        return _run_below(_GradInput, is_plain, grad_output, weight, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:
        of_grad_output = of_weight = None
        if gradient is not None:
            grad_output, weight = ctx.saved_tensors
            wants_grad_output, wants_weight = _wanted(ctx, 2)
            if wants_grad_output:
                of_grad_output = run_forward(gradient, weight, None, *ctx.rest[:-1])
            if wants_weight:
                of_weight, _ = run_grad_weight(
                    gradient, grad_output, weight.shape[2:], *ctx.rest, True, False
                )
            of_grad_output = _linked(of_grad_output, grad_output)
            of_weight = _linked(of_weight, weight)
        return (of_grad_output, of_weight, *(None,) * len(ctx.rest), None)

    @staticmethod
    def jvp(ctx: Any, grad_output: Any, weight: Any, *_: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            at_grad_output, at_weight = _primals(ctx)
            terms = []
            if grad_output is not None:
                terms.append(OPERATORS.grad_input(grad_output, at_weight, *ctx.rest))
            if weight is not None:
                terms.append(OPERATORS.grad_input(at_grad_output, weight, *ctx.rest))
            return _total(terms)


class _GradWeight(_Node):
    name, operands, plain = "grad_weight", 2, staticmethod(plain_grad_weight)

    @staticmethod
    def forward(ctx: Any, input: Tensor, grad_output: Tensor, *rest: Any) -> Any:
        *ctx.rest, is_plain = rest
        _save(ctx, is_plain, input, grad_output)
        return _run_below(_GradWeight, is_plain, input, grad_output, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor | None, of_bias: Tensor | None) -> Any:
        input, grad_output = ctx.saved_tensors
        _, *parameters, channels_last, want_weight, want_bias = ctx.rest
        of_weight = of_weight if want_weight else None
        of_bias = of_bias if want_bias else None
        wants_input, wants_grad_output = _wanted(ctx, 2)
        of_input = of_grad_output = None
        if wants_input and of_weight is not None:
            of_input = run_grad_input(grad_output, of_weight, *parameters, channels_last)
        if wants_grad_output and of_weight is not None:
            of_grad_output = run_forward(input, of_weight, of_bias, *parameters)
        elif wants_grad_output and of_bias is not None:
            of_grad_output = of_bias[:, None, None, None].expand(grad_output.shape)
        return (
            _linked(of_input, input),
            _linked(of_grad_output, grad_output),
            *(None,) * len(ctx.rest),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, input: Any, grad_output: Any, *_: Any) -> Any:
        *rest, want_weight, want_bias = ctx.rest
        with forward_ad._set_fwd_grad_enabled(True):
            at_input, at_grad_output = _primals(ctx)
            of_weights, of_bias = [], None
            if input is not None:
                of_weight, _ = OPERATORS.grad_weight(
                    input, at_grad_output, *rest, want_weight, False
                )
                of_weights.append(of_weight)
            if grad_output is not None:
                of_weight, of_bias = OPERATORS.grad_weight(at_input, grad_output, *ctx.rest)
                of_weights.append(of_weight)
            else:  # the gradient of the bias does not depend on the input
                channels = at_grad_output.shape[1] if want_bias else 0
                of_bias = at_grad_output.new_zeros(channels)
            return _total(of_weights), of_bias


def _save(ctx: Any, is_plain: bool, *operands: Tensor) -> None:
    """Keeps the operands, of plain ones not for forward mode; what is not there is None, and no tensor of zeros."""
    ctx.save_for_backward(*operands)
    if not is_plain:
        ctx.save_for_forward(*operands)
    ctx.set_materialize_grads(False)


def _primals(ctx: Any) -> list[Tensor]:
    """The operands that a node has saved, without their tangents."""
    return [forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors]


def _total(terms: list[Tensor]) -> Tensor | None:
    return sum(terms[1:], terms[0]) if terms else None


for _name, _node in (
    ("forward", _Forward),
    ("grad_input", _GradInput),
    ("grad_weight", _GradWeight),
):
    LIBRARY.impl(_name, _node.record, "Autograd")
