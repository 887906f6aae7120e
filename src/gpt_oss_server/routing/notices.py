"""Rate limit for repeated log lines. Knows: texts and moments. Does not know: logging.

The limit is on the log alone: the counts in the ledger miss nothing.
"""

from __future__ import annotations


class NoticeLimit:
    """Lets one line per text through every `interval_s`. Not thread-safe; texts are a fixed few.

    `allow` returns None for a line to leave out, else how many were left out since the last.
    """

    def __init__(self, interval_s: float = 60.0) -> None:
        self._interval_s = interval_s
        self._last_s: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def allow(self, text: str, now_s: float) -> int | None:
        last_s = self._last_s.get(text)
        if last_s is not None and now_s - last_s < self._interval_s:
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return None
        self._last_s[text] = now_s
        return self._left_out.pop(text, 0)
