"""Policies that rank replicas for a request: pure, the same live and simulated.

`view` has what they are told and answer; one module per family of rules. Adding one: a class with
`name` and `rank`, an entry in `POLICIES`, a table test, a paragraph in docs/simulator.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.config import RoutingConfig, with_overrides
from gpt_oss_server.routing.policies.caching import NewTokensTimesBatch, PrefixAffinity
from gpt_oss_server.routing.policies.completion import EarliestCompletion
from gpt_oss_server.routing.policies.counting import (
    LeastRequest,
    LeastTokens,
    PowerOfTwo,
    Random,
    RoundRobin,
)
from gpt_oss_server.routing.policies.expected import ExpectedOutputs
from gpt_oss_server.routing.policies.sizing import LengthRanges, Triggers
from gpt_oss_server.routing.policies.view import (
    Ask,
    PoolFacts,
    Ranked,
    RankingPolicy,
    ReplicaState,
    Speed,
)

Settings = Mapping[str, int]
"""What a policy may be made with: `seed`, `kv_bytes_per_token` of the model where pools say nothing
of their memory, and the thresholds of `RoutingConfig` by their names."""

POLICIES: Mapping[str, Callable[[Settings], RankingPolicy]] = MappingProxyType(
    {
        "round_robin": lambda _: RoundRobin(),
        "random": lambda settings: Random(settings.get("seed", 0)),
        "least_request": lambda _: LeastRequest(),
        "power_of_two": lambda settings: PowerOfTwo(settings.get("seed", 0)),
        "least_tokens": lambda _: LeastTokens(),
        "prefix_affinity": lambda _: PrefixAffinity(),
        "new_tokens_times_batch": lambda _: NewTokensTimesBatch(),
        "length_ranges": lambda _: LengthRanges(),
        "triggers": lambda settings: Triggers(
            settings.get("kv_bytes_per_token", 0), _thresholds(settings)
        ),
        "earliest_completion": lambda _: EarliestCompletion(),
    }
)


def _thresholds(settings: Settings) -> RoutingConfig:
    known = RoutingConfig.__struct_fields__
    given = {name: value for name, value in settings.items() if name in known}
    return with_overrides(RoutingConfig(), given)


def policy(name: str, settings: Settings | None = None) -> RankingPolicy:
    """A policy by its name. Raises ConfigError for an unknown one."""
    make = POLICIES.get(name)
    if make is None:
        raise ConfigError(f"unknown policy {name}: use one of {', '.join(POLICIES)}")
    return make(settings or {})


__all__ = [
    "POLICIES",
    "Ask",
    "EarliestCompletion",
    "ExpectedOutputs",
    "PoolFacts",
    "Ranked",
    "RankingPolicy",
    "ReplicaState",
    "Speed",
    "policy",
]
