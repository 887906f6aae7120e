"""A real server over two ranks: it answers as over one, headers, `/stats`, `/memory_stats`, the log
and the bundle agree on where everything is and what ran there, and nothing of it stays."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from app_process import ServerProcess, client, complaints, running

LARGE = 120
LAYERS = json.loads((files("gpt_oss_server") / "models" / "tiny" / "config.json").read_text())[
    "num_hidden_layers"
]
KV_MEMORY = 4 << 20
ON_CPU = ("--model", "tiny", "--device", "cpu", "--threads", "1")
SIZES = ("--kv-cache-memory", str(KV_MEMORY))
LIMITS = ("--large-input-tokens", str(LARGE), "--pressure-input-tokens", "50")
SEA = [{"role": "user", "content": "Tell me of the sea."}]
SAMPLED = {"temperature": 1.0, "seed": 11}
NUMBER = {
    "type": "json_schema",
    "json_schema": {
        "name": "number",
        "schema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
PROMPT = {"prompt": "The sea is", "max_tokens": 16}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("chat", {"temperature": 0, "logprobs": True, "top_logprobs": 2, "max_tokens": 24}),
    "several": ("chat", {**SAMPLED, "n": 3, "max_tokens": 16}),
    "guided": ("chat", {"temperature": 0, "response_format": NUMBER, "max_tokens": 60}),
    "penalties": (
        "plain",
        {**PROMPT, **SAMPLED, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    ),
    "bias": ("plain", {**PROMPT, "temperature": 0, "logit_bias": {"300": 60}}),
    "stop": ("plain", {**PROMPT, "temperature": 0, "stop": ["e"], "logprobs": 1}),
    "prompts": ("plain", {**PROMPT, **SAMPLED, "prompt": ["a b c", "d e f"], "top_p": 0.9}),
}


def answer_of(http: httpx.Client, name: str) -> list[dict[str, Any]]:
    """The choices of a request, but for the values of its log-probabilities."""
    kind, fields = REQUESTS[name]
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    body = {"model": "tiny", **({"messages": SEA} if kind == "chat" else {}), **fields}
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    for choice in choices:
        logprobs = choice.pop("logprobs", None) or {}
        tokens = [entry["token"] for entry in logprobs.get("content") or ()]
        choice["tokens"] = tokens or logprobs.get("tokens")
    return choices


@dataclass(frozen=True)
class Served:
    """A server over two ranks, ready, and its log."""

    mode: str
    http: httpx.Client
    log: Path


def processes_of(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def none_left(processes: list[psutil.Process]) -> bool:
    """Whether all of them end; whether anybody has asked for their status is not their affair."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Ended by SIGTERM or by SIGKILL: either way every process of the model is gone."""
    mode, log = request.param, tmp_path_factory.mktemp("log") / "log.jsonl"
    flags = (*ON_CPU, "--gpu-mode", mode, "--gpus", "2", *SIZES, *LIMITS, "--log-file", str(log))
    with running("real", *flags) as server:
        url = server.url()
        server.read_until("ready")
        ranks = processes_of(server)
        assert len(ranks) >= 2
        with client(url) as http:
            yield Served(mode, http, log)
        server.process.send_signal(signal.SIGTERM if mode == "tensor" else signal.SIGKILL)
        server.process.wait(30)
        assert none_left(ranks)


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, Any]]]:
    """What one process answers."""
    with running("real", *ON_CPU, *SIZES) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            return {name: answer_of(http, name) for name in REQUESTS}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_answers_as_over_one(
    served: Served, expected: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """Text, tokens and ends of every choice: greedy, seeded, guided, penalised, biased, stopped."""
    assert answer_of(served.http, name) == expected[name]


def test_a_stream_is_the_same_text(
    served: Served, expected: dict[str, list[dict[str, Any]]]
) -> None:
    """Event by event, behind the header that says where it runs."""
    body = {"model": "tiny", "messages": SEA, "temperature": 0, "max_tokens": 24, "stream": True}
    answer = served.http.post("/v1/chat/completions", json=body)
    assert answer.headers["X-Route"] == "multi_gpu"
    *events, last, end = answer.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"] for event in events]
    text = "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)
    assert text == expected["greedy"][0]["message"]["content"]


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


def test_one_story_of_a_replica_of_two_ranks(served: Served) -> None:
    """A large request runs on both ranks, and every document says so with the same figures."""
    mode, http = served.mode, served.http
    before = http.get("/stats").json()["gpu_routing"]
    small, large = ask(http, 10), ask(http, 200)
    stats = http.get("/stats").json()
    memory = http.get("/memory_stats").json()
    bundle = http.get("/admin/debug/bundle").json()
    metrics = http.get("/metrics").text

    for answer in (small, large):
        assert answer.headers["x-route"] == "multi_gpu"
    assert small.headers["x-route-reason"] == "default: no multi-GPU trigger"
    assert large.headers["x-route-reason"].startswith("large_input: ")

    routing = stats["gpu_routing"]
    total = before["total_requests"] + 2
    assert (routing["gpu_mode"], routing["total_requests"]) == (mode, total)
    assert routing["executed"] == {"single_gpu": 0, "multi_gpu": total}
    assert routing["route4_gpu_requests"] == before["route4_gpu_requests"] + 1
    assert routing["unmet_recommendations"] == 0

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
    assert f'gpt_oss_routing_executed_total{{route="multi_gpu"}} {total}.0' in metrics
    assert f'gpu_mode="{mode}"' in metrics

    lines = [json.loads(line) for line in served.log.read_text().splitlines()]
    decided = [line for line in lines if line["event_type"] == "routing.decision"][-2:]
    assert [line["metadata"]["gpu_mode"] for line in decided] == [mode, mode]
    assert [line["route"] for line in decided] == ["single_gpu", "multi_gpu"]
    assert any(
        line.get("message", "").startswith("Multi-GPU active: large_input (") for line in lines
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ranks_start(number: signal.Signals) -> None:
    """Ctrl-C once the ranks exist and long before they are ready: no complaint, and no process."""
    with running("real", *ON_CPU, "--gpu-mode", "pipeline", "--gpus", "2") as server:
        server.url()
        while len(ranks := processes_of(server)) < 2:
            assert server.process.poll() is None
        server.process.send_signal(number)
        status, _, err = server.end()
        assert (status, complaints(err)) == (0, [])
        assert none_left(ranks)
