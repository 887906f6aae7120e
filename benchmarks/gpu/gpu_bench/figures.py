"""Arithmetic on measured times.

Knows: lists of numbers. Does not know: who measured them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to take a quantile of")
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """How much of the line some interval (begin, end) covers."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def uncovered(intervals: Sequence[tuple[float, float]]) -> float:
    """How much of the line between the first begin and the last end no interval covers."""
    if not intervals:
        return 0.0
    begin, end = min(one for one, _ in intervals), max(one for _, one in intervals)
    return max(0.0, end - begin - covered(intervals))


def hidden_share(idle_s: float, host_s: float) -> float:
    """How much of the host's work in a step the device does not wait for: 1 - (time of a step in
    which the device has been given nothing) / (time in which the host works). 1 where it always has
    something to do; 0 where each of the host's seconds keeps it waiting."""
    return 1.0 - min(1.0, idle_s / host_s) if host_s > 0 else 1.0
