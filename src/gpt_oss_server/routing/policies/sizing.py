"""Policies that send requests to pools by their size alone.

Knows: length ranges, the R1 triggers. Does not know: caches, speeds, SLOs.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.policies.view import Ask, Ranked, ReplicaState, able, by_score
from gpt_oss_server.routing.triggers import fired_triggers

_OTHER_POOL = 1e6


class LengthRanges:
    """Static labels: prompts of at most `bounds[i]` tokens belong to replicas of `gpus[i]` GPUs,
    longer ones to the largest; within a pool the fewest requests. The bounds belong to the
    smallest pools first; with one pool it is least request."""

    name = "length_ranges"

    def __init__(self, bounds: Sequence[int] = (8000,)) -> None:
        self._bounds = tuple(sorted(bounds))

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = [r for r in replicas if able(ask, r)]
        sizes = sorted({r.pool.gpus for r in fit})
        if not sizes:
            return []
        level = sum(ask.input_tokens > bound for bound in self._bounds)
        wanted = sizes[min(level, len(sizes) - 1)]
        return by_score(
            [
                Ranked(r.in_flight + (0.0 if r.pool.gpus == wanted else _OTHER_POOL), r.id)
                for r in fit
            ]
        )


class Triggers:
    """The R1 triggers over pools: what fires one belongs to several GPUs, the rest to single ones;
    within a pool those with room first, then by load in tokens relative to capacity (the order of
    `routing.decide.rank`)."""

    name = "triggers"

    def __init__(self, kv_bytes_per_token: int, config: RoutingConfig | None = None) -> None:
        self._bytes = kv_bytes_per_token
        self._config = config or RoutingConfig()

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = [r for r in replicas if able(ask, r)]
        if not fit:
            return []
        need = ask.input_tokens + (ask.max_output_tokens or int(ask.expected_output_tokens))
        pressure = max(1.0 - r.kv_free_tokens / r.pool.kv_tokens for r in fit)
        predicted = need * self._bytes
        fired = fired_triggers(self._config, ask.input_tokens, predicted, pressure)
        scored = []
        for replica in fit:
            other = bool(fired) is not (replica.pool.gpus > 1)
            full = replica.kv_free_tokens < need
            load = replica.assigned_tokens / replica.pool.kv_tokens
            scored.append(Ranked(_OTHER_POOL * (2 * other + full) + load, replica.id))
        return by_score(scored)
