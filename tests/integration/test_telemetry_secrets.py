"""Secrets and prompts planted everywhere: none is in the log, the metrics, the statistics or a
trace."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from bundle_server import bundle_server
from planted import ADMIN, ENVIRONMENT, MARK, USER, QuotingFormat, places, plant, script

from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from otlp_receiver import OtlpReceiver

OWN_ID = "req_of_the_client"
OPEN_METRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture(autouse=True)
def _silent_neighbours(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The client of these tests logs the addresses that it asks for, in this same process; and
    uvicorn is kept down as `serve` does."""
    caplog.set_level(logging.WARNING, "uvicorn")
    for name in ("httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)


def test_nothing_planted_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log at level debug, both forms of the metrics, `/stats`, `/memory_stats`, and every span
    with its resource: of prompts, answers, tools, users, sessions, keys, models and paths that a
    client sent, of exceptions that quote them and of the environment, there is nothing."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "log"
    with OtlpReceiver() as receiver:
        settings = Settings(
            api_key=(USER,),
            admin_key=ADMIN,
            large_input_tokens=100,
            pressure_input_tokens=50,
            log_level="debug",
            otlp_endpoint=receiver.url,
            trace_sample_rate=1.0,
        )
        with bundle_server(
            log, settings, engine=FakeEngine(script), chat_format=QuotingFormat()
        ) as server:
            statuses = plant(server, request_id=OWN_ID)
            assert {200, 400, 401, 404, 500} <= set(statuses), statuses
            shown = {
                "/metrics": server.http.get("/metrics").content,
                "OpenMetrics": server.http.get("/metrics", headers=OPEN_METRICS).content,
                "/stats": server.http.get("/stats").content,
                "/memory_stats": server.http.get("/memory_stats").content,
                "/health": server.http.get("/health").content,
            }
        # The server has ended: the log is whole, and all traces were sent.
        spans = [str(span) for span in receiver.spans]
        shown["spans"] = "\n".join(spans).encode()
        shown["resources"] = str(receiver.resources).encode()
    shown["log"] = log.read_bytes()
    assert {name: found for name, text in shown.items() if (found := places(text))} == {}
    _is_not_empty(shown)


def _is_not_empty(shown: dict[str, bytes]) -> None:
    """Nothing was kept clean by being kept empty."""
    lines = [json.loads(line) for line in shown["log"].splitlines()]
    outcomes = {line.get("outcome") for line in lines if line["event_type"] == "request.end"}
    assert {"ok", "internal", "bad_request", "unauthorized", "not_found"} <= outcomes
    assert OWN_ID in {line.get("request_id") for line in lines}
    assert MARK not in OWN_ID
    assert b'outcome="internal"' in shown["/metrics"]
    assert b"# {trace_id=" in shown["OpenMetrics"]
    assert b"route4_gpu_requests" in shown["/stats"]
    for name in (b"chat_completion", b"text_completion", b"routing_decision", b"decode"):
        assert b'name: "%s"' % name in shown["spans"]
    assert b"internal" in shown["spans"]
    assert b"gpt-oss-server" in shown["resources"]
