"""A panel's data: what its queries said, over a span of time.

Knows: Prometheus's answers, legends. Does not know: how anything is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.dashboards.demo.expand import expand
from tools.dashboards.panels import Panel

Ask = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class Span:
    """The time that a picture shows, in Unix seconds, and the distance of its points."""

    start_s: float
    end_s: float
    step_s: float

    @property
    def moments(self) -> list[float]:
        count = int((self.end_s - self.start_s) / self.step_s + 0.5) + 1
        return [self.start_s + n * self.step_s for n in range(count)]


@dataclass(frozen=True)
class Series:
    """One line or row: `values[i]` is at the span's i-th moment, NaN where there is none. `bound`
    is the upper bound of a histogram's bucket."""

    name: str
    values: tuple[float, ...]
    bound: float | None = None

    @property
    def last(self) -> float:
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


def fetch(ask: Ask, panel: Panel, span: Span) -> list[Series]:
    """What a panel shows, in the order of its queries and then by name."""
    found: list[Series] = []
    for query in panel.queries:
        if panel.kind == "stat":
            found += _instant(ask, query.expr, query.legend, span)
            continue
        answer = ask(
            "query_range",
            query=expand(query.expr),
            start=f"{span.start_s:.3f}",
            end=f"{span.end_s:.3f}",
            step=f"{span.step_s:g}",
        )
        series = [_series(one, query.legend, span) for one in answer]
        found += sorted(series, key=lambda one: one.name)
    return _in_buckets(found) if panel.kind == "buckets" else found


def _instant(ask: Ask, expression: str, legend: str, span: Span) -> list[Series]:
    filled = expand(expression, range_s=round(span.end_s - span.start_s))
    answer = ask("query", query=filled, time=f"{span.end_s:.3f}")
    return [Series(_name(one["metric"], legend), (float(one["value"][1]),)) for one in answer]


def _series(answer: Mapping[str, Any], legend: str, span: Span) -> Series:
    at = {round((moment - span.start_s) / span.step_s): text for moment, text in answer["values"]}
    values = tuple(float(at.get(n, "nan")) for n in range(len(span.moments)))
    bound = answer["metric"].get("le")
    name = _name(answer["metric"], legend)
    return Series(name, values, None if bound is None else float(bound))


def _name(labels: Mapping[str, str], legend: str) -> str:
    """The legend with labels filled in; one server's address says nothing."""
    if not legend:
        return ", ".join(value for name, value in labels.items() if name != "__name__")
    known = {**labels, "instance": ""} if legend != "{{instance}}" else {"instance": "server"}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: known.get(match[1], ""), legend).strip()


def _in_buckets(series: Sequence[Series]) -> list[Series]:
    """Each bucket's own count, out of counts up to each bound; lowest first."""
    rows = sorted(series, key=lambda one: one.bound if one.bound is not None else math.inf)
    own: list[Series] = []
    below: Sequence[float] = ()
    for row in rows:
        values = tuple(
            max(0.0, value - lower)
            for value, lower in zip(row.values, below or [0.0] * len(row.values), strict=True)
        )
        own.append(Series(row.name, values, row.bound))
        below = row.values
    return own
