"""The metrics page: the catalogue, row by row, as Prometheus text or OpenMetrics.

Knows: the two text formats, and who has which row's numbers. Does not know: what they mean, HTTP.
Rendering takes milliseconds: call it off the event loop. Calls do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as generate_plain
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPEN
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.registry import Collector

from gpt_oss_server.telemetry.catalog import METRICS, Metric
from gpt_oss_server.telemetry.readings import Identity, Reading, readings
from gpt_oss_server.telemetry.series import Taken, add_buckets, family_of
from gpt_oss_server.telemetry.snapshot import ServerSnapshot
from gpt_oss_server.types import Tally

_OPEN_METRICS = "application/openmetrics-text"
Rows = list[tuple[tuple[str, ...], "float | Tally"]]


class MetricsPage:
    """Renders snapshots.

    Args:
        extra: collectors of others that appear after the catalogue's rows.
    """

    def __init__(self, identity: Identity, extra: Sequence[Collector] = ()) -> None:
        self._identity = identity
        self._extra = tuple(extra)

    def render(self, snapshot: ServerSnapshot, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, in the format that the `Accept` header asks for."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Rows(snapshot.moved, readings(snapshot, self._identity)))
        for collector in self._extra:
            registry.register(collector)
        if _OPEN_METRICS in accept:
            # Without `allow-utf-8` this format would turn `vllm:x` into `vllm_x`.
            write: Callable[..., bytes] = generate_open
            return write(registry, escaping="allow-utf-8", version="1.0.0"), CONTENT_TYPE_OPEN
        return generate_plain(registry), CONTENT_TYPE_PLAIN_0_0_4


class _Rows(Collector):
    """The families of the catalogue, in its order; those of which nothing is known are left out."""

    def __init__(self, moved: Mapping[str, Taken], read: Iterator[Reading]) -> None:
        self._moved = moved
        self._read: dict[str, Rows] = {}
        for name, labels, value in read:
            self._read.setdefault(name, []).append((labels, value))

    def collect(self) -> Iterator[Family]:
        for row in METRICS:
            if row.name in self._moved:
                yield family_of(row, self._moved[row.name])
            elif row.name in self._read:
                yield _family(row, self._read[row.name])


def _family(row: Metric, rows: Rows) -> Family:
    if row.kind == "histogram":
        histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
        for labels, value in rows:
            if isinstance(value, Tally):
                add_buckets(histogram, labels, row.buckets, value.counts, value.total)
        return histogram
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family = kind(row.name, row.help, labels=row.labels)
    for labels, value in rows:
        if not isinstance(value, Tally):
            family.add_metric(labels, value)
    return family
