"""What a dashboard is made of: sections of panels, panels of PromQL queries.

Knows: kinds of panels, units, sizes. Does not know: Grafana's JSON, any metric by name.

One filter fits every metric: `{instance=~"$instance"}`; the dashboard's variable `model` narrows
the choice of instances. `$__rate_interval` and `$__range` are Grafana's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "lines", "stacked", "buckets", "rows"]
"""stat: one tile, last value. lines, stacked: over time. buckets: heat map of one histogram, a row
per bucket. rows: heat map with a row per series."""

Unit = Literal[
    "s", "bytes", "percentunit", "reqps", "ops", "short", "watt", "celsius", "joule", "tokens"
]
"""Grafana's names of units; `tokens` is ours."""
GREEN, ORANGE, RED, BLUE, TEXT = "green", "orange", "red", "blue", "text"
GRID_COLUMNS = 24
RATE = "[$__rate_interval]"
RANGE = "[$__range]"


@dataclass(frozen=True)
class Query:
    """One PromQL expression; `legend` may name labels as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `width` counts of 24 columns, `height` rows of 30 pixels.

    `thresholds` are (from this value on, color), rising; `below` is the color before the first.
    `top` fixes the upper end of the value axis or of the colors; None leaves it to the data.
    `log` draws the value axis logarithmically.

    Raises ValueError for a panel without queries or wider than the grid.
    """

    title: str
    kind: Kind
    queries: tuple[Query, ...]
    description: str
    unit: Unit = "short"
    width: int = 8
    height: int = 7
    thresholds: tuple[tuple[float, str], ...] = ()
    below: str = GREEN
    top: float | None = None
    log: bool = False
    decimals: int | None = None

    def __post_init__(self) -> None:
        if not self.queries or not 1 <= self.width <= GRID_COLUMNS:
            raise ValueError(f"{self.title}: a panel has queries and fits the grid")


@dataclass(frozen=True)
class Section:
    """A titled group of panels, laid out from left to right in the order given."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """`slug` names the file and, with the prefix `gpt-oss-`, Grafana's uid."""

    slug: str
    title: str
    description: str
    sections: tuple[Section, ...] = field(default=())

    @property
    def uid(self) -> str:
        return f"gpt-oss-{self.slug}"

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for section in self.sections for panel in section.panels)


def of(metric: str, **matchers: str) -> str:
    """The selector of a metric on the chosen instances. A value may begin with an operator of its
    own: `of("x_total", route="none", reason="!=full")`."""
    texts = ['instance=~"$instance"', *(_matcher(*item) for item in matchers.items())]
    return f"{metric}{{{','.join(texts)}}}"


def rate(metric: str, *, by: str = "", **matchers: str) -> str:
    """Per second, added up over everything but `by`."""
    return _sum(f"rate({of(metric, **matchers)}{RATE})", by)


def increase(metric: str, *, by: str = "", over: str = RATE, **matchers: str) -> str:
    """How much a counter grew in each interval, added up over everything but `by`."""
    return _sum(f"increase({of(metric, **matchers)}{over})", by)


def total(metric: str, *, by: str = "", **matchers: str) -> str:
    """A gauge added up over everything but `by`."""
    return _sum(of(metric, **matchers), by)


def quantile(
    share: float, histogram: str, *, by: str = "", over: str = RATE, **matchers: str
) -> str:
    """The value that this share of a histogram's observations is at most."""
    labels = f"le, {by}" if by else "le"
    counts = f"rate({of(f'{histogram}_bucket', **matchers)}{over})"
    return f"histogram_quantile({share:g}, sum by ({labels}) ({counts}))"


def mean(histogram: str, *, by: str = "", **matchers: str) -> str:
    """The mean of a histogram's observations in each interval."""
    totals = rate(f"{histogram}_sum", by=by, **matchers)
    return share(totals, rate(f"{histogram}_count", by=by, **matchers))


def share(part: str, whole: str) -> str:
    """One rate or increase over another; nothing, rather than NaN, where there was none."""
    return f"{part} / ({whole} > 0)"


def buckets(histogram: str, **matchers: str) -> tuple[Query, ...]:
    """The query of a heat map: observations by bucket in each interval."""
    return (Query(increase(f"{histogram}_bucket", by="le", **matchers), "{{le}}"),)


def percentiles(histogram: str, **matchers: str) -> tuple[Query, ...]:
    """Median, 95th and 99th percentile."""
    return tuple(
        Query(quantile(share, histogram, **matchers), f"p{100 * share:g}")
        for share in (0.5, 0.95, 0.99)
    )


def _sum(expression: str, by: str) -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def _matcher(label: str, value: str) -> str:
    operator = next((sign for sign in ("=~", "!~", "!=") if value.startswith(sign)), "")
    return f'{label}{operator or "="}"{value.removeprefix(operator)}"'
