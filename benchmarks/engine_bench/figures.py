"""From the times of single requests to the figures of a table. Pure arithmetic.

Knows: what TTFT, ITL and E2E mean. Does not know: who was measured or how.

TTFT is from sending a request to its first piece of text, ITL each gap between two successive
pieces of one answer, E2E from sending to the end of the answer. Quantiles are nearest-rank over
all rounds' requests together; rates and ratios are medians over rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """Times in seconds since the round began; `events_s` empty where a system only delivers
    whole answers, `end_s` None where the round ended first."""

    start_s: float
    end_s: float | None
    events_s: tuple[float, ...]
    tokens: int
    error: str | None = None
    kind: str = "short"


@dataclass(frozen=True)
class Round:
    """One system's run of one list of requests. CPU seconds: of all its processes, and of the
    load generator."""

    wall_s: float
    requests: tuple[Request, ...]
    system_cpu_s: float | None = None
    client_cpu_s: float | None = None
    outputs: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        return sum(r.tokens for r in self.requests)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def tokens_per_cpu_s(self) -> float | None:
        return self.tokens / self.system_cpu_s if self.system_cpu_s else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def times_to_first_s(requests: Sequence[Request], cutoff_s: float | None = None) -> list[float]:
    """TTFT of each request. A request that had no token yet when the round was cut off counts
    with the time it had waited by then: a lower bound, so that starving is not invisible."""
    found = []
    for r in requests:
        if r.events_s:
            found.append(r.events_s[0] - r.start_s)
        elif cutoff_s is not None and r.end_s is None:
            found.append(cutoff_s - r.start_s)
    return found


def gaps_s(requests: Sequence[Request], cutoff_s: float | None = None) -> list[float]:
    """ITL of all requests. With a cutoff, the gap that an unfinished answer was in counts too."""
    found = []
    for r in requests:
        found += [b - a for a, b in zip(r.events_s, r.events_s[1:], strict=False)]
        if cutoff_s is not None and r.end_s is None and r.events_s:
            found.append(cutoff_s - r.events_s[-1])
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One system's row. Values that were not measured are None."""
    requests = [r for one in rounds for r in one.requests]
    first, gaps = times_to_first_s(requests), gaps_s(requests)
    whole = [r.end_s - r.start_s for r in requests if r.end_s is not None]
    rate = median([one.tokens_per_s for one in rounds])
    per_cpu = median([one.tokens_per_cpu_s for one in rounds])
    return {
        "requests": len(requests),
        "errors": sum(r.error is not None for r in requests),
        "tokens_per_s": None if rate is None else round(rate, 1),
        "tokens_per_s_rounds": [round(one.tokens_per_s, 1) for one in rounds],
        "tokens_per_cpu_s": None if per_cpu is None else round(per_cpu, 1),
        "ttft_p50_ms": _ms(quantile(first, 0.5)),
        "ttft_p99_ms": _ms(quantile(first, 0.99)),
        "itl_p50_ms": _ms(quantile(gaps, 0.5)),
        "itl_p99_ms": _ms(quantile(gaps, 0.99)),
        "e2e_p50_ms": _ms(quantile(whole, 0.5)),
        "client_cpu_share": client_share(rounds),
    }


def mixed_summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One system's row under the mixed load; the round's end cuts off what still ran."""
    chats: list[float] = []
    itl: list[float] = []
    long_first: list[float] = []
    unserved = sent = done = errors = 0
    for one in rounds:
        short = [r for r in one.requests if r.kind == "short"]
        long = [r for r in one.requests if r.kind == "long"]
        chats += times_to_first_s(short, one.wall_s)
        itl += gaps_s(short, one.wall_s)
        long_first += times_to_first_s(long)
        unserved += sum(not r.events_s for r in short)
        sent += len(long)
        done += sum(bool(r.events_s) for r in long)
        errors += sum(r.error is not None for r in one.requests)
    return {
        "errors": errors,
        "chat_tokens_per_s": round(
            median(
                [
                    sum(len(r.events_s) for r in one.requests if r.kind == "short") / one.wall_s
                    for one in rounds
                ]
            )
            or 0.0,
            1,
        ),
        "chat_ttft_p50_ms": _ms(quantile(chats, 0.5)),
        "chat_ttft_p99_ms": _ms(quantile(chats, 0.99)),
        "chat_itl_p50_ms": _ms(quantile(itl, 0.5)),
        "chat_itl_p99_ms": _ms(quantile(itl, 0.99)),
        "chats_without_token": unserved,
        "long_sent": sent,
        "long_answered": done,
        "long_ttft_p50_ms": _ms(quantile(long_first, 0.5)),
    }


def client_share(rounds: Sequence[Round]) -> float | None:
    """The load generator's CPU time as a share of wall time: near 1, it is the bottleneck."""
    shares = [r.client_cpu_s / r.wall_s for r in rounds if r.client_cpu_s is not None]
    return round(max(shares), 3) if shares else None


def rate_ratio(ours: Sequence[Round], theirs: Sequence[Round]) -> float | None:
    """Median over rounds of the ratio of output rates."""
    pairs = zip(ours, theirs, strict=True)
    return median([a.tokens_per_s / b.tokens_per_s if b.tokens else None for a, b in pairs])


def cpu_rate_ratio(ours: Sequence[Round], theirs: Sequence[Round]) -> float | None:
    """The same per CPU second of all processes, where both were measured."""
    ratios = []
    for a, b in zip(ours, theirs, strict=True):
        mine, other = a.tokens_per_cpu_s, b.tokens_per_cpu_s
        ratios.append(mine / other if mine is not None and other else None)
    return median(ratios)


def first_token_ratio(ours: Sequence[Round], theirs: Sequence[Round]) -> float | None:
    """Median over rounds of the ratio of TTFT medians."""
    ratios = []
    for a, b in zip(ours, theirs, strict=True):
        mine = quantile(times_to_first_s(a.requests), 0.5)
        other = quantile(times_to_first_s(b.requests), 0.5)
        ratios.append(mine / other if mine is not None and other else None)
    return median(ratios)
