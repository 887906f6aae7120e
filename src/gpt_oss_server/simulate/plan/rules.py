"""Policies with their thresholds set: what a search tries on a fleet.

Knows: which policies are worth trying where, and thresholds that give each size of replica the
share of the work that it has of the GPUs. Does not know: how a policy ranks, what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.policies import POLICIES, RankingPolicy, policy
from gpt_oss_server.routing.policies.sizing import LengthRanges, Triggers
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.workload.requests import Request

PREFERRED = (
    "earliest_completion",
    "new_tokens_times_batch",
    "least_tokens",
    "prefix_affinity",
    "least_request",
    "round_robin",
    "length_ranges",
    "triggers",
)
"""What is tried unless policies are named, the likeliest first."""
PLAIN = ("least_request", "round_robin", "power_of_two", "random")
"""What any balancer in front of the replicas can do, the best first."""
SCALES = (0.5, 1.0, 2.0)
"""Thresholds are tried at the balanced one times these."""


@dataclass(frozen=True)
class Rule:
    """A policy by name, with the thresholds of those that have any (prompt tokens, rising)."""

    name: str
    bounds: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """As `length_ranges 2000,16000`."""
        return self.name + (" " + ",".join(str(bound) for bound in self.bounds)) * bool(self.bounds)

    @property
    def plain(self) -> bool:
        return self.name in PLAIN

    def make(self, kv_bytes_per_token: int, seed: int) -> RankingPolicy:
        """A policy that remembers nothing yet. Raises ConfigError for an unknown name."""
        if self.name == "length_ranges" and self.bounds:
            return LengthRanges(self.bounds)
        if self.name == "triggers" and self.bounds:
            large = self.bounds[0]
            under_pressure = min(large, RoutingConfig().pressure_input_tokens)
            config = RoutingConfig(large_input_tokens=large, pressure_input_tokens=under_pressure)
            return Triggers(kv_bytes_per_token, config)
        return policy(self.name, {"seed": seed, "kv_bytes_per_token": kv_bytes_per_token})


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError for an unknown policy."""
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"unknown policy {name}: use one of {', '.join(POLICIES)}")


def rules_for(
    fleet: Fleet,
    names: Sequence[str],
    requests: Sequence[Request],
    work_s: Callable[[Request], float],
) -> list[Rule]:
    """What to try on this fleet, in the order of `names`: policies that would do the same as
    another here are left out. `requests` is a sample, `work_s` what one costs a GPU."""
    sizes = sorted({pool.replica.shape.gpus for pool in fleet.pools})
    hashed = any(request.units for request in requests)
    balanced = balanced_bounds(fleet, requests, work_s) if len(sizes) > 1 else ()
    rules: list[Rule] = []
    for name in names:
        if name == "length_ranges":
            if len(sizes) > 1:
                rules += [Rule(name, _scaled(balanced, scale)) for scale in SCALES]
        elif name == "triggers":
            if sizes[0] == 1 and len(sizes) > 1:
                default = RoutingConfig().large_input_tokens
                tried = [_scaled(balanced, scale)[:1] for scale in SCALES]
                rules += [Rule(name, bounds) for bounds in ((default,), *tried)]
        elif name != "prefix_affinity" or hashed or "least_request" not in names:
            rules.append(Rule(name))
    if not rules:
        # On replicas of one size both do what the fewest in flight does.
        rules.append(Rule("least_request"))
    return list(dict.fromkeys(rules))


def balanced_bounds(
    fleet: Fleet, requests: Sequence[Request], work_s: Callable[[Request], float]
) -> tuple[int, ...]:
    """Prompt lengths between the sizes of replicas, such that what is at most the first is as
    large a share of all work as the smallest replicas have of the GPUs, and so on."""
    sizes = sorted({pool.replica.shape.gpus for pool in fleet.pools})
    of_size = dict.fromkeys(sizes, 0)
    for pool in fleet.pools:
        of_size[pool.replica.shape.gpus] += pool.count * pool.replica.shape.gpus
    shares = [upto / fleet.gpus for upto in accumulate(of_size[size] for size in sizes)]
    ordered = sorted(requests, key=lambda request: request.input_tokens)
    done = list(accumulate(work_s(request) for request in ordered))
    bounds = []
    for share in shares[:-1]:
        place = next((i for i, upto in enumerate(done) if upto >= share * done[-1]), -1)
        bounds.append(ordered[place].input_tokens)
    return tuple(bounds)


def _scaled(bounds: Sequence[int], scale: float) -> tuple[int, ...]:
    """To two significant digits: a threshold is not known better."""
    return tuple(int(float(f"{max(1.0, scale * bound):.2g}")) for bound in bounds)
