"""What torch.utils.flop_counter counts of the operators: two for each product, as of PyTorch's own convolutions."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

from convt3d.ops.primitives import OPERATORS

Shape = tuple[int, ...]


def forward_flops(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Every element of the input meets every weight of its channel."""
    return 2 * input[0] * math.prod(input[2:]) * math.prod(weight)


def grad_input_flops(
    grad_output: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any
) -> int:
    """As many as the forward operator's, on an input of that shape."""
    return forward_flops(out_shape, weight)


def grad_weight_flops(input: Shape, *_: Any, out_shape: tuple[Shape, Shape], **__: Any) -> int:
    """As many as the forward operator's; none where the gradient of the bias alone is wanted."""
    of_weight = out_shape[0]
    return forward_flops(input, of_weight) if len(of_weight) == 5 else 0


def _register() -> None:
    if importlib.util.find_spec("torch.utils.flop_counter") is None:  # PyTorch 2.0
        return
    counter = importlib.import_module("torch.utils.flop_counter")
    if hasattr(counter, "register_flop_formula"):  # PyTorch 2.2 and newer
        counter.register_flop_formula(OPERATORS.forward)(forward_flops)
        counter.register_flop_formula(OPERATORS.grad_input)(grad_input_flops)
        counter.register_flop_formula(OPERATORS.grad_weight)(grad_weight_flops)


_register()
