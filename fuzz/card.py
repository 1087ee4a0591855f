"""The failure card: what a person needs to see of a failing case, about ten lines in a fixed order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fuzz.bounds import Expectation
from fuzz.case import Case
from fuzz.checks import Comparison, Mask, compare
from fuzz.number import RawBits, smallest_subnormal, unit_roundoff
from fuzz.outcome import FAILURES, RESULTS, Judgement, Outcome, Verdict
from fuzz.suspect import REFERENCE, WITNESSES

# A contribution: one or two factors, each a tensor's name and an index into it.
Factor = tuple[str, tuple[int, ...]]
Contribution = tuple[Factor, ...]

CONTRIBUTIONS_SHOWN = 4

_AXES = {
    "output": ("n", "co", "z", "y", "x"),
    "grad_input": ("n", "ci", "z", "y", "x"),
    "grad_weight": ("ci", "co", "kz", "ky", "kx"),
    "grad_bias": ("co",),
}
_SPATIAL = 2  # the first spatial axis of a tensor


def card(
    case: Case,
    judgements: Sequence[Judgement],
    expectation: Expectation,
    outcomes: Mapping[str, Outcome],
    machine: str,
) -> str:
    """Writes the card of the first leg that failed; of all legs when none did.

    Args:
        case: the case.
        judgements: one a leg, the most important leg first.
        expectation: of the case.
        outcomes: by leg, what its subject did.
        machine: one line that says where it ran.

    Returns:
        Lines without a final newline: what failed, the case, how much is wrong and where first,
        expected, actual, error, the products behind that element, the other legs, the machine,
        and the commands that reproduce and keep the case.
    """
    failed = [j for j in judgements if j.verdict in FAILURES]
    shown = failed or [j for j in judgements if j.verdict is not Verdict.PASS]
    options = ""
    if shown:
        lines = _describe(shown[0], expectation, outcomes[shown[0].leg], str(case))
        others = _describe_others(shown[0], judgements)
        lines.append(("others", "; ".join(others) or "no other leg ran"))
        why = " ".join(filter(None, (shown[0].leg, str(shown[0].verdict), shown[0].result)))
        if shown[0].leg == "native":
            # Known from then on, and so no finding of every later run; its reason says of what version.
            why, options = f"{why}; seen on {machine}", ' ARGS="--file native"'
    else:
        shares = (f"{j.leg} {j.share_of_bound:.3g}" for j in judgements)
        lines = [
            ("PASS", f"{', '.join(j.leg for j in judgements)} agree with the reference"),
            ("case", str(case)),
            ("bound", f"largest share used: {', '.join(shares)}"),
        ]
        why = "..."
    lines.append(("machine", machine))
    lines.append(("reproduce", f"make repro CASE={case}"))
    lines.append(("keep", f'make keep CASE={case} WHY="{why}"{options}'))
    indent = "\n" + " " * 11  # messages may have several lines
    return "\n".join(f"{label:<10} {text}".replace("\n", indent) for label, text in lines)


def contributions(case: Case, result: str, index: tuple[int, ...]) -> Iterator[Contribution]:
    """The contributions behind one element, taps or voxels first, channels last.

    Args:
        case: the case.
        result: one of fuzz.outcome.RESULTS.
        index: of the element.
    """
    in_each, out_each = case.in_channels // case.groups, case.out_channels // case.groups
    if result == "grad_bias":
        for n, *place in itertools.product(range(case.n), *map(range, case.output_size)):
            yield (("grad_output", (n, *index, *place)),)
        return
    meetings = (_meetings(case, result, axis, index[_SPATIAL + axis]) for axis in range(3))
    for meeting in itertools.product(*meetings):
        i, k, o = zip(*meeting)
        if result == "output":
            n, co = index[:2]
            group, local = divmod(co, out_each)
            for ci in range(group * in_each, (group + 1) * in_each):
                yield ("input", (n, ci, *i)), ("weight", (ci, local, *k))
        elif result == "grad_input":
            n, ci = index[:2]
            for local in range(out_each):
                co = ci // in_each * out_each + local
                yield ("grad_output", (n, co, *o)), ("weight", (ci, local, *k))
        else:
            ci, local = index[:2]
            for n in range(case.n):
                co = ci // in_each * out_each + local
                yield ("input", (n, ci, *i)), ("grad_output", (n, co, *o))


def _meetings(case: Case, result: str, axis: int, position: int) -> Iterator[tuple[int, int, int]]:
    """Input position, tap and output position, along one axis, of all that meets at a position."""
    stride, padding, dilation = case.stride[axis], case.padding[axis], case.dilation[axis]
    taps, inputs = range(case.kernel_size[axis]), range(case.input_size[axis])
    if result == "output":
        for k in taps:
            i, rest = divmod(position + padding - k * dilation, stride)
            if rest == 0 and i in inputs:
                yield i, k, position
        return
    pairs = (
        [(position, k) for k in taps] if result == "grad_input" else [(i, position) for i in inputs]
    )
    for i, k in pairs:
        o = i * stride + k * dilation - padding
        if 0 <= o < case.output_size[axis]:
            yield i, k, o


def _describe(
    judgement: Judgement, expectation: Expectation, outcome: Outcome, case: str
) -> list[tuple[str, str]]:
    """The lines about the leg that failed."""
    what = " ".join(filter(None, (judgement.leg, judgement.result)))
    plans = ", ".join(f"{primitive} {plan}" for primitive, plan in outcome.plans.items())
    lines = [
        (str(judgement.verdict).upper(), what + (f" (plans: {plans})" if plans else "")),
        ("case", case),
    ]
    if judgement.first_wrong is None:
        return [*lines, ("because", judgement.detail or "nothing is known")]
    comparison = compare(expectation, outcome, judgement.leg, judgement.result)
    index = judgement.first_wrong
    got = float(comparison.got[index])
    return [
        *lines,
        ("wrong", _describe_extent(judgement, comparison, expectation, outcome)),
        ("expected", _describe_expected(comparison, index)),
        ("actual", _describe_value(comparison.raw[index], got, comparison.dtype)),
        ("error", _describe_error(comparison, index)),
        ("sum of", _describe_sum(expectation, judgement.result, index)),
    ]


def _describe_others(shown: Judgement, judgements: Sequence[Judgement]) -> list[str]:
    others = [judgement for judgement in judgements if judgement is not shown]
    if shown.leg != REFERENCE:
        return [_describe_other(judgement) for judgement in others]
    others = [judgement for judgement in others if judgement.leg not in WITNESSES]
    return [
        f"{' and '.join(WITNESSES)} contradict the reference and agree with each other",
        *map(_describe_other, others),
    ]


def _describe_other(judgement: Judgement) -> str:
    if judgement.verdict is Verdict.PASS:
        return f"{judgement.leg} agrees with the reference"
    return " ".join(filter(None, (judgement.leg, str(judgement.verdict), judgement.result)))


def _describe_extent(
    judgement: Judgement, comparison: Comparison, expectation: Expectation, outcome: Outcome
) -> str:
    assert comparison.wrong is not None
    text = f"{judgement.wrong_elements} of {comparison.wrong.size} elements"
    pattern = _describe_pattern(expectation.case, comparison, comparison.wrong)
    place = ", ".join(map(str, comparison.first_wrong))
    text += f", {pattern}" if pattern else ""
    text += f"; first {judgement.result}[{place}]"
    also = [
        result
        for result in RESULTS[RESULTS.index(judgement.result) + 1 :]
        if result in outcome.results
        and compare(expectation, outcome, judgement.leg, result).wrong is not None
    ]
    return text + (f"; also wrong: {', '.join(also)}" if also else "")


def _describe_pattern(case: Case, comparison: Comparison, wrong: Mask) -> str:
    """What the wrong elements have in common, if they are several; may be empty."""
    got = comparison.got[wrong]
    if got.size == 1:
        return ""
    found = []
    if np.isnan(got).all():
        found.append("all NaN")
    elif (got == 0).all():
        found.append("all zero")
    for axis, positions in enumerate(np.nonzero(wrong)):
        name, size = _AXES[comparison.result][axis], wrong.shape[axis]
        if size > 1 and (positions == positions[0]).all():
            last = ", the last" if positions[0] == size - 1 else ""
            found.append(f"all at {name}={positions[0]}{last}")
        elif comparison.result == "output" and axis >= _SPATIAL:
            stride, padding = case.stride[axis - _SPATIAL], case.padding[axis - _SPATIAL]
            phases = (positions + padding) % stride
            if stride > 1 and size > 1 and (phases == phases[0]).all():
                found.append(f"all in phase {phases[0]} of {stride} along {name}")
    return ", ".join(found)


def _describe_value(raw: RawBits, value: float, dtype: str) -> str:
    digits = 17 if dtype == "f64" else 9
    return f"{value:.{digits}g}  {int(raw):#0{2 * raw.itemsize + 2}x}"


def _describe_expected(comparison: Comparison, index: tuple[int, ...]) -> str:
    expected, exact = float(comparison.expected[index]), float(comparison.exact[index])
    text = _describe_value(comparison.expected_raw[index], expected, comparison.dtype)
    return text if expected == exact or math.isnan(exact) else f"{text}  rounded from {exact:.17g}"


def _describe_error(comparison: Comparison, index: tuple[int, ...]) -> str:
    got, exact = float(comparison.got[index]), float(comparison.exact[index])
    if not math.isfinite(got):
        return f"{got:g} does not belong here"
    if comparison.bound is not None and comparison.bound[index] < 0:
        return "no finite value belongs here"
    error = abs(got - exact)
    text = f"{error:.6g} = {error / _ulp(exact, comparison.dtype):.4g} ulp"
    if comparison.bound is None:
        return f"{text}; the correctly rounded answer is demanded"
    bound = float(comparison.bound[index])
    return f"{text} = {error / bound:.4g} times the bound {bound:.6g}"


def _ulp(value: float, dtype: str) -> float:
    """Distance of neighbouring numbers of the dtype at a finite value."""
    exponent = math.frexp(value)[1] - 1
    return max(2 * unit_roundoff(dtype) * 2.0**exponent, smallest_subnormal(dtype))


def _describe_sum(expectation: Expectation, result: str, index: tuple[int, ...]) -> str:
    count = int(getattr(expectation.products, result)[index])
    unit = "element" if result == "grad_bias" else "product"
    terms = [
        " * ".join(_describe_factor(expectation, *factor) for factor in contribution)
        for contribution in itertools.islice(
            contributions(expectation.case, result, index), CONTRIBUTIONS_SHOWN
        )
    ]
    if result == "output" and expectation.inputs.bias is not None:
        terms.insert(0, _describe_factor(expectation, "bias", index[1:2]))
    more = f", and {count - CONTRIBUTIONS_SHOWN} more" if count > CONTRIBUTIONS_SHOWN else ""
    return f"{count} {unit}{'s' * (count != 1)}: {' + '.join(terms) or 'nothing'}{more}"


def _describe_factor(expectation: Expectation, tensor: str, index: tuple[int, ...]) -> str:
    value = float(getattr(expectation.inputs, tensor)[index])
    return f"{tensor}[{','.join(map(str, index))}]={value:.9g}"
