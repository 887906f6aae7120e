"""The log's schema: what each event and each logging call becomes."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trace_records import DECISION, NOTHING_KNOWN, TRACE_ID, record

from gpt_oss_server.events import (
    DecisionTaken,
    Event,
    HttpAnswered,
    RequestEnded,
    TurnedAway,
    WorkerRestarted,
)
from gpt_oss_server.facts import Pressure, RequestFacts
from gpt_oss_server.telemetry.log_lines import (
    Line,
    Logged,
    Stamped,
    as_json,
    as_text,
    level_of,
    line_of,
    logged,
)
from gpt_oss_server.trail import CURRENT_IDS, Ids

DOCS = Path(__file__).parents[3] / "docs" / "logs.md"
NOON = 1704110400.0  # 2024-01-01T12:00:00Z
FACTS = RequestFacts(
    request_id="req_12345",
    trace_id=TRACE_ID,
    input_tokens=10_000,
    max_output_tokens=10,
    predicted_kv_bytes=7500 << 20,
    client_id="key-0",
    session_id="user:secret",
)
DECIDED = DecisionTaken(FACTS, DECISION, "single", 25e-6, NOON)
AWAY = TurnedAway(
    request_id="req_12345",
    reason="deadline",
    priority=5,
    decided="single_gpu",
    waited_s=1.5,
    retry_after_s=7.0,
)
EVENTS: list[Event] = [DECIDED, RequestEnded(record()), AWAY, WorkerRestarted("it ended", 2)]


def line(event: Event, ids: Ids | None = None) -> dict[str, Any]:
    decoded = json.loads(as_json(line_of(Stamped(NOON, event, ids))))
    assert isinstance(decoded, dict)
    return decoded


def test_a_decision_is_exactly_as_promised() -> None:
    """The contract's fields with the contract's values, in the contract's order."""
    decoded = line(DECIDED)
    promised = {
        "timestamp": "2024-01-01T12:00:00.000Z",
        "level": "info",
        "event_type": "routing.decision",
        "request_id": "req_12345",
        "trace_id": TRACE_ID,
        "route": "multi_gpu",
        "reason": "large_input: 10000 > 8000 tokens",
        "metadata": {
            "input_tokens": 10000,
            "predicted_kv_mb": 7500,
            "gpu_memory_pressure": 0.72,
        },
    }
    metadata = decoded["metadata"]
    decoded["metadata"] = {key: metadata[key] for key in promised["metadata"]}
    assert decoded == promised
    assert list(decoded) == list(promised)
    assert list(metadata)[:3] == list(promised["metadata"])


def test_an_unknown_pressure_is_null() -> None:
    """Not 0: nobody measured it."""
    decision = msgspec.structs.replace(DECISION, pressure=Pressure(None))
    event = msgspec.structs.replace(DECIDED, decision=decision)
    assert line(event)["metadata"]["gpu_memory_pressure"] is None


def test_the_end_of_a_request() -> None:
    """How it ended, where it ran, what it took and how long."""
    assert line(RequestEnded(record())) == {
        "timestamp": "2023-11-14T22:13:22.000Z",
        "level": "info",
        "event_type": "request.end",
        "request_id": "req_1",
        "trace_id": TRACE_ID,
        "route": "single_gpu",
        "reason": "large_input: 10000 > 8000 tokens",
        "outcome": "ok",
        "status": 200,
        "metadata": {
            "endpoint": "/v1/chat/completions",
            "model": "tiny",
            "stream": True,
            "n": 1,
            "priority": 5,
            "client_class": "address",
            "input_tokens": 10_000,
            "cached_tokens": 2_500,
            "output_tokens": 5,
            "reasoning_tokens": 2,
            "finish_reasons": ["stop"],
            "queue_ms": 250.0,
            "prefill_ms": 250.0,
            "ttft_ms": 1000.0,
            "tpot_ms": 125.0,
            "e2e_ms": 2000.0,
        },
    }


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("ok", "info"),
        ("cancelled", "info"),
        ("bad_request", "info"),
        ("overloaded", "warning"),
        ("not_ready", "warning"),
        ("engine_failed", "error"),
        ("internal", "error"),
    ],
)
def test_how_severe_an_end_is(outcome: str, level: str) -> None:
    """A client's mistake is no warning of ours; a failure of ours is an error."""
    assert line(RequestEnded(record(outcome=outcome, **NOTHING_KNOWN)))["level"] == level


def test_a_request_turned_away() -> None:
    """Why, after how long, and when to come back; its trace is that of the running request."""
    decoded = line(AWAY, Ids("req_12345", TRACE_ID))
    assert (decoded["request_id"], decoded["trace_id"]) == ("req_12345", TRACE_ID)
    assert (decoded["route"], decoded["reason"]) == ("single_gpu", "deadline")
    assert decoded["metadata"] == {"priority": 5, "waited_ms": 1500.0, "retry_after_s": 7.0}


def test_a_restart() -> None:
    """No request, a warning, how it ended."""
    assert line(WorkerRestarted("it ended", 2)) == {
        "timestamp": "2024-01-01T12:00:00.000Z",
        "level": "warning",
        "event_type": "engine.restart",
        "message": "it ended",
        "metadata": {"restarts": 2},
    }


def test_events_without_a_line() -> None:
    """They have no level, and asking for their line is a mistake."""
    event = HttpAnswered("/health", 200, 0.1)
    assert level_of(event) is None
    with pytest.raises(TypeError, match="HttpAnswered"):
        line_of(Stamped(NOON, event, None))


def call(message: str, *args: object, name: str = "a.b", exc_info: Any = None) -> Logged:
    return logged(logging.LogRecord(name, logging.WARNING, "f.py", 1, message, args, exc_info))


def test_a_logging_call_carries_the_ids_of_its_request() -> None:
    """Both ids inside a request; none outside; no trace where there is none."""
    outside = json.loads(as_json(line_of(call("%d of %s", 1, "x"))))
    assert (outside["message"], outside["logger"], outside["level"]) == ("1 of x", "a.b", "warning")
    assert outside.keys().isdisjoint({"request_id", "trace_id"})
    token = CURRENT_IDS.set(Ids("req_1", TRACE_ID))
    inside = json.loads(as_json(line_of(call("x"))))
    CURRENT_IDS.reset(token)
    assert (inside["request_id"], inside["trace_id"]) == ("req_1", TRACE_ID)
    token = CURRENT_IDS.set(Ids("req_2", ""))
    untraced = json.loads(as_json(line_of(call("x"))))
    CURRENT_IDS.reset(token)
    assert untraced["request_id"] == "req_2"
    assert "trace_id" not in untraced


def failure() -> Any:
    try:
        raise ValueError("the prompt said: my password is hunter2")
    except ValueError:
        return sys.exc_info()


def test_of_an_exception_only_its_class_and_place() -> None:
    """Its message may quote a prompt; so may what asyncio says of a lost one."""
    told = call("it failed", exc_info=failure())
    assert re.fullmatch(r"it failed: ValueError at \S+test_log_lines\.py:\d+ failure", told.message)
    lost = call("Task exception was never retrieved\nfuture: ValueError('hunter2')", name="asyncio")
    assert lost.message == "Task exception was never retrieved"


def test_for_people() -> None:
    """Time, level, what happened, figures that are known, the request's id."""
    text = as_text(line_of(Stamped(NOON, RequestEnded(record(cached_tokens=None)), None))).decode()
    assert text == (
        "22:13:22.000 INFO    request.end ok 200 single_gpu large_input: 10000 > 8000 tokens "
        "endpoint=/v1/chat/completions model=tiny stream=True n=1 priority=5 "
        "client_class=address input_tokens=10000 output_tokens=5 reasoning_tokens=2 "
        "finish_reasons=stop queue_ms=250 prefill_ms=250 ttft_ms=1000 tpot_ms=125 e2e_ms=2000 "
        "[req_1]"
    )
    assert as_text(line_of(Logged(NOON, logging.INFO, "a", "hello", None))).decode() == (
        "12:00:00.000 INFO    hello"
    )


@pytest.mark.parametrize("form", [as_json, as_text])
def test_one_line_is_one_line(form: Any) -> None:
    """Line ends and terminal codes in a message cannot forge a line or colour one."""
    told = line_of(Logged(NOON, logging.INFO, "a", "x\r\n12:00 INFO forged\x1b[31m\u2028y", None))
    text = form(told).decode()
    assert not re.search(r"[\x00-\x1f\x7f]", text)
    assert len(text.split("\n")) == 1


def test_the_schema_is_documented() -> None:
    """docs/logs.md names every field, every event and every figure that lines carry."""
    text = DOCS.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z0-9_.]+)`", text))
    fields = set(Line.__struct_fields__)
    lines = [line(event, Ids("r", "t")) for event in EVENTS]
    figures = {key for decoded in lines for key in decoded["metadata"]}
    kinds = {decoded["event_type"] for decoded in lines} | {"log"}
    assert fields | figures | kinds <= documented


def test_the_documented_example_is_real() -> None:
    """The decision in docs/logs.md is what the code writes for it."""
    example = re.search(r"^\{.*routing\.decision.*\}$", DOCS.read_text(), re.MULTILINE)
    assert example is not None
    assert example.group() == as_json(line_of(Stamped(NOON, DECIDED, None))).decode()
