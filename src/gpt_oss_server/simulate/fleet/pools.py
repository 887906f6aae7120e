"""What a simulated fleet consists of, and when parts of it are gone.

Knows: pools of replicas, failures. Does not know: requests, policies, events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.cost.layout import Replica


@dataclass(frozen=True)
class Pool:
    """`count` replicas of one shape."""

    replica: Replica
    count: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"a pool needs at least one replica, not {self.count}")


@dataclass(frozen=True)
class Failure:
    """Replica number `replica` (over all pools, in order) dies at a moment and is back, empty,
    after `for_s`."""

    replica: int
    at_s: float
    for_s: float = math.inf


@dataclass(frozen=True)
class Fleet:
    """Pools in order. Raises ConfigError without any."""

    pools: tuple[Pool, ...]

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("a fleet needs at least one pool")

    @property
    def gpus(self) -> int:
        return sum(pool.count * pool.replica.shape.gpus for pool in self.pools)

    @property
    def name(self) -> str:
        return " + ".join(f"{pool.count}×{pool.replica.shape.name}" for pool in self.pools)


def interruptions(failures: Sequence[Failure], members: int) -> list[tuple[float, int, int]]:
    """(moment, 0 for a death and 1 for a return, replica), in no order. A replica that fails again
    while it is down is back when the last of these failures is over. Raises ConfigError for a
    replica that a fleet of so many does not have."""
    down: dict[int, list[tuple[float, float]]] = {}
    for failure in sorted(failures, key=lambda one: one.at_s):
        if not 0 <= failure.replica < members:
            raise ConfigError(f"no replica {failure.replica}: the fleet has {members}")
        times = down.setdefault(failure.replica, [])
        from_s, until_s = failure.at_s, failure.at_s + failure.for_s
        if times and from_s <= times[-1][1]:
            before_s, other_s = times.pop()
            from_s, until_s = before_s, max(until_s, other_s)
        times.append((from_s, until_s))
    found: list[tuple[float, int, int]] = []
    for replica, times in down.items():
        for from_s, until_s in times:
            found.append((from_s, 0, replica))
            if math.isfinite(until_s):
                found.append((until_s, 1, replica))
    return found
