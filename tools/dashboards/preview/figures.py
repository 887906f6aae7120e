"""Numbers as people read them, and round places for axis marks.

Knows: units, decimal places. Does not know: what is drawn.
"""

from __future__ import annotations

import math

from tools.dashboards.panels import Unit

from gpt_oss_server.simulate.html.scales import round_marks

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_ENDINGS = {
    "reqps": " req/s",
    "ops": " /s",
    "watt": " W",
    "celsius": " °C",
    "joule": " J",
    "tokens": " tok",
}


def text_of(value: float, unit: Unit, decimals: int | None = None) -> str:
    """The value with its unit, to three figures unless `decimals` says otherwise."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{_figures(100 * value, decimals)}%"
    if unit == "s":
        return _seconds(value, decimals)
    if unit == "bytes":
        for size, name in _BINARY:
            if abs(value) >= size:
                return f"{_figures(value / size, decimals)} {name}"
        return f"{_figures(value, decimals)} B"
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{_figures(value / size, decimals)}{prefix}{_ENDINGS.get(unit, '')}"
    return f"{_figures(value, decimals)}{_ENDINGS.get(unit, '')}"


def _seconds(value: float, decimals: int | None) -> str:
    if value == 0:
        return "0 s"
    for size, name in ((60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= size * 0.9995 and not (name == "min" and value < 120):
            return f"{_figures(value / size, decimals)} {name}"
    return f"{_figures(value / 1e-6, decimals)} µs"


def _figures(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def marks(top: float, unit: Unit = "short", count: int = 4) -> list[float]:
    """Round values from 0 to at least `top`, about `count` of them; bytes in round MiB."""
    if top <= 0:
        return [0.0, 1.0]
    if unit == "bytes":
        size = next((size for size, _ in _BINARY if top >= size), 1.0)
        return [size * mark for mark in marks(top / size, count=count)]
    return round_marks(top, count)


def log_marks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose both; both positive."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]
