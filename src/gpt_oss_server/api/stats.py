"""`GET /stats` and `GET /memory_stats`: what was decided, where it runs, what is held and left.

Knows: the two documents' shapes (public names, kept). Does not know: how anything is counted.
Both are built from snapshots and never block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Access, Endpoint, Services
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.dispatch.estimate import kv_bytes, kv_capacity_bytes
from gpt_oss_server.dispatch.ranks import rank_kv_bytes, ranks_of, replica_gpus
from gpt_oss_server.facts import GpuView
from gpt_oss_server.nccl import NcclSettings
from gpt_oss_server.ports import Engine
from gpt_oss_server.routing import gpu_balance, missed_targets, stats_section
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.telemetry.gpu import ProbeView
from gpt_oss_server.types import EngineStats, RankInfo


class Advice(Protocol):
    """Which GPU mode suits the model, the GPUs and the load."""

    async def refresh(self) -> None:
        """Work it out again if that is due; off the event loop."""
        ...

    def last(self) -> Mapping[str, Any] | None:
        """As it was worked out last; None before."""
        ...


class Statistics:
    """Builds both documents. Holds references only."""

    def __init__(
        self,
        desk: Desk,
        engine: Engine,
        nccl: NcclSettings | None = None,
        probe: Callable[[], ProbeView | None] = lambda: None,
        advice: Advice | None = None,
    ) -> None:
        """`probe` is what is known of the GPU probe; None before it began."""
        self._desk = desk
        self._engine = engine
        self._nccl = nccl
        self._probe = probe
        self._advice = advice

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/stats", self._stats, Access.OPEN),
            Endpoint("GET", "/memory_stats", self._memory_stats, Access.OPEN),
        )

    async def _stats(self, exchange: Exchange, services: Services) -> None:
        if self._advice is not None and self._engine.state().ready:
            await self._advice.refresh()
        await exchange.reply(self.stats())

    async def _memory_stats(self, exchange: Exchange, services: Services) -> None:
        services.ready_engine_info()
        await exchange.reply(self.memory_stats())

    def stats(self) -> dict[str, Any]:
        """The `/stats` document. `gpu_balance` is absent where no utilisation is known."""
        desk = self._desk
        state = self._engine.state()
        document: dict[str, Any] = {}
        balance = None
        if state.ready:
            views = desk.fleet.gpu_views()
            balance = gpu_balance(views, desk.fleet.clock(), desk.routing.stale_after_s)
        snapshot = desk.ledger.snapshot()
        document["gpu_routing"] = stats_section(snapshot, balance)
        document["gpu_routing"]["gpu_mode"] = desk.fleet.gpu_mode
        document["placement"] = self._placement() if state.ready else None
        document["recommendation"] = None if self._advice is None else self._advice.last()
        document["routing_thresholds"] = desk.routing
        document["missed_targets"] = missed_targets(
            desk.routing, balance, desk.latencies.quantile(0.95)
        )
        document["latency_p95_e2e_s"] = desk.latencies.quantile(0.95)
        document["engine"] = {
            "ready": state.ready,
            "reason": state.reason,
            "restarts": state.restarts,
            "startup": self._startup() if state.ready else None,
            **_plain(self._engine.stats()),
        }
        admission = desk.admission_snapshot()
        if admission is not None:
            document["admission"] = msgspec.to_builtins(admission)
        if self._nccl is not None:
            document["nccl"] = {
                "applied": dict(self._nccl.applied),
                "kept_from_user": dict(self._nccl.kept_from_user),
                "overridden": dict(self._nccl.overridden),
            }
        return document

    def _startup(self) -> list[dict[str, Any]]:
        """The phases of the engine's last start; a skipped one with the reason and no seconds."""
        return [
            {"phase": phase.name, "seconds": phase.seconds, "why": phase.why or None}
            for phase in self._engine.info().startup
        ]

    def _placement(self) -> dict[str, Any]:
        """Where the model is: every rank with its device, its layers and what they take."""
        info = self._engine.info()
        return {
            "gpu_mode": self._desk.fleet.gpu_mode,
            "world": len(ranks_of(info)),
            "gpus": replica_gpus(info),
            "micro_batches": info.micro_batches,
            "ranks": [
                {
                    **_who(rank),
                    "pid": rank.pid,
                    "stage": rank.stage,
                    "tp_rank": rank.tp_rank,
                    "first_layer": rank.first_layer,
                    "layers": rank.layers,
                    "weights_bytes": rank.weights_bytes,
                    "kv_pool_bytes": rank.kv_bytes,
                }
                for rank in ranks_of(info)
            ],
        }

    def memory_stats(self) -> dict[str, Any]:
        """The `/memory_stats` document. Raises NotReady while no engine is up."""
        desk, info, stats = self._desk, self._engine.info(), self._engine.stats()
        now_s = desk.fleet.clock()
        views = desk.fleet.gpu_views()
        admission = desk.admission_snapshot()
        reserved = admission.blocks_used if admission is not None else {}
        peak = admission.blocks_peak if admission is not None else {}
        return {
            "gpus": [self._gpu(view, now_s) for view in views],
            "ranks": [
                {
                    **_who(rank),
                    "weights_bytes": rank.weights_bytes,
                    "kv_pool_bytes": rank.kv_bytes,
                    "kv_in_use_bytes": rank_kv_bytes(info, rank, stats.blocks_in_use),
                    "kv_predicted_bytes": rank_kv_bytes(info, rank, stats.blocks_predicted),
                    "kv_reserved_bytes": rank_kv_bytes(info, rank, reserved),
                }
                for rank in ranks_of(info)
            ],
            "pressure": effective_pressure(views, now_s, desk.routing.stale_after_s),
            "probe": _health(self._probe()),
            "kv": {
                "block_size": info.block_size,
                "pool_bytes": kv_capacity_bytes(info),
                "in_use_bytes": kv_bytes(info, stats.blocks_in_use),
                "predicted_bytes": kv_bytes(info, stats.blocks_predicted),
                "reserved_bytes": kv_bytes(info, reserved),
                "peak_reserved_bytes": kv_bytes(info, peak),
                "groups": [
                    {
                        "name": group.name,
                        "layers": group.layers,
                        "window": group.window,
                        "block_bytes": group.block_bytes,
                        "blocks_total": group.num_blocks,
                        "blocks_in_use": stats.blocks_in_use.get(group.name, 0),
                        "blocks_predicted": stats.blocks_predicted.get(group.name, 0),
                        "blocks_cached": stats.blocks_cached.get(group.name, 0),
                        "blocks_reserved": reserved.get(group.name, 0),
                    }
                    for group in info.kv_groups
                ],
            },
            "activations": {
                "bound_bytes": info.activations_bound_bytes or None,
                "measured_bytes": info.activations_measured_bytes,
                "set_aside_bytes": info.activations_peak_bytes or None,
                "graphs_bytes": info.graphs_bytes,
            },
            "admission": None if admission is None else msgspec.to_builtins(admission),
            "sessions": msgspec.to_builtins(desk.sessions.totals()),
        }

    def _gpu(self, view: GpuView, now_s: float) -> dict[str, Any]:
        used = None
        if view.others_bytes is not None:
            used = (
                view.others_bytes
                + view.weights_bytes
                + view.activations_peak_bytes
                + view.kv_in_use_bytes
            )
        age = None if view.measured_at_s is None else round(now_s - view.measured_at_s, 3)
        return {
            "id": view.id,
            "in_use": view.in_use,
            "total_bytes": view.total_bytes or None,
            "used_bytes": used,
            "free_bytes": None if used is None else max(0, view.total_bytes - used),
            "weights_bytes": view.weights_bytes,
            "activations_peak_bytes": view.activations_peak_bytes,
            "kv_pool_bytes": view.kv_pool_bytes,
            "kv_in_use_bytes": view.kv_in_use_bytes,
            "others_bytes": view.others_bytes,
            "utilization_percent": view.utilization_percent,
            "reading_age_s": age,
            "stale": age is None or age > self._desk.routing.stale_after_s,
        }


def _health(probe: ProbeView | None) -> dict[str, Any] | None:
    """How asking for the GPUs goes: what failed never reaches the readings above."""
    if probe is None:
        return None
    return {
        "polls": probe.polls,
        "errors": probe.errors,
        "hung": probe.hung,
        "last_error": probe.last_error,
    }


def _who(rank: RankInfo) -> dict[str, Any]:
    return {"rank": rank.rank, "device": rank.device}


def _plain(stats: EngineStats) -> dict[str, Any]:
    """The engine's counts; its histograms are for `/metrics`."""
    document: dict[str, Any] = msgspec.to_builtins(stats)
    del document["step_seconds"], document["step_tokens"]
    return document
