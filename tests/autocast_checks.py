"""What autocast and the scaling of gradients must give on convt3d, on any device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests import operator_checks as checks
from tests.feature_calls import LEAVES, layers, leaves, native, ours, reals
from tests.operator_checks import DTYPES

LOWER = (torch.bfloat16, torch.float16)
# Of input, weight and, where there is a third, bias.
MIXES: tuple[tuple[torch.dtype, ...], ...] = (
    *itertools.product(DTYPES, DTYPES),
    *((a, a, b) for a in DTYPES for b in DTYPES),
)
# Why GradScaler is skipped on a CPU; empty where this version has it.
NO_CPU_SCALER = (
    ""
    if hasattr(torch.amp, "GradScaler")
    else f"torch {torch.__version__} has no GradScaler for a CPU"
)


def name_of_mix(dtypes: Sequence[torch.dtype]) -> str:
    """Returns how a mix is called in the id of a test."""
    return "-".join(map(checks.name_of, dtypes))


def _differentiated(
    function: Callable[..., Tensor], operands: Sequence[Tensor], device: str, **options: Any
) -> list[Tensor]:
    """Returns output and gradients of a call under autocast; the backward runs outside, as it should."""
    with torch.autocast(device, **options):
        output = function(*operands)
    return [output.detach(), *torch.autograd.grad(output.float().sum(), operands)]


def _assert_same(got: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    for one, other in zip(got, expected, strict=True):
        checks.assert_same_bits(one.detach(), other.detach(), what)


# ---- dtypes -------------------------------------------------------------------------------------


def check_dtypes(lower: torch.dtype | None, dtypes: Sequence[torch.dtype], device: str) -> None:
    """A mix of dtypes gives native's dtypes of output and gradients, or an error of native's type."""

    def outcome(function: Callable[..., Tensor]) -> Any:
        operands = [
            tensor.to(dtype).requires_grad_()
            for tensor, dtype in zip(reals(*LEAVES, device=device), dtypes)
        ]
        try:
            results = _differentiated(function, operands, device, dtype=lower)
        except Exception as error:
            return type(error)
        return [result.dtype for result in results]

    assert outcome(ours) == outcome(native)


# ---- values -------------------------------------------------------------------------------------


def check_values(lower: torch.dtype, device: str) -> None:
    """Autocast is a cast of the operands: output and gradients agree in every bit, float32 leaves get float32."""
    operands = leaves(*LEAVES, device=device, dtype=torch.float32)
    got = _differentiated(ours, operands, device, dtype=lower)
    cast = ours(*[operand.to(lower) for operand in operands])
    expected = [cast, *torch.autograd.grad(cast.float().sum(), operands)]
    assert [tensor.dtype for tensor in got] == [lower, *(torch.float32,) * 3]
    _assert_same(got, expected, f"autocast to {lower}")


def check_disabled_region(lower: torch.dtype, device: str) -> None:
    """Where autocast is disabled again nothing is cast."""
    operands = leaves(*LEAVES, device=device, dtype=torch.float32)

    def disabled(*each: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return ours(*each)

    got = _differentiated(disabled, operands, device, dtype=lower)
    plain = ours(*operands)
    expected = [plain, *torch.autograd.grad(plain.sum(), operands)]
    _assert_same(got, expected, "disabled")
    _assert_same(_differentiated(ours, operands, device, enabled=False), expected, "not enabled")


def check_backward_inside(lower: torch.dtype, device: str) -> None:
    """A backward, and one of it, inside the region give what they give outside."""
    operands = leaves(*LEAVES, device=device, dtype=torch.float32)

    def second(output: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(output.float().square().sum(), operands, create_graph=True)
        total = sum((gradient.square().sum() for gradient in first), torch.zeros((), device=device))
        return [*first, *torch.autograd.grad(total, operands)]

    with torch.autocast(device, dtype=lower):
        got = second(ours(*operands))
    with torch.autocast(device, dtype=lower):
        output = ours(*operands)
    _assert_same(got, second(output), "inside")


def check_two_calls_in_one_region(lower: torch.dtype, device: str) -> None:
    """A second call in a region is cast like the first, and operands of both get the gradients of both."""
    operands = leaves(*LEAVES, device=device, dtype=torch.float32)

    def twice(input: Tensor, *rest: Tensor) -> Tensor:
        return ours(input, *rest) + ours(-2 * input, *rest)

    def cast_twice(input: Tensor, *rest: Tensor) -> Tensor:
        calls = [[tensor.to(lower) for tensor in (each, *rest)] for each in (input, -2 * input)]
        return ours(*calls[0]) + ours(*calls[1])

    got = _differentiated(twice, operands, device, dtype=lower)
    cast = cast_twice(*operands)
    expected = [cast, *torch.autograd.grad(cast.float().sum(), operands)]
    _assert_same(got, expected, "two calls")


def check_transforms(lower: torch.dtype, device: str) -> None:
    """vmap, grad and jvp inside the region, and the region inside them, act on the cast operands."""
    operands = reals(*LEAVES, device=device, dtype=torch.float32)
    axes = (0, None, None)

    def loss(weight: Tensor, sample: Tensor) -> Tensor:
        return ours(sample, weight, operands[2].to(weight.dtype)).float().sum()

    def results(call: Callable[..., Tensor], of: Callable[..., Tensor]) -> list[Tensor]:
        input, weight, bias = operands
        tangents = tuple(operand.cos() for operand in operands)
        return [
            torch.func.vmap(call, axes)(input, weight, bias),
            torch.func.vmap(torch.func.grad(of), (None, 0))(weight, input),
            *torch.func.jvp(call, operands, tangents),
        ]

    def cast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *each: function(*[tensor.to(lower) for tensor in each])

    def region(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def inside(*each: Tensor) -> Tensor:
            with torch.autocast(device, dtype=lower):
                return function(*each)

        return inside

    expected = results(cast(ours), cast(loss))
    with torch.autocast(device, dtype=lower):
        _assert_same(results(ours, loss), expected, "transforms inside autocast")
    _assert_same(results(region(ours), region(loss)), expected, "autocast inside transforms")


def check_complex_numbers(lower: torch.dtype, device: str) -> None:
    """Complex operands are not cast."""
    input, weight, bias = (
        torch.complex(*reals(name, name, device=device, dtype=torch.float32))
        for name in ("input", "weight", "bias")
    )
    expected = ours(input, weight, bias)
    with torch.autocast(device, dtype=lower):
        got = ours(input, weight, bias)
    assert got.dtype == expected.dtype and torch.equal(got, expected)


CHECKS_OF_VALUES: tuple[Callable[[torch.dtype, str], None], ...] = (
    check_values,
    check_disabled_region,
    check_backward_inside,
    check_two_calls_in_one_region,
    check_transforms,
    check_complex_numbers,
)


# ---- training -----------------------------------------------------------------------------------


def gradient_scaler(device: str, **options: Any) -> Any:
    """Returns the GradScaler of a device."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device, **options)
    return torch.cuda.amp.GradScaler(**options)


def check_scaled_step(device: str) -> None:
    """A step under autocast to float16 with GradScaler is native's; one whose gradients overflow is left out."""
    input = reals("input", device=device, dtype=torch.float32)[0]
    pair = layers(2, 4, 2, stride=2, device=device, dtype=torch.float32)
    before = [parameter.clone() for parameter in pair[0].parameters()]
    for module in pair:
        scaler = gradient_scaler(device, init_scale=2.0**10)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for factor in (1.0, 1e30):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.float16):
                output = module(input)
            scaler.scale(output.float().square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
    for one, other, old in zip(pair[0].parameters(), pair[1].parameters(), before):
        assert not torch.equal(one, old)
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
