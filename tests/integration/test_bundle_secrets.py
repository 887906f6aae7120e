"""Secrets and prompts planted everywhere: none is in a bundle, neither as JSON nor as a zip.

Every planted text holds the word in `MARK`, which occurs in no name of the code.
"""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundle_server import BundleServer, bundle_server
from byte_format import ByteFormat, ids_of

from gpt_oss_server.config import Settings, load
from gpt_oss_server.engine.fake import FakeEngine, Script
from gpt_oss_server.types import Job

MARK = "xyzzy"
ADMIN = f"{MARK}-admin-key"
USER = f"sk-{MARK}-user-key"
HEADERS = {"authorization": f"Bearer {USER}"}
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{MARK}",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Basic {MARK}",
    "AWS_SECRET_ACCESS_KEY": f"aws/{MARK}",
    "NCCL_DEBUG": f"nccl-{MARK}",
    "NCCL_BUFFSIZE": f"buffer-{MARK}",
    "GPT_OSS_ADMIN_KEY": ADMIN,
    "SOME_VARIABLE": f"plain-{MARK}",
}
YAML = f"""
api_key: ["{USER}", "second-{MARK}-key"]
decision_log: {{folder}}/{MARK}-decisions
large_input_tokens: 100
pressure_input_tokens: 50
"""
OUTPUT = f"the answer is {MARK}, twice {MARK}"


class QuotingFormat(ByteFormat):
    """Fails as libraries do: with a message that quotes what it choked on."""

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        if "choke" in str(messages):
            raise ValueError(f"cannot render {messages}")
        return super().render_chat(messages, **options)


def script(job: Job) -> Script:
    """An answer to plant, or a failure that quotes the prompt."""
    text = bytes(token - 16 for token in job.prompt if token >= 16).decode()
    if "break" in text:
        return Script((1,), fail_after=0, error=RuntimeError(f"while generating for {text}"))
    return Script((*ids_of(OUTPUT), 2))


def plant(server: BundleServer) -> list[int]:
    """Requests of every kind with something to hide; returns their statuses."""

    def chat(content: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": f"system {MARK}"},
                {"role": "user", "content": content},
            ],
            "max_tokens": 64,
            **fields,
        }
        return server.http.post("/v1/chat/completions", json=body, headers=headers or HEADERS)

    prompt = f"my password is {MARK} " * 9
    arguments = {"name": "f", "arguments": f'{{"a": "{MARK}"}}'}
    asked = [{"role": "user", "content": "x"}]
    called = {"id": "1", "type": "function", "function": arguments}
    tool = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {}}}
    ids = {"x-request-id": f"sk-{MARK}-id", "x-session-id": f"{MARK}-diary"}
    answers = [
        chat(prompt),
        chat(prompt, stream=True, user=f"{MARK}@example.org"),
        chat(prompt, headers={**HEADERS, **ids, "cookie": f"session={MARK}"}),
        chat(f"please choke on {MARK}"),
        chat(f"please choke on {MARK}", headers={**HEADERS, **ids}),
        chat(f"please break on {MARK}"),
        chat(prompt, tools=[tool]),
        chat(prompt, messages=[*asked, {"role": "assistant", "tool_calls": [called]}]),
        chat(prompt, model=f"{MARK}-model"),
        chat(prompt, temperature=MARK),
        chat(prompt, headers={"authorization": f"Bearer wrong-{MARK}"}),
        chat(prompt, headers={**HEADERS, "x-session-id": f"not sane {MARK}"}),
        chat(prompt, headers={**HEADERS, "traceparent": f"00-{MARK}-1-01", "tracestate": MARK}),
        server.http.post(
            "/v1/completions",
            json={"model": "tiny", "prompt": [prompt, prompt], "max_tokens": 3, "stop": [MARK]},
            headers=HEADERS,
        ),
        server.http.post(
            "/v1/chat/completions",
            content=f'{{"model": "{MARK}',
            headers={**HEADERS, "content-type": "application/json"},
        ),
        server.http.get(f"/v1/models/{MARK}", headers=HEADERS),
        server.http.get(f"/{MARK}?q={MARK}", headers=HEADERS),
        server.http.post("/tokenize", json={"model": "tiny", "prompt": prompt}, headers=HEADERS),
    ]
    return [answer.status_code for answer in answers]


async def fail_in_the_background() -> None:
    """asyncio logs the exception of a task that nobody waits for."""

    async def fail() -> None:
        raise ValueError(f"background {MARK}")

    task = asyncio.create_task(fail(), name=f"task {MARK}")
    await asyncio.wait((task,))
    del task
    gc.collect()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(YAML.format(folder=tmp_path))
    environ = {"GPT_OSS_ADMIN_KEY": ADMIN}
    return load({"config": str(file), "log_file": f"{tmp_path}/{MARK}-log"}, environ)


def test_nothing_planted_is_found(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys in flags, environment and file; prompts, answers, users, sessions, ids, tools, paths;
    exceptions that quote them; requests that run while the bundle is read."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    engine = FakeEngine(script)
    log = tmp_path / f"{MARK}-log"
    admin = {"authorization": f"Bearer {ADMIN}"}
    with (
        bundle_server(
            log,
            settings,
            engine=engine,
            chat_format=QuotingFormat(),
            environ={"NCCL_BUFFSIZE": f"buffer-{MARK}"},
        ) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        statuses = plant(server)
        assert {200, 400, 401, 404, 500} <= set(statuses), statuses
        server.run(fail_in_the_background())
        logging.getLogger("some.library").error("could not parse %s", f"{MARK} text")
        try:
            raise KeyError(f"{MARK} in an exception")
        except KeyError:
            logging.getLogger("some.library").exception("failed on %s", MARK)
            logging.getLogger("gpt_oss_server.somewhere").exception("one of ours failed")
        while b"one of ours failed" not in log.read_bytes():
            pass  # a thread writes the log
        server.steer(engine.close_gate)
        running = pool.submit(
            server.http.post,
            "/v1/completions",
            json={"model": "tiny", "prompt": f"now {MARK}", "max_tokens": 3},
            headers=HEADERS,
        )
        server.until(lambda engine: engine.active == 1)
        document = server.bundle(**admin)
        answer = server.zip(**admin)
        text = server.http.get("/admin/debug/bundle", headers=admin).content
        server.steer(engine.open_gate)
        assert running.result().status_code == 200
    assert places(text) == []
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        for name in archive.namelist():
            assert MARK not in name
            assert places(archive.read(name)) == [], name
    as_ids = ",".join(map(str, ids_of(f"my password is {MARK}")))
    assert as_ids not in text.decode().replace(" ", "").replace("\n", "")
    _is_not_empty(document)


def places(content: bytes) -> list[bytes]:
    """Where a planted text has come through, with what stands around it."""
    return re.findall(rb".{0,60}" + MARK.encode() + rb".{0,20}", content.lower())


def _is_not_empty(document: dict[str, Any]) -> None:
    """The bundle has not been kept clean by being kept empty."""
    states = document["manifest"]["sections"]
    assert {name for name, state in states.items() if state["status"] != "ok"} == set()
    values = document["configuration"]["values"]
    assert (values["api_key"], values["admin_key"], values["decision_log"]) == ("set",) * 3
    assert document["gpu_routing"]["total_requests"] >= 4
    assert document["gpu_routing"]["trigger_breakdown"]["large_input"] >= 3
    kinds = {line["event_type"] for line in document["logs"]}
    assert {"log", "routing.decision", "request.end"} <= kinds
    said = {(line.get("logger"), line.get("message")) for line in document["logs"]}
    assert ("asyncio", "[hidden]") in said
    assert ("some.library", "[hidden]") in said
    assert any(
        logger == "gpt_oss_server.somewhere" and message.startswith("one of ours failed: KeyError")
        for logger, message in said
        if message is not None
    )
    outcomes = {line.get("outcome") for line in document["logs"]}
    assert {"ok", "internal", "bad_request", "unauthorized", "not_found"} <= outcomes
    assert document["nccl"]["kept_from_user"] == {"NCCL_BUFFSIZE": "set"}
    assert document["doctor"]["environment"]["NCCL_DEBUG"] == "set"
    assert any("completions" in str(task["frames"]) for task in document["tasks"])
