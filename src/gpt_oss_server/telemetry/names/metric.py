"""What a row of the metric catalogue is, and the buckets that rows share.

Knows: kinds, groups, bounds. Does not know: any metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
Origin = Literal["event", "snapshot"]


@dataclass(frozen=True)
class Metric:
    """One row. `name` is as stored by Prometheus: counters end in `_total`; a histogram adds
    `_bucket`, `_sum`, `_count`. `origin` says whether events move it or each scrape reads it.

    Raises ValueError for a row that contradicts itself.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    group: str
    origin: Origin = "snapshot"
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "histogram") != bool(self.buckets):
            raise ValueError(f"{self.name}: a histogram has buckets, and nothing else has")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: a counter ends in _total, and nothing else does")


GROUPS = (
    "Kept names",
    "vLLM names",
    "Requests",
    "Service levels",
    "Routing",
    "Admission",
    "Engine",
    "Memory",
    "GPUs",
    "The server itself",
)
KEPT, VLLM, REQUESTS, SLO, ROUTING, ADMISSION, ENGINE, MEMORY, GPUS, SELF = GROUPS

LATENCY_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
E2E_S = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0),
)
LATENCY_MS = (
    *(1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2000.0, 3000.0, 5000.0),
    *(7500.0, 10000.0, 15000.0, 20000.0, 30000.0, 60000.0, 120000.0, 300000.0),
)
TOKENS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 131072),
)
DECISION_S = (
    *(5e-6, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 7.5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2),
)
KV_BYTES = tuple(
    megabytes * 2.0**20
    for megabytes in (1, 4, 16, 64, 250, 500, 1000, 2000, 3000, 4500, 6000, 12000)
)
SHARE = (0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
RETRY_S = (1, 2, 5, 10, 20, 30, 60, 120)
TOKENS_PER_S = (1, 2, 5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)

MODEL_ID = ("model_id",)
MODEL_NAME = ("model_name",)


def moved(
    name: str,
    kind: Kind,
    labels: tuple[str, ...],
    group: str,
    help: str,
    buckets: tuple[float, ...] = (),
) -> Metric:
    """A row that events move."""
    return Metric(name, kind, labels, help, group, "event", buckets)


def read(
    name: str,
    kind: Kind,
    labels: tuple[str, ...],
    group: str,
    help: str,
    buckets: tuple[float, ...] = (),
) -> Metric:
    """A row that each scrape reads."""
    return Metric(name, kind, labels, help, group, "snapshot", buckets)
