"""The page of metrics: complete, unmangled, and silent about what is not known."""

from __future__ import annotations

import msgspec
import pytest
from metric_pages import (
    COMING_UP,
    GPU,
    IDENTITY,
    changed,
    desk_snapshot,
    everything,
    key,
    new_sink,
    probe_view,
    samples,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from trace_records import TRACE_ID, record

from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.events import RequestEnded
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.telemetry.catalog import METRICS
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.snapshot import Snapshots
from gpt_oss_server.trail import Meter

ENDINGS = {"histogram": ("_bucket", "_sum", "_count")}
# They appear with the first request to an unknown path; all else is there from the start.
LATER = {"gpt_oss_http_requests_total"}


@pytest.mark.parametrize("open_metrics", [False, True])
def test_every_metric_of_the_catalogue_is_exported(open_metrics: bool) -> None:
    """Each row has samples, with exactly its labels, and nothing else has any."""
    found = samples(everything(), open_metrics=open_metrics)
    exported: dict[str, set[str]] = {}
    for name, labels in found:
        exported.setdefault(name, set()).update(label for label, _ in labels)
    expected = {
        row.name + ending: set(row.labels) | ({"le"} if ending == "_bucket" else set())
        for row in METRICS
        if row.name not in LATER
        for ending in ENDINGS.get(row.kind, ("",))
    }
    assert exported == expected


def test_names_survive_openmetrics() -> None:
    """An OpenMetrics client sees `vllm:` names with their colon, and the page's end."""
    snapshot = changed(everything(), moved=new_sink().taken())
    body, content_type = MetricsPage(IDENTITY).render(
        snapshot, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    )
    text = body.decode()
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert 'vllm:num_requests_running{model_name="openai/gpt-oss-120b"} 2.0\n' in text
    assert "vllm_" not in text
    assert text.endswith("# EOF\n")


def test_plain_text_for_everybody_else() -> None:
    """Without an OpenMetrics `Accept`, the classic format."""
    body, content_type = MetricsPage(IDENTITY).render(everything(), "*/*")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# TYPE vllm:generation_tokens_total counter\n" in body
    assert b"# EOF" not in body


def test_exemplars_lead_to_the_trace() -> None:
    """The bucket that a request fell into carries its trace id, its value and when it ended."""
    sink = new_sink()
    sink.emit(RequestEnded(record()))
    snapshot = changed(COMING_UP, moved=sink.taken())
    body, _ = MetricsPage(IDENTITY).render(snapshot, "application/openmetrics-text")
    lines = [line for line in body.decode().splitlines() if " # {" in line]
    names = {line.partition("{")[0] for line in lines}
    assert names == {
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "gpt_oss_request_ttft_seconds_bucket",
        "gpt_oss_request_e2e_seconds_bucket",
    }
    for line in lines:
        assert f'# {{trace_id="{TRACE_ID}"}} ' in line
        assert line.endswith(" 1700000002.0")


def test_a_page_is_of_one_moment() -> None:
    """What ends while the page is being written is not on it: neither half of it is."""
    sink, meter = new_sink(), Meter()
    engine = FakeEngine()
    snapshots = Snapshots(engine=engine, meter=meter, moved=sink.taken)
    sink.emit(RequestEnded(record()))
    meter.in_flight = 1
    taken = snapshots.take()
    before = MetricsPage(IDENTITY).render(taken)
    sink.emit(RequestEnded(record()))
    meter.in_flight = 0
    assert MetricsPage(IDENTITY).render(taken) == before
    body, _ = MetricsPage(IDENTITY).render(snapshots.take())
    assert b"\ngpt_oss_requests_in_flight 0.0\n" in body
    assert b'_requests_total{endpoint="/v1/chat/completions",outcome="ok"} 2.0\n' in body


def test_memory_and_start_of_the_engine() -> None:
    """What a step takes by kind, shortages by how they ended, phases that were not skipped."""
    found = samples(everything())
    assert values(found, "gpt_oss_activations_bytes") == {
        ("bound",): 80.0,
        ("measured",): 70.0,
        ("set_aside",): 90.0,
    }
    assert values(found, "gpt_oss_engine_out_of_memory_total") == {
        ("retried",): 4.0,
        ("failed",): 1.0,
    }
    assert values(found, "gpt_oss_engine_step_budget_tokens") == {(): 1024.0}
    assert values(found, "gpt_oss_engine_start_seconds") == {("load",): 2.5}


def test_what_is_not_known_is_absent() -> None:
    """A server that is coming up says nothing of its engine, its GPUs or its desk."""
    found = {name for name, _ in samples(COMING_UP)}
    assert key("gpt_oss_engine_ready")[0] in found
    silent = ("gpu_", "gpt_oss_gpu_", "gpt_oss_engine_b", "gpt_oss_kv_", "vllm:kv_", "kv_bytes")
    assert [name for name in found if name.startswith(silent)] == []
    assert samples(COMING_UP)[key("gpt_oss_engine_ready")] == 0.0


@pytest.mark.parametrize(
    ("reading", "age_s", "expected"),
    [
        (GPU, 1.0, {"gpu_utilization", "gpu_mem_used_bytes", "gpt_oss_gpu_power_watts"}),
        (GPU, 11.0, set()),
        (GpuReading(id="0/2", used_bytes=5), 1.0, {"gpu_mem_used_bytes"}),
        (GpuReading(id="0", utilization=0.0), 1.0, {"gpu_utilization"}),
    ],
    ids=["all known", "stale", "a slice has no utilisation", "a real zero is a zero"],
)
def test_a_gpu_says_what_it_knows(reading: GpuReading, age_s: float, expected: set[str]) -> None:
    """An unknown or stale figure is left out; the age is always told."""
    snapshot = changed(everything(), probe=probe_view(reading, age_s=age_s))
    found = samples(snapshot)
    watched = ("gpu_utilization", "gpu_mem_used_bytes", "gpt_oss_gpu_power_watts")
    assert {name for name in watched if values(found, name)} == expected
    assert values(found, "gpt_oss_gpu_reading_age_seconds") == {(reading.id,): age_s}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm:kv_cache_usage_perc", {("openai/gpt-oss-120b",): 0.75}),
        ("vllm:cache_config_info", {("16", "openai/gpt-oss-120b", "10"): 1.0}),
        ("vllm:num_requests_waiting", {("openai/gpt-oss-120b",): 3.0}),
        ("vllm:num_preemptions_total", {("openai/gpt-oss-120b",): 4.0}),
        ("vllm:inter_token_latency_seconds_count", {("openai/gpt-oss-120b",): 2.0}),
        ("vllm:prompt_tokens_total", {("openai/gpt-oss-120b",): 100.0}),
        ("llm_prefill_tokens_total", {("gpt-oss-120b",): 70.0}),
        ("llm_decode_tokens_total", {("gpt-oss-120b",): 40.0}),
        ("kv_bytes_in_use", {("gpt-oss-120b",): 650.0}),
        ("sessions_active", {("gpt-oss-120b",): 2.0}),
        ("gpu_utilization", {("0", "gpt-oss-120b"): 0.65}),
        ("gpu_mem_used_bytes", {("0", "gpt-oss-120b"): 400.0}),
        ("gpt_oss_engine_tokens_total", {("prefill",): 30.0, ("decode",): 20.0}),
        ("gpt_oss_engine_step_seconds_sum", dict.fromkeys([("prefill",), ("decode",), ("mixed",)],
                                                          0.0004)),
        ("gpt_oss_admission_offers_total", {
            ("accept",): 6.0, ("shrink",): 0.0, ("route4",): 0.0, ("queue",): 2.0,
            ("reject",): 1.0, ("never_fits",): 0.0,
        }),
        ("gpt_oss_gpu_kv_bytes_in_use", {("0",): 650.0}),
        ("gpt_oss_gpu_balance_coefficient", {(): 0.95}),
        ("gpt_oss_memory_pressure", {(): 0.75}),
        ("gpt_oss_lines_dropped_total", {("log",): 8.0, ("decision_log",): 9.0}),
        ("gpt_oss_telemetry_errors_total", {("prometheus",): 0.0, ("log",): 1.0}),
        ("gpt_oss_slo_target_seconds", {("ttft",): 2.0, ("e2e",): 20.0}),
    ],
)  # fmt: skip
def test_what_is_read_is_read_from_its_place(
    name: str, expected: dict[tuple[str, ...], float]
) -> None:
    """Field by field: the snapshot's figures under their names."""
    assert values(samples(everything()), name) == expected


def test_blocks_add_up() -> None:
    """Held, cached and free blocks of a pool are all of its blocks."""
    found = values(samples(everything()), "gpt_oss_engine_blocks")
    assert found == {
        ("full", "held"): 5.0,
        ("full", "cached"): 1.0,
        ("full", "free"): 4.0,
        ("sliding", "held"): 3.0,
        ("sliding", "cached"): 0.0,
        ("sliding", "free"): 1.0,
    }


def test_a_desk_that_was_never_asked_counts_from_zero() -> None:
    """A gateway sees 0 running requests, not a missing series, before the first request."""
    idle = msgspec.structs.replace(desk_snapshot(), admission=None, pressure=None, balance=None)
    found = samples(changed(everything(), desk=idle))
    assert values(found, "vllm:num_requests_running") == {("openai/gpt-oss-120b",): 0.0}
    assert set(values(found, "gpt_oss_admission_offers_total").values()) == {0.0}
    assert values(found, "gpt_oss_memory_pressure") == {}


class _Extra(Collector):
    def collect(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily("extra", "Of somebody else.", value=7.0)]


def test_others_may_add_metrics() -> None:
    """A collector that is handed in appears on the page."""
    body, _ = MetricsPage(IDENTITY, extra=[_Extra()]).render(COMING_UP)
    assert b"\nextra 7.0\n" in body
