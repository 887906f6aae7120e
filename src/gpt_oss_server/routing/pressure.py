"""Effective memory pressure from what is known of each GPU.

Knows: the formula and when a reading is too old. Does not know: probes, clocks, thresholds.

Per GPU: (bytes used by others + weights + activations peak + KV blocks in use) / total. A KV pool
that is reserved and empty is not pressure; raw device usage would stay near 0.9 for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt_oss_server.facts import GpuView, Pressure

NO_GPU = Pressure(None, None, "no GPU reading")


def effective_pressure(gpus: Sequence[GpuView], now_s: float, stale_after_s: float) -> Pressure:
    """The maximum over the GPUs whose reading is fresh (not older than `stale_after_s`).

    Where some are unknown the value is a lower bound and the note names them; where all are, the
    value is None. Ties go to the smaller id. A probe's nonsense (total not positive, negative
    use) counts as unknown.
    """
    if not gpus:
        return NO_GPU
    oldest_s = now_s - stale_after_s
    top = -1.0
    top_id: str | None = None
    unknown: list[str] | None = None
    for gpu in gpus:
        measured_at_s, others, total = gpu.measured_at_s, gpu.others_bytes, gpu.total_bytes
        # Written so that a NaN time also counts as unknown.
        if (
            others is None
            or measured_at_s is None
            or not measured_at_s >= oldest_s
            or total <= 0
            or others < 0
        ):
            if unknown is None:
                unknown = []
            unknown.append(_why_unknown(gpu, now_s))
            continue
        used = others + gpu.weights_bytes + gpu.activations_peak_bytes + gpu.kv_in_use_bytes
        value = used / total
        if value >= top and (value > top or top_id is None or gpu.id < top_id):
            top, top_id = value, gpu.id
    note = None if unknown is None else "; ".join(unknown)
    return Pressure(None if top_id is None else top, top_id, note)


def _why_unknown(gpu: GpuView, now_s: float) -> str:
    if gpu.measured_at_s is None or gpu.others_bytes is None:
        return f"gpu {gpu.id}: no reading"
    if gpu.total_bytes <= 0 or gpu.others_bytes < 0:
        return f"gpu {gpu.id}: impossible reading"
    return f"gpu {gpu.id}: reading is {now_s - gpu.measured_at_s:.1f} s old"
