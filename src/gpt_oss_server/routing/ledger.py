"""Counts of decisions and of where requests really ran, which always add up.

Knows: decisions, triggers, latencies per route, and the public shape of these statistics
(`route4` is a name that dashboards already use). Does not know: GPUs, HTTP, metrics.

Decisions and executions are counted apart: what was decided and what happened may differ.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from gpt_oss_server.facts import Decision, GpuMode, Route, Trigger
from gpt_oss_server.routing.balance import Balance
from gpt_oss_server.routing.triggers import TRIGGERS

ROUTES: tuple[Route, ...] = ("single_gpu", "multi_gpu")


class RoutingSnapshot(msgspec.Struct, frozen=True):
    """Everything at one moment. total = single + multi and multi = sum of the triggers.

    `latency_sum_ms` and `latency_count` are per route that a request really ran on.
    """

    single_gpu_decisions: int
    triggers: dict[Trigger, int]
    executed: dict[Route, int]
    unmet_recommendations: int
    latency_sum_ms: dict[Route, float]
    latency_count: dict[Route, int]

    @property
    def multi_gpu_decisions(self) -> int:
        return sum(self.triggers.values())

    @property
    def total_decisions(self) -> int:
        return self.single_gpu_decisions + self.multi_gpu_decisions

    @property
    def multi_gpu_percentage(self) -> float:
        """0..100, two decimals; 0.0 before the first decision."""
        total = self.total_decisions
        return round(100.0 * self.multi_gpu_decisions / total, 2) if total else 0.0

    def average_latency_ms(self, route: Route) -> float | None:
        """Mean end-to-end latency of what ran on `route`; None when nothing has."""
        count = self.latency_count[route]
        return round(self.latency_sum_ms[route] / count, 3) if count else None


class RoutingLedger:
    """Thread-safe. Every count moves under one lock, so each snapshot adds up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._single = 0
        self._triggers: dict[Trigger, int] = dict.fromkeys(TRIGGERS, 0)
        self._executed: dict[Route, int] = dict.fromkeys(ROUTES, 0)
        self._unmet = 0
        self._latency_sum_ms: dict[Route, float] = dict.fromkeys(ROUTES, 0.0)
        self._latency_count: dict[Route, int] = dict.fromkeys(ROUTES, 0)

    def record(self, decision: Decision) -> None:
        """Count one decision, once, under its first trigger."""
        with self._lock:
            if decision.trigger is None:
                self._single += 1
            else:
                self._triggers[decision.trigger] += 1
            if decision.unmet_recommendation:
                self._unmet += 1

    def record_executed(self, route: Route) -> None:
        """Count one request that really started on `route`."""
        with self._lock:
            self._executed[route] += 1

    def record_latency(self, route: Route, e2e_ms: float) -> None:
        """Add the end-to-end latency of one request that finished on `route`."""
        with self._lock:
            self._latency_sum_ms[route] += e2e_ms
            self._latency_count[route] += 1

    def snapshot(self) -> RoutingSnapshot:
        with self._lock:
            return RoutingSnapshot(
                single_gpu_decisions=self._single,
                triggers=dict(self._triggers),
                executed=dict(self._executed),
                unmet_recommendations=self._unmet,
                latency_sum_ms=dict(self._latency_sum_ms),
                latency_count=dict(self._latency_count),
            )


def stats_section(snapshot: RoutingSnapshot, balance: Balance | None) -> dict[str, Any]:
    """The `gpu_routing` object of `/stats`. `gpu_balance` is absent where it is not known."""
    section: dict[str, Any] = {
        "total_requests": snapshot.total_decisions,
        "single_gpu_requests": snapshot.single_gpu_decisions,
        "route4_gpu_requests": snapshot.multi_gpu_decisions,
        "route4_percentage": snapshot.multi_gpu_percentage,
        "route4_triggers": dict(snapshot.triggers),
        "executed": {
            "single_gpu": snapshot.executed["single_gpu"],
            "multi_gpu": snapshot.executed["multi_gpu"],
        },
        "unmet_recommendations": snapshot.unmet_recommendations,
    }
    if balance is not None:
        section["gpu_balance"] = {
            "balanced": balance.balanced,
            "coefficient": round(balance.coefficient, 4),
            "gpu_utilization": dict(balance.utilization_percent),
        }
        if balance.unknown_gpus:
            section["gpu_balance"]["unknown_gpus"] = list(balance.unknown_gpus)
    return section


def bundle_section(
    snapshot: RoutingSnapshot, balance: Balance | None, mode: GpuMode
) -> dict[str, Any]:
    """The `gpu_routing` object of the debug bundle. Figures not known are absent."""
    performance: dict[str, float] = {}
    single_ms = snapshot.average_latency_ms("single_gpu")
    multi_ms = snapshot.average_latency_ms("multi_gpu")
    if single_ms is not None:
        performance["avg_single_gpu_latency_ms"] = single_ms
    if multi_ms is not None:
        performance["avg_multi_gpu_latency_ms"] = multi_ms
    if balance is not None:
        performance["gpu_utilization_balance"] = round(balance.coefficient, 4)
    return {
        "current_mode": mode,
        "total_requests": snapshot.total_decisions,
        "route4_percentage": snapshot.multi_gpu_percentage,
        "trigger_breakdown": dict(snapshot.triggers),
        "performance_metrics": performance,
    }
