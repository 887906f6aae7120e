"""Policies that count requests or tokens: the usual balancers, to compare with.

Knows: rotation, seeded chance, requests and tokens in flight. Does not know: speeds, caches, SLOs.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.routing.policies.view import Ask, Ranked, ReplicaState, able, by_score

_MASK = (1 << 64) - 1


class RoundRobin:
    """In turns by id. For identical replicas and similar requests; nothing else."""

    name = "round_robin"

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = sorted(replica.id for replica in replicas if able(ask, replica))
        count = len(fit)
        return by_score(
            [Ranked(float((i - ask.number) % count), name) for i, name in enumerate(fit)]
        )


class Random:
    """A seeded draw per request and replica. A baseline without any state."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = sorted(replica.id for replica in replicas if able(ask, replica))
        return by_score(
            [Ranked(_draw(self._seed, ask.number, place), name) for place, name in enumerate(fit)]
        )


class LeastRequest:
    """Fewest requests in flight (Envoy's and most gateways' default). Blind to their size."""

    name = "least_request"

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        return by_score([Ranked(float(r.in_flight), r.id) for r in replicas if able(ask, r)])


class PowerOfTwo:
    """The less loaded of two drawn at random (Mitzenmacher 2001), equals as drawn, then the
    others as drawn."""

    name = "power_of_two"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        fit = sorted((r for r in replicas if able(ask, r)), key=lambda r: r.id)
        drawn = sorted(
            ((_draw(self._seed, ask.number, place), r) for place, r in enumerate(fit)),
            key=lambda pair: pair[0],
        )
        first = sorted(drawn[:2], key=lambda pair: pair[1].in_flight)
        order = [r.id for _, r in first + drawn[2:]]
        return [Ranked(float(place), name) for place, name in enumerate(order)]


class LeastTokens:
    """Fewest tokens in flight, prompt and expected output, relative to what the cache holds."""

    name = "least_tokens"

    def rank(self, ask: Ask, replicas: Sequence[ReplicaState]) -> list[Ranked]:
        return by_score(
            [Ranked(r.assigned_tokens / r.pool.kv_tokens, r.id) for r in replicas if able(ask, r)]
        )


def _draw(seed: int, number: int, place: int) -> float:
    """A number in [0, 1) from three: splitmix64 of a counter, so that nothing has to be kept."""
    x = (seed * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95 + place + 1) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((x ^ (x >> 31)) >> 11) / float(1 << 53)
