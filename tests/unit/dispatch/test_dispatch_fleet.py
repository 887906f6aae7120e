"""What the desk sees of the machine: effective pressure, and what is not known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from dispatch_parts import INFO, gpu, info

from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.errors import NotReady
from gpt_oss_server.facts import GpuView, Pressure, ReplicaView
from gpt_oss_server.pending import PendingEngine
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.types import EngineInfo, EngineStats

NOW_S = 1000.0
POOL = 64 * 8192 + 40 * 4096


class Measured(FakeEngine):
    """A fake engine whose pools look as told."""

    def __init__(self, engine_info: EngineInfo, stats: EngineStats) -> None:
        super().__init__(info=engine_info)
        self._told = stats

    def stats(self) -> EngineStats:
        return self._told


def fleet(
    *readings: ProbedGpu,
    device: str = "cpu",
    in_use: dict[str, int] | None = None,
    cached: dict[str, int] | None = None,
) -> LocalFleet:
    stats = EngineStats(blocks_in_use=in_use or {}, blocks_cached=cached or {})
    engine = Measured(info(device=device), stats)
    asyncio.run(engine.start())
    return LocalFleet(engine, lambda: readings, lambda: NOW_S, machine_gpus=len(readings))


def pressure(views: Sequence[GpuView]) -> Pressure:
    return effective_pressure(views, NOW_S, 10.0)


def test_a_cuda_pool_that_is_reserved_and_empty_is_no_pressure() -> None:
    """used - weights - whole pool are others'; weights, activations and KV in use are ours."""
    used = POOL + 1000 + 5000
    (view,) = fleet(gpu("0", used=used), device="cuda:0", in_use={"full": 2}).gpu_views()
    assert view == GpuView(
        id="0",
        total_bytes=10**6,
        measured_at_s=NOW_S,
        others_bytes=5000,
        weights_bytes=1000,
        activations_peak_bytes=100,
        kv_in_use_bytes=2 * 8192,
        kv_pool_bytes=POOL,
        in_use=True,
    )
    assert pressure([view]) == Pressure((5000 + 1000 + 100 + 2 * 8192) / 10**6, "0", None)


def test_on_a_cpu_only_written_blocks_take_memory() -> None:
    """In use and cached blocks are ours in the reading; cached ones are no pressure."""
    used = 1000 + (2 + 3) * 8192 + 4096 + 7000
    (view,) = fleet(
        gpu(used=used), in_use={"full": 2, "sliding": 1}, cached={"full": 3}
    ).gpu_views()
    assert (view.others_bytes, view.kv_in_use_bytes) == (7000, 2 * 8192 + 4096)


def test_a_reading_smaller_than_our_own_part_leaves_nothing_to_others() -> None:
    """A pool not yet touched must not make others' use negative, which would be unknown."""
    (view,) = fleet(gpu("0", used=10), device="cuda:0").gpu_views()
    assert view.others_bytes == 0
    assert pressure([view]).value == 1100 / 10**6


def test_gpus_that_the_replica_does_not_run_on() -> None:
    """A foreign GPU counts with all that is used on it, and as not in use by us; the own one is
    found by its place in CUDA's order, not by its name."""
    views = fleet(
        gpu("3", used=700_000, utilization=0.5), gpu("1", used=POOL), device="cuda:1"
    ).gpu_views()
    assert [(v.id, v.in_use, v.others_bytes, v.weights_bytes) for v in views] == [
        ("3", False, 700_000, 0),
        ("1", True, 0, 1000),
    ]
    assert views[0].utilization_percent == 50.0
    assert pressure(views) == Pressure(0.7, "3", None)


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1"])
def test_a_device_without_a_reading_is_unknown_and_said_so(device: str) -> None:
    """Before the first poll, or where the probe fails: listed, unknown, never 0."""
    (view,) = fleet(device=device).gpu_views()
    assert (view.id, view.in_use, view.others_bytes) == (device, True, None)
    assert pressure([view]) == Pressure(None, None, f"gpu {device}: no reading")


def test_other_gpus_do_not_stand_in_for_one_without_a_reading() -> None:
    """The value is then a lower bound, and says what it leaves out."""
    views = fleet(gpu("0", used=200_000), device="cuda:1").gpu_views()
    assert [view.id for view in views] == ["cuda:1", "0"]
    assert pressure(views) == Pressure(0.2, "0", "gpu cuda:1: no reading")


@pytest.mark.parametrize(
    ("reading", "note"),
    [
        (gpu(used=900_000, at_s=NOW_S - 10.5), "gpu cpu: reading is 10.5 s old"),
        (gpu(used=None), "gpu cpu: no reading"),
        (gpu(total=None, used=5), "gpu cpu: impossible reading"),
    ],
)
def test_stale_and_partial_readings_are_unknown(reading: ProbedGpu, note: str) -> None:
    """What is too old, or lacks a number, is None with the reason."""
    assert pressure(fleet(reading).gpu_views()) == Pressure(None, None, note)


def test_utilisation_that_is_not_known_is_absent() -> None:
    """None stays None; a share becomes a percentage."""
    assert fleet(gpu()).gpu_views()[0].utilization_percent is None
    assert fleet(gpu(utilization=0.3724)).gpu_views()[0].utilization_percent == 37.2


def test_the_replica_is_free_but_for_what_is_held_or_promised() -> None:
    """Free KV is the pool less the larger of what the engine holds and what is reserved."""
    seen = fleet(gpu(), in_use={"full": 4})
    view = seen.view(load_tokens=77, reserved_blocks={"full": 10, "slots": 3})
    assert view.replicas == (
        ReplicaView(
            id="local",
            gpus=1,
            measured_at_s=NOW_S,
            kv_capacity_bytes=POOL,
            kv_free_bytes=POOL - 10 * 8192,
            capacity_tokens=1024,
            load_tokens=77,
            ready=True,
        ),
    )
    assert (view.gpu_mode, view.now_s, view.machine_gpus) == ("single", NOW_S, 1)
    least = seen.view(load_tokens=0, reserved_blocks={"full": 1}).replicas[0]
    assert least.kv_free_bytes == POOL - 4 * 8192


def test_an_engine_that_is_down_is_seen_so() -> None:
    """After a crash the replica is listed as not ready: the ranking leaves it out."""
    engine = FakeEngine(info=INFO)
    asyncio.run(engine.start())
    local = LocalFleet(engine, tuple, lambda: NOW_S)
    assert local.view(load_tokens=0, reserved_blocks={}).replicas[0].ready
    engine.crash()
    assert not local.view(load_tokens=0, reserved_blocks={}).replicas[0].ready


def test_no_view_before_the_first_engine() -> None:
    """Nothing is known of a replica that never was: NotReady, not a view of zeros."""
    local = LocalFleet(PendingEngine("loading"), tuple, lambda: NOW_S)
    with pytest.raises(NotReady):
        local.view(load_tokens=0, reserved_blocks={})


def test_a_view_can_be_written_and_read_back() -> None:
    """The view is part of the decision record."""
    view = fleet(gpu(used=5)).view(load_tokens=0, reserved_blocks={})
    assert msgspec.json.decode(msgspec.json.encode(view), type=type(view)) == view
