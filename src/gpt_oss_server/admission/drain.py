"""How fast capacity comes free, and when it is worth asking again.

Knows: an exponentially weighted rate. Does not know: requests, clocks (moments are handed in).

Amounts are shares of the pool. The rate at time t is the sum of freed amounts, each weighted
with k·exp(-k·age), divided by 1 - exp(-k·elapsed), where k = ln 2 / half-life: unbiased from the
first moment on for a constant drain. Only busy time counts: an idle pool frees nothing and says
nothing about how fast a full one drains.
"""

from __future__ import annotations

import math


class DrainRate:
    """Feed with `advance` before every change and `freed` at each release. Not thread-safe."""

    def __init__(self, half_life_s: float) -> None:
        self._decay = math.log(2) / half_life_s
        self._weighted = 0.0
        self._busy_s = 0.0
        self._last_s: float | None = None

    def advance(self, now_s: float, busy: bool) -> None:
        """Let time pass up to `now_s`; `busy` says whether anything was held meanwhile."""
        if self._last_s is not None and busy and now_s > self._last_s:
            elapsed_s = now_s - self._last_s
            self._weighted *= math.exp(-self._decay * elapsed_s)
            self._busy_s += elapsed_s
        if self._last_s is None or now_s > self._last_s:
            self._last_s = now_s

    def freed(self, share: float) -> None:
        """Count a release of `share` of the pool, at the moment last advanced to."""
        self._weighted += share * self._decay

    def rate_per_s(self) -> float | None:
        """Shares of the pool freed per second; None before anything was."""
        # Of a busy time too short to tell from none the share is 0, not merely small.
        seen = -math.expm1(-self._decay * self._busy_s)
        if self._weighted <= 0.0 or seen <= 0.0:
            return None
        return self._weighted / seen

    def retry_after_s(self, share: float, *, fallback_s: int, cap_s: int) -> int:
        """Whole seconds until `share` will have come free, from 1 to `cap_s`.

        `fallback_s` where no rate is known yet.
        """
        rate = self.rate_per_s()
        if rate is None:
            return min(fallback_s, cap_s)
        seconds = share / rate
        return cap_s if seconds >= cap_s else max(1, math.ceil(seconds))
