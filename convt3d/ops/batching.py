"""The operators under torch.vmap: the mapped axis becomes part of the batch or of the channels, in one launch.

    mapped operands                   the mapped axis, B long, joins
    input or grad_output              the batch, or, of grad_weight, the channels of each group
    weight                            the channels that the result takes from it, of each group
    both                              the groups

The kernels then see ordinary tensors. Joining an axis to the channels may copy an operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convt3d.ops import guards
from convt3d.ops.primitives import LIBRARY, OPERATORS


def _forward(
    size: int, mapped: list[Any], input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> Any:
    *parameters, groups = rest
    of_input, of_weight, of_bias = mapped[:3]
    if (
        of_bias is not None and of_weight is None
    ):  # rounding bias in once more would change the result
        weight, of_weight = weight.expand(size, *weight.shape), 0
    if bias is not None and of_weight is not None and of_bias is None:
        bias, of_bias = bias.expand(size, *bias.shape), 0
    run = OPERATORS.forward
    if of_weight is None:
        output = run(_join(input, of_input, 0, 1), weight, bias, *parameters, groups)
        return _part(output, 0, 1, size), 0
    if of_input is None:
        joined_bias = None if bias is None else _join(bias, of_bias, 0, groups)
        output = run(input, _join(weight, of_weight, 1, 1), joined_bias, *parameters, groups)
        return _part(output, 1, groups, size), 0
    joined_bias = None if bias is None else _join(bias, of_bias, 0, 1)
    output = run(
        _join(input, of_input, 1, 1),
        _join(weight, of_weight, 0, 1),
        joined_bias,
        *parameters,
        groups * size,
    )
    return _part(output, 1, 1, size), 0


def _grad_input(
    size: int, mapped: list[Any], grad_output: Tensor, weight: Tensor, *rest: Any
) -> Any:
    *parameters, groups, channels_last = rest
    of_grad_output, of_weight = mapped[:2]
    run = OPERATORS.grad_input
    if of_weight is None:
        joined = _join(grad_output, of_grad_output, 0, 1), weight
        return _part(run(*joined, *parameters, groups, channels_last), 0, 1, size), 0
    if of_grad_output is None:
        joined = grad_output, _join(weight, of_weight, 0, groups)
        return _part(run(*joined, *parameters, groups, channels_last), 1, groups, size), 0
    joined = _join(grad_output, of_grad_output, 1, 1), _join(weight, of_weight, 0, 1)
    return _part(run(*joined, *parameters, groups * size, channels_last), 1, 1, size), 0


def _grad_weight(
    size: int, mapped: list[Any], input: Tensor, grad_output: Tensor, kernel_size: Any, *rest: Any
) -> Any:
    *parameters, groups, channels_last, want_weight, want_bias = rest
    of_input, of_grad_output = mapped[:2]
    both = of_input is not None and of_grad_output is not None
    inner = 1 if both else groups
    if of_input is not None:
        input = _join(input, of_input, 1, inner)
    if of_grad_output is not None:
        grad_output = _join(grad_output, of_grad_output, 1, inner)
    weight, bias = OPERATORS.grad_weight(
        input,
        grad_output,
        kernel_size,
        *parameters,
        groups * size if both else groups,
        channels_last,
        want_weight,
        want_bias,
    )
    has_weight, has_bias = want_weight, want_bias and of_grad_output is not None
    if has_weight and of_input is not None:
        weight = _part(weight, 0, inner, size)
    elif has_weight:
        weight = _part(weight, 1, 1, size)
    if has_bias:
        bias = _part(bias, 0, inner, size)
    return (weight, bias), (0 if has_weight else None, 0 if has_bias else None)


def _join(tensor: Tensor, mapped: int, axis: int, groups: int) -> Tensor:
    """Makes the mapped axis part of another one, between its groups and what each group has: (groups, B, rest)."""
    front = tensor.movedim(mapped, 0)
    split = front.unflatten(1 + axis, (groups, front.shape[1 + axis] // groups))
    return split.movedim(0, axis + 1).flatten(axis, axis + 2)


def _part(tensor: Tensor, axis: int, groups: int, size: int) -> Tensor:
    """Undoes `_join`; the mapped axis comes first."""
    split = tensor.unflatten(axis, (groups, size, tensor.shape[axis] // (groups * size)))
    return split.movedim(axis + 1, 0).flatten(1 + axis, 2 + axis)


def _check_one(name: str, operands: Any, mapped: Any) -> None:
    """Raises what one element of the mapped axis raises: errors about joined axes would puzzle the caller."""

    def meta(operand: Any, axis: int | None) -> Any:
        if not isinstance(operand, Tensor):
            return operand
        shape = [size for index, size in enumerate(operand.shape) if index != axis]
        return torch.empty(shape, dtype=operand.dtype, device="meta")

    getattr(OPERATORS, name)(*map(meta, operands, mapped))


def _batching_kernel(name: str, rule: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's FuncTorchBatched kernel: takes the mapped axis off the operands, gives it back to the results."""

    def kernel(*arguments: Any) -> Any:
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
        from torch._functorch.vmap import unwrap_batched, wrap_batched

        interpreter: Any = retrieve_current_functorch_interpreter()
        level, size = interpreter.level(), interpreter.batch_size()
        operands, mapped = unwrap_batched(arguments, level)
        with guards.excluding("FuncTorchBatched"):
            if not any(isinstance(axis, int) for axis in mapped):
                return getattr(OPERATORS, name)(*operands)
            _check_one(name, operands, mapped)
            results, axes = rule(size, mapped, *operands)
        return wrap_batched(results, axes, level)

    return kernel


for _name, _rule in (
    ("forward", _forward),
    ("grad_input", _grad_input),
    ("grad_weight", _grad_weight),
):
    LIBRARY.impl(_name, _batching_kernel(_name, _rule), "FuncTorchBatched")
