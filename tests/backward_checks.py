"""What a backward pass must do on convt3d, on any device: its cost, its graphs, its hooks and its memory formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import convt3d
from tests import operator_checks as checks
from tests.feature_calls import (
    GROUPS,
    LEAVES,
    SHAPES,
    layers,
    leaves,
    native,
    ours,
    reals,
    recorded,
)

# Which launches compute the gradient of an operand.
LAUNCHES = {"input": "grad_input", "weight": "grad_weight", "bias": "grad_weight"}


# ---- only what is asked for ---------------------------------------------------------------------

WAYS = ("requires_grad", "grad", "grad_of_parents", "grad_of_intermediates", "inputs")


def _gradients(way: str, wanted: Sequence[str], device: str) -> Callable[[], Sequence[Any]]:
    """Returns a backward that asks for the gradients of some operands, in one of the ways to do so."""
    operands = dict(zip(LEAVES, reals(*LEAVES, device=device)))
    for name, operand in operands.items():
        operand.requires_grad_(way != "requires_grad" or name in wanted)
    between = {name: operand * 1 for name, operand in operands.items()}
    is_direct = way in ("requires_grad", "grad", "inputs")
    output = ours(*(operands if is_direct else between).values())
    grad_output = reals("grad_output", device=device)[0]
    asked = [(between if way == "grad_of_intermediates" else operands)[name] for name in wanted]
    if way.startswith("grad"):
        return lambda: torch.autograd.grad(output, asked, grad_output)

    def backward() -> list[Tensor | None]:
        output.backward(grad_output, inputs=asked if way == "inputs" else None)
        return [operand.grad for operand in asked]

    return backward


def check_only_what_is_asked_for(way: str, wanted: Sequence[str], device: str) -> None:
    """A backward launches and allocates for the gradients that are asked for, and for no other."""
    backward = _gradients(way, wanted, device)
    with recorded() as work:
        got = backward()
    assert sorted(work.launched) == sorted({LAUNCHES[name] for name in wanted})
    for name in LEAVES:
        assert (SHAPES[name] in work.allocated) == (name in wanted), name
    operands = dict(zip(LEAVES, leaves(*LEAVES, device=device)))
    grad_output = reals("grad_output", device=device)[0]
    asked = [operands[name] for name in wanted]
    expected = torch.autograd.grad(native(*operands.values()), asked, grad_output)
    torch.testing.assert_close(tuple(got), expected)


def check_second_backward_computes_what_is_asked_for(device: str) -> None:
    """So does the backward of a backward."""
    input, weight, bias = leaves(*LEAVES, device=device)
    grad_output = reals("grad_output", device=device)[0].requires_grad_()
    output = ours(input, weight, bias)
    (gradient,) = torch.autograd.grad(output, input, grad_output, create_graph=True)
    launches = {weight: "grad_weight", grad_output: "forward"}
    for operand, launched in launches.items():
        with recorded() as work:
            torch.autograd.grad(gradient, operand, gradient, retain_graph=True)
        assert work.launched == [launched]


def check_a_frozen_layer_passes_gradients_on(device: str) -> None:
    """Between trained layers, one whose parameters are frozen launches the gradient of its input alone."""
    first, last = (layers(2, 2, 2, device=device)[0] for _ in range(2))
    frozen = layers(2, 2, 2, device=device)[0].requires_grad_(False)
    input = reals("input", device=device)[0]
    output = last(frozen(first(input)))
    with recorded() as work:
        output.sum().backward()
    # Of the first the parameters alone, of the last both; the first's input requires no gradient.
    expected = ["grad_input", "grad_weight", "grad_input", "grad_weight"]
    assert sorted(work.launched) == sorted(expected)
    assert frozen.weight.grad is None and first.weight.grad is not None


# ---- second derivatives that vanish -------------------------------------------------------------

PENALTIES = [(trained, of) for trained in checks.subsets(LEAVES) for of in trained]


def check_a_penalty_on_a_gradient(trained: Sequence[str], of: str, device: str) -> None:
    """A penalty on a gradient differentiates as native's where other operands are frozen."""

    def step(function: Callable[..., Tensor]) -> list[Tensor | None] | str:
        operands = dict(zip(LEAVES, reals(*LEAVES, device=device)))
        for name in trained:
            operands[name].requires_grad_()
        loss = function(*operands.values()).sum()
        (gradient,) = torch.autograd.grad(loss, operands[of], create_graph=True)
        penalty = (gradient.norm() - 1) ** 2
        try:
            penalty.backward()
        except RuntimeError as error:
            return str(error)
        return [operand.grad for operand in operands.values()]

    got, expected = step(ours), step(native)
    if isinstance(got, str) or isinstance(expected, str):
        assert got == expected
        return
    for name, one, other in zip(LEAVES, got, expected):
        # None and zeros mean the same.
        assert one is None or other is None or torch.allclose(one, other), name
        for alone, partner in ((one, other), (other, one)):
            assert partner is not None or alone is None or not alone.count_nonzero(), name


# ---- graphs and hooks ---------------------------------------------------------------------------


def check_a_kept_graph_accumulates(device: str) -> None:
    """With retain_graph a second backward adds the same gradients again."""
    operands = leaves(*LEAVES, device=device)
    output = ours(*operands)
    output.sum().backward(retain_graph=True)
    first = [operand.grad.clone() for operand in operands if operand.grad is not None]
    output.sum().backward()
    assert len(first) == len(operands)
    for operand, once in zip(operands, first):
        assert torch.equal(operand.grad, 2 * once)  # type: ignore[arg-type]


def check_hooks_of_tensors(device: str) -> None:
    """Hooks of operands and of the output see native's gradients, once, and may change them."""

    def seen(function: Callable[..., Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[Tensor], Tensor]:
            def doubling(gradient: Tensor) -> Tensor:
                assert name not in found
                found[name] = gradient
                return 2 * gradient

            return doubling

        operands = dict(zip(LEAVES, leaves(*LEAVES, device=device)))
        output = function(*operands.values())
        for name, tensor in (*operands.items(), ("output", output)):
            tensor.register_hook(hook(name))
        assert output.grad_fn is not None
        output.grad_fn.register_hook(lambda *_: found.update(node=torch.ones(())))
        output.backward(reals("grad_output", device=device)[0])
        after = {f"{name}.grad": operand.grad for name, operand in operands.items()}
        return {**found, **after}  # type: ignore[dict-item]

    torch.testing.assert_close(dict(sorted(seen(ours).items())), dict(sorted(seen(native).items())))


def check_hooks_of_modules(device: str) -> None:
    """Forward hooks and full backward hooks of a module see what native's see."""

    def seen(module: torch.nn.Module) -> list[Any]:
        found: list[Any] = []
        module.register_forward_pre_hook(lambda _, inputs: found.append(inputs))
        module.register_forward_hook(lambda _, inputs, output: found.append((inputs, output)))
        module.register_full_backward_pre_hook(lambda _, of_outputs: found.append(of_outputs))
        module.register_full_backward_hook(lambda _, *gradients: found.append(gradients))
        input = leaves("input", device=device)[0]
        (module(input) ** 2).sum().backward()
        found.append(input.grad)
        return found

    one, other = (seen(module) for module in layers(2, 4, 2, stride=2, device=device))
    assert len(one) == 5
    torch.testing.assert_close(one, other)


def check_hooks_of_saved_tensors(device: str) -> None:
    """What is saved for backward, input and weight as with native, passes through the hooks for it."""
    for function in (ours, native):
        operands = leaves(*LEAVES, device=device)
        packed: list[tuple[int, ...]] = []

        def pack(tensor: Tensor, shapes: list[tuple[int, ...]] = packed) -> Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor + 1

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor - 1):
            output = function(*operands)
        assert packed == [SHAPES["input"], SHAPES["weight"]]
        output.sum().backward()
        expected = torch.autograd.grad(native(*operands).sum(), operands)
        torch.testing.assert_close([operand.grad for operand in operands], list(expected))


# ---- memory formats -----------------------------------------------------------------------------

INCOMING = ("contiguous", "channels_last", "expanded")


def check_gradients_lie_as_natives(
    input_format: str, weight_format: str, incoming: str, device: str
) -> None:
    """Output and gradients lie in memory as native's do, however the incoming gradient lies."""
    formats = checks.MEMORY_FORMATS
    shape = (*(4, 6 // GROUPS), 3, 3, 3)
    input = torch.ones(2, 4, 3, 4, 5, device=device).contiguous(memory_format=formats[input_format])
    weight = torch.ones(shape, device=device).contiguous(memory_format=formats[weight_format])

    def laid(function: Callable[..., Tensor]) -> list[tuple[int, ...]]:
        pair = [tensor.detach().requires_grad_() for tensor in (input, weight)]
        output = function(*pair, stride=2, groups=GROUPS)
        if incoming == "expanded":
            gradients = torch.autograd.grad(output.sum(), pair)
        else:
            of_output = torch.ones_like(output).contiguous(memory_format=formats[incoming])
            gradients = torch.autograd.grad(output, pair, of_output)
        return [tensor.stride() for tensor in (output, *gradients)]

    assert laid(convt3d.conv_transpose3d) == laid(torch.nn.functional.conv_transpose3d)
