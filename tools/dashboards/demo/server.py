"""The real server with the built-in model, whose GPU readings are played back.

Run as `python -m tools.dashboards.demo.server [flags of serve]`. Everything but the readings is
real: requests, decisions, engine, KV. The engine computes on the CPU and says that it is on GPU 0
of the four that the recording shows; the readings are invented.

Knows: how to serve with other parts. Does not know: load, Prometheus, dashboards.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Callable, Sequence

import msgspec

from gpt_oss_server.app import Parts, serve
from gpt_oss_server.config import load
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import StartupError
from gpt_oss_server.events import Event
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.telemetry.gpu import DEFAULT_INTERVAL_S
from gpt_oss_server.telemetry.probes.recorded import RecordedProbe
from gpt_oss_server.types import EngineInfo

GPUS = 4
TOTAL_BYTES = 80 * 2**30
_IDLE_W, _FULL_W = 90.0, 640.0


class EngineOnGpu0(EngineClient):
    """Says of itself that it runs on the first GPU."""

    def info(self) -> EngineInfo:
        info = super().info()
        ranks = tuple(msgspec.structs.replace(rank, device="cuda:0") for rank in info.ranks)
        return msgspec.structs.replace(info, device="cuda:0", ranks=ranks)


def recording(entries: int, period_s: float, seed: int = 0) -> list[Sequence[GpuReading]]:
    """Readings of four GPUs, one every two seconds: the first breathes with this period and is
    nearly full at its height; the others belong to someone else."""
    rng = random.Random(seed)
    energy_j = [0.0] * GPUS
    entries_made: list[Sequence[GpuReading]] = []
    for step in range(entries):
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * (0.3 + step * DEFAULT_INTERVAL_S / period_s))
        busy = (0.35 + 0.6 * wave, 0.75, 0.55 + 0.3 * wave, 0.12)
        full = (0.62 + 0.32 * wave, 0.71, 0.5, 0.08)
        readings = []
        for gpu in range(GPUS):
            share = min(1.0, max(0.0, busy[gpu] + rng.gauss(0, 0.04)))
            power_w = _IDLE_W + (_FULL_W - _IDLE_W) * share
            used_bytes = int(TOTAL_BYTES * full[gpu])
            readings.append(
                GpuReading(
                    id=str(gpu),
                    name="Recorded GPU",
                    uuid=f"GPU-{gpu}",
                    total_bytes=TOTAL_BYTES,
                    used_bytes=used_bytes,
                    free_bytes=TOTAL_BYTES - used_bytes,
                    utilization=round(share, 2),
                    power_w=round(power_w, 1),
                    energy_j=round(energy_j[gpu], 1),
                    temperature_c=round(34 + 44 * share),
                )
            )
            energy_j[gpu] += power_w * DEFAULT_INTERVAL_S
        entries_made.append(readings)
    return entries_made


def _make_engine(spec: EngineSpec, emit: Callable[[Event], None]) -> EngineOnGpu0:
    return EngineOnGpu0(spec, emit=emit)


def main(argv: Sequence[str]) -> int:
    """Serve with flags as `gpt-oss-server serve` takes them, written `--name=value`; one more,
    `--recording-period-s`, is of the readings."""
    flags = {
        name.removeprefix("--").replace("-", "_"): value
        for name, _, value in (flag.partition("=") for flag in argv)
    }
    period_s = float(flags.pop("recording_period_s", "60"))
    parts = Parts(
        make_engine=_make_engine,
        count_gpus=lambda: GPUS,
        probe=RecordedProbe(recording(600, period_s)),
    )
    try:
        return serve(load(flags, os.environ), parts)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
