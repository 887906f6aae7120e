"""A line on a terminal that says how far something is, and how long it will yet take.

Knows: the terminal and the clock. Does not know: what is done. Where stderr is no terminal nothing
is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
_EVERY_S = 0.1
_CLEAR = "\r\x1b[K"


class Progress:
    """The line. It is drawn anew at most ten times a second, and goes when the work is done."""

    def __init__(
        self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out if out is not None else sys.stderr
        self._clock = clock
        self._shown = self._out.isatty()
        self._label = ""
        self._began_s = 0.0
        self._drawn_s = float("-inf")

    def begin(self, label: str) -> None:
        """What is done from now on. The time that is left is reckoned from here."""
        self._label = label
        self._began_s = self._clock()
        self.tell(0, 1)

    def tell(self, done: int, total: int) -> None:
        """So many of so many are done."""
        if not self._shown:
            return
        now_s = self._clock()
        if now_s - self._drawn_s < _EVERY_S:
            return
        self._drawn_s = now_s
        share = done / total if total else 1.0
        filled = int(WIDTH * share)
        bar = "#" * filled + "." * (WIDTH - filled)
        line = f"{self._label} [{bar}] {100 * share:3.0f} %{self._left(share, now_s)}"
        print(f"{_CLEAR}{line}", end="", file=self._out, flush=True)

    def tell_load(self, factor: float, done: int, total: int) -> None:
        """The same within a sweep, whose next load begins by itself."""
        label = f"{self._label.partition(', load')[0]}, load {factor:.2f}×"
        if label != self._label:
            self.begin(label)
        self.tell(done, total)

    def close(self) -> None:
        """Nothing is left of the line."""
        if self._shown:
            print(_CLEAR, end="", file=self._out, flush=True)

    def _left(self, share: float, now_s: float) -> str:
        if not share:
            return ""
        left_s = (now_s - self._began_s) * (1.0 - share) / share
        minutes, seconds = divmod(round(left_s), 60)
        return f", {minutes} min {seconds} s left" if minutes else f", {seconds} s left"
