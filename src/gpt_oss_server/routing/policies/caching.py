"""Policies that look for a prompt's prefix in the replicas' caches.

Knows: cached tokens, batch sizes, load. Does not know: speeds, SLOs.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.routing.policies.view import Ask, Ranked, ReplicaState, able, by_score


class PrefixAffinity:
    """The longest cached prefix where it is at least `least_share` of the prompt and the replica
    is not `imbalance` requests above the least loaded and `factor` times as loaded; else the
    fewest requests (the rule of SGLang's cache-aware router, with its defaults)."""

    name = "prefix_affinity"

    def __init__(self, least_share: float = 0.3, imbalance: int = 64, factor: float = 1.5) -> None:
        self._least_share = least_share
        self._imbalance = imbalance
        self._factor = factor

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = [r for r in replicas if able(ask, r)]
        if not fit:
            return []
        least = min(r.in_flight for r in fit)
        most = max(r.in_flight for r in fit)
        balanced = most - least <= self._imbalance or most <= least * self._factor
        scored = []
        for replica in fit:
            share = replica.cached_tokens / ask.input_tokens
            near = balanced and share >= self._least_share
            # Cached ones first, the longest prefix ahead; the others by load.
            score = -share if near else 1.0 + replica.in_flight
            scored.append(Ranked(score, replica.id))
        return by_score(scored)


class NewTokensTimesBatch:
    """New prefill tokens times batch size, both of what the replica would then have (LMetric,
    arXiv 2603.15202): cache hits and load in one product, no weights to tune. The waiting prompts'
    tokens count as new, running and waiting requests as the batch."""

    name = "new_tokens_times_batch"

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        scored = []
        for replica in replicas:
            if able(ask, replica):
                new = replica.waiting_tokens + ask.input_tokens - replica.cached_tokens
                batch = replica.decoding + replica.waiting + 1
                scored.append(Ranked(float(new * batch), replica.id))
        return by_score(scored)
