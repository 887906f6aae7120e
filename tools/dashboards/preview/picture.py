"""A whole dashboard as one SVG.

Knows: the grid in pixels, titles, panels' frames. Does not know: charts.
"""

from __future__ import annotations

from tools.dashboards.layout import place
from tools.dashboards.panels import GRID_COLUMNS, Dashboard, Section
from tools.dashboards.preview.charts import Frame, draw
from tools.dashboards.preview.colors import EDGE, MUTED, PAGE, SURFACE, TEXT
from tools.dashboards.preview.series import Ask, Span, fetch
from tools.dashboards.preview.svg import Drawing

_COLUMN_W, _ROW_H, _GAP = 52.0, 31.0, 6.0
_HEAD_H, _FOOT_H, _TITLE_H = 46.0, 26.0, 24.0


def picture(dashboard: Dashboard, ask: Ask, span: Span, note: str) -> str:
    """Draw what every panel shows in the span. `note` is the footer: what was run."""
    drawing = Drawing()
    width = GRID_COLUMNS * _COLUMN_W + 2 * _GAP
    drawing.text(14, 29, "gpt-oss-server", size=16, color=MUTED)
    drawing.text(134, 29, f"/  {dashboard.title}", size=16, bold=True)
    bottom = 0.0
    for what, box in place(dashboard):
        frame = Frame(
            _GAP + box.x * _COLUMN_W + _GAP / 2,
            _HEAD_H + box.y * _ROW_H + _GAP / 2,
            box.w * _COLUMN_W - _GAP,
            box.h * _ROW_H - _GAP,
        )
        bottom = max(bottom, frame.bottom)
        if isinstance(what, Section):
            drawing.text(frame.x + 6, frame.y + 17, f"▾  {what.title}", size=13, bold=True)
            continue
        drawing.rect(frame.x, frame.y, frame.w, frame.h, SURFACE, edge=EDGE, radius=3)
        drawing.text(frame.x + 9, frame.y + 17, what.title, size=12, color=TEXT, bold=True)
        inside = Frame(frame.x + 8, frame.y + _TITLE_H, frame.w - 16, frame.h - _TITLE_H - 6)
        draw(drawing, what, fetch(ask, what, span), span, inside)
    drawing.text(14, bottom + 18, note, size=10.5, color=MUTED)
    title = f"{dashboard.title}: {dashboard.description}"
    return drawing.document(width, bottom + _FOOT_H, title, PAGE)
