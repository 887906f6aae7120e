"""A replica of several ranks as the desk sees it: bytes per rank and device, and where it runs."""

from __future__ import annotations

from typing import Any

import pytest
from dispatch_parts import call, complete, desk, gpu, info, run, started

from gpt_oss_server.dispatch.estimate import (
    capacity_of,
    estimator_for,
    kv_bytes,
    kv_capacity_bytes,
    predicted_kv_bytes,
    rank_estimator,
)
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.dispatch.ranks import (
    devices_of,
    rank_groups,
    rank_kv_bytes,
    ranks_of,
    replica_gpus,
)
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.facts import GpuMode, GpuView
from gpt_oss_server.routing import RoutingConfig, gpu_balance
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.types import EngineInfo, EngineStats, Job, RankInfo, SamplingParams

NOW_S = 1000.0
BLOCKS = {"full": 5, "sliding": 3}


def rank(number: int, device: str, blocks: tuple[int, ...], **more: Any) -> RankInfo:
    """A rank of an engine with 64 full and 40 sliding blocks."""
    total = 64 * blocks[0] + 40 * blocks[1]
    fields = {"layers": 4, "weights_bytes": 500, **more}
    return RankInfo(rank=number, device=device, kv_bytes=total, block_bytes=blocks, **fields)


TENSOR = info(
    device="cuda:0",
    ranks=(rank(0, "cuda:0", (4096, 2048)), rank(1, "cuda:1", (4096, 2048))),
)
# The last stage leads; each has the layers of one kind only.
PIPELINE = info(
    device="cuda:1",
    micro_batches=3,
    ranks=(
        rank(0, "cuda:0", (8192, 0), layers=2, weights_bytes=700),
        rank(1, "cuda:1", (0, 4096), layers=2, weights_bytes=300, stage=1, first_layer=2),
    ),
)
CPU_RANKS = info(ranks=(rank(0, "cpu", (4096, 2048)), rank(1, "cpu", (4096, 2048))))
OFFLOADED = info(
    device="cuda:0",
    ranks=(rank(0, "cuda:0", (8192, 4096)), rank(1, "cpu", (0, 0), weights_bytes=500)),
)


class Measured(FakeEngine):
    """A fake engine that holds some blocks."""

    def stats(self) -> EngineStats:
        return EngineStats(blocks_in_use=BLOCKS, blocks_cached={"full": 2})


def views(engine_info: EngineInfo, *readings: ProbedGpu) -> tuple[GpuView, ...]:
    async def story() -> tuple[GpuView, ...]:
        engine = Measured(info=engine_info)
        await engine.start()
        return LocalFleet(engine, lambda: readings, lambda: NOW_S).gpu_views()

    return run(story())


@pytest.mark.parametrize("whole", [TENSOR, PIPELINE, CPU_RANKS, OFFLOADED, info()])
def test_ranks_hold_together_what_the_engine_holds(whole: EngineInfo) -> None:
    """Blocks in use, pools and weights of all ranks add up to those of the replica."""
    ranks = ranks_of(whole)
    assert sum(rank_kv_bytes(whole, one, BLOCKS) for one in ranks) == kv_bytes(whole, BLOCKS)
    assert sum(one.kv_bytes for one in ranks) == kv_capacity_bytes(whole)
    assert sum(one.weights_bytes for one in ranks) == 1000


@pytest.mark.parametrize("whole", [TENSOR, PIPELINE, CPU_RANKS])
def test_a_request_is_predicted_whole_and_per_rank(whole: EngineInfo) -> None:
    """What routing counts with is the whole request's KV, in every mode the same; a rank's own
    part adds up to it, and is half for two tensor ranks."""
    job = Job(id="a", prompt=[1] * 100, sampling=SamplingParams(max_tokens=50))
    total = predicted_kv_bytes(estimator_for(whole), [job])
    parts = [predicted_kv_bytes(rank_estimator(whole, one), [job]) for one in whole.ranks]
    # 149 rows are 10 blocks; a window of 32 with up to 64 tokens of a step 7, a token more 7.
    assert total == 10 * 8192 + 7 * 4096
    assert sum(parts) == total
    if whole is PIPELINE:
        assert parts == [10 * 8192, 7 * 4096]
    else:
        assert parts == [total // 2, total // 2]


def test_admission_counts_blocks_once_whatever_the_ranks() -> None:
    """Ranks share block tables: the capacity is that of one GPU with the same blocks."""
    assert capacity_of(TENSOR).total == capacity_of(info()).total
    assert [group.num_blocks for group in rank_groups(TENSOR, TENSOR.ranks[0])] == [64, 40]


def test_steps_in_flight_are_set_aside() -> None:
    """Three steps of 22 tokens are 66: five blocks of 16, one more than a step of 64 takes."""
    (_, alone, _), (_, several, _) = capacity_of(info()).groups, capacity_of(PIPELINE).groups
    assert (alone.blocks, several.blocks) == (40 - 4, 40 - 5)


def test_every_gpu_of_a_tensor_replica_has_its_own_view() -> None:
    """Each with its half, what others use there, and one pressure: that of the fullest."""
    pool = 64 * 4096 + 40 * 2048
    used = (500 + pool + 7000, 500 + pool + 90_000)
    seen = views(
        TENSOR,
        gpu("0", used=used[0], utilization=0.8),
        gpu("1", used=used[1], utilization=0.4),
        gpu("2", used=300),
    )
    in_use = 5 * 4096 + 3 * 2048
    assert [(v.id, v.in_use, v.others_bytes) for v in seen] == [
        ("0", True, 7000),
        ("1", True, 90_000),
        ("2", False, 300),
    ]
    for view in seen[:2]:
        assert (view.weights_bytes, view.activations_peak_bytes) == (500, 100)
        assert (view.kv_in_use_bytes, view.kv_pool_bytes) == (in_use, pool)
    assert (seen[2].weights_bytes, seen[2].kv_pool_bytes) == (0, 0)
    pressure = effective_pressure(seen, NOW_S, 10.0)
    assert (pressure.value, pressure.gpu_id) == ((90_000 + 500 + 100 + in_use) / 10**6, "1")
    balance = gpu_balance(seen, NOW_S, 10.0)
    assert balance is not None
    assert (balance.coefficient, balance.utilization_percent) == (0.5, {"0": 80.0, "1": 40.0})


def test_stages_hold_what_their_layers_need() -> None:
    """KV where its layers are."""
    seen = views(PIPELINE, gpu("0"), gpu("1"))
    assert [(v.weights_bytes, v.kv_in_use_bytes, v.kv_pool_bytes) for v in seen] == [
        (700, 5 * 8192, 64 * 8192),
        (300, 3 * 4096, 40 * 4096),
    ]


def test_a_gpu_of_the_replica_that_was_never_read_is_unknown() -> None:
    """Listed before the others, with what the replica has there; the pressure says so."""
    seen = views(TENSOR, gpu("0", used=0))
    assert [(v.id, v.others_bytes, v.weights_bytes) for v in seen] == [
        ("cuda:1", None, 500),
        ("0", 0, 500),
    ]
    assert effective_pressure(seen, NOW_S, 10.0).note == "gpu cuda:1: no reading"


def test_ranks_on_a_cpu_share_its_memory() -> None:
    """One view with the sum of both, of which only written blocks are in the reading."""
    in_use, cached = 5 * 8192 + 3 * 4096, 2 * 8192
    (view,) = views(CPU_RANKS, gpu(used=1000 + in_use + cached + 60))
    assert (view.weights_bytes, view.activations_peak_bytes) == (1000, 200)
    assert (view.kv_in_use_bytes, view.others_bytes) == (in_use, 60)


def test_what_lies_beside_the_gpus_is_no_gpu() -> None:
    """Weights that were offloaded to the host do not make a replica multi-GPU."""
    assert [share.device for share in devices_of(OFFLOADED)] == ["cuda:0"]
    assert [replica_gpus(one) for one in (info(), OFFLOADED, TENSOR, PIPELINE, CPU_RANKS)] == [
        1,
        1,
        2,
        2,
        2,
    ]


@pytest.mark.parametrize(
    ("whole", "mode", "gpus", "route", "notice", "advice"),
    [
        (TENSOR, "tensor", 2, "multi_gpu", "Multi-GPU active: large_input", None),
        (PIPELINE, "pipeline", 2, "multi_gpu", "Multi-GPU active: large_input", None),
        (CPU_RANKS, "tensor", 0, "multi_gpu", "Multi-GPU active: large_input", None),
        (
            OFFLOADED,
            "auto",
            2,
            "single_gpu",
            "Large request detected but model in single GPU mode",
            "Recommendation: restart with --gpu-mode tensor",
        ),
        (
            info(),
            "single",
            2,
            "single_gpu",
            "Large request detected but model in single GPU mode",
            "Recommendation: restart with --gpu-mode auto or tensor",
        ),
        (
            info(),
            "single",
            1,
            "single_gpu",
            "Large request detected but model in single GPU mode",
            "Recommendation: none for this machine, it has one GPU; multi-GPU modes need at least "
            "two",
        ),
    ],
)
def test_where_a_large_request_runs_and_what_is_advised(
    whole: EngineInfo, mode: GpuMode, gpus: int, route: str, notice: str, advice: str | None
) -> None:
    """On a replica of several ranks it is met and counted there; else advised what is possible."""

    async def story() -> None:
        records: list[DecisionRecord] = []
        counter = desk(
            await started(whole),
            routing=RoutingConfig(large_input_tokens=200, pressure_input_tokens=200),
            gpu_mode=mode,
            machine_gpus=gpus,
            records=records,
        )
        lease = await complete(counter, call(300), output_tokens=1)
        assert lease.route == route
        (record,) = records
        decision = record.decision
        assert (decision.route, decision.executed) == ("multi_gpu", route)
        assert decision.notice is not None
        assert decision.notice.startswith(notice)
        assert decision.recommendation == advice
        snapshot = counter.ledger.snapshot()
        assert snapshot.executed == {"single_gpu": 0, "multi_gpu": 0, route: 1}
        assert snapshot.unmet_recommendations == (route == "single_gpu")

    run(story())
