"""Cuts a stream of text at the first stop string.

Knows: text. Does not know: tokens, requests.

"First" is the stop string that is completed first; of two completed by the same character, the one
that began earlier. That is the only rule under which the result does not depend on how the text
was cut into pieces, and under which no text has to wait for a longer stop string.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A text operator: what may be shown goes through, what may become a stop string waits.

    Args:
        stops: the stop strings; none of them empty.

    Raises:
        ValueError: a stop string is empty.
    """

    __slots__ = ("_held", "_longest", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text, once one has."""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text; returns what may be shown now and whether a stop string has come.

        The stop string itself is never shown, and nothing after it.
        """
        if self.matched is not None:
            return "", True
        if not self._stops:
            return text, False
        text = self._held + text
        cut = self._first_match(text)
        if cut is not None:
            self._held = ""
            return text[:cut], True
        hold = self._hold_from(text)
        self._held = text[hold:]
        return text[:hold], False

    def flush(self) -> str:
        """What was held back, once it is certain that no more text comes."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str) -> int | None:
        """Where the first completed stop string begins."""
        first: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (first is None or (start + len(stop), start) < first):
                first = (start + len(stop), start)
                self.matched = stop
        return None if first is None else first[1]

    def _hold_from(self, text: str) -> int:
        """Where the longest tail begins that could still grow into a stop string."""
        hold = len(text)
        earliest = max(0, len(text) - self._longest + 1)
        for stop in self._stops:
            at = text.find(stop[0], max(earliest, len(text) - len(stop) + 1), hold)
            while at >= 0:
                if stop.startswith(text[at:]):
                    hold = at
                    break
                at = text.find(stop[0], at + 1, hold)
        return hold
