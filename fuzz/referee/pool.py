"""Cases for the rows of a judgement: with the features that a row is about, and without those that it is not.

A case is first drawn as for any campaign, and then loses what its row does not allow, so that a failure shows in the
row that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from random import Random

from fuzz.case import LANES, Case, Triple
from fuzz.strategies import Space, draw_case

FEATURES: dict[str, Callable[[Case], bool]] = {
    "stride": lambda case: max(case.stride) > 1,
    "padding": lambda case: max(case.padding) > 0,
    "output_padding": lambda case: max(case.output_padding) > 0,
    "dilation": lambda case: max(case.dilation) > 1,
    "groups": lambda case: case.groups > 1,
    "bias": lambda case: case.bias,
    "asymmetric": lambda case: any(
        len(set(triple)) > 1
        for triple in (
            case.kernel_size, case.stride, case.padding, case.output_padding, case.dilation
        )
    ),
    "channels_last": lambda case: case.layout == "cl",
    "batch": lambda case: case.n > 1,
    "special_values": lambda case: case.lane == "special",
    # Long enough for another order of summation to show in the bits of most elements.
    "long_sums": lambda case: case.in_channels // case.groups >= 8,
}  # fmt: skip

MAX_MULTIPLY_ADDS = 20_000
# What a case may have after it lost features: without groups, for example, it has more products.
MAX_RESTRICTED_MULTIPLY_ADDS = 300_000
MAX_OUTPUT_ELEMENTS = 100_000
MAX_KERNEL_SIZE = 3  # where all axes are alike
# Of so many cases at least one has any two features.
MAX_DRAWS = 5_000


def drawn_cases(
    seed: int,
    row: str,
    dtypes: Sequence[str],
    required: Collection[str],
    allowed: Collection[str],
) -> Iterator[Case]:
    """Yields different cases, the same ones for the same seed and row.

    Args:
        seed: any number.
        row: name of the row that they are for.
        dtypes: to draw from.
        required: features, of FEATURES, that each case has.
        allowed: features that a case may have besides.
    """
    random = Random(f"{seed} {row}")
    lanes: tuple[str, ...] = ("int", "normal")
    if "special_values" in required:
        lanes = ("special",)
    elif "special_values" in allowed:
        lanes = LANES
    space = Space(
        dtypes=tuple(dtypes), lanes=lanes, modes=("fast",), max_multiply_adds=MAX_MULTIPLY_ADDS
    )
    seen = set()
    for _ in range(MAX_DRAWS):
        case = restrict(draw_case(random, space), {*required, *allowed})
        is_fit = all(FEATURES[feature](case) for feature in required) and _is_affordable(case)
        if is_fit and case not in seen:
            seen.add(case)
            yield case


def given_cases(
    seed: int, row: str, given: Sequence[Case], dtypes: Sequence[str], required: Collection[str]
) -> Iterator[Case]:
    """Yields those of the given cases that have the dtypes and features, again and again with other data."""
    random = Random(f"{seed} {row}")
    fit = [
        case
        for case in given
        if case.dtype in dtypes and all(FEATURES[feature](case) for feature in required)
    ]
    yield from fit
    while fit:
        case = random.choice(fit)
        yield replace(case, seed=random.getrandbits(31), lane=random.choice(("int", "normal")))


def restrict(case: Case, features: Collection[str]) -> Case:
    """The case with these features only: what the others set has its default, or is within what is then legal.

    Without "asymmetric" the three axes are alike, but for the sizes of the tensors.
    """
    kernel_size, stride, dilation = case.kernel_size, case.stride, case.dilation
    padding, output_padding = case.padding, case.output_padding
    if "stride" not in features:
        stride = (1, 1, 1)
    if "dilation" not in features:
        dilation = (1, 1, 1)
    if "output_padding" not in features:
        output_padding = (0, 0, 0)
    if "padding" not in features:
        padding = (0, 0, 0)
    if "asymmetric" not in features:
        kernel_size = _alike(min(max(kernel_size), MAX_KERNEL_SIZE))
        stride, dilation = _alike(max(stride)), _alike(max(dilation))
        padding, output_padding = _alike(max(padding)), _alike(max(output_padding))
    output_padding = _least(output_padding, [max(s, d) - 1 for s, d in zip(stride, dilation)])
    reach = [
        (i - 1) * s + (k - 1) * d + more
        for i, s, k, d, more in zip(case.input_size, stride, kernel_size, dilation, output_padding)
    ]
    padding = _least(padding, [size // 2 for size in reach])
    if "asymmetric" not in features:
        padding = _alike(min(padding))
    return replace(
        case,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=case.groups if "groups" in features else 1,
        bias=case.bias and "bias" in features,
        layout=case.layout if "channels_last" in features else "ncdhw",
        n=case.n if "batch" in features else 1,
    )


def _alike(value: int) -> Triple:
    return value, value, value


def _least(values: Triple, limits: Sequence[int]) -> Triple:
    depth, height, width = (min(value, limit) for value, limit in zip(values, limits))
    return depth, height, width


def _is_affordable(case: Case) -> bool:
    return (
        case.multiply_adds <= MAX_RESTRICTED_MULTIPLY_ADDS
        and math.prod(case.output_shape) <= MAX_OUTPUT_ELEMENTS
    )
