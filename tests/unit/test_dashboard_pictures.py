"""Pictures of dashboards: figures, buckets, and SVG that needs nothing else."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from tools.dashboards.boards import DASHBOARDS
from tools.dashboards.panels import Dashboard, Panel, Query, Section, Unit, buckets, of
from tools.dashboards.preview.figures import log_marks, marks, text_of
from tools.dashboards.preview.picture import picture
from tools.dashboards.preview.series import Series, Span, fetch

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SPAN = Span(100.0, 104.0, 1.0)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.000045, "s", "45 µs"),
        (0.3, "s", "300 ms"),
        (1.3149, "s", "1.31 s"),
        (90.0, "s", "90 s"),
        (150.0, "s", "2.5 min"),
        (0.0, "s", "0 s"),
        (1.5 * 2**20, "bytes", "1.5 MiB"),
        (512.0, "bytes", "512 B"),
        (0.9512, "percentunit", "95.1%"),
        (1234.0, "short", "1.23k"),
        (2.5, "reqps", "2.5 req/s"),
        (1900.0, "watt", "1.9k W"),
        (math.nan, "s", "–"),
    ],
)
def test_figures_with_units(value: float, unit: Unit, expected: str) -> None:
    """Three figures, and the unit that reads best."""
    assert text_of(value, unit) == expected


def test_axis_marks_are_round() -> None:
    """From 0 to at least the greatest value; MiB stay round; decades enclose on a log axis."""
    assert marks(13.2) == [0, 5, 10, 15]
    assert marks(1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert marks(0) == [0, 1]
    assert marks(1.8 * 2**20, "bytes") == [n * 2**19 for n in range(5)]
    assert log_marks(0.03, 4.0) == [0.01, 0.1, 1, 10]
    assert log_marks(1.0, 1.0) == [1, 10]


def test_buckets_are_told_apart() -> None:
    """Prometheus's buckets count all below; a heat map shows each one's own, lowest first."""
    answer = [
        {"metric": {"le": le}, "values": [[100 + n, str(value)] for n, value in enumerate(values)]}
        for le, values in (("+Inf", (5, 9)), ("0.1", (2, 3)), ("1.0", (5, 8)))
    ]
    panel = Panel(title="x", kind="buckets", queries=buckets("x"), description=".")
    found = fetch(lambda path, **_: answer, panel, Span(100.0, 101.0, 1.0))
    assert found == [
        Series("0.1", (2, 3), 0.1),
        Series("1.0", (3, 5), 1.0),
        Series("+Inf", (0, 1), math.inf),
    ]


def test_a_gap_stays_a_gap() -> None:
    """A moment without a value is NaN, not 0, and labels fill the legend."""
    answer = [{"metric": {"gpu": "1", "instance": "a:1"}, "values": [[100, "1"], [102, "3"]]}]
    panel = Panel(
        title="x",
        kind="lines",
        queries=(Query(of("gpu_utilization"), "{{instance}} GPU {{gpu}}"),),
        description=".",
    )
    (series,) = fetch(lambda path, **_: answer, panel, Span(100.0, 102.0, 1.0))
    assert series.name == "GPU 1"
    assert [series.values[0], series.values[2]] == [1, 3]
    assert math.isnan(series.values[1])


def canned(path: str, **parameters: str) -> list[dict[str, Any]]:
    """An answer to anything: two series, of buckets where a query asks for them."""
    of_buckets = "by (le) (increase" in parameters["query"]
    return [
        {
            "metric": {"le": name} if of_buckets else {"gpu": name, "route": f"<{name}>"},
            "value": [104, "0.5"],
            "values": [[100 + n, str(n + float(name))] for n in range(5)],
        }
        for name in ("1.0", "2.0")
    ]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.slug)
def test_every_dashboard_can_be_drawn(dashboard: Dashboard) -> None:
    """A well-formed file with every title, nothing outside, no figure that is none."""
    drawn = picture(dashboard, canned, SPAN, "note")
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {panel.title for panel in dashboard.panels} <= set(texts)
    assert texts[-1] == "note"
    assert "No data" not in texts
    assert not re.search(r"\b(nan|inf)\b", drawn)


def test_no_answer_is_said() -> None:
    """A panel without data says so instead of an empty chart."""
    panel = Panel(title="x", kind="lines", queries=(Query(of("y")),), description=".")
    board = Dashboard(slug="x", title="x", description="x", sections=(Section("s", (panel,)),))
    drawn = picture(board, lambda path, **_: [], SPAN, "")
    texts = [element.text for element in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert "No data" in texts


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.slug)
def test_the_committed_picture_is_of_this_dashboard(dashboard: Dashboard) -> None:
    """It has every panel, shows data in each, and refers to nothing outside itself."""
    drawn = (IMAGES / f"{dashboard.slug}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(drawn)
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {panel.title for panel in dashboard.panels} <= texts
    assert "No data" not in texts
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        *("svg", "title", "rect", "path", "text"),
    }
    assert not re.search(r"href|url\(|<script", drawn)
