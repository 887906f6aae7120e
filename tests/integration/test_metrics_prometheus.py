"""A real Prometheus scrapes the real server: what it stores is what was promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from app_process import client, running
from prometheus_process import Prometheus, exemplars, needs_prometheus, prometheus

from gpt_oss_server.telemetry.catalog import METRICS

pytestmark = needs_prometheus

CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 8,
    "stream": True,
}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
REQUESTS = 3
# A machine without GPUs, and an engine without steps, has nothing to say of these.
UNKNOWN_HERE = {
    "gpt_oss_gpu_power_watts",
    "gpt_oss_gpu_energy_joules_total",
    "gpt_oss_gpu_temperature_celsius",
    "gpt_oss_engine_step_seconds",
    "gpt_oss_engine_batch_tokens",
    "gpt_oss_engine_step_budget_tokens",
    "gpt_oss_engine_start_seconds",
    "gpt_oss_activations_bytes",
}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen a server answer a few streams."""
    with running("steered") as server:
        url = server.url()
        server.read_until("ready")
        target = url.removeprefix("http://")
        with prometheus(tmp_path_factory.mktemp("prometheus"), [target]) as api:
            api.until("up == 1")
            with client(url) as http:
                for _ in range(REQUESTS):
                    assert http.post("/v1/chat/completions", json=CHAT, headers=HEADERS).is_success
            api.until(f"vllm:e2e_request_latency_seconds_count == {REQUESTS}")
            api.until("gpt_oss_gpu_balance_coefficient")
            yield api


def test_every_metric_is_stored_under_its_own_name(scraped: Prometheus) -> None:
    """All of the catalogue that this machine can know, colons and all, and nothing mangled."""
    stored = set(scraped.get("label/__name__/values"))
    endings = {"histogram": ("_bucket", "_sum", "_count")}
    expected = {
        row.name + ending
        for row in METRICS
        if row.name not in UNKNOWN_HERE
        for ending in endings.get(row.kind, ("",))
    }
    assert expected - stored == set()
    own = {name for name in stored if name != "up" and not name.startswith("scrape_")}
    assert own - expected == set()
    assert not [name for name in stored if name.startswith("vllm_")]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('vllm:request_success_total{finished_reason="length",model_name="tiny"}', REQUESTS),
        ("vllm:generation_tokens_total", REQUESTS * 8),
        ("sum(vllm:inter_token_latency_seconds_count)", REQUESTS * 7),
        ("vllm:num_requests_running + vllm:num_requests_waiting", 0),
        ('llm_admission_total{action="single",model_id="tiny"}', REQUESTS),
        ("sum(gpt_oss_routing_decisions_total)", REQUESTS),
        ('sum(gpt_oss_slo_total{slo="e2e",result="met"})', REQUESTS),
        ("histogram_quantile(1, llm_ttft_ms_bucket) >= bool 0", 1),
        ("max(vllm:time_to_first_token_seconds_bucket)", REQUESTS),
    ],
)
def test_queries_are_answered(scraped: Prometheus, expression: str, expected: float) -> None:
    """The queries of dashboards and gateways find what was done."""
    (result,) = scraped.query(expression)
    assert float(result["value"][1]) == expected


def test_exemplars_are_stored(scraped: Prometheus) -> None:
    """Prometheus asked for OpenMetrics: it keeps the trace ids that came with the buckets."""
    found = exemplars(scraped, "vllm:e2e_request_latency_seconds_bucket")
    assert {exemplar["labels"]["trace_id"] for exemplar in found} == {TRACE_ID}


def test_the_steps_of_a_real_engine_are_stored(tmp_path: Path) -> None:
    """Times and sizes of its steps, by kind, and its blocks: what a fake engine has none of."""
    with running("real", "--load-format", "random", "--threads", "1") as server:
        url = server.url()
        server.read_until("ready")
        with prometheus(tmp_path, [url.removeprefix("http://")]) as api:
            with client(url) as http:
                assert http.post("/v1/chat/completions", json=CHAT).is_success
            (steps,) = api.until("sum(gpt_oss_engine_step_seconds_count) > 0")
            (batches,) = api.until("sum(gpt_oss_engine_batch_tokens_count) > 0")
            tokens = api.query("sum(gpt_oss_engine_batch_tokens_sum)")
            computed = api.query("sum(gpt_oss_engine_tokens_total)")
            budget = api.query("gpt_oss_engine_step_budget_tokens")
            phases = api.query("gpt_oss_engine_start_seconds")
            bound = api.query('gpt_oss_activations_bytes{kind="bound"}')
            blocks = api.query('sum by (group) (gpt_oss_engine_blocks{state=~"held|cached|free"})')
    assert steps["value"][1] == batches["value"][1]
    assert tokens[0]["value"][1] == computed[0]["value"][1]
    assert [one["value"][1] for one in budget] == ["256"]
    assert {one["metric"]["phase"] for one in phases} == {"load", "rewrite", "pools"}
    assert float(bound[0]["value"][1]) > 0
    assert {one["metric"]["group"] for one in blocks} >= {"full", "sliding"}


def test_the_target_is_healthy(scraped: Prometheus) -> None:
    """No scrape failed, and none took long."""
    (target,) = scraped.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
