"""One completion over HTTP/1.1 and what it was like, for the load benchmarks.

Knows: how to ask an OpenAI-compatible server on this machine, server-sent events, clocks, random
prompts. Does not know: what is measured. A request that is cancelled closes its connection, as a
client that walks away does.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools

READ_BYTES = 1 << 16
CONSONANTS, VOWELS = "bcdfghklmnprstvw", "aeiou"


@dataclass
class Answer:
    """What one request got. Times in seconds from when it was sent; `first_s` is its first
    piece of text. `status` 0 is no answer at all."""

    status: int = 0
    first_s: float | None = None
    whole_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retry_after_s: float | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def complete(self) -> bool:
        return self.status == 200 and self.error is None and self.completion_tokens > 0


@dataclass
class _Reader:
    """httptools' callbacks: the head, then events as they come."""

    began_s: float
    answer: Answer = field(default_factory=Answer)
    done: bool = False
    _body: bytes = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.answer.retry_after_s = float(value)

    def on_body(self, body: bytes) -> None:
        *events, self._body = (self._body + body).split(b"\n\n")
        for event in events:
            self._take(event.removeprefix(b"data: "))

    def on_message_complete(self) -> None:
        if self._body:
            self._take(self._body)
        self.done = True

    def _take(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            return
        chunk = json.loads(payload)
        if chunk.get("error"):
            self.answer.error = str(chunk["error"].get("message"))[:200]
        has_text = any(choice.get("text") for choice in chunk.get("choices", ()))
        if has_text and self.answer.first_s is None:
            self.answer.first_s = time.perf_counter() - self.began_s
        usage = chunk.get("usage")
        if usage:
            self.answer.prompt_tokens = usage["prompt_tokens"]
            self.answer.completion_tokens = usage["completion_tokens"]


async def complete(port: int, body: dict[str, Any], key: str | None = None) -> Answer:
    """Ask for a streamed completion and read it to its end. Never raises for what the server
    does; a connection that breaks is an answer with status 0 or an error."""
    content = json.dumps(
        {"stream": True, "stream_options": {"include_usage": True}, "model": "tiny", **body}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n"
        + (f"Authorization: Bearer {key}\r\n" if key else "")
        + "\r\n"
    )
    began_s = time.perf_counter()
    reader = _Reader(began_s)
    parser = httptools.HttpResponseParser(reader)
    try:
        source, target = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return Answer(error=f"cannot connect: {error}")
    try:
        target.write(head.encode() + content)
        while not reader.done:
            data = await source.read(READ_BYTES)
            if not data:
                break
            parser.feed_data(data)
            reader.answer.status = parser.get_status_code()
    except OSError as error:
        reader.answer.error = f"connection lost: {error}"
    finally:
        target.transport.abort()
    reader.answer.whole_s = time.perf_counter() - began_s
    if not reader.done and reader.answer.error is None:
        reader.answer.error = "connection closed before the end"
    return reader.answer


class Prompts:
    """Random text that no two requests share the beginning of, sized in tokens."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words = sorted(
            {
                "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
                for _ in range(600)
            }
        )
        self._tokens_per_word = 2.0

    def learn(self, words: int, tokens: int) -> None:
        """Take the ratio from a request that was answered."""
        self._tokens_per_word = tokens / words

    def of(self, tokens: int) -> str:
        """About that many tokens."""
        return self.words(max(1, round(tokens / self._tokens_per_word)))

    def words(self, count: int) -> str:
        return " ".join(self._rng.choices(self._words, k=count))

    def log_uniform(self, low: int, high: int) -> int:
        return round(math.exp(self._rng.uniform(math.log(low), math.log(high))))


async def calibrate(port: int, prompts: Prompts, key: str | None = None) -> None:
    """Learn how many tokens a word of these prompts is, from one request."""
    answer = await complete(port, {"prompt": prompts.words(400), "max_tokens": 1}, key)
    if not answer.complete:
        raise RuntimeError(f"the first request failed: {answer}")
    prompts.learn(400, answer.prompt_tokens)


def nearest_rank(values: Sequence[float], share: float) -> float | None:
    """The quantile that was really measured; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
