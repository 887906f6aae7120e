"""The figures as tables: the verdict, the classes' times, the replicas.

Knows: the document's figures, rows and columns. Does not know: pictures. Every figure is written
as the terminal writes it, and carries its exact value (`<data value>`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_oss_server.simulate.html.markup import Child, Markup, element, joined
from gpt_oss_server.simulate.html.policies import Drawn, key
from gpt_oss_server.simulate.results import number_text as text
from gpt_oss_server.simulate.results.report import busy_text, range_text

MOST_REPLICAS = 64
"""Rows of the replicas' table; beyond, the least and the most busy stand for all."""
NARROW = 4
"""Columns that fit the smallest screen."""
_END_WORDS = {
    "refused": "larger than any replica holds",
    "dropped": "turned away at a full queue",
    "expired": "waited too long",
    "failed": "cut off by a dying replica, or none was up",
}


def exact(value: float | None, write: Callable[[float | None], str], class_: str = "") -> Markup:
    """A figure as people read it, with its exact value."""
    if value is None:
        return element("span", text.NOTHING, class_=class_ or None)
    return element("data", write(value), value=repr(value), class_=class_ or None)


def table(caption: str, heads: Sequence[Child], rows: Sequence[Markup], class_: str = "") -> Markup:
    """With a caption that is read out but not shown, in a box that scrolls by itself."""
    head = element("tr", [element("th", one, scope="col") for one in heads])
    whole = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", head),
        element("tbody", rows),
        class_=class_ or None,
    )
    if len(heads) <= NARROW:
        return element("div", whole, class_="wide")
    # What may have to be scrolled must be reached by keyboard, and so has a name.
    return element("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def row(head: Child, *cells: Child, class_: str = "") -> Markup:
    """Of a table."""
    return element(
        "tr",
        element("th", head, scope="row"),
        [element("td", cell) for cell in cells],
        class_=class_ or None,
    )


def verdict(policies: Sequence[Drawn], slo: Mapping[str, Any]) -> Markup:
    """Per policy: were promises kept, class by class; goodput, the load that is borne, the rest."""
    swept = any("sweep" in policy.figures for policy in policies)
    names = [one["name"] for one in slo["classes"]]
    heads: list[Child] = ["policy", "promises", *names, "goodput"]
    heads += ["bears"] if swept else []
    heads += ["cached", "replicas busy", "not served"]
    rows = [_verdict_row(policy, slo["share"], swept) for policy in policies]
    return table("Verdict per policy and class", heads, rows, class_="verdict")


def _verdict_row(policy: Drawn, share: float, swept: bool) -> Markup:
    figures = policy.figures
    kept = element("span", "kept", class_="good") if figures["slo_met"] else None
    cells: list[Child] = [kept or element("span", "not kept", class_="bad")]
    cells += [_met(one, share) for one in figures["classes"]]
    cells.append(exact(figures["goodput_per_s"], text.per_second, "goodput"))
    if swept:
        cells.append(exact(figures.get("capacity_per_s"), text.per_second, "capacity"))
    busy_s = [replica["busy_s"] for replica in figures["replicas"]]
    cells.append(exact(figures["cached_share"], text.percent))
    cells.append(busy_text(busy_s, figures["end_s"]))
    cells.append(_lost(figures["requests"]))
    return row(key(policy), *cells, class_=policy.class_)


def _met(one: Mapping[str, Any], share: float) -> Markup:
    """The share served as promised, as a figure and as a bar with the promise marked on it."""
    good = one["share_met"] >= share
    bar = element(
        "span",
        element("i", style=f"width:{100 * one['share_met']:.1f}%"),
        element("b", style=f"left:{100 * share:g}%"),
        class_="bar" if good else "bar short",
        aria_hidden="true",
    )
    return joined(exact(one["share_met"], text.percent, "good" if good else "bad"), bar)


def _lost(requests: Mapping[str, int]) -> Markup:
    lost = {end: n for end, n in requests.items() if n and end != "served"}
    if not lost:
        return element("span", "none", class_="soft")
    words = [
        element("span", f"{text.count(n)} {end}", title=_END_WORDS.get(end, ""))
        for end, n in lost.items()
    ]
    return joined([joined(", " if place else "", word) for place, word in enumerate(words)])


def repeats(policies: Sequence[Drawn]) -> Markup | None:
    """How much of the main figures is chance: mean and interval over several draws."""
    found = [policy.figures.get("repeats") for policy in policies]
    first = found[0]
    if first is None:
        return None
    swept = "capacity_per_s" in first
    heads = ["policy", "class", "met", "TTFT p95", "TPOT p95", "E2E p95", "goodput"]
    rows = [
        _repeats_row(policy, one, place, swept)
        for policy in policies
        for place, one in enumerate(policy.figures["repeats"]["classes"])
    ]
    what = "workloads made with other seeds" if first["independent"] else "variants of the record"
    title = f"Mean and 95 % interval over {first['runs']} {what}"
    heads += ["bears"] if swept else []
    return joined(element("h3", title), table(title, heads, rows, class_="repeats"))


def _repeats_row(policy: Drawn, one: Mapping[str, Any], place: int, swept: bool) -> Markup:
    """A class's figures; those of the policy stand beside its first class."""
    figures = policy.figures["repeats"]
    cells: list[Child] = [
        one["name"],
        range_text(one["share_met"], text.percent),
        range_text(one["ttft_s"][1], text.seconds),
        range_text(one["tpot_s"][1], text.milliseconds),
        range_text(one["e2e_s"][1], text.seconds),
        "" if place else range_text(figures["goodput_per_s"], text.per_second),
    ]
    if swept:
        cells.append("" if place else range_text(figures["capacity_per_s"], text.per_second))
    return row(key(policy) if not place else "", *cells, class_=policy.class_)


def quantiles(
    policies: Sequence[Drawn], place: int, metric: str, write: Callable[[float | None], str]
) -> Markup:
    """p50, p95 and p99 of one class and time, a row per policy."""
    rows = []
    for policy in policies:
        found = policy.figures["classes"][place][metric]
        cells = [exact(value, write) for value in found or (None, None, None)]
        rows.append(row(key(policy), *cells, class_=policy.class_))
    name = policies[0].figures["classes"][place]["name"]
    return table(
        f"{metric.removesuffix('_s').upper()} of {name} requests",
        ["of those served", "p50", "p95", "p99"],
        rows,
        class_="quantiles",
    )


def replicas(policy: Drawn) -> Markup:
    """One row per replica; of very many the ten busiest and idlest."""
    figures = policy.figures
    end_s = figures["end_s"]
    every = figures["replicas"]
    shown, note = list(every), None
    if len(every) > MOST_REPLICAS:
        by_work = sorted(every, key=lambda one: (one["busy_s"], one["id"]))
        shown = [*by_work[-10:][::-1], *by_work[:10]]
        note = element(
            "p",
            f"The ten most and the ten least busy of {len(every)} replicas; the JSON has all.",
            class_="note",
        )
    rows = [
        row(
            one["id"],
            text.count(one["gpus"]),
            exact(one["requests"], lambda n: text.count(n or 0)),
            exact(one["busy_s"] / end_s if end_s > 0 else None, text.percent),
            text.count(one["steps"]),
            text.count(one["prefill_tokens"]),
            text.count(one["decode_tokens"]),
            text.count(one["preemptions"]),
        )
        for one in shown
    ]
    heads = [
        *("replica", "GPUs", "requests", "busy", "steps"),
        *("prefill tokens", "decode tokens", "preemptions"),
    ]
    return joined(note, table(f"Replicas under {policy.name}", heads, rows, class_="replicas"))
