"""Which plans of convt3d can run a case: the harness draws from all of them, not only the chosen one.

A case string is read without knowing any plan; where one comes in from outside, check_plans looks.
"""

from __future__ import annotations

from convt3d import plan
from convt3d.geometry import Geometry
from fuzz.case import Case, CaseError, format_token


def geometry(case: Case) -> Geometry:
    """The case as the op's geometry."""
    return Geometry(
        batch=case.n,
        in_channels=case.in_channels,
        out_channels=case.out_channels,
        groups=case.groups,
        input_size=case.input_size,
        kernel_size=case.kernel_size,
        stride=case.stride,
        padding=case.padding,
        output_padding=case.output_padding,
        dilation=case.dilation,
    )


def candidate_plans(case: Case) -> dict[str, list[str]]:
    """Names of the plans that can run each primitive of a case; its tensors must be small."""
    shape = geometry(case)
    return {
        primitive: [
            str(candidate)
            for candidate in plan.candidates(primitive, shape, fits_32_bits=case.layout != "far")
        ]
        for primitive in plan.PRIMITIVES
    }


def check_plans(case: Case) -> None:
    """Raises CaseError, which names the token, where the case names a plan that convt3d does not have."""
    for primitive in plan.PRIMITIVES:
        field = f"{primitive}_plan"
        name = getattr(case, field)
        if name == "auto":
            continue
        where = f"token {format_token(field, name)!r}: "
        try:
            named = plan.parse_plan(name)
        except RuntimeError as error:
            raise CaseError(f"{where}{error}, or 'auto'") from None
        if named.index_bits == 32 and case.layout == "far":
            raise CaseError(f"{where}plan={name!r}, but offsets of layout 'far' need 64 bits")
        if named.splits > 1 and (primitive != "grad_weight" or not name.startswith("tiled")):
            raise CaseError(f"{where}only tiled plans of grad_weight have split-K")
