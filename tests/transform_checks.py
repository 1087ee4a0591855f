"""What derivatives, transforms of torch.func and hooks must give on convt3d, on any device."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import convt3d
from tests import operator_checks as checks
from tests.feature_calls import (
    GEOMETRY,
    LEAVES,
    OPTIONS,
    PARAMETERS,
    PRIMITIVES,
    SHAPES,
    Primitive,
    as_tuple,
    layers,
    leaves,
    native,
    ours,
    outcome,
    reals,
    recorded,
)

Axes = tuple[int | None, ...]

MAPPED = 3  # elements of a mapped axis
# Outer and inner one of a second derivative.
SECOND = {
    "jacrev of jacrev": (torch.func.jacrev, torch.func.jacrev),
    "jacrev of jacfwd": (torch.func.jacrev, torch.func.jacfwd),
    "jacfwd of jacrev": (torch.func.jacfwd, torch.func.jacrev),
    "jacfwd of jacfwd": (torch.func.jacfwd, torch.func.jacfwd),
}
TRANSFORMS = (
    *("grad", "vjp", "jacrev", "jacfwd", "linearize", "functionalize", "backward of grad"),
    *SECOND,
)
# An operator, and the operands that have a tangent.
MOVED = [
    (name, moved)
    for name, primitive in PRIMITIVES.items()
    for moved in checks.subsets(primitive.operands)
]


# ---- derivatives --------------------------------------------------------------------------------


def check_forward_mode(primitive: Primitive, moved: Sequence[str], device: str) -> None:
    """Tangents of some operands give native's tangent: by torch.func.jvp and by dual numbers."""
    operands = dict(zip(primitive.operands, reals(*primitive.operands, device=device)))
    tangents = {name: operands[name].cos() for name in moved}

    def by_transform(function: Callable[..., Any]) -> Any:
        def of_moved(*values: Tensor) -> Any:
            return function(*{**operands, **dict(zip(moved, values))}.values())

        primals = tuple(operands[name] for name in moved)
        return torch.func.jvp(of_moved, primals, tuple(tangents.values()))

    def by_dual_numbers(function: Callable[..., Any]) -> list[Tensor]:
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(operands[name], tangents[name]) for name in moved}
            results = as_tuple(function(*{**operands, **duals}.values()))
            tangents_of = [forward_ad.unpack_dual(result).tangent for result in results]
        # None and zeros mean the same.
        pairs = zip(results, tangents_of)
        return [torch.zeros_like(r) if tangent is None else tangent for r, tangent in pairs]

    for derive in (by_transform, by_dual_numbers):
        torch.testing.assert_close(derive(primitive.ours), derive(primitive.native))


def _sum_of_squares(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def total(*operands: Tensor) -> Tensor:
        squares = [(result**2).sum() for result in as_tuple(function(*operands))]
        return sum(squares[1:], squares[0])

    return total


def _transformed(transform: str, function: Callable[..., Any], operands: Sequence[Tensor]) -> Any:
    """Returns what a transform of torch.func makes of a function at its operands, all of them at once."""
    every = tuple(range(len(operands)))
    total = _sum_of_squares(function)
    if transform in SECOND:
        outer, inner = SECOND[transform]
        return outer(inner(total, every), every)(*operands)  # type: ignore[operator]
    if transform == "jacfwd of grad":
        gradient = torch.func.grad(total)
        return torch.func.jacfwd(lambda *each: gradient(*each).square().sum(), every)(*operands)
    if transform == "grad":
        return torch.func.grad(total, every)(*operands)
    if transform == "backward of grad":
        leaves = [operand.detach().requires_grad_() for operand in operands]
        return torch.autograd.grad(torch.func.grad(total)(*leaves).square().sum(), leaves)
    if transform == "vjp":
        results, pull_back, *_ = torch.func.vjp(function, *operands)
        cotangents = [result.cos() for result in as_tuple(results)]
        return pull_back(cotangents[0] if isinstance(results, Tensor) else tuple(cotangents))
    if transform == "linearize":
        _, push_forward = torch.func.linearize(function, *operands)
        return push_forward(*[operand.cos() for operand in operands])
    if transform == "functionalize":
        return torch.func.functionalize(function)(*operands)
    return getattr(torch.func, transform)(function, every)(*operands)


def check_transform(transform: str, primitive: Primitive, device: str) -> None:
    """A transform of a primitive gives what it gives of native's."""
    operands = reals(*primitive.operands, device=device)
    got = _transformed(transform, primitive.ours, operands)
    # Where there is output_padding, native refuses the reverse mode of its grad_weight's reverse mode.
    equal = {"backward of grad": "jacfwd of grad", "jacrev of jacrev": "jacfwd of jacrev"}
    expected = _transformed(equal.get(transform, transform), primitive.native, operands)
    torch.testing.assert_close(got, expected)


def check_pulled_back_constants_are_constants(device: str) -> None:
    """What torch.func.vjp returns requires a gradient only if native's does."""
    operands = reals(*LEAVES, device=device)
    for requires in (False, True):
        for operand in operands:
            operand.requires_grad_(requires)
        alike = [
            [gradient.requires_grad for gradient in _transformed("vjp", function, operands)]
            for function in (ours, native)
        ]
        assert alike[0] == alike[1], f"requires_grad={alike[0]}, but native's is {alike[1]}"


def check_finite_differences(primitive: Primitive, device: str) -> None:
    """First and second derivatives, in both modes and batched, are those of finite differences."""
    operands = leaves(*primitive.operands, device=device)
    assert torch.autograd.gradcheck(
        primitive.ours,
        operands,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        primitive.ours,
        operands,
        check_fwd_over_rev=True,
        check_batched_grad=True,
        fast_mode=True,
    )


# ---- vmap ---------------------------------------------------------------------------------------


def axes_of(primitive: Primitive) -> list[Axes]:
    """Returns every choice of mapped axes: of each operand none, the first or the last, but not none of all."""
    choices = itertools.product((None, 0, -1), repeat=len(primitive.operands))
    return [axes for axes in choices if set(axes) != {None}]


MAPPINGS = [(name, axes) for name, primitive in PRIMITIVES.items() for axes in axes_of(primitive)]


def _mapped(primitive: Primitive, axes: Axes, size: int = MAPPED) -> list[Tensor]:
    """Returns exact integers as operands, with one more axis where one is mapped."""
    operands = []
    for seed, (name, axis) in enumerate(zip(primitive.operands, axes)):
        shape = [*SHAPES[name]]
        if axis is not None:
            shape.insert(axis if axis >= 0 else len(shape), size)
        operands.append(checks.integers(shape, seed))
    return operands


def _one_by_one(
    function: Callable[..., Any], axes: Axes, operands: Sequence[Tensor], size: int = MAPPED
) -> list[Tensor]:
    """Calls a function on each element of the mapped axes and stacks what it returns."""
    rows = [
        as_tuple(
            function(
                *(
                    operand if axis is None else operand.select(axis, index)
                    for operand, axis in zip(operands, axes)
                )
            )
        )
        for index in range(size)
    ]
    return [torch.stack(column) for column in zip(*rows)]


def _assert_exact(got: Any, expected: Sequence[Tensor], what: str) -> None:
    """Asserts that results are the exact ones, rounded once to their dtype."""
    for one, exact in zip(as_tuple(got), expected, strict=True):
        checks.assert_same_bits(one, exact.to(one.dtype), what)


def check_vmap(primitive: Primitive, axes: Axes, device: str) -> None:
    """vmap gives what a loop over native gives, bit for bit, and takes one launch."""
    operands = _mapped(primitive, axes)
    expected = _one_by_one(primitive.native, axes, operands)
    for dtype in (torch.float64, torch.bfloat16):
        placed = [operand.to(device, dtype) for operand in operands]
        with recorded() as work:
            got = torch.func.vmap(primitive.ours, axes)(*placed)
        _assert_exact(got, expected, f"vmap over {axes}")
        assert len(work.launched) == 1, work.launched


def check_nested_vmap(device: str) -> None:
    """Two levels of vmap, each over any of the operands, give what two loops give."""
    choices = [axes for axes in itertools.product((None, 0), repeat=3) if set(axes) != {None}]
    for outer, inner in itertools.product(choices, choices):
        operands = _mapped(PRIMITIVES["forward"], inner, size=2)
        operands = [
            operand if axis is None else torch.stack([operand, -operand, 2 * operand])
            for operand, axis in zip(operands, outer)
        ]

        def loop(*each: Tensor, axes: Axes = inner) -> Tensor:
            return _one_by_one(native, axes, each, size=2)[0]

        expected = _one_by_one(loop, outer, operands)
        nested = torch.func.vmap(torch.func.vmap(ours, inner), outer)
        got = nested(*[operand.to(device, torch.float32) for operand in operands])
        _assert_exact(got, expected, f"vmap over {outer} of vmap over {inner}")


def check_vmap_options(device: str) -> None:
    """chunk_size changes nothing, out_dims places the axis, and an unbatched call may be mapped."""
    operands = [operand.to(device) for operand in _mapped(PRIMITIVES["forward"], (0, 0, 0))]
    expected = torch.func.vmap(ours)(*operands)
    for chunk_size in (1, 2):
        got = torch.func.vmap(ours, chunk_size=chunk_size)(*operands)
        checks.assert_same_bits(got, expected, f"chunk_size={chunk_size}")
    moved = torch.func.vmap(ours, out_dims=2)(*operands)
    checks.assert_same_bits(moved.movedim(2, 0), expected, "out_dims=2")
    input, weight, bias = operands
    got = torch.func.vmap(ours)(input[:, 0], weight, bias)
    checks.assert_same_bits(got, expected[:, 0], "unbatched")


def check_gradients_of_each_sample(wanted: Sequence[int], device: str) -> None:
    """vmap of grad gives the gradients of weight (0) or bias (1) of each sample by itself."""
    weight, bias = checks.integers(SHAPES["weight"], 1), checks.integers(SHAPES["bias"], 2)
    samples, targets = (
        checks.integers(SHAPES[name], seed) for seed, name in enumerate(("input", "grad_output"))
    )
    operands = (weight, bias, samples, targets)
    axes = (None, None, 0, 0)

    def gradients(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def loss(weight: Tensor, bias: Tensor, sample: Tensor, target: Tensor) -> Tensor:
            return (function(sample, weight, bias) * target).sum()

        return torch.func.grad(loss, argnums=tuple(wanted))

    got = torch.func.vmap(gradients(ours), axes)(*[t.to(device, torch.float32) for t in operands])
    expected = _one_by_one(gradients(native), axes, operands, size=GEOMETRY.batch)
    _assert_exact(got, expected, f"gradients {wanted}")


def check_ensemble(device: str) -> None:
    """Modules of one kind run as one, by stack_module_state and functional_call, and so do their gradients."""
    models = [layers(2, 4, 2, stride=2, device=device)[0] for _ in range(3)]
    for factor, model in enumerate(models):
        model.weight.data *= factor + 1
    parameters, buffers = torch.func.stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")
    input = reals("input", device=device)[0]

    def call(parameters: Any, buffers: Any, input: Tensor) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (input,))

    def loss(parameters: Any, buffers: Any, input: Tensor) -> Tensor:
        return (call(parameters, buffers, input) ** 2).sum()

    outputs = torch.func.vmap(call, (0, 0, None))(parameters, buffers, input)
    gradients = torch.func.vmap(torch.func.grad(loss), (0, 0, None))(parameters, buffers, input)
    for index, model in enumerate(models):
        output = model(input)
        torch.testing.assert_close(outputs[index], output)
        (output**2).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad)


WRONG_CALLS: dict[str, dict[str, Any]] = {
    "channels": {"input": torch.ones(2, 3, 2, 1, 2)},
    "input of 3 axes": {"input": torch.ones(2, 1, 2)},
    "input of 6 axes": {"input": torch.ones(1, 2, 2, 2, 1, 2)},
    "weight of 4 axes": {"weight": torch.ones(2, 2, 2, 2)},
    "empty kernel": {"weight": torch.ones(2, 2, 0, 2, 1)},
    "empty input": {"input": torch.ones(2, 2, 2, 0, 2)},
    "bias of 5": {"bias": torch.ones(5)},
    "bias of 2 axes": {"bias": torch.ones(4, 1)},
    "float64 weight": {"weight": torch.ones(SHAPES["weight"], dtype=torch.float64)},
    "float16 bias": {"bias": torch.ones(SHAPES["bias"], dtype=torch.float16)},
    "integers": {
        name: torch.ones(SHAPES[name], dtype=torch.int32) for name in ("input", "weight", "bias")
    },
    "no stride": {"stride": 0},
    "negative padding": {"padding": (0, -1, 0)},
    "more padding than output": {"padding": 9},
    "output_padding of a stride": {"output_padding": (2, 0, 0)},
    "negative dilation": {"dilation": -1},
    "no groups": {"groups": 0},
    "groups that do not divide": {"groups": 3},
    "two strides": {"stride": (1, 1)},
    "half a stride": {"stride": 0.5},
    "groups in words": {"groups": "2"},
    "a list as bias": {"bias": [0.0] * 4},
}
_NAMES = (*LEAVES, "stride", "padding", "output_padding", "groups", "dilation")


def wrong_call(name: str, device: str) -> dict[str, Any]:
    """Returns the arguments of conv_transpose3d of a wrong call, its tensors on a device."""
    right = (*reals(*LEAVES, device=device, dtype=torch.float32), *OPTIONS)
    arguments = {**dict(zip(_NAMES, right)), **WRONG_CALLS[name]}
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def check_error_under_vmap(name: str, device: str) -> None:
    """A wrong call raises under vmap what one element of it raises, whichever operands are mapped."""
    arguments = wrong_call(name, device)
    expected = outcome(convt3d.conv_transpose3d, **arguments)
    tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
    for mapped in checks.subsets(tensors):
        stacked = [arguments[key].expand(MAPPED, *arguments[key].shape) for key in mapped]

        def call(*elements: Tensor, names: Sequence[str] = mapped) -> Tensor:
            return convt3d.conv_transpose3d(**{**arguments, **dict(zip(names, elements))})

        got = outcome(torch.func.vmap(call), *stacked)
        assert got == expected, f"{got} with {mapped} mapped, but must be {expected}"


def check_errors_of_primitives_under_vmap(device: str) -> None:
    """So do the operators of the gradients."""
    grad_output, weight, input = reals("grad_output", "weight", "input", device=device)
    wrong: dict[str, tuple[Any, ...]] = {
        "grad_input": (grad_output[:, :3], weight, *PARAMETERS, False),
        "grad_weight": (
            *(input, grad_output[..., :1], GEOMETRY.kernel_size, *PARAMETERS),
            *(False, True, True),
        ),
    }
    for name, (first, second, *rest) in wrong.items():
        operator = getattr(torch.ops.convt3d, name)
        expected = outcome(operator, first, second, *rest)
        for axes in ((0, None), (None, 0), (0, 0)):
            pair = [
                tensor if axis is None else tensor.expand(MAPPED, *tensor.shape)
                for tensor, axis in zip((first, second), axes)
            ]
            call = torch.func.vmap(lambda *two, r=rest, o=operator: o(*two, *r), axes)
            assert outcome(call, *pair) == expected
