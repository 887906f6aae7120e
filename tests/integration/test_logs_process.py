"""The log of a real server process: one schema, the same ids, nothing private, nobody held up."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
from pathlib import Path
from typing import Any

import pytest
from app_process import client, running

SECRETS = (
    "sk-planted-key",
    "planted-admin-key",
    "planted prompt",
    "planted-answer",
    "planted-user",
)
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "planted prompt planted-answer"}],
    "max_tokens": 64,
    "user": "planted-user",
}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
LARGE = ("--large-input-tokens", "10", "--pressure-input-tokens", "10")


def lines_of(err: str) -> list[dict[str, Any]]:
    """Every line of stderr, each a JSON object with the three fields that all lines have."""
    lines = [json.loads(line) for line in err.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
        assert line["level"] in {"debug", "info", "warning", "error"}
        assert line["event_type"]
    return lines


def test_every_line_of_a_request_has_its_ids() -> None:
    """Decision, warning and end of one request: the client's request id, the caller's trace id."""
    headers = {"x-request-id": "req_12345", "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    with running("steered", *LARGE) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            assert http.post("/v1/chat/completions", json=CHAT, headers=headers).is_success
            assert http.post("/v1/chat/completions", json=CHAT).is_success
        server.terminate()
        status, _, err = server.end()
    assert status == 0
    lines = [line for line in lines_of(err) if line.get("request_id") == "req_12345"]
    assert [line["event_type"] for line in lines] == ["routing.decision", "log", "request.end"]
    assert {line["trace_id"] for line in lines} == {TRACE_ID}
    decision, warning, end = lines
    metadata = decision.pop("metadata")
    assert decision.pop("timestamp")
    assert decision == {
        "level": "info",
        "event_type": "routing.decision",
        "request_id": "req_12345",
        "trace_id": TRACE_ID,
        "route": "multi_gpu",
        "reason": f"large_input: {metadata['input_tokens']} > 10 tokens",
    }
    assert metadata["input_tokens"] == end["metadata"]["input_tokens"]
    assert metadata["predicted_kv_mb"] >= 0
    assert 0 <= metadata["gpu_memory_pressure"] <= 1
    assert warning["level"] == "warning"
    assert "Large request detected but model in single GPU mode" in warning["message"]
    assert (end["route"], end["outcome"], end["status"]) == ("single_gpu", "ok", 200)
    others = {line["trace_id"] for line in lines_of(err) if "trace_id" in line} - {TRACE_ID}
    assert len(others) == 1
    assert re.fullmatch("[0-9a-f]{32}", others.pop())


def test_nothing_private_is_logged() -> None:
    """Not even at level debug, not in errors: no prompt, answer, key or user."""
    keys = ("--api-key", SECRETS[0], "--admin-key", SECRETS[1], "--log-level", "debug")
    with running("steered", *keys) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            auth = {"authorization": f"Bearer {SECRETS[0]}"}
            for body in (CHAT, {**CHAT, "stream": True}, {**CHAT, "planted prompt": 1}):
                http.post("/v1/chat/completions", json=body, headers=auth)
            http.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer x"})
            http.post("/v1/completions", json={"model": "tiny", "prompt": SECRETS[2]}, headers=auth)
            http.post("/v1/chat/completions", content=b'{"planted prompt', headers=auth)
        server.terminate()
        status, _, err = server.end()
    assert status == 0
    ends = [line["outcome"] for line in lines_of(err) if line["event_type"] == "request.end"]
    assert sorted(ends) == ["bad_request", "bad_request", "ok", "ok", "ok", "unauthorized"]
    assert [secret for secret in SECRETS if secret in err] == []


def test_a_full_disk_holds_nobody_up() -> None:
    """With a log that cannot be written, requests are answered, lost lines are counted, and
    stderr says so once."""
    with running("steered", "--log-file", "/dev/full") as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            for _ in range(3):
                assert http.post("/v1/chat/completions", json=CHAT).is_success
            counted = re.compile(
                r'^gpt_oss_lines_dropped_total\{writer="log"\} 6\.0$', re.MULTILINE
            )
            while not counted.search(http.get("/metrics").text):
                pass
        server.terminate()
        status, _, err = server.end()
    assert (status, err) == (0, "error: cannot write the log: No space left on device\n")


def test_a_full_disk_under_the_decision_log_is_counted_too() -> None:
    """Its lost lines have a count of their own; the log says so once."""
    with running("steered", "--decision-log", "/dev/full") as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            for _ in range(3):
                assert http.post("/v1/chat/completions", json=CHAT).is_success
            lost = '\ngpt_oss_lines_dropped_total{writer="decision_log"} 3.0\n'
            while lost not in http.get("/metrics").text:
                pass
        server.terminate()
        status, _, err = server.end()
    assert status == 0
    said = [line["message"] for line in lines_of(err) if line["event_type"] == "log"]
    assert said == [
        "cannot write to /dev/full: No space left on device",
        "3 lines could not be written to /dev/full",
    ]


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    """Behind a pipe that is full and whose reader hangs, requests are answered and the server
    ends as told."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(reader, b"x" * 4096)
    with running("steered", "--log-file", str(pipe)) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            for _ in range(3):
                assert http.post("/v1/chat/completions", json=CHAT).is_success
            assert http.get("/metrics").is_success
        server.terminate()
        assert server.end()[::2] == (0, "")
    os.close(reader)


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """The log goes to the file, behind what is there, as JSON; stderr stays silent."""
    log = tmp_path / "server.log"
    log.write_text("before\n")
    with running("steered", "--log-file", str(log)) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            assert http.post("/v1/chat/completions", json=CHAT).is_success
        server.terminate()
        assert server.end()[::2] == (0, "")
    first, *rest = log.read_text().splitlines()
    assert first == "before"
    kinds = [line["event_type"] for line in lines_of("\n".join(rest))]
    assert kinds == ["routing.decision", "request.end"]


def test_a_terminal_gets_text() -> None:
    """On a terminal the same lines are for people."""
    ours, theirs = pty.openpty()
    with running("steered", "--log-file", os.ttyname(theirs)) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            headers = {"x-request-id": "req_12345"}
            assert http.post("/v1/chat/completions", json=CHAT, headers=headers).is_success
        server.terminate()
        assert server.end()[0] == 0
    shown = b""
    while shown.count(b"\n") < 2:
        shown += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    decision, end = shown.decode().splitlines()
    pattern = r"\d\d:\d\d:\d\d\.\d{3} INFO    routing\.decision single_gpu default.* \[req_12345\]"
    assert re.fullmatch(pattern, decision)
    assert re.search(r"INFO    request\.end ok 200 single_gpu .* output_tokens=\d+ ", end)


@pytest.mark.parametrize("level", ["warning", "error"])
def test_levels_leave_out_what_is_less_severe(level: str) -> None:
    """At warning and above, good requests are silent."""
    with running("steered", "--log-level", level) as server:
        url = server.url()
        server.read_until("ready")
        with client(url) as http:
            assert http.post("/v1/chat/completions", json=CHAT).is_success
        server.terminate()
        assert server.end()[::2] == (0, "")


def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    """One line that names the setting."""
    with running("steered", "--log-file", str(tmp_path)) as server:
        status, _, err = server.end()
    assert (status, err) == (2, f"error: log_file: {tmp_path} is a folder\n")
