"""The page of `simulate --html` in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tools.browser import Chromium, Page

from gpt_oss_server import cli

LIGHT, DARK = "rgb(252, 251, 248)", "rgb(23, 23, 21)"
PAPER = "getComputedStyle(document.body).backgroundColor"
SECTIONS = ["verdict", "latency", "load", "time", "where", "inputs", "limits"]
_ARGUMENTS = (
    *("simulate", "--pools", "2xtp1+1xtp2", "--workload", "mixed", "--rate", "9"),
    *("--duration", "40", "--policy", "earliest_completion", "--policy", "round_robin"),
    *("--policy", "least_request", "--sweep", "--fail", "0@20+10", "--seeds", "2"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page's file, and the JSON document of the same run."""
    folder = tmp_path_factory.mktemp("simulation")
    html, figures = folder / "page.html", folder / "figures.json"
    assert cli.main([*_ARGUMENTS, "--html", str(html), "--json", str(figures)]) == 0
    return html, json.loads(figures.read_text(encoding="utf-8"))


def opened(written: tuple[Path, dict[str, Any]], browser: Chromium, **options: Any) -> Page:
    return browser.open(written[0].as_uri(), **options)


def test_it_needs_nothing_else(written: tuple[Path, dict[str, Any]], browser: Chromium) -> None:
    """Nothing on the console, no request but for the file; all sections, with content."""
    page = opened(written, browser)
    assert page.complaints == []
    assert page.requested == [written[0].as_uri()]
    assert page.ask("[...document.querySelectorAll('section')].map(one => one.id)") == SECTIONS
    small = "[...document.querySelectorAll('section')].filter(one => one.offsetHeight < 60)"
    assert page.ask(f"{small}.length") == 0
    assert page.ask("document.title") == page.text("h1")


def test_figures_equal_the_json(written: tuple[Path, dict[str, Any]], browser: Chromium) -> None:
    """As a reader sees them: shares, goodput and the load that is borne; p95 of each time."""
    page, document = opened(written, browser), written[1]
    rows = page.ask(
        "[...document.querySelectorAll('.verdict tbody tr')].map(row =>"
        " [row.querySelector('th').innerText.trim(), ...[...row.querySelectorAll('data')]"
        ".map(one => one.innerText)])"
    )
    expected = [
        [
            name,
            *(f"{100 * one['share_met']:.1f} %" for one in figures["classes"]),
            f"{figures['goodput_per_s']:.2f}/s",
            f"{figures['capacity_per_s']:.2f}/s",
            f"{100 * figures['cached_share']:.1f} %",
        ]
        for name, figures in document["policies"].items()
    ]
    assert rows == expected
    first = page.ask(
        "[...document.querySelector('.quantiles').querySelectorAll('tbody tr')].map(row =>"
        " Number(row.querySelectorAll('data')[1].value))"
    )
    assert first == [one["classes"][0]["ttft_s"][1] for one in document["policies"].values()]
    inside = json.loads(page.ask("document.getElementById('figures').textContent"))
    assert inside["workload"] == document["workload"]


def test_light_and_dark(written: tuple[Path, dict[str, Any]], browser: Chromium) -> None:
    """As the system prefers, pictures included; on paper always light."""
    page = opened(written, browser)
    tick = "getComputedStyle(document.querySelector('.plot .tick')).fill"
    light = page.ask(tick)
    assert page.ask(PAPER) == LIGHT
    page.prefer(dark=True)
    assert page.ask(PAPER) == DARK
    assert page.ask(tick) != light
    page.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert page.ask(tick) == light
    assert not page.shows("nav")


def test_text_stands_out_in_both(written: tuple[Path, dict[str, Any]], browser: Chromium) -> None:
    """4.5 to 1 against the paper, for text in pages and in pictures."""
    page = opened(written, browser)
    parts = (".lead", ".note", ".good", ".bad", ".tick", ".label", ".bound-text", ".name", "a")
    for dark in (False, True):
        page.prefer(dark=dark)
        for part in parts:
            assert page.ask(_CONTRAST.replace("PART", part)) >= 4.5, (part, dark)


_CONTRAST = """(() => {
    const part = document.querySelector("main PART, header PART");
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const style = getComputedStyle(part);
    const own = part instanceof SVGElement ? style.fill : style.color;
    const light = (colour) => numbers(colour).slice(0, 3).map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    }).reduce((sum, share, index) => sum + share * [0.2126, 0.7152, 0.0722][index], 0.05);
    const pair = [own, getComputedStyle(document.body).backgroundColor].map(light);
    return Math.max(...pair) / Math.min(...pair);
})()"""


def test_policies_are_chosen_by_mouse_and_keyboard(
    written: tuple[Path, dict[str, Any]], browser: Chromium
) -> None:
    """A box hides a policy's lines, rows and parts everywhere, and brings them back."""
    page = opened(written, browser)
    shown = "[...document.querySelectorAll('.verdict tbody tr')].filter(r => r.checkVisibility())"
    assert page.ask(f"{shown}.length") == 3
    page.click("#show-1")
    assert page.ask(f"{shown}.length") == 2
    assert not page.shows("path.curve.p1")
    assert page.shows("path.curve.p0")
    assert page.shows("label.p1")
    page.press(" ")
    assert page.ask(f"{shown}.length") == 3


def test_everything_is_reached_and_named(
    written: tuple[Path, dict[str, Any]], browser: Chromium
) -> None:
    """The first stop skips to the verdict; boxes, folds and scrolled tables are stops; pictures
    and tables have names, ids are said once."""
    page = opened(written, browser)
    page.press("Tab")
    assert page.ask("document.activeElement.innerText") == "Skip to the verdict"
    seen: set[str] = set()
    for _ in range(80):
        page.press("Tab")
        seen.add(str(page.ask("document.activeElement.tagName")))
    assert {"A", "INPUT", "SUMMARY", "DIV"} <= seen
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"image", "table", "checkbox", "link", "navigation", "region"}
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    ids = page.ask("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_narrow_screens(written: tuple[Path, dict[str, Any]], browser: Chromium) -> None:
    """At 360 pixels the page itself does not scroll sideways."""
    page = opened(written, browser, width=360, height=640)
    assert page.ask("document.documentElement.scrollWidth") == 360


def test_texts_in_pictures_do_not_overlap(
    written: tuple[Path, dict[str, Any]], browser: Chromium
) -> None:
    """No two texts of a picture share pixels, and none leaves it."""
    page = opened(written, browser)
    assert page.ask(_OVERLAPS) == []


_OVERLAPS = """[...document.querySelectorAll("svg.plot")].flatMap((plot) => {
    const frame = plot.getBoundingClientRect();
    const boxes = [...plot.querySelectorAll("text")].map((text) => {
        const {left, right, top, bottom} = text.getBoundingClientRect();
        const said = text.textContent;
        return {left: left + 1, right: right - 1, top: top + 3, bottom: bottom - 3, said};
    });
    const found = boxes.filter((one) => one.left < frame.left - 2 || one.right > frame.right + 2);
    boxes.forEach((one, place) => boxes.slice(place + 1).forEach((other) => {
        if (one.left < other.right && other.left < one.right
            && one.top < other.bottom && other.top < one.bottom) found.push([one, other]);
    }));
    return found.length ? [plot.getAttribute("aria-label"), JSON.stringify(found)] : [];
})"""
