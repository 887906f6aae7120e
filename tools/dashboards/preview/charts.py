"""One panel's chart: tiles, lines, areas, heat maps, inside a given box.

Knows: axes, legends, colors by kind of panel. Does not know: where the data came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tools.dashboards.panels import Panel
from tools.dashboards.preview.colors import (
    GRID,
    MUTED,
    NAMED,
    PALETTE,
    TEXT,
    orange,
    turbo,
)
from tools.dashboards.preview.figures import log_marks, marks, text_of
from tools.dashboards.preview.series import Series, Span
from tools.dashboards.preview.svg import Drawing, Point, width_of

_SMALL = 10.0
_LEGEND_H = 16.0
_AXIS_H = 15.0
_TIMES = 5
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
_LEFT_MAX = 150.0


@dataclass(frozen=True)
class Frame:
    """Pixels."""

    x: float
    y: float
    w: float
    h: float

    @property
    def bottom(self) -> float:
        return self.y + self.h

    @property
    def right(self) -> float:
        return self.x + self.w


def draw(drawing: Drawing, panel: Panel, series: Sequence[Series], span: Span, box: Frame) -> None:
    """Fill the box, which is the panel below its title."""
    if not series:
        drawing.text(box.x + box.w / 2, box.y + box.h / 2, "No data", color=MUTED, anchor="middle")
    elif panel.kind == "stat":
        _tiles(drawing, panel, series, box)
    elif panel.kind in ("buckets", "rows"):
        _heat(drawing, panel, series, span, box)
    else:
        _graph(drawing, panel, series, span, box)


def _color_at(panel: Panel, value: float) -> str:
    color = panel.below
    for level, name in panel.thresholds:
        if value >= level:
            color = name
    return NAMED[color]


def _tiles(drawing: Drawing, panel: Panel, series: Sequence[Series], box: Frame) -> None:
    each = box.w / len(series)
    for n, one in enumerate(series):
        text = text_of(one.last, panel.unit, panel.decimals)
        size = min(30.0, 0.86 * each / max(width_of(text, 1.0), 1e-9), 0.5 * box.h)
        middle = box.x + each * (n + 0.5)
        named = len(series) > 1 or bool(panel.queries[0].legend)
        baseline = box.y + box.h / 2 + size * (0.2 if named else 0.3)
        color = _color_at(panel, one.last) if n == 0 or len(panel.queries) == 1 else NAMED["text"]
        drawing.text(
            middle, baseline, text, size=round(size), color=color, anchor="middle", bold=True
        )
        if named:
            drawing.text(
                middle, box.bottom - 4, one.name, size=_SMALL, color=MUTED, anchor="middle"
            )


def _times(drawing: Drawing, span: Span, plot: Frame) -> None:
    """Minutes and seconds since the beginning, below the plot."""
    length_s = span.end_s - span.start_s
    step_s = next((step for step in _TIME_STEPS_S if length_s / step <= _TIMES), length_s)
    for n in range(int(length_s / step_s) + 1):
        at_s = round(n * step_s)
        x = plot.x + plot.w * at_s / length_s
        text = f"{at_s // 60}:{at_s % 60:02d}"
        if x + width_of(text, _SMALL) / 2 <= plot.right + 6:
            anchor = "start" if n == 0 else "middle"
            drawing.text(x, plot.bottom + 12, text, size=_SMALL, color=MUTED, anchor=anchor)


def _graph(
    drawing: Drawing, panel: Panel, series: Sequence[Series], span: Span, box: Frame
) -> None:
    stacked = panel.kind == "stacked"
    if stacked:
        series = [one for one in series if any(value > 0 for value in one.values)] or series
    tops = _stack(series) if stacked else [one.values for one in series]
    known = [value for values in tops for value in values if not math.isnan(value)]
    plot, scale = _scales(drawing, panel, known, box)
    _times(drawing, span, plot)
    columns = len(span.moments)

    def place(n: int, value: float) -> Point:
        return plot.x + plot.w * n / (columns - 1), scale(value)

    for level, name in panel.thresholds:
        if plot.y <= scale(level) <= plot.bottom and scale(level) > plot.y:
            drawing.line(
                [(plot.x, scale(level)), (plot.right, scale(level))], NAMED[name], dash="4 3"
            )
    floor: Sequence[float] = [0.0] * columns
    for number, values in enumerate(tops):
        color = PALETTE[number % len(PALETTE)]
        for run in _runs(values):
            points = [place(n, values[n]) for n in run]
            if stacked:
                back = [place(n, floor[n]) for n in reversed(run)]
                drawing.area([*points, *back], color, 0.35)
            elif not panel.log:
                ends = [(points[-1][0], plot.bottom), (points[0][0], plot.bottom)]
                drawing.area([*points, *ends], color, 0.06)
            drawing.line(points, color, width=1.3)
        if stacked:
            floor = values
    _legend(drawing, [one.name or panel.title for one in series], box)


def _stack(series: Sequence[Series]) -> list[Sequence[float]]:
    tops: list[Sequence[float]] = []
    floor = [0.0] * len(series[0].values)
    for one in series:
        floor = [
            low + (0.0 if math.isnan(value) else value)
            for low, value in zip(floor, one.values, strict=True)
        ]
        tops.append(floor)
    return tops


def _runs(values: Sequence[float]) -> list[list[int]]:
    """Indices of neighbours that have values."""
    runs: list[list[int]] = []
    for missing, group in groupby(range(len(values)), key=lambda n: math.isnan(values[n])):
        if not missing:
            runs.append(list(group))
    return runs


def _scales(
    drawing: Drawing, panel: Panel, known: Sequence[float], box: Frame
) -> tuple[Frame, Callable[[float], float]]:
    """The plot's frame right of the value axis, and a value's place; draws the axis."""
    positive = [value for value in known if value > 0]
    if panel.log and positive:
        values = log_marks(min(positive), max(positive))
    else:
        values = marks(panel.top or max([*known, 0.0]) * 1.05, panel.unit)
        if panel.top:
            values = [value for value in values if value <= panel.top]
    texts = [text_of(value, panel.unit) for value in values]
    left = max(width_of(text, _SMALL) for text in texts) + 8
    plot = Frame(box.x + left, box.y + 5, box.w - left - 6, box.h - _AXIS_H - _LEGEND_H - 5)

    def scale(value: float) -> float:
        if panel.log and positive:
            low, high = math.log10(values[0]), math.log10(values[-1])
            share = (math.log10(max(value, values[0])) - low) / (high - low)
        else:
            share = value / values[-1]
        return plot.bottom - plot.h * min(1.02, share)

    for value, text in zip(values, texts, strict=True):
        drawing.line([(plot.x, scale(value)), (plot.right, scale(value))], GRID)
        drawing.text(plot.x - 5, scale(value) + 3.5, text, size=_SMALL, color=MUTED, anchor="end")
    return plot, scale


def _legend(drawing: Drawing, names: Sequence[str], box: Frame) -> None:
    """One line; what does not fit is counted."""
    x, y = box.x + 2, box.bottom - 4
    for number, name in enumerate(names):
        width = 16 + width_of(name, _SMALL) + 8
        if x + width > box.right - (34 if number + 1 < len(names) else 0):
            drawing.text(x, y, f"+{len(names) - number}", size=_SMALL, color=MUTED)
            return
        drawing.rect(x, y - 4.5, 11, 2.5, PALETTE[number % len(PALETTE)], radius=1)
        drawing.text(x + 15, y, name, size=_SMALL, color=TEXT)
        x += width


def _heat(drawing: Drawing, panel: Panel, series: Sequence[Series], span: Span, box: Frame) -> None:
    of_buckets = panel.kind == "buckets"
    rows = _worth_showing(series) if of_buckets else list(series)
    if not rows:
        drawing.text(
            box.x + box.w / 2, box.y + box.h / 2, "nothing yet", color=MUTED, anchor="middle"
        )
        return
    names = [_bound_text(row, panel) if of_buckets else row.name for row in rows]
    left = min(_LEFT_MAX, max(width_of(name, _SMALL) for name in names) + 8)
    plot = Frame(box.x + left, box.y + 5, box.w - left - 6, box.h - _AXIS_H - _LEGEND_H - 5)
    known = [value for row in rows for value in row.values if not math.isnan(value)]
    top = panel.top or max([*known, 1e-12])
    color, power = (orange, 0.5) if of_buckets else (turbo, 1.0)
    height = plot.h / len(rows)
    every = max(1, math.ceil(len(rows) / (plot.h / 13)))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = plot.bottom - height * (number + 1)
        if number % every == 0:
            drawing.text(
                plot.x - 5, y + height / 2 + 3.5, name, size=_SMALL, color=MUTED, anchor="end"
            )
        empty = of_buckets or panel.unit == "short"
        shares = [
            None if math.isnan(value) or (empty and value < 1e-6) else (value / top) ** power
            for value in row.values
        ]
        _cells(
            drawing, [None if share is None else color(share) for share in shares], plot, y, height
        )
    _times(drawing, span, plot)
    _ramp(drawing, color, power, top, panel, box)


def _cells(
    drawing: Drawing, colors: Sequence[str | None], plot: Frame, y: float, height: float
) -> None:
    """One row; neighbours of one color are one rectangle."""
    width = plot.w / len(colors)
    gap = 1.0 if height > 6 else 0.4
    for color, group in groupby(enumerate(colors), key=lambda cell: cell[1]):
        cells = [n for n, _ in group]
        if color is not None:
            x = plot.x + width * cells[0]
            # A little wider than it is, so that no hairline shows between neighbours.
            drawing.rect(x, y + gap / 2, width * len(cells) + 0.3, height - gap, color)


def _worth_showing(series: Sequence[Series]) -> list[Series]:
    """From the lowest to the highest bucket with anything in it, and one on either side."""
    filled = [n for n, one in enumerate(series) if any(value > 1e-6 for value in one.values)]
    return list(series[max(0, filled[0] - 1) : filled[-1] + 2]) if filled else []


def _bound_text(row: Series, panel: Panel) -> str:
    if row.bound is None or math.isinf(row.bound):
        return "more"
    return text_of(row.bound, panel.unit)


def _ramp(
    drawing: Drawing,
    color: Callable[[float], str],
    power: float,
    top: float,
    panel: Panel,
    box: Frame,
) -> None:
    """What the colors mean."""
    unit = "short" if panel.kind == "buckets" else panel.unit
    y = box.bottom - 11
    drawing.text(box.x + 2, y + 7, "0", size=_SMALL, color=MUTED)
    for n in range(24):
        drawing.rect(box.x + 14 + 4 * n, y, 4.2, 7, color((n / 23) ** power))
    drawing.text(box.x + 116, y + 7, text_of(top, unit), size=_SMALL, color=MUTED)
