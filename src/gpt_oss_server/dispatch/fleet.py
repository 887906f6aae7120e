"""What this server knows of its machine and its replica at a moment, as a `FleetView`.

Knows: how engine, admission and probe add up to the view that a policy reads. Does not know:
policies. It takes no reading itself: the probe's last one is used with its age.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpt_oss_server.dispatch.estimate import kv_bytes, kv_capacity_bytes
from gpt_oss_server.dispatch.ranks import DeviceShare, devices_of, replica_gpus
from gpt_oss_server.facts import FleetView, GpuMode, GpuView, ReplicaView
from gpt_oss_server.ports import Engine
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.types import EngineInfo, EngineStats

REPLICA_ID = "local"


@dataclass(frozen=True)
class LocalFleet:
    """One replica on this machine.

    `readings` returns the last good reading of each GPU, in CUDA's order, without blocking.
    `machine_gpus` is None when not known.
    """

    engine: Engine
    readings: Callable[[], Sequence[ProbedGpu]]
    clock: Callable[[], float]
    gpu_mode: GpuMode = "single"
    machine_gpus: int | None = None

    def view(self, *, load_tokens: int, reserved_blocks: Mapping[str, int]) -> FleetView:
        """The view now. Raises NotReady while no engine is up."""
        info, stats = self.engine.info(), self.engine.stats()
        now_s = self.clock()
        capacity = kv_capacity_bytes(info)
        in_use = kv_bytes(info, stats.blocks_in_use)
        held = max(in_use, kv_bytes(info, reserved_blocks))
        replica = ReplicaView(
            id=REPLICA_ID,
            gpus=replica_gpus(info),
            measured_at_s=now_s,
            kv_capacity_bytes=capacity,
            kv_free_bytes=capacity - held,
            capacity_tokens=info.kv_token_capacity,
            load_tokens=load_tokens,
            ready=self.engine.state().ready,
        )
        return FleetView(
            gpu_mode=self.gpu_mode,
            now_s=now_s,
            replicas=(replica,),
            gpus=self._gpu_views(info, stats),
            machine_gpus=self.machine_gpus,
        )

    def gpu_views(self) -> tuple[GpuView, ...]:
        """Each GPU (or the machine's memory, where there is none) as last seen. Raises NotReady
        while no engine is up."""
        return self._gpu_views(self.engine.info(), self.engine.stats())

    def _gpu_views(self, info: EngineInfo, stats: EngineStats) -> tuple[GpuView, ...]:
        readings = self.readings()
        shares = {share.device: share for share in devices_of(info)}
        views: list[GpuView] = []
        for index, gpu in enumerate(readings):
            # Devices count in CUDA's order; a reading's id is the GPU's place in the machine.
            device = "cpu" if gpu.reading.id == "cpu" else f"cuda:{index}"
            share = shares.pop(device, None)
            views.append(_foreign(gpu) if share is None else _own(share, gpu, stats))
        # What was never read is listed as unknown: left out, it would pass for no pressure.
        return (*(_unread(share, stats) for share in shares.values()), *views)


def _own(share: DeviceShare, gpu: ProbedGpu, stats: EngineStats) -> GpuView:
    """A device that ranks of the replica run on."""
    reading = gpu.reading
    in_use = share.kv_bytes(stats.blocks_in_use)
    # On a CPU only blocks that were ever written take memory; a CUDA pool is taken whole.
    pool = share.kv_pool_bytes
    if share.device == "cpu":
        pool = in_use + share.kv_bytes(stats.blocks_cached)
    # What a step holds at its peak may or may not be in the reading: counting it as ours and
    # not as others' errs towards more pressure.
    others = None
    if reading.used_bytes is not None:
        others = max(0, reading.used_bytes - share.weights_bytes - pool)
    return GpuView(
        id=reading.id,
        total_bytes=reading.total_bytes or 0,
        measured_at_s=gpu.measured_at_s,
        others_bytes=others,
        weights_bytes=share.weights_bytes,
        activations_peak_bytes=share.activations_peak_bytes,
        kv_in_use_bytes=in_use,
        kv_pool_bytes=share.kv_pool_bytes,
        utilization_percent=_percent(reading.utilization),
    )


def _unread(share: DeviceShare, stats: EngineStats) -> GpuView:
    """A device of the replica before its first good reading; 0 stands for a total not known."""
    return GpuView(
        id=share.device,
        total_bytes=0,
        measured_at_s=None,
        others_bytes=None,
        weights_bytes=share.weights_bytes,
        activations_peak_bytes=share.activations_peak_bytes,
        kv_in_use_bytes=share.kv_bytes(stats.blocks_in_use),
        kv_pool_bytes=share.kv_pool_bytes,
    )


def _foreign(gpu: ProbedGpu) -> GpuView:
    """A GPU of this machine that the replica does not run on."""
    return GpuView(
        id=gpu.reading.id,
        total_bytes=gpu.reading.total_bytes or 0,
        measured_at_s=gpu.measured_at_s,
        others_bytes=gpu.reading.used_bytes,
        utilization_percent=_percent(gpu.reading.utilization),
        in_use=False,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100.0 * share, 1)
