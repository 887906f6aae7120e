"""Figures as people read them, the same in the terminal's table and on the HTML page.

Knows: digits and units. Does not know: what a figure means. A value that is not there is a dash.
"""

from __future__ import annotations

import math

NOTHING = "–"


def seconds(value: float | None) -> str:
    """`1.23 s`."""
    return NOTHING if value is None else f"{value:.2f} s"


def milliseconds(value: float | None) -> str:
    """Seconds, as `12.3 ms`."""
    return NOTHING if value is None else f"{1000.0 * value:.1f} ms"


def percent(share: float | None) -> str:
    """A share of 1, as `97.3 %`."""
    return NOTHING if share is None else f"{100.0 * share:.1f} %"


def per_second(value: float | None) -> str:
    """`6.44/s`."""
    return NOTHING if value is None else f"{value:.2f}/s"


def count(value: float) -> str:
    """`12,031`."""
    return f"{value:,.0f}"


def tokens(value: float | None) -> str:
    """A bound on tokens; none, or an infinite one, has no end."""
    return "∞" if value is None or math.isinf(value) else count(value)


def plain(value: float) -> str:
    """Without zeros that say nothing: `0.05`, `2`, `1,500`."""
    return f"{value:,.6g}"


def duration(value_s: float) -> str:
    """The two largest units: `58 min 20 s`, `12 h`."""
    whole = round(value_s)
    if whole < 60:
        return f"{value_s:.3g} s"
    if whole < 3600:
        parts = ((whole // 60, "min"), (whole % 60, "s"))
    else:
        parts = ((whole // 3600, "h"), (whole % 3600 // 60, "min"))
    return " ".join(f"{size} {unit}" for size, unit in parts if size)


def size(value_bytes: float) -> str:
    """In GiB from one on, below in MiB or bytes."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if value_bytes >= scale:
            return f"{value_bytes / scale:.1f} {unit}"
    return f"{value_bytes:.0f} B"
