"""A real server over two ranks: headers, `/stats`, `/memory_stats`, the log and the bundle agree on
where everything is and what ran there."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_process import client, running

LARGE = 120
LAYERS = json.loads(
    (files("gpt_oss_server") / "models" / "tiny" / "config.json").read_text()
)["num_hidden_layers"]
KV_MEMORY = 4 << 20


def ask(http: httpx.Client, tokens: int) -> httpx.Response:
    """A completion of a prompt with about so many tokens."""
    answer = http.post(
        "/v1/completions",
        json={"model": "tiny", "prompt": "a b " * (tokens // 2), "max_tokens": 2, "seed": 1},
    )
    assert answer.status_code == 200, answer.text
    return answer


def by_rank(memory: dict[str, Any], field: str) -> list[int]:
    return [rank[field] for rank in memory["ranks"]]


@pytest.mark.parametrize("mode", ["tensor", "pipeline"])
def test_one_story_of_a_replica_of_two_ranks(mode: str, tmp_path: Path) -> None:
    """A large request runs on both ranks, and every document says so with the same figures."""
    log = tmp_path / "log.jsonl"
    flags = (
        *("--model", "tiny", "--device", "cpu", "--gpu-mode", mode, "--gpus", "2"),
        *("--large-input-tokens", str(LARGE), "--pressure-input-tokens", "50"),
        *("--kv-cache-memory", str(KV_MEMORY), "--log-file", str(log)),
    )
    with running("real", *flags) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            small, large = ask(http, 10), ask(http, 200)
            stats = http.get("/stats").json()
            memory = http.get("/memory_stats").json()
            bundle = http.get("/admin/debug/bundle").json()
            metrics = http.get("/metrics").text
        server.terminate()
        server.end()

    for answer in (small, large):
        assert answer.headers["x-route"] == "multi_gpu"
    assert small.headers["x-route-reason"] == "default: no multi-GPU trigger"
    assert large.headers["x-route-reason"].startswith("large_input: ")

    routing = stats["gpu_routing"]
    assert (routing["gpu_mode"], routing["total_requests"]) == (mode, 2)
    assert routing["executed"] == {"single_gpu": 0, "multi_gpu": 2}
    assert (routing["route4_gpu_requests"], routing["unmet_recommendations"]) == (1, 0)

    placement = stats["placement"]
    ranks = placement["ranks"]
    assert (placement["world"], placement["gpus"]) == (2, 2)
    assert placement["micro_batches"] == (1 if mode == "tensor" else 2)
    assert [(one["rank"], one["device"]) for one in ranks] == [(0, "cpu"), (1, "cpu")]
    assert len({one["pid"] for one in ranks}) == 2
    if mode == "tensor":
        assert [(one["first_layer"], one["layers"]) for one in ranks] == [(0, LAYERS), (0, LAYERS)]
        assert ranks[0]["kv_pool_bytes"] == ranks[1]["kv_pool_bytes"]
    else:
        assert [one["stage"] for one in ranks] == [0, 1]
        assert [one["first_layer"] for one in ranks] == [0, ranks[0]["layers"]]
        assert sum(one["layers"] for one in ranks) == LAYERS
    assert stats["recommendation"]["current_mode"] == mode
    assert stats["recommendation"]["mode"] is None

    (machine,) = memory["gpus"]
    assert machine["id"] == "cpu"
    assert machine["weights_bytes"] == sum(by_rank(memory, "weights_bytes"))
    assert machine["kv_pool_bytes"] == memory["kv"]["pool_bytes"] <= KV_MEMORY
    assert sum(by_rank(memory, "kv_pool_bytes")) == memory["kv"]["pool_bytes"]
    for field in ("in_use", "predicted", "reserved"):
        assert sum(by_rank(memory, f"kv_{field}_bytes")) == memory["kv"][f"{field}_bytes"]
    assert memory["kv"]["in_use_bytes"] == 0

    assert bundle["gpu_routing"]["current_mode"] == mode
    assert bundle["stats"]["placement"] == placement
    assert bundle["memory_stats"]["ranks"] == memory["ranks"]
    assert bundle["configuration"]["values"]["gpu_mode"] == mode
    assert {name: one["status"] for name, one in bundle["manifest"]["sections"].items()} == (
        dict.fromkeys(bundle["manifest"]["sections"], "ok")
    )
    assert 'gpt_oss_routing_executed_total{route="multi_gpu"} 2.0' in metrics
    assert f'gpu_mode="{mode}"' in metrics

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    decided = [line for line in lines if line["event_type"] == "routing.decision"]
    assert [line["metadata"]["gpu_mode"] for line in decided] == [mode, mode]
    assert [line["route"] for line in decided] == ["single_gpu", "multi_gpu"]
    assert any(
        line.get("message", "").startswith("Multi-GPU active: large_input (") for line in lines
    )
