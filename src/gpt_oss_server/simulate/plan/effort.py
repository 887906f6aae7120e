"""How much of a workload a search can play in the time it is given, settled before it begins.

Knows: what a simulated request costs, how many trials the stages of a search take. Does not know:
a clock. The lengths follow from the inputs alone, never from how fast a machine turns out to be, so
that the same question has the same answer everywhere; a machine that is slower than assumed runs
out of time, and the search then says what it left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CORES = 2
REQUEST_S = 70e-6
REPLICA_S = 7e-6
"""One core's time for a simulated request: a constant, and for each replica that is ranked."""
RESERVING = 1.4
"""That much more where KV is reserved before the engine."""
RESERVE = 0.3
"""Share of the budget that is kept for loading, for the figures at a rate, and for surprises."""
SHORT_SHARE = 0.35
LEAST_SHORT, LEAST_BASE = 400, 1000
KNEE_TRIALS = 5.0
CONTENDERS = 14
FINALISTS = 6
STRETCH = 1.8
"""Where answers are long, policies are much alike, and fewer trials are made than planned."""
DRAW_TRIALS = 4.0


@dataclass(frozen=True)
class Effort:
    """Requests of the short and of the whole stretch."""

    short_requests: int
    base_requests: int


def effort(
    budget_s: float,
    replicas: Iterable[int],
    others: int,
    draws: int,
    *,
    settles_requests: float = 0.0,
    reserving: bool = False,
) -> Effort:
    """For fleets of so many replicas each, `others` candidates beside the first policy's, and
    `draws` further draws of the workload. Where a fleet takes `settles_requests` to fill up, the
    stretches are up to `STRETCH` times as long as the budget would have them."""
    sizes = list(replicas)
    each_s = REQUEST_S + REPLICA_S * sum(sizes) / len(sizes)
    each_s *= RESERVING if reserving else 1.0
    short_trials = KNEE_TRIALS * 1.5 * len(sizes) + 1.4 * others
    base_trials = KNEE_TRIALS * CONTENDERS + DRAW_TRIALS * FINALISTS * draws
    requests = budget_s * CORES * (1.0 - RESERVE) / each_s
    base = int(requests / (base_trials + SHORT_SHARE * short_trials))
    base = max(base, min(int(STRETCH * base), int(settles_requests)))
    return Effort(max(LEAST_SHORT, int(SHORT_SHARE * base)), max(LEAST_BASE, base))
