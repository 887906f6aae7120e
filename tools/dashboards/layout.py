"""Where panels go on the grid: from left to right, a new line where one does not fit.

Knows: widths and heights. Does not know: what a panel shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.dashboards.panels import GRID_COLUMNS, Dashboard, Panel, Section


@dataclass(frozen=True)
class Box:
    """A place on the grid: 24 columns wide, rows of 30 pixels."""

    x: int
    y: int
    w: int
    h: int

    def overlaps(self, other: Box) -> bool:
        return (
            self.x < other.x + other.w
            and other.x < self.x + self.w
            and self.y < other.y + other.h
            and other.y < self.y + self.h
        )


def place(dashboard: Dashboard) -> Iterator[tuple[Section | Panel, Box]]:
    """Each section's title line and each panel with its place, from top to bottom."""
    y = 0
    for section in dashboard.sections:
        yield section, Box(0, y, GRID_COLUMNS, 1)
        y += 1
        x = line_height = 0
        for panel in section.panels:
            if x + panel.width > GRID_COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            yield panel, Box(x, y, panel.width, panel.height)
            x += panel.width
            line_height = max(line_height, panel.height)
        y += line_height
