"""The numbers behind the metrics that events move: counts and bucketed values, by label values.

Knows: catalogue rows, label values, exemplars. Does not know: what the numbers mean, or any text
format. One thread (the event loop) writes and takes copies; a copy may be read in any.

The library's own counters and histograms take a lock per call, cannot take many values at once,
and add a `_created` series to each: five times the cost or more, and half as many series again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate

import msgspec
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from gpt_oss_server.telemetry.catalog import Metric

# Labels come from enumerations. Should a bug ever let something else through, what is beyond
# this many combinations of one metric is counted together, under `other`.
MAX_CHILDREN = 256
OTHER = "other"


Exemplars = dict[int, tuple[str, float, float]]
"""By bucket: the last trace id, value and Unix time that fell into it."""

Taken = list[tuple[tuple[str, ...], "int | Buckets"]]
"""All children of one metric at one moment: label values, and the number or the buckets."""


class Buckets(msgspec.Struct, frozen=True, gc=False):
    """One histogram as it was; `counts` has one more entry than there are bounds."""

    counts: list[int]
    total: float
    exemplars: Exemplars


class Count:
    """One counter. Add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CounterSeries:
    """A counter's children, made when first asked for."""

    def __init__(self, row: Metric) -> None:
        self._row = row
        self._children: dict[tuple[str, ...], Count] = {}

    def child(self, *labels: str) -> Count:
        child = self._children.get(labels)
        if child is None:
            labels = _bounded(labels, self._children)
            child = self._children.setdefault(labels, Count())
        return child

    def taken(self) -> Taken:
        """A copy."""
        return [(labels, child.value) for labels, child in self._children.items()]


class Values:
    """One histogram."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: Exemplars = {}

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_traced(self, value: float, trace_id: str, unix_s: float) -> None:
        """As `observe`, and the trace that this value can be looked up in."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        self.exemplars[bucket] = (trace_id, value, unix_s)


class HistogramSeries:
    """A histogram's children, made when first asked for."""

    def __init__(self, row: Metric) -> None:
        self._row = row
        self._bounds = row.buckets
        self._children: dict[tuple[str, ...], Values] = {}

    def child(self, *labels: str) -> Values:
        child = self._children.get(labels)
        if child is None:
            labels = _bounded(labels, self._children)
            child = self._children.setdefault(labels, Values(self._bounds))
        return child

    def taken(self) -> Taken:
        """A copy."""
        return [
            (labels, Buckets(child.counts.copy(), child.total, child.exemplars.copy()))
            for labels, child in self._children.items()
        ]


def family_of(row: Metric, taken: Taken) -> Family:
    """What was taken, as the Prometheus library writes it."""
    if row.kind == "histogram":
        histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
        for labels, was in taken:
            if isinstance(was, Buckets):
                add_buckets(histogram, labels, row.buckets, was.counts, was.total, was.exemplars)
        return histogram
    counter = CounterMetricFamily(row.name, row.help, labels=row.labels)
    for labels, was in taken:
        if not isinstance(was, Buckets):
            counter.add_metric(labels, was)
    return counter


def add_buckets(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
    exemplars: Exemplars | None = None,
) -> None:
    """Add one histogram to a family. `counts` has one more entry than `bounds`."""
    texts = (*map(floatToGoString, bounds), "+Inf")
    cumulative = accumulate(counts)
    if not exemplars:
        family.add_metric(labels, list(zip(texts, cumulative, strict=True)), total)
        return
    family.add_metric(labels, list(_with_exemplars(texts, cumulative, exemplars)), total)


def _with_exemplars(
    texts: Sequence[str], cumulative: Iterator[int], found: Exemplars
) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
    for index, (text, count) in enumerate(zip(texts, cumulative, strict=True)):
        if index in found:
            trace_id, value, unix_s = found[index]
            yield text, count, Exemplar({"trace_id": trace_id}, value, unix_s)
        else:
            yield text, count


def _bounded(labels: tuple[str, ...], children: Collection[object]) -> tuple[str, ...]:
    return labels if len(children) < MAX_CHILDREN else (OTHER,) * len(labels)
