"""Results as SVG, drawn by hand: bars for a suite, a scatter for samples. No torch.

The colours are readable on white and on black: text is a grey of contrast 4.5 to both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from xml.sax.saxutils import escape

from fuzz.bench.results import Row, Run

TEXT, GRID, WON, LOST = "#767676", "#76767655", "#2f81f7", "#e5534b"
# All in SVG user units, which are pixels at the picture's own size.
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 920, 200, 70, 16, 46
_SCATTER_WIDTH, _SCATTER_HEIGHT, _MARGIN = 720, 480, 60


def draw(run: Run) -> str:
    """Returns the picture of a run: an SVG document."""
    return scatter(run) if run.kind == "sample" else bars(run)


def bars(run: Run) -> str:
    """Horizontal bars of native's time over ours on a logarithmic axis, grouped by dtype, layout and direction."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in run.rows:
        groups.setdefault(row.group, []).append(row)
    low, high = _decades([row.ratio for row in run.rows], least=0.5, most=2.0)
    plot = _WIDTH - _LEFT - _RIGHT

    def x_of(ratio: float) -> float:
        return _LEFT + plot * _place(ratio, low, high)

    parts: list[str] = []
    y = _TOP
    for group, rows in groups.items():
        y += _ROW
        parts.append(_text(8, y, " ".join(group), weight="bold"))
        for row in rows:
            y += _ROW
            parts += _bar(row, x_of, y)
        y += _ROW // 2
    parts += (
        _line(x_of(tick), _TOP, x_of(tick), y, TEXT if tick == 1 else GRID)
        for tick in _ticks(low, high)
    )
    parts += (_text(x_of(tick), _TOP - 6, f"{tick:g}x", "middle") for tick in _ticks(low, high))
    title = "native time / our time, above 1x is faster"
    return _document(_WIDTH, y + _ROW, f"{title}; {_machine(run)}", parts)


def _bar(row: Row, x_of: Callable[[float], float], y: float) -> list[str]:
    """A row's name, its bar from 1x on and its ratio, or its mark where there is no ratio."""
    parts = [_text(_LEFT - 8, y, row.shape, "end")]
    if row.ratio is None:
        return [*parts, _text(x_of(1) + 6, y, row.mark.lower(), fill=LOST)]
    start, end = sorted((x_of(1), x_of(row.ratio)))
    colour = LOST if row.ratio < 1 else WON
    shape = f'x="{start:.1f}" y="{y - 11}" width="{max(end - start, 1):.1f}" height="12"'
    label = _text(end + 6, y, f"{row.ratio:.2f}", fill=colour)
    return [*parts, f'<rect {shape} fill="{colour}"/>', label]


def scatter(run: Run) -> str:
    """Our time over native's against native's time, both logarithmic; points above 1, where we are slower, in red."""
    points = [
        (row, row.native_ms, 1 / row.ratio)
        for row in run.rows
        if row.ratio is not None and row.native_ms is not None
    ]
    left, right = _decades([ms for _, ms, _ in points], least=0.01, most=10.0)
    low, high = _decades([slowness for _, _, slowness in points], least=0.5, most=2.0)
    width, height = _SCATTER_WIDTH - 2 * _MARGIN, _SCATTER_HEIGHT - 2 * _MARGIN

    def x_of(ms: float) -> float:
        return _MARGIN + width * _place(ms, left, right)

    def y_of(slowness: float) -> float:
        return _MARGIN + height * (1 - _place(slowness, low, high))

    end_x, end_y = _SCATTER_WIDTH - _MARGIN, _SCATTER_HEIGHT - _MARGIN
    parts = [
        _text(_SCATTER_WIDTH / 2, _SCATTER_HEIGHT - 18, "native, ms", "middle"),
        _text(8, _MARGIN - 14, "our time / native's, below 1 is faster"),
    ]
    for tick in _ticks(left, right):
        parts.append(_line(x_of(tick), _MARGIN, x_of(tick), end_y, GRID))
        parts.append(_text(x_of(tick), end_y + 16, f"{tick:g}", "middle"))
    for tick in _ticks(low, high):
        parts.append(_line(_MARGIN, y_of(tick), end_x, y_of(tick), TEXT if tick == 1 else GRID))
        parts.append(_text(_MARGIN - 6, y_of(tick) + 4, f"{tick:g}", "end"))
    for row, ms, slowness in points:
        place = f'cx="{x_of(ms):.1f}" cy="{y_of(slowness):.1f}"'
        colour = LOST if slowness > 1 else WON
        name = f"<title>{escape(f'{row.case} {row.direction}: {slowness:.2f}')}</title>"
        parts.append(f'<circle {place} r="3.5" fill="{colour}" fill-opacity="0.8">{name}</circle>')
    without = len(run.rows) - len(points)
    slower = sum(slowness > 1 for _, _, slowness in points)
    title = f"{len(points)} random layers, {slower} slower than native, {without} without a ratio"
    return _document(_SCATTER_WIDTH, _SCATTER_HEIGHT, f"{title}; {_machine(run)}", parts)


def _machine(run: Run) -> str:
    names = ("card", "torch", "arch")
    return ", ".join(run.facts[name] for name in names if name in run.facts)


def _decades(values: Iterable[float | None], least: float, most: float) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds all values and goes at least from `least` to `most`."""
    known = [value for value in values if value is not None and value > 0]
    return min([least, *known]) / 1.1, max([most, *known]) * 1.1


def _place(value: float, low: float, high: float) -> float:
    """Where a value lies on a logarithmic axis: 0 at its low end, 1 at its high end."""
    return math.log(value / low) / math.log(high / low)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 in every decade of the axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = (float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 2, 5))
    return [tick for tick in ticks if low <= tick <= high]


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = TEXT, weight: str = "normal"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}" font-weight="{weight}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def _document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    font = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">'
    body = [f"<title>{escape(title)}</title>", _text(8, 18, title), *parts]
    return "\n".join([head, *body, "</svg>"]) + "\n"
