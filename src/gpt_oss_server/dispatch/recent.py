"""The last requests' latencies and lengths, for quantiles: what targets are set on, what advice is
for.

Knows: a bounded window of numbers. Does not know: clocks or what is measured.
"""

from __future__ import annotations

from collections import deque


class RecentValues:
    """The most recent `size` values."""

    def __init__(self, size: int = 1024) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        self._values.append(value)

    def quantile(self, q: float) -> float | None:
        """The smallest value that at least a share `q` of the window does not exceed; None of an
        empty window."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, max(0, -(-int(q * 1e6) * len(ordered) // 10**6) - 1))]
