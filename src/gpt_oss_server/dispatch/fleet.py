"""What this server knows of its machine and its replica at a moment, as a `FleetView`.

Knows: how engine, admission and probe add up to the view that a policy reads. Does not know:
policies. It takes no reading itself: the probe's last one is used with its age.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpt_oss_server.dispatch.estimate import kv_bytes, kv_capacity_bytes
from gpt_oss_server.facts import FleetView, GpuMode, GpuView, ReplicaView
from gpt_oss_server.ports import Engine, GpuReading
from gpt_oss_server.types import EngineInfo

REPLICA_ID = "local"


@dataclass(frozen=True)
class Sample:
    """A probe's last good reading of all GPUs, and when it was taken (None: never)."""

    readings: tuple[GpuReading, ...]
    measured_at_s: float | None


@dataclass(frozen=True)
class LocalFleet:
    """One replica on this machine.

    `sample` returns the probe's last reading without blocking. `gpu_ids` are the probe's ids of
    the GPUs that the replica runs on (`cpu` where it runs on none). `machine_gpus` is None when
    not known.
    """

    engine: Engine
    sample: Callable[[], Sample]
    clock: Callable[[], float]
    gpu_mode: GpuMode
    gpu_ids: tuple[str, ...]
    machine_gpus: int | None

    def view(self, *, load_tokens: int, reserved_blocks: Mapping[str, int]) -> FleetView:
        """The view now. Raises NotReady while no engine is up."""
        info, stats = self.engine.info(), self.engine.stats()
        now_s = self.clock()
        capacity = kv_capacity_bytes(info)
        held = max(kv_bytes(info, stats.blocks_in_use), kv_bytes(info, reserved_blocks))
        replica = ReplicaView(
            id=REPLICA_ID,
            gpus=len(self.gpu_ids),
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
            gpus=self.gpu_views(),
            machine_gpus=self.machine_gpus,
        )

    def gpu_views(self) -> tuple[GpuView, ...]:
        """Each GPU (or the machine's memory, where there is none) as last seen. Raises NotReady
        while no engine is up."""
        info, stats = self.engine.info(), self.engine.stats()
        in_use = kv_bytes(info, stats.blocks_in_use)
        # On a CPU only blocks that were ever written take memory; a CUDA pool is taken whole.
        pool = kv_capacity_bytes(info)
        if info.device == "cpu":
            pool = in_use + kv_bytes(info, stats.blocks_cached)
        sample = self.sample()
        return tuple(
            self._own(info, reading, sample.measured_at_s, in_use, pool)
            if reading.id in self.gpu_ids
            else _foreign(reading, sample.measured_at_s)
            for reading in sample.readings
        )

    def _own(
        self,
        info: EngineInfo,
        reading: GpuReading,
        measured_at_s: float | None,
        in_use_bytes: int,
        pool_bytes: int,
    ) -> GpuView:
        # What a step holds at its peak may or may not be in the reading: counting it as ours and
        # not as others' errs towards more pressure.
        others = None
        if reading.used_bytes is not None:
            others = max(0, reading.used_bytes - info.weights_bytes - pool_bytes)
        return GpuView(
            id=reading.id,
            total_bytes=reading.total_bytes or 0,
            measured_at_s=measured_at_s,
            others_bytes=others,
            weights_bytes=info.weights_bytes,
            activations_peak_bytes=info.activations_peak_bytes,
            kv_in_use_bytes=in_use_bytes,
            utilization_percent=_percent(reading.utilization),
        )


def _foreign(reading: GpuReading, measured_at_s: float | None) -> GpuView:
    """A GPU of this machine that the replica does not run on."""
    return GpuView(
        id=reading.id,
        total_bytes=reading.total_bytes or 0,
        measured_at_s=measured_at_s,
        others_bytes=reading.used_bytes,
        utilization_percent=_percent(reading.utilization),
        in_use=False,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100.0 * share, 1)
