"""Every panel of the dashboards shows something of a server under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from prometheus_process import Prometheus, needs_prometheus, prometheus
from tools.dashboards.boards import DASHBOARDS
from tools.dashboards.demo.expand import expand
from tools.dashboards.demo.load import drive
from tools.dashboards.demo.run import demo_server
from tools.dashboards.panels import Panel

pytestmark = needs_prometheus

LOAD_S = 6
PANELS = [
    pytest.param(panel, id=f"{dashboard.slug}: {panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
]
# What a short run may have none of: the query answers, and says 0 or nothing happened.
MAY_BE_ZERO = {
    "Decided without knowing the pressure",
    "Lines lost",
    "Lost lines",
    "Preemptions",
    "Reasoning",
    "Telemetry errors",
    "Waiting now",
    "Worker restarts",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched a server under load, to the end."""
    folder = tmp_path_factory.mktemp("dashboards")
    # Little room to wait, and memory pressure that comes and goes, within a short run.
    flags = ("--max-queue=4", "--max-num-seqs=8", "--recording-period-s=8")
    with (
        demo_server(folder, *flags) as url,
        prometheus(folder, [url.removeprefix("http://")]) as api,
    ):
        api.until("gpt_oss_engine_ready == 1")
        sent = asyncio.run(drive(url, LOAD_S, per_s=14, begin_s=20))
        api.until(f"sum(gpt_oss_requests_total) == {sent}")
        yield api


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_returns_data(loaded: Prometheus, panel: Panel) -> None:
    """Each query of each panel has values in the time of the load, and not zeros alone."""
    now_s = time.time()
    for query in panel.queries:
        series = loaded.get(
            "query_range",
            {
                "query": expand(query.expr),
                "start": str(now_s - 6 * LOAD_S),
                "end": str(now_s),
                "step": "1",
            },
        )["result"]
        values = [float(text) for one in series for _, text in one["values"] if text != "NaN"]
        assert values, query.expr
        if len(panel.queries) == 1 and panel.title not in MAY_BE_ZERO:
            assert any(values), query.expr
        for one in series:
            assert set(labels_of(query.legend)) <= set(one["metric"]), query.legend


def labels_of(legend: str) -> list[str]:
    """The labels that a legend names."""
    return [part.partition("}}")[0] for part in legend.split("{{")[1:]]


def test_the_variables_have_choices(loaded: Prometheus) -> None:
    """What the dashboards' variables are filled from names the model and the instance."""
    (info,) = loaded.query("gpt_oss_build_info")
    assert info["metric"]["model_id"] == "tiny"
    assert info["metric"]["instance"].startswith("127.0.0.1:")


def test_four_gpus_are_told_apart(loaded: Prometheus) -> None:
    """The heat map of utilisation has a row per GPU, that of KV one for the GPU in use."""
    (board,) = [one for one in DASHBOARDS if one.slug == "gpu-routing"]
    rows = {
        panel.title: {one["metric"]["gpu"] for one in loaded.query(expand(panel.queries[0].expr))}
        for panel in board.panels
        if panel.title in ("Utilisation per GPU", "KV in use per GPU")
    }
    assert rows == {"Utilisation per GPU": {"0", "1", "2", "3"}, "KV in use per GPU": {"0"}}
