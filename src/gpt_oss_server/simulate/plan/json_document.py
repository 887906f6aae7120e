"""What a search found, as JSON: all figures of the text, and those that it has no room for.

Knows: the document's fields. Does not know: how anything was found, files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gpt_oss_server.simulate.plan.found import Standing
from gpt_oss_server.simulate.plan.knee import Knee
from gpt_oss_server.simulate.plan.money import Prices, cost
from gpt_oss_server.simulate.plan.report import Plan
from gpt_oss_server.simulate.plan.trials import Candidate, Verdict
from gpt_oss_server.simulate.results.confidence import Interval

SCHEMA = 1


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures that the text has, and those that it has not."""
    found = plan.found
    return {
        "schema": SCHEMA,
        "model": plan.model,
        "gpus": {gpu.name: count for gpu, count in plan.inventory.stock},
        "workload": plan.workload,
        "played": list(plan.played),
        "proposed": _standing_json(plan, found.proposed),
        "best": _standing_json(plan, found.best),
        "candidates": [_standing_json(plan, one) for one in found.standings],
        "below": [{**_candidate_json(one.candidate), "per_s": one.per_s} for one in found.below],
        "does_not_fit": [
            {"shape": one.shape.name, "reason": one.reason, "missing_bytes": one.missing_bytes}
            for one in plan.refused
        ],
        "cut": list(found.cut),
        "pace": plan.pace,
        "at_rate": [_at_rate_json(plan, one.candidate, one.verdict) for one in plan.at_rate],
        "fewest": None
        if plan.fewest is None
        else _at_rate_json(plan, plan.fewest.candidate, plan.fewest.verdict),
        "prices": None if plan.prices is None else _prices_json(plan.prices),
        "notes": list(plan.notes),
        "runs": found.runs,
        "wall_s": plan.wall_s,
        "processes": plan.processes,
    }


def _standing_json(plan: Plan, one: Standing) -> dict[str, Any]:
    costs = plan.costs(one)
    return {
        **_candidate_json(one.candidate),
        "bears_per_s": one.per_s,
        "relative": one.relative,
        "basis": one.basis,
        "interval_per_s": _interval_json(one.bears),
        "to_best": _interval_json(one.to_best),
        "no_worse_within_noise": one.no_worse,
        "draws_per_s": list(one.draws),
        "base_per_s": _knee_json(one.base),
        "short_per_s": _knee_json(one.short),
        "costs_at_that_load": None if costs is None else asdict(costs),
    }


def _knee_json(one: Knee | None) -> float | None:
    return None if one is None else one.verdict.requests_per_s


def _candidate_json(one: Candidate) -> dict[str, Any]:
    return {
        "layout": one.fleet.name,
        "gpus": one.fleet.gpus,
        "pools": [
            {
                "gpu": pool.replica.shape.gpu.name,
                "tp": pool.replica.shape.tp,
                "pp": pool.replica.shape.pp,
                "replicas": pool.count,
                "kv_tokens": pool.replica.kv_tokens,
                "longest_tokens": pool.replica.longest_tokens,
            }
            for pool in one.fleet.pools
        ],
        "policy": one.rule.name,
        "bounds": list(one.rule.bounds),
    }


def _at_rate_json(plan: Plan, one: Candidate, verdict: Verdict) -> dict[str, Any]:
    costs = cost(one.fleet, plan.prices, verdict.input_tokens_s, verdict.output_tokens_s)
    report = verdict.report
    return {
        **_candidate_json(one),
        "requests_per_s": verdict.requests_per_s,
        "goodput_per_s": report.goodput_per_s,
        "slo_met": report.met,
        "classes": [
            {**asdict(kind), "share_met": kind.share_met, "quantiles": [50, 95, 99]}
            for kind in report.classes
        ],
        "busy_share": verdict.busy_share,
        "cached_share": verdict.cached_share,
        "preemptions": verdict.preemptions,
        "lost": dict(verdict.lost),
        "costs": None if costs is None else asdict(costs),
    }


def _interval_json(one: Interval | None) -> dict[str, float | None] | None:
    return None if one is None else asdict(one)


def _prices_json(prices: Prices) -> Mapping[str, Any]:
    return {
        "currency": prices.currency,
        "source": prices.source,
        "per_gpu_hour": dict(prices.per_gpu_hour),
    }
