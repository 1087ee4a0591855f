"""Calls of conv_transpose3d with at most one thing wrong, and what an implementation makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from convt3d.geometry import triple

PER_AXIS = ("stride", "padding", "output_padding", "dilation")
IS_TORCH_2_0 = torch.__version__.startswith("2.0.")
# Below 2^31 a call could be valid and need all memory. Native cuts some to 32 bits; 2.0 then dies of a division by 0.
FAR_TOO_LARGE = () if IS_TORCH_2_0 else (2**31, 2**40, 2**62)
SIZES = st.integers(1, 3)


@st.composite
def right_calls(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the arguments of a small call that is valid."""
    groups, per_group_in, per_group_out = draw(st.tuples(*[st.integers(1, 2)] * 3))
    shape = (groups * per_group_in, *draw(st.tuples(SIZES, SIZES, SIZES)))
    kernel = draw(st.tuples(SIZES, SIZES, SIZES))
    call: dict[str, Any] = {
        "input": torch.ones(draw(st.sampled_from([shape, (1, *shape), (2, *shape)]))),
        "weight": torch.ones(shape[0], per_group_out, *kernel),
        "bias": draw(st.sampled_from([None, torch.ones(groups * per_group_out)])),
        "groups": groups,
    }
    for name in ("stride", "dilation"):
        call[name] = draw(one_or_three(SIZES))
    stride, dilation = (triple(name, call[name]) for name in ("stride", "dilation"))
    # Half the reach of the kernel leaves an output, whatever the input.
    reach = [step * (size - 1) for step, size in zip(dilation, kernel)]
    call["padding"] = draw(one_or_three(st.integers(0, min(reach) // 2)))
    longest = [max(pair) for pair in zip(stride, dilation)]
    call["output_padding"] = draw(one_or_three(st.integers(0, min(longest) - 1)))
    return call


def one_or_three(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A parameter: one value, or three as a tuple or list."""
    three = st.tuples(values, values, values)
    return st.one_of(values, three, three.map(list), values.map(lambda value: (value,)))


def wrong_integers() -> st.SearchStrategy[Any]:
    small = st.integers(-3, 5)
    return st.one_of(small, st.sampled_from(FAR_TOO_LARGE)) if FAR_TOO_LARGE else small


def wrong_types() -> st.SearchStrategy[Any]:
    """Values that are no integer."""
    return st.sampled_from(
        [
            *(True, False, None, 1.0, 0.5, "1", "same", b"1", 1j),
            *({1}, {1: 1}, range(3), [[1]], torch.ones(2), torch.ones(())),
        ]
    )


def wrong_lists() -> st.SearchStrategy[Any]:
    """Sequences of the wrong length, or that hold something else than integers."""
    return st.one_of(
        st.lists(st.integers(0, 2), max_size=5),
        st.lists(st.integers(0, 2), max_size=5).map(tuple),
        st.tuples(st.just(1), wrong_types(), st.just(1)),
    )


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Draws a call with at most one thing wrong.

    Examples shrink towards a valid call of ones.
    """
    call = draw(right_calls())
    change = draw(st.sampled_from(CHANGES))
    change(draw, call)
    return call


def nothing(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Leaves the call as it is."""


def parameter(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Gives a parameter of the axes another value."""
    values = st.one_of(one_or_three(wrong_integers()), wrong_types(), wrong_lists())
    call[draw(st.sampled_from(PER_AXIS))] = draw(values)


def number_of_groups(draw: st.DrawFn, call: dict[str, Any]) -> None:
    call["groups"] = draw(st.one_of(wrong_integers(), wrong_types(), wrong_lists()))


def shape(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Gives a tensor another shape, of any number of axes."""
    name = draw(st.sampled_from(["input", "weight", "bias"]))
    call[name] = torch.ones(draw(st.lists(SIZES, max_size=7)))


def axis(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Gives one axis of a tensor another size."""
    name = draw(st.sampled_from(["input", "weight"]))
    sizes = list(call[name].shape)
    sizes[draw(st.integers(0, len(sizes) - 1))] = draw(st.integers(1, 5))
    call[name] = torch.ones(sizes)


def dtype(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Gives one tensor, or all, another dtype."""
    dtypes = [torch.float64, torch.float32, torch.int32, torch.uint8, torch.bool, torch.complex64]
    chosen = draw(st.sampled_from(dtypes))
    for name in draw(st.sampled_from([("input",), ("weight",), ("bias",), TENSORS])):
        if call[name] is not None:
            call[name] = call[name].to(chosen)


def no_tensor(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Passes something else than a tensor."""
    values = [None, 1.0, [1.0], "input", call["weight"].numpy()]
    call[draw(st.sampled_from(TENSORS))] = draw(st.sampled_from(values))


def layout(draw: st.DrawFn, call: dict[str, Any]) -> None:
    name = draw(st.sampled_from(["input", "weight"]))
    call[name] = call[name].to_sparse()


def names(draw: st.DrawFn, call: dict[str, Any]) -> None:
    """Leaves an argument out, or passes one that there is not."""
    name = draw(st.sampled_from([*call, "strides"]))
    if call.pop(name, None) is None:
        call[name] = 1


TENSORS = ("input", "weight", "bias")
CHANGES: tuple[Callable[[st.DrawFn, dict[str, Any]], None], ...] = (
    *(
        nothing,
        parameter,
        parameter,
        number_of_groups,
        shape,
        axis,
        dtype,
        no_tensor,
        layout,
        names,
    ),
)


def outcome(function: Any, call: dict[str, Any], device: str) -> Any:
    """Returns the shape and dtype of the output, or the type of the exception.

    Two kinds of RuntimeError count as one: NotImplementedError, which native raises for some wrong dtypes in some
    versions, and torch's OutOfMemoryError, which it raises on a GPU where it asks for too much before it checks.
    """
    placed = {
        name: value.to(device) if isinstance(value, Tensor) and value.dim() else value
        for name, value in call.items()
    }
    try:
        output = function(**placed)
    except RuntimeError:
        return RuntimeError
    except Exception as error:
        return type(error)
    return tuple(output.shape), output.dtype


def described(call: dict[str, Any]) -> str:
    """Returns the call in a line."""
    shown = {
        name: f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        for name, value in call.items()
    }
    return ", ".join(f"{name}={value}" for name, value in shown.items())
