"""Secrets and prompts to plant in a server, and how to look for them in what it shows.

Every planted text holds the word in `MARK`, which occurs in no name of the code.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from byte_format import ByteFormat, ids_of
from live_server import LiveServer

from gpt_oss_server.engine.fake import Script
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


def plant(server: LiveServer, request_id: str = f"sk-{MARK}-id") -> list[int]:
    """Requests of every kind with something to hide, two of them under an id of the client's own;
    returns their statuses."""

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
    ids = {"x-request-id": request_id, "x-session-id": f"{MARK}-diary"}
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


def places(content: bytes) -> list[bytes]:
    """Where a planted text has come through, with what stands around it."""
    return re.findall(rb".{0,60}" + MARK.encode() + rb".{0,20}", content.lower())
