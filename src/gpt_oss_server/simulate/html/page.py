"""The whole page: a simulation's JSON document in, one HTML file out.

Knows: the order of sections. Does not know: how they are drawn, files. The page asks for nothing,
from nobody: its policy forbids even itself, no script is in it, its colours are the chat page's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from gpt_oss_server.simulate.html import head, latency, load, places, tables, timeline
from gpt_oss_server.simulate.html.markup import Child, Markup, element, joined
from gpt_oss_server.simulate.html.policies import Drawn, chooser, drawn

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_OPEN = 2
"""Policies whose course is unfolded from the start."""
_HEAVY = ("replicas", "curves", "samples", "ends")
_LIMITS = (
    "Every time here comes from a step formula that was fitted to measurements of one model on few "
    "types of GPU. Trust comparisons of layouts and policies on one type more than absolute "
    "figures on a type or model that was never measured.",
    "Answers of recorded chats count as cached only where the workload names their hashes.",
    "What load does to people is not simulated: nobody here gives up, retries or comes back later.",
    "One run is one draw of a workload: two policies a percent apart may change places on another.",
)


def page(document: Mapping[str, Any]) -> str:
    """The file's content.

    Args:
        document: what `simulate --json` writes.
    """
    policies = drawn(document)
    title = head.title(document)
    parts: list[tuple[str, str, Child]] = [
        ("verdict", "Verdict", _verdict(document, policies)),
        ("latency", "Times by class of requests", _latency(document, policies)),
        ("load", "Goodput and promises against load", _load(document, policies)),
        ("time", "Over time", _courses(document, policies)),
        ("where", "Where requests ran", _places(policies)),
        ("inputs", "What was simulated", head.facts(document)),
        ("limits", "How far to believe it", _limits(document)),
    ]
    body = element(
        "body",
        element("a", "Skip to the verdict", href="#verdict", class_="skip"),
        element(
            "header",
            element("p", "gpt-oss-server simulate", class_="maker"),
            element("h1", title),
            head.lead(document),
            head.problems(document),
            _contents(parts),
        ),
        element(
            "main",
            chooser(policies),
            [_section(id_, heading, content) for id_, heading, content in parts],
        ),
        _figures(document),
    )
    meta = [
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_style())),
    ]
    whole = element("html", element("head", meta), body, lang="en")
    return f"<!doctype html>\n{whole}\n"


def _section(id_: str, heading: str, content: Child) -> Markup:
    named = element("h2", heading, id=f"{id_}-heading")
    return element("section", named, content, id=id_, aria_labelledby=f"{id_}-heading")


def _contents(parts: Sequence[tuple[str, str, Child]]) -> Markup:
    links = [element("li", element("a", heading, href=f"#{id_}")) for id_, heading, _ in parts]
    return element("nav", element("ul", links), aria_label="Sections")


def _verdict(document: Mapping[str, Any], policies: Sequence[Drawn]) -> Markup:
    slo = document["inputs"]["slo"]
    return joined(
        tables.verdict(policies, slo),
        tables.repeats(policies),
        _notes(policies),
        element(
            "p",
            "A class's figure is the share of its requests served as promised: what was refused, "
            "dropped, expired or failed is missing from it. Goodput is requests per second served "
            "as promised.",
            class_="note",
        ),
    )


def _notes(policies: Sequence[Drawn]) -> list[Markup]:
    return [
        element("p", f"{policy.name}: {note}.", class_=f"note {policy.class_}")
        for policy in policies
        for note in policy.figures["notes"]
    ]


def _latency(document: Mapping[str, Any], policies: Sequence[Drawn]) -> Markup:
    return joined(
        element(
            "p",
            "Height is the share of all requests of the class, its upper end stretched; dots are "
            "p50, p95 and p99 of those served. Where a line crosses the bound is the share that "
            "was in time; both bounds must hold for a request to be served as promised.",
            class_="note",
        ),
        latency.panels(policies, document["inputs"]["slo"]),
    )


def _load(document: Mapping[str, Any], policies: Sequence[Drawn]) -> Markup:
    return load.panels(policies, document["inputs"]["slo"])


def _courses(document: Mapping[str, Any], policies: Sequence[Drawn]) -> list[Markup]:
    failures = document["inputs"]["fleet"]["failures"]
    shared = timeline.axes(policies)
    return [
        element(
            "details",
            element("summary", policy.name),
            timeline.pictures(policy, shared, failures),
            class_=policy.class_,
            open=place < _OPEN,
        )
        for place, policy in enumerate(policies)
    ]


def _places(policies: Sequence[Drawn]) -> list[Markup]:
    return [
        element(
            "details",
            element("summary", policy.name),
            places.figure(policy),
            element("h3", "Replicas"),
            tables.replicas(policy),
            class_=policy.class_,
            open=place < _OPEN,
        )
        for place, policy in enumerate(policies)
    ]


def _limits(document: Mapping[str, Any]) -> Markup:
    gpus = {pool["gpu"]["name"]: pool["gpu"] for pool in document["inputs"]["fleet"]["pools"]}
    assumed = [name for name, gpu in gpus.items() if not gpu["calibrated"]]
    said = list(_LIMITS)
    if assumed:
        said.insert(0, f"Never measured, efficiency assumed: {', '.join(assumed)}.")
    return joined(
        element("ul", [element("li", one) for one in said]),
        element(
            "p",
            "What is simulated, how the formula was fitted and how far off it was where it was "
            "not: ",
            element("code", "docs/simulator.md"),
            " of the version named above.",
        ),
    )


def _figures(document: Mapping[str, Any]) -> Markup:
    """Inputs and main figures again, for programs: without what is only drawn."""
    light = {
        **document,
        "policies": {
            name: {key: value for key, value in figures.items() if key not in _HEAVY}
            for name, figures in document["policies"].items()
        },
    }
    # Nothing in it may end the element.
    text = json.dumps(light, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id="figures")


def _style() -> str:
    package = resources.files("gpt_oss_server")
    theme = (package / "api" / "page" / "theme.css").read_text(encoding="utf-8")
    own = (package / "simulate" / "html" / "report.css").read_text(encoding="utf-8")
    return theme + own
