"""What may be shown of settings, log lines and ids; and the sieve behind all that."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from bundle_decisions import OWN_ID, TRACE_ID, decided

from gpt_oss_server.bundle import redact
from gpt_oss_server.bundle.redact import (
    HIDDEN,
    SHOWN_SETTINGS,
    Sieve,
    known_secrets,
    shown_line,
    shown_request_id,
    shown_settings,
    shown_statistics,
)
from gpt_oss_server.config import TABLE, Row, Settings
from gpt_oss_server.config_kinds import Text
from gpt_oss_server.events import RequestEnded
from gpt_oss_server.telemetry.log_lines import Logged, Stamped, as_json, line_of
from gpt_oss_server.trail import Ids, Trail


def test_settings_are_shown_by_list() -> None:
    """Values of what is listed; of the rest only whether it is set."""
    settings = Settings(
        api_key=("sk-1",),
        admin_key="sk-2",
        port=8123,
        decision_log="/home/alice/decisions",
        otlp_endpoint="http://collector/token-1",
    )
    shown = shown_settings(settings, {"GPT_OSS_API_KEY": "sk-1", "HOME": "/home/alice"})
    assert set(shown["values"]) == {field.name for field in dataclasses.fields(Settings)}
    hidden = {name: shown["values"][name] for name in shown["values"] if name not in SHOWN_SETTINGS}
    assert hidden == {
        "model": "tiny",
        "api_key": "set",
        "admin_key": "set",
        "device_map": "not set",
        "decision_log": "set",
        "log_file": "not set",
        "otlp_endpoint": "set",
        "responses_store": "not set",
    }
    assert (shown["values"]["port"], shown["values"]["max_queue"]) == (8123, 256)
    assert shown["from_environment"] == ["GPT_OSS_API_KEY"]


def test_a_new_setting_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that nobody has put on the list shows whether it is set, not its value."""
    row = Row("new_thing", None, Text(), "Operation", "help", "none")
    monkeypatch.setattr(redact, "TABLE", (*TABLE, row))
    settings = Settings()
    object.__setattr__(settings, "new_thing", "a value")
    assert shown_settings(settings, {})["values"]["new_thing"] == "set"


def test_the_list_names_settings_that_exist() -> None:
    """No leftover of a renamed setting; no secret; no free text but public names."""
    rows = {row.name: row for row in TABLE}
    assert set(rows) >= SHOWN_SETTINGS
    assert not any(rows[name].secret for name in SHOWN_SETTINGS)
    free = {name for name in SHOWN_SETTINGS if rows[name].kind == Text()}
    assert free == {"host", "served_model_name"}


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("20b", "openai/gpt-oss-20b"),
        ("org/some-model", "org/some-model"),
        ("/home/alice/no-such-folder", "no-such-folder"),
        ("not a model", HIDDEN),
    ],
)
def test_a_model_is_named_without_where_it_lies(model: str, shown: str) -> None:
    """Hub ids are public names; a path is not."""
    assert shown_settings(Settings(model=model), {})["values"]["model"] == shown


def test_a_model_folder_shows_its_own_name(tmp_path: Path) -> None:
    """The last part of a local folder, which metrics show as well."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert shown_settings(Settings(model=str(folder)), {})["values"]["model"] == "my-model"


def test_statistics_are_shown_by_list() -> None:
    """Parts that are on it; one that is new is hidden."""
    document = {"gpu_routing": {"a": 1}, "kv": 2, "nccl": {"X": "y"}, "new": 3}
    assert shown_statistics(document) == {"gpu_routing": {"a": 1}, "kv": 2}


def test_who_waits_is_shown_as_a_number() -> None:
    """How many wait for each client, the most first; not whose address it is."""
    admission = {"waiting": 5, "waiting_by_client": {"203.0.113.7": 1, "key-3": 4}}
    assert shown_statistics({"admission": admission}) == {
        "admission": {"waiting": 5, "waiting_by_client": [4, 1]}
    }
    assert shown_statistics({"admission": None}) == {"admission": None}


@pytest.mark.parametrize(
    ("request_id", "shown"),
    [
        (OWN_ID, OWN_ID),
        ("sk-live-123456", "sha256:4cd6651b1dad"),
        ("req_" + "0" * 31, None),
        ("alice@example.org", None),
        (OWN_ID + "x", None),
    ],
)
def test_a_clients_own_request_id_is_hashed(request_id: str, shown: str | None) -> None:
    """Only what this server drew is shown: a client may send its key as an id."""
    found = shown_request_id(request_id)
    assert found == shown if shown else found.startswith("sha256:") and len(found) == 19


def event_line(event: Any, ids: Ids | None = None) -> bytes:
    return as_json(line_of(Stamped(1.0, event, ids)))


def log_line(logger: str, message: str, request_id: str = OWN_ID) -> bytes:
    ids = Ids(request_id, TRACE_ID)
    return as_json(line_of(Logged(1.0, logging.ERROR, logger, message, ids)))


def test_a_decision_line_is_shown_whole() -> None:
    """Everything on it is a figure, one of our words, or an id."""
    assert shown_line(event_line(decided(OWN_ID))) == {
        "timestamp": "1970-01-01T00:00:01.000Z",
        "level": "info",
        "event_type": "routing.decision",
        "request_id": OWN_ID,
        "trace_id": TRACE_ID,
        "route": "multi_gpu",
        "reason": "large_input: 10000 > 8000 tokens",
        "metadata": {
            "input_tokens": 10_000,
            "predicted_kv_mb": 7500.0,
            "gpu_memory_pressure": 0.72,
            "trigger": "large_input",
            "executed": "single_gpu",
            "unmet_recommendation": True,
            "gpu_mode": "single",
            "decide_us": 20.0,
        },
    }


def test_the_end_of_a_request_is_shown_without_the_models_name() -> None:
    """What operators call their model is theirs; figures and outcomes are shown."""
    trail = Trail(request_id="my-own-id", endpoint="/v1/chat/completions")
    trail.named("chatcmpl-1", "alice's model", stream=True)
    line = shown_line(event_line(RequestEnded(trail.end("ok", 200))))
    assert line is not None
    assert (line["event_type"], line["outcome"], line["status"]) == ("request.end", "ok", 200)
    assert line["metadata"]["endpoint"] == "/v1/chat/completions"
    assert line["metadata"]["stream"] is True
    assert "model" not in line["metadata"]
    assert line["request_id"].startswith("sha256:")


def test_our_own_messages_are_shown_without_what_clients_chose() -> None:
    """The request's id and path are taken out; the rest stays."""
    message = "internal error: KeyError at x.py:1 f (request_id=sk-me, path=/v1/models/secret)"
    line = shown_line(log_line("gpt_oss_server.api.app", message, "sk-me"))
    assert line is not None
    hashed = shown_request_id("sk-me")
    assert line["message"] == (
        f"internal error: KeyError at x.py:1 f (request_id={hashed}, path={HIDDEN}"
    )
    assert line["logger"] == "gpt_oss_server.api.app"


@pytest.mark.parametrize("logger", ["asyncio", "uvicorn.error", "gpt_oss_server_fake", "root"])
def test_what_libraries_say_is_hidden(logger: str) -> None:
    """Who said something, when and how loud; not what: it may quote anything."""
    line = shown_line(log_line(logger, "failed on: the whole prompt"))
    assert line is not None
    assert (line["logger"], line["level"], line["message"]) == (logger, "error", HIDDEN)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", None),
        (b"INFO a line for people", None),
        (b"[1]", None),
        (b"\xff{}", None),
        (b"{}", {}),
        (
            b'{"event_type":"new.kind","reason":"a b","message":"a b","prompt":"x"}',
            {"event_type": "new.kind"},
        ),
        (
            b'{"metadata":{"input_tokens":"two words","prompt":"x","n":1}}',
            {"metadata": {"input_tokens": HIDDEN, "n": 1}},
        ),
        (b'{"level":{"a":"two words"},"trace_id":"xyz","request_id":7}', {"level": HIDDEN}),
    ],
)
def test_lines_of_any_shape(line: bytes, expected: dict[str, Any] | None) -> None:
    """What is no line of ours is left out; fields and values not foreseen are hidden."""
    assert shown_line(line) == expected


SECRETS = [
    "sk-proj-abcDEF123456",
    "hf_AbCdEfGhIjKlMnOpQr",
    "ghp_0123456789abcdefghij",
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_1",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_the_sieve_knows_a_key_by_its_looks(secret: str) -> None:
    """In values, keys and the middle of a text."""
    found = Sieve([])({"a": [f"key={secret}, and more"], secret: (secret,)})
    assert secret not in json.dumps(found)
    assert found["a"] == [f"key={HIDDEN}, and more"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {HIDDEN}"),
        ("http://user:pass@host/x", f"http://{HIDDEN}@host/x"),
        ("task-1 desk-2 risk-averse_people", "task-1 desk-2 risk-averse_people"),
        ("http://host:8000/a@b", "http://host:8000/a@b"),
    ],
)
def test_the_sieve_leaves_what_is_no_key(text: str, left: str) -> None:
    """Only the secret part goes."""
    assert Sieve([])(text) == left


def test_the_sieve_knows_the_keys_that_are_set() -> None:
    """Whatever they look like, longest first; figures stay figures."""
    sieve = Sieve(["open sesame", "sesame"])
    assert sieve({"a": "open sesame!", "b": "sesame", "c": 12, "d": None, "e": True}) == {
        "a": f"{HIDDEN}!",
        "b": HIDDEN,
        "c": 12,
        "d": None,
        "e": True,
    }


def test_which_secrets_are_known(tmp_path: Path) -> None:
    """Both keys, and what the environment calls a secret; no numbers, paths or short words."""
    settings = Settings(api_key=("first-key", "abc"), admin_key="admin-key")
    environ = {
        "HF_TOKEN": "token-value",
        "AWS_SECRET_ACCESS_KEY": "/starts/like/a/path",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=value",
        "MAX_TOKENS": "123456789",
        "SSH_AUTH_SOCK": str(tmp_path),
        "TOKEN_KIND": "short",
        "HOME": "/home/somebody",
    }
    assert known_secrets(settings, environ) == [
        "first-key",
        "admin-key",
        "token-value",
        "/starts/like/a/path",
        "x-key=value",
    ]
    assert known_secrets(None, {}) == []
