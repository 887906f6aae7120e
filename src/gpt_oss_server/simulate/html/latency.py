"""Distributions of the three times, by class of requests: one picture each, one line a policy.

Knows: curves, quantiles, bounds of a document. Does not know: how they were found. A line's height
is the share of *all* requests of the class, so where it crosses the bound is the share that was in
time, and where some were not served it ends below 100 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gpt_oss_server.simulate.html.markup import Markup, element
from gpt_oss_server.simulate.html.plot import Plot
from gpt_oss_server.simulate.html.policies import Drawn
from gpt_oss_server.simulate.html.scales import Stretched, logarithmic
from gpt_oss_server.simulate.html.tables import quantiles
from gpt_oss_server.simulate.results import number_text as text
from gpt_oss_server.simulate.results.figures import CURVE_PERCENTILES

WIDTH, HEIGHT = 372.0, 246.0
_SHARES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Metric(NamedTuple):
    """One of the times: its name in the document, what it is, its unit, how many of it a second
    has, how figures of it are written, which promise bounds it."""

    name: str
    short: str
    title: str
    unit: str
    scale: float
    write: Callable[[float | None], str]
    bound: str | None


METRICS = (
    Metric("ttft_s", "TTFT", "time to first token", "s", 1.0, text.seconds, "ttft_s"),
    Metric("tpot_s", "TPOT", "time per output token", "ms", 1000.0, text.milliseconds, "tpot_s"),
    Metric("e2e_s", "E2E", "time to the last token", "s", 1.0, text.seconds, None),
)


def panels(policies: Sequence[Drawn], slo: Mapping[str, Any]) -> list[Markup]:
    """A row of three figures per class, under the class's name."""
    rows = []
    low = 0
    for place, promised in enumerate(slo["classes"]):
        count = policies[0].figures["classes"][place]["requests"]
        title = element(
            "h3",
            f"{promised['name']} ",
            element("small", f"{_range(low, promised)} · {text.count(count)} requests"),
        )
        figures = [_figure(policies, place, promised, slo["share"], one) for one in METRICS]
        rows += [title, element("div", figures, class_="panels three")]
        low = promised["up_to_tokens"] or low
    return rows


def _range(low: float, promised: Mapping[str, Any]) -> str:
    high = promised["up_to_tokens"]
    if high is None:
        return f"prompts of more than {text.count(low)} tokens" if low else "all prompts"
    if low:
        return f"prompts of {text.count(low + 1)} to {text.count(high)} tokens"
    return f"prompts of at most {text.count(high)} tokens"


def _figure(
    policies: Sequence[Drawn],
    place: int,
    promised: Mapping[str, Any],
    share: float,
    metric: Metric,
) -> Markup:
    bound = promised[metric.bound] if metric.bound else None
    caption = element(
        "figcaption",
        element("b", metric.short),
        f" {metric.title}",
    )
    picture = _picture(policies, place, promised["name"], share, bound, metric)
    under = quantiles(policies, place, metric.name, metric.write)
    return element("figure", caption, picture, under)


def _picture(
    policies: Sequence[Drawn],
    place: int,
    name: str,
    share: float,
    bound: float | None,
    metric: Metric,
) -> Markup:
    curves = [policy.figures["curves"][name][metric.name] for policy in policies]
    title = f"Distribution of {metric.short} of {name} requests, by policy"
    low, high = _ends([curve for curve in curves if curve], bound)
    x = logarithmic(low * metric.scale, high * metric.scale)
    marks = sorted({*_SHARES, share} - ({0.99} if share > 0.97 else set()))
    plot = Plot(WIDTH, HEIGHT, x, Stretched([(one, f"{100 * one:g} %") for one in marks]))
    if bound is not None:
        left = plot.at_x(bound * metric.scale)
        plot.add(
            element(
                "rect",
                x=left,
                y=plot.top,
                width=plot.right - left,
                height=plot.bottom - plot.top,
                class_="beyond",
            )
        )
    plot.axes(f"{metric.title}, {metric.unit} (logarithmic)", "share of requests")
    plot.rule_y(share)
    for policy, curve in zip(policies, curves, strict=True):
        if curve:
            _curve(plot, policy, place, curve, metric)
    if bound is not None:
        value = text.plain(bound * metric.scale)
        plot.rule_x(
            bound * metric.scale, f"promised {value} {metric.unit}", y=plot.bottom - plot.top - 18
        )
    return plot.svg(title, "The same figures are in the table below.")


def _curve(plot: Plot, policy: Drawn, place: int, curve: Sequence[float], metric: Metric) -> None:
    one = policy.figures["classes"][place]
    served = _served(policy, place)
    shares = [served * q / 100.0 for q in CURVE_PERCENTILES]
    points = [(value * metric.scale, at) for value, at in zip(curve, shares, strict=True)]
    plot.line(points, f"curve {policy.class_}")
    for percentile, value in zip(one["quantiles"], one[metric.name], strict=True):
        plot.dot(
            value * metric.scale,
            served * percentile / 100.0,
            f"mark {policy.class_}",
            f"{policy.name}: p{percentile} {metric.write(value)}",
        )


def _served(policy: Drawn, place: int) -> float:
    """The share of a class's requests that was served."""
    one = policy.figures["classes"][place]
    return one["served"] / one["requests"] if one["requests"] else 0.0


def _ends(curves: Sequence[Sequence[float]], bound: float | None) -> tuple[float, float]:
    """The least value worth showing (without the fastest hundredth) and the largest."""
    lows = [value for curve in curves for value in curve[1:2] if value > 0]
    highs = [curve[-1] for curve in curves if curve[-1] > 0]
    low = min(lows, default=min(highs, default=bound or 1.0) / 100.0)
    high = max([*highs, *([bound * 1.3] if bound is not None else [])], default=1.0)
    return min(low, (bound or low) * 0.8), high
