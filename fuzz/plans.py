"""Which plans of convt3d can run a case: the harness draws from all of them, not only the chosen one.

A case string is read without knowing any plan; where one comes in from outside, check_plans looks.
"""

from __future__ import annotations

from convt3d import build, plan
from convt3d.columns import Pattern, pattern_of
from convt3d.geometry import Geometry
from convt3d.lines import LINE_STYLES, LineUnits, line_choice, line_family, parse_line_tile
from convt3d.matrix.tile import family_of, parse_tile
from convt3d.matrix.work import MatrixUnits
from fuzz.case import Case, CaseError, format_token

# Of compute capability 8.0, which the emulator has too; newer ones have no less. Plans of warpgroups, which only 9.0
# has, are not drawn: tests/test_matrix.py runs them on the emulator, and a GPU of 9.0 chooses them by itself.
MATRIX_UNITS = {
    dtype: MatrixUnits(element_bytes, plan.SHARED_BYTES[8, 0], dtype == "tf32")
    for dtype, element_bytes in {"f16": 2, "bf16": 2, "f32": 4, "tf32": 4}.items()
}

# Kernels for a pattern along W take seconds to build, so on the emulator cases meet these; the others differ from them
# in constants alone, and tests/test_matrix.py runs each. Those for a dilation are named by no case, only chosen. Under
# a sanitizer, where a build takes longest, fewer.
EMULATED_PATTERNS: tuple[Pattern | None, ...] = (
    *(Pattern(*numbers) for numbers in ((1, 1, 0), (1, 3, 0), (2, 2, 0), (2, 3, 1))),
    None,
)
SANITIZED_PATTERNS: tuple[Pattern | None, ...] = (Pattern(2, 3, 1), None)
SANITIZED_DTYPES = ("f32", "tf32", "f16")
# A size above keeps the emulator busy for a minute, for each place of a block is a round of all its threads.
LARGEST_TILED_SIZE = 2**15


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


# What the kernel for few channels finds on either kind of output.
LINE_UNITS = {
    dtype: tuple(
        LineUnits(element_bytes, plan.SHARED_BYTES[8, 0], along_channels)
        for along_channels in (False, True)
    )
    for dtype, element_bytes in {"f64": 8, "f32": 4, "tf32": 4, "f16": 2, "bf16": 2}.items()
}


def candidate_plans(case: Case, every_pattern: bool = False) -> dict[str, list[str]]:
    """Names of the plans that can run each primitive of a case; its tensors must be small.

    Args:
        case: the case.
        every_pattern: kernels for a pattern along W that are not built beforehand too.
    """
    shape, is_far = geometry(case), case.layout == "far"
    units = _matrix_units(case)
    found = {
        primitive: [
            str(candidate) for candidate in plan.candidates(primitive, shape, not is_far, units)
        ]
        for primitive in plan.PRIMITIVES
    }
    for style in LINE_STYLES:  # whatever way the output lies
        choices = [line_choice(shape, lines) for lines in _line_units(case)]
        if choices and all(choice.of_style(style) for choice in choices):
            found["forward"].append(f"lines.{style}")
    pattern = pattern_of(shape.axis(2))
    is_drawn = every_pattern or pattern in _patterns(case.mode)
    if not is_drawn or (pattern and pattern.dilation > 1):
        found["forward"] = [name for name in found["forward"] if ".fixed" not in name]
    return found


def _matrix_units(case: Case) -> MatrixUnits | None:
    is_drawn = case.layout != "far" and case.dtype != "f64" and _has_tiles(case)
    return MATRIX_UNITS[case.dtype] if is_drawn else None


def _line_units(case: Case) -> tuple[LineUnits, ...]:
    return LINE_UNITS[case.dtype] if _has_tiles(case) else ()


def _has_tiles(case: Case) -> bool:
    """Whether plans named after tiles are drawn for the case."""
    if max(case.n, case.in_channels, case.out_channels, *case.input_size) > LARGEST_TILED_SIZE:
        return False
    return case.mode not in build.SANITIZER_FLAGS or case.dtype in SANITIZED_DTYPES


def _patterns(mode: str) -> tuple[Pattern | None, ...]:
    return SANITIZED_PATTERNS if mode in build.SANITIZER_FLAGS else EMULATED_PATTERNS


def usual_parts(target: str) -> list[str]:
    """The parts that cases meet on a target, to be built before the first of them."""
    if target == "cuda":  # those of warpgroups, which take longest, are built when they are met
        return [part for part in build.PARTS if part.split("_")[0] not in build.WARPGROUP_FAMILIES]
    dtypes = SANITIZED_DTYPES if target in build.SANITIZER_FLAGS else tuple(LINE_UNITS)
    families = {family(p) for p in _patterns(target) for family in (family_of, line_family)}
    wanted = {f"{family}_{dtype}" for family in families for dtype in dtypes}
    return [
        part
        for part in build.PARTS
        if part in wanted or not part.startswith(tuple(plan.TILE_KERNELS))
    ]


def stands_for(named: str, ran: str) -> bool:
    """Whether a plan that ran is one that a case names: itself, one of the named style, or any for "auto"."""
    if named in ("auto", ran):
        return True
    tile = parse_tile(ran) or parse_line_tile(ran)
    kernel = ran.partition(".")[0]
    return tile is not None and named in (kernel, f"{kernel}.{tile.style}")


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
        if named.kernel == "matrix" and (case.layout == "far" or case.dtype == "f64"):
            raise CaseError(f"{where}there are no matrix units for layout 'far' or dtype 'f64'")
        if named.kernel in plan.TILE_KERNELS and primitive != "forward":
            raise CaseError(f"{where}only forward has {named.kernel} plans")
        if named.splits > 1 and (primitive != "grad_weight" or not name.startswith("tiled")):
            raise CaseError(f"{where}only tiled plans of grad_weight have split-K")
