"""`/stats` and `/memory_stats`: every field of both documents, from known figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpt_oss_server.admission import AdmissionConfig, SessionConfig, SessionTable
from gpt_oss_server.api.stats import Statistics
from gpt_oss_server.dispatch.desk import Call, Desk
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.engine.fake import DEFAULT_INFO, FakeEngine
from gpt_oss_server.errors import NotReady
from gpt_oss_server.nccl import NcclSettings, nccl_environment
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.telemetry.gpu import ProbedGpu, ProbeView
from gpt_oss_server.types import (
    EngineInfo,
    EngineStats,
    Job,
    KvGroupInfo,
    RankInfo,
    SamplingParams,
    StartPhase,
    TokenDelta,
)

INFO = msgspec.structs.replace(
    DEFAULT_INFO,
    device="cuda:0",
    weights_bytes=10_000,
    activations_peak_bytes=500,
    activations_bound_bytes=450,
    activations_measured_bytes=400,
    startup=(StartPhase("load", 2.5), StartPhase("capture", None, "--eager")),
    max_batch_tokens=16,
    kv_groups=(
        KvGroupInfo(name="full", layers=2, window=None, num_blocks=100, block_bytes=100),
        KvGroupInfo(name="sliding", layers=1, window=16, num_blocks=50, block_bytes=40),
    ),
)
POOL_BYTES = 100 * 100 + 50 * 40
ROUTING = RoutingConfig(large_input_tokens=100, pressure_input_tokens=100)
STATS = EngineStats(
    blocks_in_use={"full": 5, "sliding": 2},
    blocks_predicted={"full": 6, "sliding": 2},
    blocks_cached={"full": 7},
    blocks_total={"full": 100, "sliding": 50},
    preemptions=3,
)


PROBE = ProbeView(gpus=(), polls=9, errors=2, hung=False, last_error="the driver is gone")


class Told(FakeEngine):
    """A fake engine whose statistics are given."""

    def stats(self) -> EngineStats:
        return STATS


def gpu(id: str, used: int | None, utilization: float | None, at_s: float = 99.0) -> ProbedGpu:
    reading = GpuReading(id=id, total_bytes=50_000, used_bytes=used, utilization=utilization)
    return ProbedGpu(reading, at_s, 1.0)


def desk_of(engine: FakeEngine, readings: Sequence[ProbedGpu]) -> Desk:
    return Desk(
        engine=engine,
        fleet=LocalFleet(engine, lambda: readings, lambda: 100.0, "single", 2),
        policy=TriggerPolicy(ROUTING),
        routing=ROUTING,
        admission=AdmissionConfig(mode="worst_case"),
        sessions=SessionTable(SessionConfig()),
        clock=lambda: 100.0,
    )


def call(tokens: int, name: str, session: str | None = None) -> Call:
    job = Job(id=name, prompt=[7] * tokens, sampling=SamplingParams(max_tokens=16))
    return Call(request_id=name, jobs=[job], session_id=session)


def documents(
    *readings: ProbedGpu,
    tokens: Sequence[int] = (),
    nccl: NcclSettings | None = None,
    info: EngineInfo = INFO,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both documents as a client reads them, while the last of these requests runs."""

    async def story() -> tuple[Any, Any]:
        engine = Told(info=info)
        await engine.start()
        desk = desk_of(engine, readings)
        statistics = Statistics(desk, engine, nccl, lambda: PROBE)

        def read() -> tuple[Any, Any]:
            pair = (statistics.stats(), statistics.memory_stats())
            return tuple(msgspec.json.decode(msgspec.json.encode(one)) for one in pair)  # type: ignore[return-value]

        answer = read()
        for number, size in enumerate(tokens):
            async with desk.admit(call(size, f"r{number}", f"s{number}")) as lease:
                lease.saw(0, TokenDelta(token_ids=(7,)))
                answer = read()
        return answer

    return asyncio.run(story())


def test_stats_has_exactly_the_kept_shape() -> None:
    """Names, nesting and arithmetic of the public `gpu_routing` object."""
    stats, _ = documents(
        gpu("0", 30_000, 0.65), gpu("1", 10_000, 0.62), tokens=(101, 10, 10, 300, 10)
    )
    assert stats["gpu_routing"] == {
        "total_requests": 5,
        "single_gpu_requests": 3,
        "route4_gpu_requests": 2,
        "route4_percentage": 40.0,
        "route4_triggers": {"large_input": 2, "large_kv": 0, "memory_pressure": 0},
        "executed": {"single_gpu": 5, "multi_gpu": 0},
        "unmet_recommendations": 2,
        "gpu_balance": {
            "balanced": True,
            "coefficient": 1.0,
            "gpu_utilization": {"0": 65.0},
        },
        "gpu_mode": "single",
    }


def test_the_rest_of_stats() -> None:
    """Thresholds, missed targets, engine, admission and NCCL."""
    nccl = nccl_environment(4, "tensor", {"NCCL_MIN_NCHANNELS": "8"})
    stats, _ = documents(gpu("0", 30_000, 0.5), tokens=(101,), nccl=nccl)
    assert list(stats) == [
        "gpu_routing",
        "placement",
        "recommendation",
        "routing_thresholds",
        "missed_targets",
        "latency_p95_e2e_s",
        "engine",
        "admission",
        "nccl",
    ]
    assert stats["routing_thresholds"] == msgspec.to_builtins(ROUTING)
    assert stats["missed_targets"] == ["gpu 0 utilisation 50.0 % < 60 %"]
    assert stats["latency_p95_e2e_s"] is None
    assert stats["recommendation"] is None
    assert stats["engine"]["ready"] is True
    assert stats["engine"]["startup"] == [
        {"phase": "load", "seconds": 2.5, "why": None},
        {"phase": "capture", "seconds": None, "why": "--eager"},
    ]
    assert stats["engine"]["blocks_in_use"] == {"full": 5, "sliding": 2}
    assert stats["admission"]["running"] == 1
    assert stats["admission"]["blocks_used"] == {"full": 8, "sliding": 2, "slots": 1}
    assert stats["nccl"] == {
        "applied": dict(nccl.applied),
        "kept_from_user": {"NCCL_MIN_NCHANNELS": "8"},
        "overridden": {"NCCL_MIN_NCHANNELS": "8"},
    }
    assert len(nccl.applied) == 4


def test_what_is_not_known_is_absent_from_stats() -> None:
    """No utilisation: no balance, and no missed target."""
    for readings in ((), (gpu("0", 30_000, None),), (gpu("0", 30_000, 0.1, at_s=89.0),)):
        stats, _ = documents(*readings)
        assert "gpu_balance" not in stats["gpu_routing"]
        assert stats["missed_targets"] == []


def test_memory_stats_has_exactly_this_shape() -> None:
    """Per GPU its parts, which add up to what is used, and to the pressure; then the pools."""
    _, memory = documents(gpu("0", 30_000, 0.65), gpu("1", 20_000, None), tokens=(101,))
    in_use = 5 * 100 + 2 * 40
    others = 30_000 - 10_000 - POOL_BYTES
    used = others + 10_000 + 500 + in_use
    assert memory["gpus"] == [
        {
            "id": "0",
            "in_use": True,
            "total_bytes": 50_000,
            "used_bytes": used,
            "free_bytes": 50_000 - used,
            "weights_bytes": 10_000,
            "activations_peak_bytes": 500,
            "kv_pool_bytes": POOL_BYTES,
            "kv_in_use_bytes": in_use,
            "others_bytes": others,
            "utilization_percent": 65.0,
            "reading_age_s": 1.0,
            "stale": False,
        },
        {
            "id": "1",
            "in_use": False,
            "total_bytes": 50_000,
            "used_bytes": 20_000,
            "free_bytes": 30_000,
            "weights_bytes": 0,
            "activations_peak_bytes": 0,
            "kv_pool_bytes": 0,
            "kv_in_use_bytes": 0,
            "others_bytes": 20_000,
            "utilization_percent": None,
            "reading_age_s": 1.0,
            "stale": False,
        },
    ]
    assert memory["pressure"] == {"value": 20_000 / 50_000, "gpu_id": "1", "note": None}
    assert memory["probe"] == {
        "polls": 9,
        "errors": 2,
        "hung": False,
        "last_error": "the driver is gone",
    }
    assert memory["activations"] == {
        "bound_bytes": 450,
        "measured_bytes": 400,
        "set_aside_bytes": 500,
        "graphs_bytes": None,
    }
    assert memory["kv"] == {
        "block_size": 16,
        "pool_bytes": POOL_BYTES,
        "in_use_bytes": in_use,
        "predicted_bytes": 6 * 100 + 2 * 40,
        "reserved_bytes": 8 * 100 + 2 * 40,
        "peak_reserved_bytes": 8 * 100 + 2 * 40,
        "groups": [
            {
                "name": "full",
                "layers": 2,
                "window": None,
                "block_bytes": 100,
                "blocks_total": 100,
                "blocks_in_use": 5,
                "blocks_predicted": 6,
                "blocks_cached": 7,
                "blocks_reserved": 8,
            },
            {
                "name": "sliding",
                "layers": 1,
                "window": 16,
                "block_bytes": 40,
                "blocks_total": 50,
                "blocks_in_use": 2,
                "blocks_predicted": 2,
                "blocks_cached": 0,
                "blocks_reserved": 2,
            },
        ],
    }
    assert memory["sessions"] == {
        "tracked": 1,
        "active": 1,
        "kv_bytes": 0,
        "evictions": {"idle": 0, "count": 0, "pressure": 0},
        "reused": 0,
        "untracked": 0,
        "trimmed": 0,
    }


def test_where_a_replica_of_one_gpu_is() -> None:
    """One rank that has everything, whether the engine names it or not."""
    stats, memory = documents(gpu("0", 30_000, 0.5))
    assert stats["placement"] == {
        "gpu_mode": "single",
        "world": 1,
        "gpus": 1,
        "micro_batches": 1,
        "ranks": [
            {
                "rank": 0,
                "device": "cuda:0",
                "pid": None,
                "stage": 0,
                "tp_rank": 0,
                "first_layer": 0,
                "layers": 3,
                "weights_bytes": 10_000,
                "kv_pool_bytes": POOL_BYTES,
            }
        ],
    }
    assert memory["ranks"] == [
        {
            "rank": 0,
            "device": "cuda:0",
            "weights_bytes": 10_000,
            "kv_pool_bytes": POOL_BYTES,
            "kv_in_use_bytes": 5 * 100 + 2 * 40,
            "kv_predicted_bytes": 6 * 100 + 2 * 40,
            "kv_reserved_bytes": 0,
        }
    ]


def test_where_a_replica_of_several_ranks_is() -> None:
    """Every rank with its layers and bytes; per GPU its own share of weights, pool and KV."""
    ranks = (
        RankInfo(
            rank=0,
            device="cuda:0",
            pid=41,
            layers=1,
            weights_bytes=6000,
            kv_bytes=5000,
            block_bytes=(50, 0),
        ),
        RankInfo(
            rank=1,
            device="cuda:1",
            pid=42,
            stage=1,
            first_layer=1,
            layers=2,
            weights_bytes=4000,
            kv_bytes=7000,
            block_bytes=(50, 40),
        ),
    )
    info = msgspec.structs.replace(INFO, device="cuda:1", ranks=ranks, micro_batches=2)
    stats, memory = documents(
        gpu("0", 12_000, 0.5), gpu("1", 11_000, 0.25), tokens=(101,), info=info
    )
    placement = stats["placement"]
    assert (placement["world"], placement["gpus"], placement["micro_batches"]) == (2, 2, 2)
    assert placement["ranks"][1] == {
        "rank": 1,
        "device": "cuda:1",
        "pid": 42,
        "stage": 1,
        "tp_rank": 0,
        "first_layer": 1,
        "layers": 2,
        "weights_bytes": 4000,
        "kv_pool_bytes": 7000,
    }
    assert stats["gpu_routing"]["executed"] == {"single_gpu": 0, "multi_gpu": 1}
    assert stats["gpu_routing"]["unmet_recommendations"] == 0
    assert stats["gpu_routing"]["gpu_balance"] == {
        "balanced": False,
        "coefficient": 0.5,
        "gpu_utilization": {"0": 50.0, "1": 25.0},
    }
    assert [
        (one["kv_in_use_bytes"], one["kv_predicted_bytes"], one["kv_reserved_bytes"])
        for one in memory["ranks"]
    ] == [(5 * 50, 6 * 50, 8 * 50), (5 * 50 + 2 * 40, 6 * 50 + 2 * 40, 8 * 50 + 2 * 40)]
    assert [
        (one["weights_bytes"], one["kv_pool_bytes"], one["kv_in_use_bytes"], one["others_bytes"])
        for one in memory["gpus"]
    ] == [(6000, 5000, 250, 1000), (4000, 7000, 330, 0)]
    # Totals are of the whole replica; the pressure is that of the fullest GPU.
    assert memory["kv"]["in_use_bytes"] == 250 + 330
    assert memory["pressure"]["gpu_id"] == "0"
    assert memory["pressure"]["value"] == (1000 + 6000 + 500 + 250) / 50_000


def test_the_recommendation_is_the_one_worked_out_last() -> None:
    """Off the event loop, when `/stats` is asked over HTTP; a reader in between sees the last."""

    class Said:
        refreshed = 0

        async def refresh(self) -> None:
            self.refreshed += 1

        def last(self) -> dict[str, Any] | None:
            return {"mode": "tensor"} if self.refreshed else None

    class Asked:
        def __init__(self) -> None:
            self.replies: list[dict[str, Any]] = []

        async def reply(self, document: dict[str, Any]) -> None:
            self.replies.append(document)

    async def story() -> tuple[Any, Said, Asked]:
        engine = Told(info=INFO)
        await engine.start()
        said, asked = Said(), Asked()
        statistics = Statistics(desk_of(engine, ()), engine, advice=said)
        before = statistics.stats()["recommendation"]
        endpoint = statistics.endpoints()[0]
        await endpoint.handle(asked, None)  # type: ignore[arg-type]
        return before, said, asked

    before, said, asked = asyncio.run(story())
    assert (before, said.refreshed) == (None, 1)
    assert asked.replies[0]["recommendation"] == {"mode": "tensor"}


def test_admission_says_the_same_in_both() -> None:
    """One snapshot, with every count."""
    stats, memory = documents(gpu("0", 30_000, 0.5), tokens=(101, 10))
    assert stats["admission"] == memory["admission"]
    assert stats["admission"]["counts"] == {
        "offered": 2,
        "accepted": 2,
        "shrunk": 0,
        "routed4": 0,
        "queued": 0,
        "rejected": 0,
        "never_fits": 0,
        "started_from_queue": 0,
        "expired": 0,
        "shed": 0,
        "no_longer_fits": 0,
        "cancelled_waiting": 0,
        "cancelled_running": 0,
        "released": 1,
        "preemptions": 0,
        "overcommits": 0,
    }


@pytest.mark.parametrize(
    ("readings", "age", "stale", "used"),
    [
        ((gpu("0", 30_000, 0.5, at_s=90.0),), 10.0, False, True),
        ((gpu("0", 30_000, 0.5, at_s=89.9),), 10.1, True, True),
        ((gpu("0", None, None),), 1.0, False, False),
        ((), None, True, False),
    ],
)
def test_what_is_stale_or_was_never_read_says_so(
    readings: tuple[ProbedGpu, ...], age: float | None, stale: bool, used: bool
) -> None:
    """An old reading is shown with its age and marked; what is not known is null, never 0."""
    _, memory = documents(*readings)
    (shown,) = memory["gpus"]
    assert (shown["reading_age_s"], shown["stale"]) == (age, stale)
    assert (shown["used_bytes"] is not None) is used
    assert (shown["free_bytes"] is not None) is used
    assert shown["total_bytes"] == (50_000 if readings else None)
    assert shown["weights_bytes"] == 10_000
    if stale or not used:
        assert memory["pressure"]["value"] is None
        assert memory["pressure"]["note"].startswith("gpu ")


def test_while_no_engine_is_up() -> None:
    """`/stats` goes on and says why; `/memory_stats` has nothing to tell."""

    async def story() -> tuple[dict[str, Any], Statistics]:
        engine = Told(info=INFO)
        await engine.start()
        desk = desk_of(engine, [gpu("0", 30_000, 0.5)])
        async with desk.admit(call(200, "r")):
            pass
        engine.crash("the worker died")
        statistics = Statistics(desk, engine)
        return statistics.stats(), statistics

    stats, _ = asyncio.run(story())
    assert stats["engine"]["ready"] is False
    assert stats["engine"]["reason"] == "the worker died"
    assert stats["gpu_routing"]["total_requests"] == 1
    assert "gpu_balance" not in stats["gpu_routing"]
    assert stats["placement"] is None


def test_before_the_first_engine() -> None:
    """Counts of zero, no admission section, and no memory to tell of."""
    from gpt_oss_server.pending import PendingEngine

    engine = PendingEngine("loading")
    statistics = Statistics(desk_of(engine, []), engine)  # type: ignore[arg-type]
    stats = statistics.stats()
    assert stats["gpu_routing"]["total_requests"] == 0
    assert stats["gpu_routing"]["route4_percentage"] == 0.0
    assert "admission" not in stats
    with pytest.raises(NotReady):
        statistics.memory_stats()
