"""Grafana's colors, dark theme: surfaces, the classic palette, two ramps for heat maps.

Knows: colors. Does not know: what is drawn.
"""

from __future__ import annotations

PAGE, SURFACE, EDGE, GRID = "#111217", "#181b1f", "#2a2d33", "#25282d"
TEXT, MUTED = "#ccccdc", "#8e8f9c"
PALETTE = (
    *("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d"),
    *("#ffb357", "#ff7383", "#ca95e5", "#fade2a"),
)
NAMED = {
    "green": "#73bf69",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "text": "#ccccdc",
}
_ORANGES = ("#2b1c0d", "#5f370f", "#a35a12", "#e8872a", "#ffb566", "#ffe9cf")
_TURBO = ("#30123b", "#4146ac", "#3e8ffb", "#1bd0d5", "#46f884", "#b9f635", "#fabb39", "#d23105")
_STEPS = 24


def orange(share: float) -> str:
    """For counts: the more, the brighter. `share` from 0 to 1."""
    return _ramp(_ORANGES, share)


def turbo(share: float) -> str:
    """For values: from violet to red."""
    return _ramp(_TURBO, share)


def _ramp(stops: tuple[str, ...], share: float) -> str:
    """In a few steps, so that neighbours that hardly differ are one rectangle."""
    share = round(min(1.0, max(0.0, share)) * _STEPS) / _STEPS
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    low, high = _parts(stops[index]), _parts(stops[index + 1])
    mixed = (a + (b - a) * (place - index) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _parts(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
