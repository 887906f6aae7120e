"""The trigger policy: request facts and a view of the fleet in, a decision out.

Knows: how triggers choose a pool and how replicas are ranked for it. Does not know: any clock,
network or model; it moves nothing. The placement of a loaded model is never changed by a
decision: one that cannot be met runs where the model is, with a recommendation.

The order of the ranking: replicas of the preferred pool first; in a pool those with room for the
request now, then by load in tokens relative to capacity (stale readings last), ties by id.
"""

from __future__ import annotations

from typing import Protocol

from gpt_oss_server.facts import (
    Decision,
    ExcludedReplica,
    FleetView,
    RankedReplica,
    RequestFacts,
    Route,
)
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.routing.triggers import Fired, fired_triggers

SINGLE_MODE_NOTICE = "Large request detected but model in single GPU mode"
RESTART_ADVICE = "Recommendation: restart with --gpu-mode auto or tensor"
TENSOR_ADVICE = "Recommendation: restart with --gpu-mode tensor"
ONE_GPU_ADVICE = (
    "Recommendation: none for this machine, it has one GPU; multi-GPU modes need at least two"
)
NO_GPU_ADVICE = (
    "Recommendation: none for this machine, it has no GPU; multi-GPU modes need at least two"
)
POOL_DOWN_NOTICE = "Large request detected but no multi-GPU replica can take it"
POOL_DOWN_ADVICE = "Recommendation: check the multi-GPU replicas (not ready, or too small)"

_UNKNOWN_LOAD = float("inf")


class Policy(Protocol):
    """A rule that decides. Synchronous and pure: same facts, same view, same decision."""

    def decide(self, facts: RequestFacts, fleet: FleetView) -> Decision: ...


class TriggerPolicy:
    """Routes by size and memory pressure alone. Holds nothing but its configuration."""

    __slots__ = ("config",)

    def __init__(self, config: RoutingConfig) -> None:
        self.config = config

    def decide(self, facts: RequestFacts, fleet: FleetView) -> Decision:
        """Never raises and never fails: where no replica can take the request, the ranking is
        empty and `executed` is None."""
        config = self.config
        pressure = effective_pressure(fleet.gpus, fleet.now_s, config.stale_after_s)
        fired = fired_triggers(config, facts.input_tokens, facts.predicted_kv_bytes, pressure.value)
        route: Route = "multi_gpu" if fired else "single_gpu"
        ranking, excluded = rank(facts, fleet, route, config.stale_after_s)
        executed = ranking[0].route if ranking else None
        notice = recommendation = None
        if fired:
            notice, recommendation = _say(fleet, executed, fired)
        return Decision(
            request_id=facts.request_id,
            route=route,
            trigger=fired[0].trigger if fired else None,
            reasons=tuple([f.reason for f in fired]) if fired else (),
            input_tokens=facts.input_tokens,
            predicted_kv_bytes=facts.predicted_kv_bytes,
            pressure=pressure,
            executed=executed,
            unmet_recommendation=bool(fired) and executed != "multi_gpu",
            ranking=ranking,
            excluded=excluded,
            notice=notice,
            recommendation=recommendation,
        )


def rank(
    facts: RequestFacts, fleet: FleetView, preferred: Route, stale_after_s: float
) -> tuple[tuple[RankedReplica, ...], tuple[ExcludedReplica, ...]]:
    """Order the replicas that can ever hold the request; list the others with the reason."""
    need = facts.least_kv_bytes
    if need is None:
        need = facts.predicted_kv_bytes
    oldest_s = fleet.now_s - stale_after_s
    want_multi = preferred == "multi_gpu"
    rows: list[tuple[bool, bool, float, str, int, RankedReplica]] = []
    excluded: list[ExcludedReplica] = []
    for index, replica in enumerate(fleet.replicas):
        if not replica.ready:
            excluded.append(ExcludedReplica(replica.id, "not_ready"))
            continue
        capacity_tokens = replica.capacity_tokens
        if need > replica.kv_capacity_bytes or capacity_tokens <= 0:
            excluded.append(ExcludedReplica(replica.id, "too_small"))
            continue
        multi = replica.gpus > 1
        headroom = replica.kv_free_bytes - need
        known = replica.measured_at_s >= oldest_s
        load = replica.load_tokens / capacity_tokens if known else _UNKNOWN_LOAD
        entry = RankedReplica(
            replica.id,
            "multi_gpu" if multi else "single_gpu",
            multi is want_multi,
            headroom >= 0,
            headroom,
            load if known else None,
        )
        rows.append((multi is not want_multi, headroom < 0, load, replica.id, index, entry))
    rows.sort()
    return tuple([row[5] for row in rows]), tuple(excluded)


def _say(fleet: FleetView, executed: Route | None, fired: list[Fired]) -> tuple[str, str | None]:
    """The line to log for a triggered request, and the advice beside it."""
    if executed == "multi_gpu":
        return "Multi-GPU active: " + ", ".join([f.active for f in fired]), None
    if any(replica.gpus > 1 for replica in fleet.replicas):
        return POOL_DOWN_NOTICE, POOL_DOWN_ADVICE
    if fleet.machine_gpus == 1:
        return SINGLE_MODE_NOTICE, ONE_GPU_ADVICE
    if fleet.machine_gpus == 0:
        return SINGLE_MODE_NOTICE, NO_GPU_ADVICE
    # Where "auto" itself chose one GPU, advising "auto" would change nothing.
    return SINGLE_MODE_NOTICE, RESTART_ADVICE if fleet.gpu_mode == "single" else TENSOR_ADVICE
