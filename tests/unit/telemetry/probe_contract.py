"""What every `GpuProbe` keeps to; also run in a process of its own, with a stub of NVML."""

from __future__ import annotations

import sys

from gpt_oss_server.ports import GpuProbe
from gpt_oss_server.telemetry.probes.nvml import NvmlProbe
from gpt_oss_server.telemetry.probes.sanity import why_impossible


def check(probe: GpuProbe) -> None:
    """Readings are possible, named once, stable in order; closing twice and going on is fine."""
    first = probe.read()
    assert first
    ids = [reading.id for reading in first]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    assert [why_impossible(reading) for reading in first] == [None] * len(first)
    second = probe.read()
    assert [reading.id for reading in second] == ids
    for before, after in zip(first, second, strict=True):
        assert (after.name, after.uuid, after.total_bytes) == (
            before.name,
            before.uuid,
            before.total_bytes,
        )
        if before.energy_j is not None:
            assert after.energy_j is not None
            assert after.energy_j >= before.energy_j
    probe.close()
    probe.close()
    assert [reading.id for reading in probe.read()] == ids
    probe.close()


if __name__ == "__main__":
    check(NvmlProbe(sys.argv[1] if len(sys.argv) > 1 else None))
