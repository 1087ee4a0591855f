"""Which plans of convt3d can run a case: the harness draws from all of them, not only the chosen one."""

from __future__ import annotations

from convt3d import plan
from convt3d.geometry import Geometry
from fuzz.case import Case


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
        primitive: [str(candidate) for candidate in plan.candidates(primitive, shape)]
        for primitive in plan.PRIMITIVES
    }
