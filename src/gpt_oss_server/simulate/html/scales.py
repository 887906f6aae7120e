"""Where on an axis a value lies, and which values are marked.

Knows: linear, logarithmic and share axes, round marks. Does not know: pixels, elements. A place is
a share of the axis, 0 at its beginning; what lies beyond an end is at that end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Mark = tuple[float, str]


class Scale(Protocol):
    """An axis: `marks` are (value, text)."""

    @property
    def marks(self) -> Sequence[Mark]: ...

    def place(self, value: float) -> float:
        """0 … 1."""
        ...


@dataclass(frozen=True)
class Linear:
    """From `low` to `high`."""

    low: float
    high: float
    marks: Sequence[Mark]

    def place(self, value: float) -> float:
        return _within((value - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Logarithmic:
    """From `low` to `high`, both above 0."""

    low: float
    high: float
    marks: Sequence[Mark]

    def place(self, value: float) -> float:
        if value <= self.low:
            return 0.0
        return _within(math.log(value / self.low) / math.log(self.high / self.low))


@dataclass(frozen=True)
class Stretched:
    """Shares 0 … 1 with the upper end, where promises are made, drawn wider: the square root of
    what is missing to 1."""

    marks: Sequence[Mark]

    def place(self, value: float) -> float:
        return 1.0 - math.sqrt(1.0 - _within(value))


def from_zero(top: float, count: int = 4) -> Linear:
    """From 0 to a round value of at least `top`, with about `count` marks above 0."""
    values = round_marks(top, count)
    return Linear(0.0, values[-1], [(value, number(value)) for value in values])


def whole(length: float, count: int = 6) -> Linear:
    """From 0 to exactly `length`, with round marks inside."""
    values = [value for value in round_marks(length, count) if value <= length * 1.0001]
    return Linear(0.0, length, [(value, number(value)) for value in values])


def logarithmic(low: float, high: float, most: int = 6) -> Logarithmic:
    """From `low` to `high` (above 0), marked at 1, 2 and 5 times powers of ten where they fit in
    `most` marks, else at (every n-th of the) powers of ten."""
    low, high = low / 1.05, max(high, low * 1.5) * 1.05
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(values) <= most:
            break
    values = values[:: math.ceil(len(values) / most) or 1]
    return Logarithmic(low, high, [(value, number(value)) for value in values])


def round_marks(top: float, count: int = 4) -> list[float]:
    """Round values from 0 to at least `top`, about `count` of them above 0."""
    if top <= 0:
        return [0.0, 1.0]
    rough = top / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(top / step - 1e-9) + 1)]


def number(value: float) -> str:
    """A mark's text: `0.05`, `20`, `1,500`, `20k`, `3M`."""
    for size, prefix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e6 if prefix == 'M' else 1e3):.4g}{prefix}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))
