"""Every metric the server exports: name, kind, labels, meaning, buckets. The only such table.

Knows: the names. Does not know: where values come from, or the Prometheus library. Three families
of names: kept ones (`llm_*`, `gpu_*`, `kv_bytes_in_use`, `sessions_active`) that dashboards
already use, the `vllm:` names that inference gateways scrape, and our own (`gpt_oss_*`).

Every label has few values: enumerations, the one model, GPUs, block pools, endpoints, priorities.
Nothing a client chooses freely (model, user, session, request id) is ever a label.
`docs/metrics.md` is generated from this table.
"""

from __future__ import annotations

from gpt_oss_server.telemetry.names.machine import ENGINE_ROWS, GPU_ROWS, MEMORY_ROWS, SELF_ROWS
from gpt_oss_server.telemetry.names.metric import GROUPS, Kind, Metric
from gpt_oss_server.telemetry.names.public import KEPT_ROWS, VLLM_ROWS
from gpt_oss_server.telemetry.names.requests import (
    ADMISSION_ROWS,
    REQUEST_ROWS,
    ROUTING_ROWS,
    SLO_ROWS,
)

__all__ = ("BY_NAME", "GROUPS", "METRICS", "Kind", "Metric")

METRICS: tuple[Metric, ...] = (
    *KEPT_ROWS,
    *VLLM_ROWS,
    *REQUEST_ROWS,
    *SLO_ROWS,
    *ROUTING_ROWS,
    *ADMISSION_ROWS,
    *ENGINE_ROWS,
    *MEMORY_ROWS,
    *GPU_ROWS,
    *SELF_ROWS,
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
