"""The table of metrics: names that are promised, labels that are bounded, docs that agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt_oss_server import metrics_doc
from gpt_oss_server.telemetry.catalog import BY_NAME, GROUPS, METRICS, Metric
from gpt_oss_server.telemetry.names.metric import moved, read

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "src" / "gpt_oss_server"

# The external contract: these names, kinds and labels are never changed.
PROMISED = {
    "llm_admission_total": ("counter", {"action", "model_id"}),
    "gpu_utilization": ("gauge", {"gpu", "model_id"}),
    "gpu_mem_used_bytes": ("gauge", {"gpu", "model_id"}),
    "llm_ttft_ms": ("histogram", {"model_id"}),
    "llm_e2e_ms": ("histogram", {"model_id"}),
    "llm_tokens_per_sec": ("histogram", {"model_id"}),
    "llm_prefill_tokens_total": ("counter", {"model_id"}),
    "llm_decode_tokens_total": ("counter", {"model_id"}),
    "llm_prefix_cache_hit_total": ("counter", {"model_id"}),
    "kv_bytes_in_use": ("gauge", {"model_id"}),
    "sessions_active": ("gauge", {"model_id"}),
    "vllm:num_requests_running": ("gauge", {"model_name"}),
    "vllm:num_requests_waiting": ("gauge", {"model_name"}),
    "vllm:kv_cache_usage_perc": ("gauge", {"model_name"}),
    "vllm:cache_config_info": ("gauge", {"block_size", "num_gpu_blocks", "model_name"}),
    "vllm:prompt_tokens_total": ("counter", {"model_name"}),
    "vllm:generation_tokens_total": ("counter", {"model_name"}),
    "vllm:request_success_total": ("counter", {"finished_reason", "model_name"}),
    "vllm:num_preemptions_total": ("counter", {"model_name"}),
    "vllm:time_to_first_token_seconds": ("histogram", {"model_name"}),
    "vllm:inter_token_latency_seconds": ("histogram", {"model_name"}),
    "vllm:e2e_request_latency_seconds": ("histogram", {"model_name"}),
    "vllm:request_queue_time_seconds": ("histogram", {"model_name"}),
    "vllm:request_prompt_tokens": ("histogram", {"model_name"}),
    "vllm:request_generation_tokens": ("histogram", {"model_name"}),
}
BOUNDED_LABELS = {
    *("action", "attention_backend", "block_size", "cache", "decided", "device", "dtype"),
    *("endpoint", "executed", "finished_reason", "gpu", "gpu_mode", "group", "kind", "model_id"),
    *("model_name", "name", "num_gpu_blocks", "outcome", "phase", "priority", "reason", "result"),
    *("route", "sink", "slo", "state", "status", "trigger", "unmet", "verdict", "version"),
    *("writer",),
}


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_are_kept(name: str) -> None:
    """Every name of the contract is there, with its kind and exactly its labels."""
    row = BY_NAME[name]
    assert (row.kind, set(row.labels)) == PROMISED[name]


def test_names_are_unique_and_in_a_group() -> None:
    """No name twice, no row outside the page's sections."""
    assert len(BY_NAME) == len(METRICS)
    assert {row.group for row in METRICS} == set(GROUPS)


def test_no_label_that_a_client_chooses() -> None:
    """Labels are of the known, bounded kinds; a new one has to be thought about here."""
    assert {label for row in METRICS for label in row.labels} <= BOUNDED_LABELS


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_every_row_is_well_formed(row: Metric) -> None:
    """Legal names, help that is a sentence, bounds that ascend."""
    assert re.fullmatch(r"[a-z][a-z0-9_]*|vllm:[a-z0-9_]+", row.name)
    assert row.help[0].isupper()
    assert row.help.endswith((".", "?"))
    assert list(row.buckets) == sorted(set(row.buckets))


def test_contradictory_rows_are_refused() -> None:
    """A histogram without buckets, or a counter without its ending, is a bug at import."""
    with pytest.raises(ValueError, match="has buckets"):
        read("x_seconds", "histogram", (), GROUPS[0], "Help.")
    with pytest.raises(ValueError, match="ends in _total"):
        moved("x", "counter", (), GROUPS[0], "Help.")


def test_the_page_of_metrics_is_not_stale() -> None:
    """docs/metrics.md is what `make docs` writes today."""
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_doc.render(), "run `make docs`"


def test_only_telemetry_names_a_metric() -> None:
    """No other room mentions a metric's name."""
    outside = [
        path
        for path in SOURCES.rglob("*.py")
        if "telemetry" not in path.relative_to(SOURCES).parts[0]
    ]
    # The key of a kept JSON document, too.
    names = BY_NAME.keys() - {"gpu_utilization"}
    mentions = {
        (path.name, name)
        for path in outside
        for name in names
        if f'"{name}' in path.read_text(encoding="utf-8")
    }
    assert mentions == set()
