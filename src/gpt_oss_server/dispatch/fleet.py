"""What this server knows of its machine and its replica at a moment, as a `FleetView`.

Knows: how engine, admission and probe add up to the view that a policy reads. Does not know:
policies. It takes no reading itself: the probe's last one is used with its age.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpt_oss_server.dispatch.estimate import kv_bytes, kv_capacity_bytes
from gpt_oss_server.facts import FleetView, GpuMode, GpuView, ReplicaView
from gpt_oss_server.ports import Engine, GpuReading
from gpt_oss_server.telemetry.gpu import ProbedGpu
from gpt_oss_server.types import EngineInfo

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
        held = max(kv_bytes(info, stats.blocks_in_use), kv_bytes(info, reserved_blocks))
        replica = ReplicaView(
            id=REPLICA_ID,
            gpus=1,
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
        readings = self.readings()
        own = [_runs_on(info.device, n, gpu.reading) for n, gpu in enumerate(readings)]
        views = tuple(
            self._own(info, gpu, in_use, pool) if ours else _foreign(gpu)
            for gpu, ours in zip(readings, own, strict=True)
        )
        # What was never read is listed as unknown: left out, it would pass for no pressure.
        return views if any(own) else (_unread(info, in_use), *views)

    def _own(
        self,
        info: EngineInfo,
        gpu: ProbedGpu,
        in_use_bytes: int,
        pool_bytes: int,
    ) -> GpuView:
        reading = gpu.reading
        # What a step holds at its peak may or may not be in the reading: counting it as ours and
        # not as others' errs towards more pressure.
        others = None
        if reading.used_bytes is not None:
            others = max(0, reading.used_bytes - info.weights_bytes - pool_bytes)
        return GpuView(
            id=reading.id,
            total_bytes=reading.total_bytes or 0,
            measured_at_s=gpu.measured_at_s,
            others_bytes=others,
            weights_bytes=info.weights_bytes,
            activations_peak_bytes=info.activations_peak_bytes,
            kv_in_use_bytes=in_use_bytes,
            utilization_percent=_percent(reading.utilization),
        )


def _runs_on(device: str, index: int, reading: GpuReading) -> bool:
    """Whether the replica's device (`cpu`, `cuda:N`) is the GPU with this place in CUDA's order."""
    return reading.id == "cpu" if device == "cpu" else device == f"cuda:{index}"


def _unread(info: EngineInfo, in_use_bytes: int) -> GpuView:
    """The replica's own device before its first good reading; 0 stands for a total not known."""
    return GpuView(
        id=info.device,
        total_bytes=0,
        measured_at_s=None,
        others_bytes=None,
        weights_bytes=info.weights_bytes,
        activations_peak_bytes=info.activations_peak_bytes,
        kv_in_use_bytes=in_use_bytes,
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
