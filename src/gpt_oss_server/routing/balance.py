"""How evenly the GPUs in use are utilised.

Knows: the coefficient. Does not know: probes. What is not known is absent, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpt_oss_server.facts import GpuView

BALANCED_FROM = 0.9


class Balance(msgspec.Struct, frozen=True):
    """`coefficient` is min / max utilisation (1.0 when all are idle), 1 best.

    `utilization_percent` maps GPU id to 0..100; `unknown_gpus` lists those without a reading,
    which the coefficient leaves out.
    """

    coefficient: float
    utilization_percent: dict[str, float]
    unknown_gpus: tuple[str, ...] = ()

    @property
    def balanced(self) -> bool:
        return self.coefficient >= BALANCED_FROM


def gpu_balance(gpus: Sequence[GpuView], now_s: float, stale_after_s: float) -> Balance | None:
    """The balance over the GPUs in use, or None when no utilisation is known."""
    known: dict[str, float] = {}
    unknown: list[str] = []
    for gpu in sorted(gpus, key=lambda gpu: gpu.id):
        if not gpu.in_use:
            continue
        value, measured_at_s = gpu.utilization_percent, gpu.measured_at_s
        fresh = measured_at_s is not None and measured_at_s >= now_s - stale_after_s
        if fresh and value is not None and 0.0 <= value <= 100.0:
            known[gpu.id] = value
        else:
            unknown.append(gpu.id)
    if not known:
        return None
    top = max(known.values())
    coefficient = min(known.values()) / top if top > 0.0 else 1.0
    return Balance(coefficient, known, tuple(unknown))
