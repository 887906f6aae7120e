"""What the metrics say of requests that were really made."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import msgspec
import pytest
from app_process import client, running
from byte_format import END, THINK, THOUGHT, ids_of
from observed_server import observed_server

from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import DEFAULT_INFO, Script

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
OK = "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=ok}"
CANCELLED = "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=cancelled}"
M, N = "{model_id=tiny}", "{model_name=tiny}"
# Two tokens of reasoning, three of text, the end: with the marks, eight.
ANSWER = Script((THINK, *ids_of("hm"), THOUGHT, *ids_of("yes"), END), cached_tokens=2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.mark.parametrize("stream", [False, True])
def test_streams_count_like_everything_else(log: Path, stream: bool) -> None:
    """The same request, streamed or not, moves the same metrics by what was really produced."""
    with observed_server(log, script=lambda _: ANSWER) as live:
        live.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        found = live.until_sample(OK, 1)
        prompt_tokens = found[f"vllm:prompt_tokens_total{N}"]
        assert prompt_tokens == len(live.engine.jobs[0].prompt)
    assert {
        name: found[name]
        for name in (
            f"vllm:generation_tokens_total{N}",
            f"llm_decode_tokens_total{M}",
            f"vllm:request_generation_tokens_sum{N}",
            f"gpt_oss_reasoning_tokens_total{M}",
            f"vllm:time_to_first_token_seconds_count{N}",
            f"vllm:inter_token_latency_seconds_count{N}",
            f"vllm:e2e_request_latency_seconds_count{N}",
            f"llm_ttft_ms_count{M}",
            f"vllm:request_success_total{{finished_reason=stop}}{N}",
            f"llm_prefix_cache_hit_total{M}",
            f"llm_admission_total{{action=single}}{M}",
            "gpt_oss_routing_decisions_total{route=single_gpu}{trigger=none}",
            "gpt_oss_routing_executed_total{route=single_gpu}",
            "gpt_oss_requests_in_flight",
        )
    } == {
        f"vllm:generation_tokens_total{N}": 8,
        f"llm_decode_tokens_total{M}": 8,
        f"vllm:request_generation_tokens_sum{N}": 8,
        f"gpt_oss_reasoning_tokens_total{M}": 2,
        f"vllm:time_to_first_token_seconds_count{N}": 1,
        f"vllm:inter_token_latency_seconds_count{N}": 7,
        f"vllm:e2e_request_latency_seconds_count{N}": 1,
        f"llm_ttft_ms_count{M}": 1,
        f"vllm:request_success_total{{finished_reason=stop}}{N}": 1,
        f"llm_prefix_cache_hit_total{M}": 1,
        f"llm_admission_total{{action=single}}{M}": 1,
        "gpt_oss_routing_decisions_total{route=single_gpu}{trigger=none}": 1,
        "gpt_oss_routing_executed_total{route=single_gpu}": 1,
        "gpt_oss_requests_in_flight": 0,
    }
    assert found[f"llm_prefill_tokens_total{M}"] == prompt_tokens - 2


def test_a_stream_shows_while_it_runs(log: Path) -> None:
    """Tokens, first token and requests in flight are seen before the stream ends; a client that
    leaves is counted as such, with what was produced until then."""
    with observed_server(log, script=lambda _: Script(ids_of("abcdefgh"))) as live:
        live.steer(live.engine.close_gate)
        body = msgspec.json.encode({**CHAT, "stream": True, "max_tokens": 100})
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
        with live.connect() as connection:
            connection.sendall(b"%s\r\ncontent-length: %d\r\n\r\n%s" % (head, len(body), body))
            live.until(lambda engine: engine.active == 1)
            live.steer(lambda: live.engine.let_pass(3))
            found = live.until_sample(f"vllm:generation_tokens_total{N}", 3)
            assert found["gpt_oss_requests_in_flight"] == 1
            assert found[f"vllm:num_requests_running{N}"] == 1
            assert found[f"vllm:inter_token_latency_seconds_count{N}"] == 2
            assert found[OK] == found[CANCELLED] == 0
        found = live.until_sample(CANCELLED, 1)
        assert found[f"vllm:request_generation_tokens_sum{N}"] == 3
        assert found[f"vllm:request_success_total{{finished_reason=abort}}{N}"] == 1
        assert found[f"vllm:time_to_first_token_seconds_count{N}"] == 1
        assert found[f"vllm:e2e_request_latency_seconds_count{N}"] == 0
        assert found["gpt_oss_requests_in_flight"] == 0
        (line,) = live.lines("request.end")
        assert (line["outcome"], line["status"]) == ("cancelled", 200)
        assert line["metadata"]["output_tokens"] == 3


def test_those_who_wait_and_those_turned_away(log: Path) -> None:
    """With room for one and a queue of one: the second waits under its priority, the third is
    refused with a Retry-After, and each leaves its mark."""
    one_slot = msgspec.structs.replace(DEFAULT_INFO, max_num_seqs=1)
    with observed_server(log, Settings(max_queue=1), info=one_slot) as live:
        live.steer(live.engine.close_gate)
        with live.connect() as first, live.connect() as second:
            for connection, priority in ((first, 5), (second, 7)):
                body = msgspec.json.encode(CHAT)
                connection.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-priority: %d\r\n"
                    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                    % (priority, len(body), body)
                )
                if connection is first:
                    live.until(lambda engine: engine.active == 1)
            live.until_sample("gpt_oss_admission_waiting{priority=7}", 1)
            refused = live.http.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 429
            found = live.samples()
            assert found[f"vllm:num_requests_waiting{N}"] == 1
            assert found["gpt_oss_admission_turned_away_total{priority=5}{reason=full}"] == 1
            given = found["gpt_oss_admission_retry_after_seconds_sum"]
            assert given == float(refused.headers["retry-after"])
            assert found[f"llm_admission_total{{action=reject}}{M}"] == 1
            missed = "gpt_oss_slo_total{result=missed}{route=none}{slo=e2e}{unmet=false}"
            assert found[missed] == 1
        found = live.until_sample(CANCELLED, 2)
        assert found["gpt_oss_admission_turned_away_total{priority=7}{reason=cancelled}"] == 1
        assert found["gpt_oss_admission_waiting{priority=7}"] == 0
        (line,) = [
            line for line in live.lines("admission.turned_away", 2) if line["reason"] == "full"
        ]
        assert line["request_id"] == refused.headers["x-request-id"]
        assert line["metadata"]["priority"] == 5


def test_an_engine_failure(log: Path) -> None:
    """A stream that the engine fails under is an error with its label, not a success."""
    with observed_server(log, script=lambda _: Script(ids_of("abcd"), fail_after=2)) as live:
        live.http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        name = "gpt_oss_requests_total{endpoint=/v1/chat/completions}{outcome=engine_failed}"
        found = live.until_sample(name, 1)
        assert found[f"vllm:request_generation_tokens_sum{N}"] == 2
        assert (
            found["gpt_oss_slo_total{result=missed}{route=single_gpu}{slo=e2e}{unmet=false}"] == 1
        )
        (line,) = live.lines("request.end")
        assert (line["level"], line["outcome"]) == ("error", "engine_failed")


def test_a_large_request_on_one_gpu(log: Path) -> None:
    """What belongs on several GPUs and runs on one is told by route, trigger, fallback, unmet."""
    with observed_server(log, Settings(large_input_tokens=3, pressure_input_tokens=3)) as live:
        live.http.post("/v1/chat/completions", json=CHAT)
        found = live.until_sample(OK, 1)
    for name in (
        "gpt_oss_routing_decisions_total{route=multi_gpu}{trigger=large_input}",
        "gpt_oss_routing_executed_total{route=single_gpu}",
        "gpt_oss_routing_fallbacks_total{decided=multi_gpu}{executed=single_gpu}",
        "gpt_oss_routing_unmet_recommendations_total",
        f"llm_admission_total{{action=route4}}{M}",
        "gpt_oss_request_e2e_seconds_count{route=single_gpu}{unmet=true}",
        "gpt_oss_routing_input_tokens_count{route=multi_gpu}",
    ):
        assert found[name] == 1, name


def test_errors_before_a_decision(log: Path) -> None:
    """Wrong models, wrong bodies and unknown paths count under labels that are few."""
    with observed_server(log) as live:
        live.http.post("/v1/chat/completions", json={**CHAT, "model": "nope"})
        live.http.post("/v1/chat/completions", content=b"{", headers={"content-type": "text/json"})
        live.http.get("/no/such/path")
        found = live.samples()
    ended = {
        re.findall(r"outcome=(\w+)", name)[0]: count
        for name, count in found.items()
        if name.startswith("gpt_oss_requests_total") and count
    }
    assert ended == {"not_found": 1, "bad_request": 1}
    assert found["gpt_oss_http_requests_total{endpoint=unknown}{status=404}"] == 1


def test_names_chosen_by_clients_make_no_series(log: Path) -> None:
    """Many models, users, sessions, ids and paths later, the page has the same series."""

    def ask(http: httpx.Client, number: str) -> None:
        headers = {"x-request-id": f"r-{number}", "x-session-id": f"s-{number}"}
        http.post("/v1/chat/completions", json={**CHAT, "user": f"u-{number}"}, headers=headers)
        http.post("/v1/chat/completions", json={**CHAT, "model": f"m-{number}"}, headers=headers)
        http.get(f"/path/{number}")

    with observed_server(log) as live:
        ask(live.http, "first")
        before = live.until_all_is_known().keys()
        for number in range(50):
            ask(live.http, str(number))
        page = live.page()
        assert live.samples().keys() == before
    assert not re.search(r"[rsum]-\d+|/path/", page)


ALLOWED = re.compile(
    r"vllm:\w+ metric names should not contain ':'"
    r"|llm_(ttft_ms|e2e_ms|tokens_per_sec) metric names should not contain abbreviated units"
)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_but_the_kept_names(log: Path) -> None:
    """Prometheus's own linter complains of names that are promised as they are, and no others."""
    with observed_server(log, script=lambda _: ANSWER) as live:
        live.http.post("/v1/chat/completions", json=CHAT)
        live.until_sample(OK, 1)
        page = live.page()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=30
    )
    complaints = (done.stdout + done.stderr).splitlines()
    assert [line for line in complaints if not ALLOWED.fullmatch(line)] == []
    assert len(complaints) > 20


def test_metrics_while_the_model_loads() -> None:
    """A server that is coming up is scraped like any other, and says that it is not ready."""
    with running("loading") as server:
        with client(server.url()) as http:
            page = http.get("/metrics").text
        server.terminate()
        assert server.end()[0] == 0
    assert "\ngpt_oss_engine_ready 0.0\n" in page
    assert "gpt_oss_engine_blocks" not in page
