"""A run as text: every row, lost ones marked, then geometric means beside their targets. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fuzz.bench.results import NATIVE, OURS, Row, Run
from fuzz.bench.suite import Point

# Native's time over ours that the geometric mean over the suite is to reach: (dtype, layout) -> forward, grad_input,
# grad_weight. Strict fp32 has one target for both layouts. Chosen by the project from what prototypes reached.
_TARGETS = {
    **{(dtype, "ncdhw"): (5.0, 4.0, 4.0) for dtype in ("bf16", "f16")},
    ("tf32", "ncdhw"): (5.0, 3.0, 4.0),
    **{(dtype, "channels_last"): (3.0, 2.0, 2.5) for dtype in ("bf16", "f16", "tf32")},
    **{("f32", layout): (3.0, 2.0, 3.0) for layout in ("ncdhw", "channels_last")},
}
_DIRECTIONS = ("forward", "grad_input", "grad_weight")
SLOWEST_TARGET = {"ncdhw": 1.0, "channels_last": 0.9}
FLOOR_TARGET = 0.5  # share of the floor, geometric mean, 16-bit NCDHW

_COLUMNS = (
    f"{'native ms':>10} {'mode':4} {'ours ms':>9} {'ratio':>6} {'floor ms':>9} {'share':>6} "
    f"{'rms':>5} {'host us':>9}  plan"
)


def target(dtype: str, layout: str, direction: str) -> float:
    """Returns the geometric mean of native's time over ours that is aimed at."""
    return _TARGETS[dtype, layout][_DIRECTIONS.index(direction)]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Returns the geometric mean of what is not None; None if nothing is."""
    logarithms = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None


def name_width(names: Iterable[Row | Point]) -> int:
    """Returns the width of the longest name, for `heading` and `line`."""
    return max((len(str(name)) for name in names), default=0)


def header(run: Run) -> str:
    """The card, the versions, the settings and the ceilings."""
    facts = {**run.facts, "copy": f"{run.ceilings.copy_tb_s:.2f} TB/s read plus write"}
    rates = run.ceilings.matmul_tflops
    facts["matmul"] = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in rates.items()) + " TFLOP/s"
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {text}" for name, text in facts.items())


def heading(width: int) -> str:
    """The line above the rows."""
    return f"{'':6} {'shape dtype layout direction':{width}} {_COLUMNS}"


def line(row: Row, width: int) -> str:
    """One row; what went wrong with it follows on lines of its own."""
    mode = NATIVE[row.best_native] if row.best_native else "-"
    host = "/".join(_number(row.host_us.get(name), ".0f") for name in (OURS, "native"))
    text = (
        f"{row.mark:6} {row!s:{width}} {_number(row.native_ms, '.4f'):>10} {mode:4} "
        f"{_number(row.ours_ms, '.4f'):>9} {_number(row.ratio, '.2f'):>6} {row.floor_ms:9.4f} "
        f"{_number(row.floor_share, '.2f'):>6} {_number(row.rms_ratio, '.2f'):>5} {host:>9}  {row.plan}"
    )
    if row.problem:
        text += f"\n       ours {row.problem}"
    if row.native_problem:
        text += f"\n       native {row.native_problem}"
    return text.rstrip()


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(rows: Sequence[Row]) -> str:
    """The rows below their heading."""
    width = name_width(rows)
    return "\n".join([heading(width), *(line(row, width) for row in rows)])


def is_lost(row: Row) -> bool:
    """Whether the row must not be overlooked: slower than native, wrong, or failed."""
    return row.mark != ""


def summary(run: Run) -> str:
    """What follows the rows: graph replay, means, targets, lost rows, and what was not measured."""
    parts = [_legend(), _graphs(run.rows), _means(run.rows), _lost(run)]
    if run.unmeasured:
        left = "\n".join(f"  {point}" for point in run.unmeasured)
        parts.append(f"not measured, {len(run.unmeasured)} rows: {run.stopped}\n{left}")
    return "\n\n".join(part for part in parts if part)


def lost_rows(run: Run) -> str:
    """The rows where we are slower, wrong or failed, worst first, each with its case string."""
    rows = sorted((row for row in run.rows if is_lost(row)), key=_slowest_first)
    if not rows:
        return "no row is lost"
    width = name_width(rows)
    lines = (f"{line(row, width)}\n       {row.case}" for row in rows)
    return "\n".join([heading(width), *lines])


def text(run: Run) -> str:
    """The whole report; of samples the lost rows alone."""
    rows = lost_rows(run) if run.kind == "sample" else table(run.rows)
    return "\n\n".join([header(run), rows, summary(run)])


def _slowest_first(row: Row) -> float:
    return -1.0 if row.problem else row.ratio or 0.0


def _legend() -> str:
    return (
        "ms: median. mode: of cudnn.benchmark, the one that was faster. ratio: native / ours. share: floor / ours.\n"
        "rms: our RMS error over native's. host us: of one call, ours/native."
    )


def _graphs(rows: Sequence[Row]) -> str:
    """Rows that were timed under graph replay too."""
    replayed = [row for row in rows if row.graph]
    if not replayed:
        return ""
    width = name_width(replayed)
    lines = ["under CUDA graph replay: native ms (on, off), ours ms, ratio"]
    for row in replayed:
        medians = {name: timing.median for name, timing in row.graph.items()}
        cells = (_number(medians.get(name), ".4f") for name in (*NATIVE, OURS))
        ratio = _number(row.graph_ratio, ".2f")
        lines.append(f"  {row!s:{width}} " + " ".join(f"{cell:>9}" for cell in (*cells, ratio)))
    return "\n".join(lines)


def _means(rows: Sequence[Row]) -> str:
    """A line for each dtype, layout and direction."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    if not groups:
        return ""
    lines = [
        f"{'geometric mean':34} {'rows':>7} {'ratio':>6} {'target':>6} {'share':>6} {'target':>6}  slowest"
    ]
    return "\n".join([*lines, *(_mean(group, members) for group, members in groups.items())])


def _mean(group: tuple[str, str, str], rows: Sequence[Row]) -> str:
    """One line; rows without a ratio are not in the mean, so their number stands beside it."""
    dtype, layout, _ = group
    rated = [row for row in rows if row.ratio is not None]
    aimed = target(*group)
    ratio = geometric_mean(row.ratio for row in rated)
    share = geometric_mean(row.floor_share for row in rated)
    wanted = FLOOR_TARGET if dtype in ("bf16", "f16") and layout == "ncdhw" else None
    slowest = min(rated, key=lambda row: row.ratio or 0.0, default=None)
    end = "-"
    if slowest is not None:
        least = SLOWEST_TARGET[layout]
        end = f"{slowest.ratio:.2f} {slowest.shape} (target {least})"
    reached = ratio is not None and ratio >= aimed and len(rated) == len(rows)
    return (
        f"{' '.join(group):34} {len(rated):3}/{len(rows):<3} {_number(ratio, '.2f'):>6} {aimed:6.1f} "
        f"{_number(share, '.2f'):>6} {_number(wanted, '.1f'):>6}  {end}{'' if reached else '  MISSED'}"
    )


def _lost(run: Run) -> str:
    """How many rows carry which mark."""
    marks = [row.mark for row in run.rows if row.mark]
    counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in sorted(set(marks))) or "none"
    return f"{len(run.rows)} rows measured; lost, wrong or failed: {counts}"
