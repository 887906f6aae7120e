"""The same request id and trace id on every line of a request, whoever logs it and where."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from byte_format import ByteFormat
from desk_server import INFO
from observed_server import ObservedServer, observed_server

from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import Script
from gpt_oss_server.telemetry.log_lines import as_json
from gpt_oss_server.telemetry.logs import LogHandler, LogWriter
from gpt_oss_server.types import Job

LOGGER = "some.library"
SHORT, LONG = "hello", "x" * 2000
CASES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "answered": (
        {"stream": True},
        200,
        ["log: rendering", "routing.decision", "log: Large", "log: generating", "request.end: ok"],
    ),
    "broken": (
        {"content": "break"},
        503,
        ["log: rendering", "routing.decision", "log: generating", "request.end: engine_failed"],
    ),
    "a bug": (
        {"content": "choke"},
        500,
        ["log: rendering", "log: internal", "request.end: internal"],
    ),
    "refused": ({"temperature": 9}, 400, ["request.end: bad_request"]),
    "never fits": (
        {"content": LONG},
        400,
        [
            "log: rendering",
            "routing.decision",
            "admission.turned_away: never_fits",
            "request.end: context_too_long",
        ],
    ),
}


class TalkingFormat(ByteFormat):
    """Logs from the thread that renders."""

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        logging.getLogger(LOGGER).warning("rendering")
        if "choke" in str(messages):
            raise ValueError("choked")
        return super().render_chat(messages, **options)


def talking(job: Job) -> Script:
    """Logs from within the engine's generator."""
    logging.getLogger(LOGGER).warning("generating")
    fails = b"break" in bytes(token - 16 for token in job.prompt if token >= 16)
    return Script((17, 18), fail_after=1 if fails else None)


def kind(line: dict[str, Any]) -> str:
    """What a line says, in a word or two."""
    if line["event_type"] == "log":
        return f"log: {line['message'].split()[0]}"
    if line["event_type"] == "request.end":
        return f"request.end: {line['outcome']}"
    if line["event_type"] == "admission.turned_away":
        return f"admission.turned_away: {line['reason']}"
    return str(line["event_type"])


def ask(live: ObservedServer, number: int, content: str = SHORT, **fields: Any) -> int:
    """A chat with ids of its own; its status."""
    headers = {
        "x-request-id": f"req_{number}",
        "traceparent": f"00-{number:032x}-b7ad6b7169203331-01",
    }
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    path = "/v1/chat/completions"
    return live.http.post(path, json={**body, **fields}, headers=headers).status_code


def test_every_line_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered, broken off, turned away, refused or hit by a bug; logged on the event loop or in
    a thread of the text pool, by us or by a library: nothing but its own ids on any line."""
    for name in ("httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    log = tmp_path / "log"
    settings = Settings(large_input_tokens=10, pressure_input_tokens=10)
    with (tmp_path / "log").open("ab", buffering=0) as file:
        writer = LogWriter(file.fileno(), as_json)
        handler = LogHandler(writer)
        logging.getLogger().addHandler(handler)
        try:
            with observed_server(
                log, settings, chat_format=TalkingFormat(), script=talking, info=INFO
            ) as live:
                for number, (fields, status, _) in enumerate(CASES.values(), 1):
                    assert ask(live, number, **fields) == status, fields
        finally:
            logging.getLogger().removeHandler(handler)
            assert writer.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for number, (name, (_, _, expected)) in enumerate(CASES.items(), 1):
        own = [line for line in lines if line.get("request_id") == f"req_{number}"]
        assert sorted(map(kind, own)) == sorted(expected), name
        assert {line["trace_id"] for line in own} == {f"{number:032x}"}, name
    assert [line for line in lines if "request_id" not in line] == []
