"""Traces of a whole server process, with a collector that works, is dead, or never answers."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from app_process import ServerProcess, client, running

from otlp_receiver import OtlpReceiver, attributes

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 5,
}

LOST = '\ngpt_oss_lines_dropped_total{writer="traces"} 1.0\n'


def chat(server: ServerProcess, path: str = "/v1/chat/completions") -> httpx.Response:
    """One answered chat, once the server is ready."""
    url = server.url()
    server.read_until("ready")
    with client(url) as http:
        answer = http.post(path, json=CHAT)
    assert answer.status_code == 200
    return answer


def test_one_trace_id_in_the_answer_the_log_and_the_trace() -> None:
    """What `traceparent` says is on every log line of the request and in its spans."""
    with (
        OtlpReceiver() as receiver,
        running(
            "steered",
            *("--otlp-endpoint", receiver.url, "--trace-sample-rate", "1", "--log-format", "json"),
        ) as server,
    ):
        answer = chat(server)
        server.terminate()
        status, _, err = server.end()
        spans = receiver.trace("chat_completion")
    assert status == 0
    _, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert flags == "01"
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    assert spans[0].span_id.hex() == span_id
    request_id = answer.headers["x-request-id"]
    lines = [json.loads(line) for line in err.splitlines()]
    of_request = [line for line in lines if line.get("request_id") == request_id]
    assert {"routing.decision", "request.end"} <= {line["event_type"] for line in of_request}
    assert {line["trace_id"] for line in of_request} == {trace_id}
    assert attributes(list(spans[0].attributes))["gpt_oss_server.request_id"] == request_id
    decision = next(line for line in of_request if line["event_type"] == "routing.decision")
    routing = next(span for span in spans if span.name == "routing_decision")
    assert attributes(list(routing.attributes))["routing.trigger_reason"] == decision["reason"]


def test_a_collector_that_never_answers_holds_up_nothing() -> None:
    """Requests are answered, and the process ends while the collector still holds its batch."""
    with (
        OtlpReceiver(mute=True) as receiver,
        running("steered", "--otlp-endpoint", receiver.url, "--trace-sample-rate", "1") as server,
    ):
        chat(server)
        receiver.wait_for_posts(1)
        server.terminate()
        status, _, err = server.end()
    assert status == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("known", ["refused", "unresolvable"])
def test_a_dead_collector_costs_one_line(known: str) -> None:
    """Requests are answered, the lost trace is counted, the end is clean, nothing is retried in
    the log."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = taken.getsockname()[1]
        host = "127.0.0.1" if known == "refused" else "no-such-host.invalid"
        with running(
            "steered",
            *("--otlp-endpoint", f"http://{host}:{port}", "--trace-sample-rate", "1"),
            *("--log-format", "json"),
        ) as server:
            with client(str(chat(server).url.join("/"))) as http:
                while LOST not in http.get("/metrics").text:
                    pass
            server.terminate()
            status, _, err = server.end()
    assert status == 0
    lines = [json.loads(line) for line in err.splitlines()]
    about = [line for line in lines if "opentelemetry" in str(line) or "traces" in str(line)]
    assert [line["logger"] for line in about] == ["gpt_oss_server.telemetry.tracing"], err
    assert about[0]["message"].startswith(f"traces do not reach {host}:{port} (")
