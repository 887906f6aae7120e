"""What became of promises as the load rose: the points of a sweep, knees marked.

Knows: sweep points of a document. Does not know: how the knee was searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_oss_server.simulate.html.markup import Markup, element
from gpt_oss_server.simulate.html.plot import Plot, text_width
from gpt_oss_server.simulate.html.policies import Drawn, key
from gpt_oss_server.simulate.html.scales import Stretched, from_zero
from gpt_oss_server.simulate.html.tables import exact, row, table
from gpt_oss_server.simulate.results import number_text as text

WIDTH, HEIGHT = 372.0, 260.0
_OFFERED = "requests per second offered"
MOST_NAMED = 4
"""Policies whose knees are named in the picture; the table beside it names all."""
_SHARES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def panels(policies: Sequence[Drawn], slo: Mapping[str, Any]) -> Markup:
    """Goodput, then the share served as promised of each class, against load; the knees' table."""
    swept = [policy for policy in policies if policy.figures.get("sweep")]
    if not swept:
        return element(
            "p",
            "Only one load was played. ",
            element("code", "--sweep"),
            " plays more, until it has found the largest that is borne, and draws them here.",
            class_="note",
        )
    figures = [_goodput(swept)]
    figures += [_share(swept, one["name"], slo["share"]) for one in slo["classes"]]
    return element(
        "div",
        element("div", figures, class_="panels three"),
        _knees(swept),
    )


def _goodput(policies: Sequence[Drawn]) -> Markup:
    most = max(_offered(policy)[-1] for policy in policies)
    scale = from_zero(most, 5)
    plot = Plot(WIDTH, HEIGHT, scale, scale)
    plot.axes(_OFFERED, "as promised, per second")
    plot.line([(0.0, 0.0), (scale.high, scale.high)], "bound")
    plot.text(
        plot.at_x(scale.high * 0.62) - 6,
        plot.at_y(scale.high * 0.66),
        "all as promised",
        anchor="end",
        class_="bound-text",
    )
    for policy in policies:
        points = policy.figures["sweep"]["points"]
        values = [(point["requests_per_s"], point["goodput_per_s"]) for point in points]
        _tried(plot, policy, values, [text.per_second(value) for _, value in values])
    if len(policies) <= MOST_NAMED:
        _name_knees(plot, policies)
    return element(
        "figure",
        element("figcaption", element("b", "Goodput"), " served as promised, per second"),
        plot.svg("Goodput against load, by policy"),
    )


def _share(policies: Sequence[Drawn], name: str, share: float) -> Markup:
    most = max(_offered(policy)[-1] for policy in policies)
    marks = sorted({*_SHARES, share} - ({0.99} if share > 0.97 else set()))
    y = Stretched([(one, f"{100 * one:g} %") for one in marks])
    plot = Plot(WIDTH, HEIGHT, from_zero(most, 5), y)
    plot.axes(_OFFERED, "share of requests")
    plot.rule_y(share)
    for policy in policies:
        points = policy.figures["sweep"]["points"]
        values = [(point["requests_per_s"], point["share_met"][name]) for point in points]
        _tried(plot, policy, values, [text.percent(value) for _, value in values])
    return element(
        "figure",
        element("figcaption", element("b", name), " share served as promised"),
        plot.svg(f"Share of {name} requests served as promised against load, by policy"),
    )


def _tried(
    plot: Plot, policy: Drawn, values: Sequence[tuple[float, float]], texts: Sequence[str]
) -> None:
    """A line through the points tried, each marked, the knee ringed."""
    plot.line(values, f"curve {policy.class_}")
    sweep = policy.figures["sweep"]
    for point, (x, y), said in zip(sweep["points"], values, texts, strict=True):
        title = f"{policy.name} at {text.per_second(x)}: {said}"
        knee = point["factor"] == sweep["knee_factor"]
        plot.dot(x, y, f"{'knee' if knee else 'mark'} {policy.class_}", title, 5.0 if knee else 2.4)


def _name_knees(plot: Plot, policies: Sequence[Drawn]) -> None:
    """The load at each ring, right below it, unless that is where another's stands."""
    taken: list[tuple[float, float]] = []
    for policy in policies:
        sweep = policy.figures["sweep"]
        for point in sweep["points"]:
            if point["factor"] != sweep["knee_factor"]:
                continue
            x, y = plot.at(point["requests_per_s"], point["goodput_per_s"])
            said = text.per_second(point["requests_per_s"])
            x, y = min(x + 7, plot.right - text_width(said)), y + 15
            if y < plot.bottom - 2 and all(
                abs(x - other_x) > text_width(said) or abs(y - other_y) > 12
                for other_x, other_y in taken
            ):
                plot.text(x, y, said, class_=f"knee-text {policy.class_}")
                taken.append((x, y))


def _knees(policies: Sequence[Drawn]) -> Markup:
    """What each bears, best first in nothing but the order given."""
    rows = []
    for policy in policies:
        sweep = policy.figures["sweep"]
        over = [p for p in sweep["points"] if p["factor"] > (sweep["knee_factor"] or 0.0)]
        rows.append(
            row(
                key(policy),
                exact(policy.figures["capacity_per_s"] or None, text.per_second, "knee-load"),
                exact(over[0]["requests_per_s"] if over else None, text.per_second),
                f"{len(sweep['points'])}",
                class_=policy.class_,
            )
        )
    heads = ["policy", "largest load borne (ringed)", "least load tried beyond it", "loads tried"]
    return table("The largest load that each policy bears", heads, rows)


def _offered(policy: Drawn) -> list[float]:
    return [point["requests_per_s"] for point in policy.figures["sweep"]["points"]]
