"""Whether the operator's targets are met: utilisation and the 95th percentile of latency.

Knows: the two targets of the routing settings. Does not know: how either is measured. Targets
never trigger a route; they tell the operator that the layout is worth another look.
"""

from __future__ import annotations

from gpt_oss_server.routing.balance import Balance
from gpt_oss_server.routing.config import RoutingConfig


def missed_targets(
    config: RoutingConfig, balance: Balance | None, p95_e2e_s: float | None
) -> tuple[str, ...]:
    """One line per missed target. An unknown figure misses nothing."""
    missed: list[str] = []
    if balance is not None:
        floor = config.min_gpu_util_percent
        for gpu_id, percent in balance.utilization_percent.items():
            if percent < floor:
                missed.append(f"gpu {gpu_id} utilisation {percent:.1f} % < {floor:g} %")
    if p95_e2e_s is not None and p95_e2e_s > config.max_p95_e2e_seconds:
        missed.append(f"p95 end-to-end {p95_e2e_s:.2f} s > {config.max_p95_e2e_seconds:g} s")
    return tuple(missed)
