"""Where requests ran: each class by pool as a table, each length of prompt by pool as bars.

Knows: a document's counts. Does not know: why a policy sent them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt_oss_server.simulate.html.markup import Child, Markup, element
from gpt_oss_server.simulate.html.plot import Margins, Plot
from gpt_oss_server.simulate.html.policies import Drawn
from gpt_oss_server.simulate.html.scales import Linear
from gpt_oss_server.simulate.html.tables import row, table
from gpt_oss_server.simulate.results import number_text as text

WIDTH, HEIGHT = 560.0, 190.0
POOL_STYLES = 6


def figure(policy: Drawn) -> Markup:
    """The bars, with the table of classes beside them."""
    return element("div", _bars(policy), _matrix(policy), class_="panels two")


def _matrix(policy: Drawn) -> Markup:
    where = policy.figures["where"]
    counts = where["counts"]
    lost = any(line[-1] for line in counts)
    pools = [*where["pools"], "nowhere"][: len(where["pools"]) + lost]
    heads: list[Child] = ["class", *(_pool_key(place, pool) for place, pool in enumerate(pools))]
    rows = []
    for name, line in zip(where["classes"], counts, strict=True):
        total = sum(line)
        cells = [_share_cell(value, total) for value in line[: len(pools)]]
        rows.append(row(name, *cells))
    return element(
        "figure",
        element("figcaption", element("b", "Classes"), " requests by pool"),
        table(f"Where classes ran under {policy.name}", heads, rows, class_="matrix"),
    )


def _pool_key(place: int, pool: str) -> Markup:
    style = "nowhere" if pool == "nowhere" else f"pool{place % POOL_STYLES}"
    return element("span", pool, class_=f"word {style}")


def _share_cell(value: int, total: int) -> Markup:
    share = value / total if total else 0.0
    return element(
        "span",
        element("data", text.percent(share), value=str(value)),
        element("small", f" {text.count(value)}"),
        class_="share",
        style=f"--share:{100 * share:.0f}%",
    )


def _bars(policy: Drawn) -> Markup:
    where: Mapping[str, Any] = policy.figures["where"]
    edges: Sequence[int] = where["by_length"]["edges"]
    counts: Sequence[Sequence[int]] = where["by_length"]["counts"]
    marks = [(0.0, "0"), (0.5, "50 %"), (1.0, "100 %")]
    every = -(-len(edges) // 10) or 1
    names = [
        (place + 0.5, f"≤{_tokens(edge)}") for place, edge in enumerate(edges) if not place % every
    ]
    margins = Margins(left=44.0, right=10.0, top=22.0, bottom=36.0)
    x = Linear(0.0, max(1, len(edges)), names)
    plot = Plot(WIDTH, HEIGHT, x, Linear(0.0, 1.0, marks), margins)
    plot.axes("prompt tokens (above each bar: how many requests)")
    for place, line in enumerate(counts):
        _bar(plot, place, line, where["pools"], _bin_name(edges, place))
    return element(
        "figure",
        element("figcaption", element("b", "Prompts"), " share of each length by pool"),
        plot.svg(f"Where prompts of each length ran under {policy.name}"),
    )


def _tokens(edge: int) -> str:
    """A power of two, as lengths of contexts are said: `128k`."""
    return f"{edge // 1024}k" if edge >= 1024 else f"{edge}"


def _few(count: int) -> str:
    """In at most four characters: `950`, `1.2k`, `15k`."""
    if count < 1000:
        return f"{count}"
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def _bin_name(edges: Sequence[int], place: int) -> str:
    low = f"{text.count(edges[place - 1] + 1)} to " if place else "at most "
    return f"{low}{text.count(edges[place])} prompt tokens"


def _bar(plot: Plot, place: int, line: Sequence[int], pools: Sequence[str], name: str) -> None:
    total = sum(line)
    if not total:
        return
    left, right = plot.at_x(place + 0.06), plot.at_x(place + 0.94)
    floor = 0.0
    for pool, value in enumerate(line):
        if not value:
            continue
        top = plot.at_y(floor + value / total)
        style = f"pool{pool % POOL_STYLES}" if pool < len(pools) else "nowhere"
        called = pools[pool] if pool < len(pools) else "nowhere"
        plot.add(
            element(
                "rect",
                element("title", f"{name}: {text.count(value)} of {text.count(total)}, {called}"),
                x=left,
                y=top,
                width=right - left,
                height=plot.at_y(floor) - top,
                class_=style,
            )
        )
        floor += value / total
    plot.text((left + right) / 2, plot.top - 5, _few(total), anchor="middle", class_="tick")
