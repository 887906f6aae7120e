"""Policies that send requests to pools by their size alone.

Knows: length ranges, the R1 triggers (through `routing.decide`). Does not know: caches, speeds,
SLOs.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.facts import Decision
from gpt_oss_server.memory.kv import estimator_of_pools
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.decide import TriggerPolicy
from gpt_oss_server.routing.policies.deciding import fleet_view, request_facts
from gpt_oss_server.routing.policies.view import (
    Ask,
    DeviceMemory,
    PoolFacts,
    PoolMemory,
    Ranked,
    ReplicaState,
    able,
    by_score,
)
from gpt_oss_server.types import KvGroupInfo

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
    """The R1 triggers over pools: what fires one belongs to several GPUs, the rest to single ones.
    The decision is `routing.decide.TriggerPolicy`'s own, from facts and a view as a live server
    makes them; the ranking is the decision's. With `kv_bytes_per_token` pools that say nothing of
    their memory count as if all of it were KV."""

    name = "triggers"

    def __init__(self, kv_bytes_per_token: int = 0, config: RoutingConfig | None = None) -> None:
        self._token_bytes = max(1, kv_bytes_per_token)
        self._policy = TriggerPolicy(config or RoutingConfig())

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = {replica.id for replica in replicas if able(ask, replica)}
        chosen = [one.id for one in self.decide(ask, replicas).ranking if one.id in fit]
        return [Ranked(float(place), name) for place, name in enumerate(chosen)]

    def decide(self, ask: Ask, replicas: Sequence[ReplicaState]) -> Decision:
        """Where the request belongs, and why, as a live server would record it."""
        memories = {replica.pool.name: self._memory(replica.pool) for replica in replicas}
        return self._policy.decide(
            request_facts(ask, memories), fleet_view(ask, replicas, memories)
        )

    def _memory(self, pool: PoolFacts) -> PoolMemory:
        if pool.memory is not None:
            return pool.memory
        size = pool.kv_tokens * self._token_bytes
        cache = KvGroupInfo("full", 1, None, pool.kv_tokens, self._token_bytes)
        return PoolMemory(
            kv=estimator_of_pools((cache,), 1),
            kv_capacity_bytes=size,
            context_tokens=pool.longest_tokens,
            devices=(DeviceMemory(total_bytes=size, token_bytes=self._token_bytes),),
        )
