"""The Grafana dashboards as files: current, complete, made of metrics that exist, well laid out."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from tools.dashboards.__main__ import FOLDER, files
from tools.dashboards.boards import DASHBOARDS
from tools.dashboards.demo.expand import expand
from tools.dashboards.grafana import render
from tools.dashboards.layout import Box, place
from tools.dashboards.panels import Dashboard, Panel, Query, Section, of

from gpt_oss_server.telemetry.catalog import BY_NAME, Metric

PANELS = [
    pytest.param(panel, id=f"{dashboard.slug}: {panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
]
ENDINGS = ("_bucket", "_sum", "_count")
SELECTOR = re.compile(r"([A-Za-z_][\w:]*)\{([^}]*)\}")
GROUPING = re.compile(r"\bby \(([^)]*)\)")


def row_of(name: str) -> Metric:
    """The catalogue's row of a stored name; a histogram's parts belong to it."""
    if name in BY_NAME:
        return BY_NAME[name]
    ending = next((end for end in ENDINGS if name.endswith(end)), "")
    row = BY_NAME[name.removesuffix(ending)]
    assert row.kind == "histogram"
    return row


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.slug)
def test_the_generated_file_is_up_to_date(dashboard: Dashboard) -> None:
    """`python -m tools.dashboards` would write what is there."""
    path = FOLDER / f"{dashboard.slug}.json"
    assert path.read_text(encoding="utf-8") == files()[path]


def test_no_other_dashboards_lie_about() -> None:
    """The folder holds the generated dashboards and no older ones."""
    assert set(FOLDER.glob("*.json")) == set(files())


@pytest.mark.parametrize("panel", PANELS)
def test_every_metric_and_label_exists(panel: Panel) -> None:
    """Each selector names a metric of the catalogue, and labels that it has."""
    for query in panel.queries:
        selectors = SELECTOR.findall(query.expr)
        assert selectors
        labels = {"instance", "le"}
        for name, matchers in selectors:
            row = row_of(name)
            labels |= set(row.labels)
            matched = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))
            assert matched <= {"instance", "le", *row.labels}, name
            assert "instance" in matched, name
        (grouped,) = [GROUPING.findall(query.expr)]
        assert {label for by in grouped for label in by.split(", ")} <= labels
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels


@pytest.mark.parametrize("panel", PANELS)
def test_kinds_fit_their_metrics(panel: Panel) -> None:
    """Counters and histograms are only read through rate or increase, except those that show a
    total since the start; gauges never are; heat maps of buckets read buckets."""
    for query in panel.queries:
        for match in SELECTOR.finditer(query.expr):
            row = row_of(match[1])
            ranged = query.expr[match.end() : match.end() + 1] == "["
            if row.kind == "gauge":
                assert not ranged, match[1]
            elif row.kind == "histogram" or "since the start" not in panel.description:
                assert ranged == (row.kind != "info"), match[1]
        assert (panel.kind == "buckets") == query.expr.startswith("sum by (le) (increase(")


@pytest.mark.parametrize("panel", PANELS)
def test_nothing_is_divided_by_zero(panel: Panel) -> None:
    """A share of what did not happen is no value, not NaN: every divisor that may be 0 is guarded
    (what a GPU or a pool has in all never is), and a tile shows the quantile of nothing as none."""
    for query in panel.queries:
        for divisor in query.expr.split(" / ")[1:]:
            if "rate(" in divisor or "increase(" in divisor:
                assert re.fullmatch(r"\(.+ > 0\)", divisor), query.expr
    if panel.kind == "stat":
        rendered = next(
            one
            for dashboard in DASHBOARDS
            for one in render(dashboard)["panels"]
            if one.get("title") == panel.title and one["type"] == "stat"
        )
        (mapping,) = rendered["fieldConfig"]["defaults"]["mappings"]
        assert mapping["options"]["match"] == "nan"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_tells_what_it_shows(panel: Panel) -> None:
    """A description, and a name for each of several lines."""
    assert panel.description.endswith(".")
    assert len(panel.queries) == 1 or all(query.legend for query in panel.queries)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.slug)
def test_no_panels_overlap(dashboard: Dashboard) -> None:
    """No two boxes share a cell, and none leaves the grid."""
    boxes = [box for _, box in place(dashboard)]
    assert [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])] == []
    assert all(box.x >= 0 and box.x + box.w <= 24 for box in boxes)


def test_boxes_that_overlap_are_seen() -> None:
    """A shared cell is an overlap, a shared edge is none."""
    assert Box(0, 0, 8, 7).overlaps(Box(7, 6, 8, 7))
    assert not Box(0, 0, 8, 7).overlaps(Box(8, 0, 8, 7))
    assert not Box(0, 0, 8, 7).overlaps(Box(0, 7, 8, 7))


def test_a_line_that_is_full_is_followed_by_another() -> None:
    """Panels go from left to right; the next line begins below the tallest."""
    query = (Query(of("gpt_oss_engine_ready")),)
    panels = tuple(
        Panel(title=f"{n}", kind="stat", queries=query, description=".", width=12, height=h)
        for n, h in enumerate((3, 5, 4))
    )
    board = Dashboard(
        slug="x", title="x", description="x", sections=(Section("s", panels), Section("t", ()))
    )
    assert [box for _, box in place(board)] == [
        Box(0, 0, 24, 1),
        Box(0, 1, 12, 3),
        Box(12, 1, 12, 5),
        Box(0, 6, 12, 4),
        Box(0, 10, 24, 1),
    ]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.slug)
def test_the_json_is_what_grafana_takes(dashboard: Dashboard) -> None:
    """Ids are unique, every query goes to the chosen data source, every variable used is there."""
    rendered: dict[str, Any] = render(dashboard)
    assert rendered["schemaVersion"] == 42
    assert (rendered["id"], rendered["uid"]) == (None, f"gpt-oss-{dashboard.slug}")
    panels = rendered["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    names = [variable["name"] for variable in rendered["templating"]["list"]]
    assert names == ["datasource", "model", "instance"]
    for panel in panels:
        assert set(panel["gridPos"]) == {"x", "y", "w", "h"}
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["instant"] != target["range"]
            of_buckets = panel["type"] == "heatmap" and "(le)" in target["expr"]
            assert target["format"] == ("heatmap" if of_buckets else "time_series")
    assert json.loads(json.dumps(rendered)) == rendered


def test_slugs_are_unique() -> None:
    """Grafana's uid and the file name belong to one dashboard."""
    assert len({dashboard.slug for dashboard in DASHBOARDS}) == len(DASHBOARDS) == 5


def test_expanding_a_query() -> None:
    """Our variables are filled in; another one is an error, not an empty answer."""
    assert (
        expand(f"rate({of('x_total', reason='!=full')}[$__rate_interval])", interval_s=5)
        == 'rate(x_total{instance=~".+",reason!="full"}[5s])'
    )
    with pytest.raises(ValueError, match="unknown variable"):
        expand("x[$__interval]")


def test_selectors() -> None:
    """A label's value may bring its operator along."""
    assert of("x", a="b", c="=~d|e") == 'x{instance=~"$instance",a="b",c=~"d|e"}'
