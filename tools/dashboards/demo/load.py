"""Requests of all kinds, at a rate that comes and goes.

Knows: how to ask an OpenAI-compatible server. Does not know: what is measured. What the server
answers, a refusal too, is as good as anything else.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

PERIOD_S = 40.0
_BURST, _BURST_AT = 40, 0.6
_WORDS = ("the", "cache", "holds", "what", "was", "asked", "before", "and", "routes", "by", "need")
_SYSTEM = " ".join(_WORDS * 25)
_LEAVE_AFTER_CHUNKS = 6


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(_WORDS, k=count)) + f" {rng.randrange(10**6)}"


def _chat(rng: random.Random) -> dict[str, Any]:
    return {"content": _words(rng, rng.randint(3, 60)), "max_tokens": rng.randint(4, 40)}


def _conversation(rng: random.Random) -> dict[str, Any]:
    """Its beginning was seen before."""
    return _chat(rng) | {"system": _SYSTEM, "session": f"conversation-{rng.randrange(12)}"}


def _report(rng: random.Random) -> dict[str, Any]:
    """Large only under memory pressure."""
    return {"content": _words(rng, rng.randint(330, 450)), "max_tokens": 24}


def _book(rng: random.Random) -> dict[str, Any]:
    """A large input."""
    return {"content": _words(rng, rng.randint(900, 1400)), "max_tokens": 16}


def _essay(rng: random.Random) -> dict[str, Any]:
    """A large answer: its predicted KV is what makes it large."""
    return {"content": _words(rng, 200), "max_tokens": 900, "leaves": rng.random() < 0.4}


def _urgent(rng: random.Random) -> dict[str, Any]:
    return _chat(rng) | {"priority": "8"}


_KINDS: tuple[tuple[float, Callable[[random.Random], dict[str, Any]]], ...] = (
    (0.42, _chat),
    (0.24, _conversation),
    (0.12, _report),
    (0.08, _book),
    (0.06, _essay),
    (0.08, _urgent),
)


async def drive(
    url: str, seconds: float, *, per_s: float = 6.0, begin_s: float = 0.0, seed: int = 0
) -> int:
    """Ask for so long, then wait for the answers. Returns how many requests were sent.

    The rate swings around `per_s` with a period of 40 s, is lowest at its beginning, and a burst
    of 40 comes after 60 % of it; `begin_s` is where in a period to begin.
    """
    rng = random.Random(seed)
    sent: set[asyncio.Task[None]] = set()
    limits = httpx.Limits(max_connections=None)
    bursts = 0
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as http:
        began_s = time.monotonic() - begin_s
        while (now_s := time.monotonic() - began_s) < begin_s + seconds:
            due = int(now_s / PERIOD_S - _BURST_AT + 1) - int(begin_s / PERIOD_S - _BURST_AT + 1)
            many = 1 + _BURST * (due - bursts)
            bursts = due
            for _ in range(many):
                (make,) = rng.choices([k for _, k in _KINDS], [w for w, _ in _KINDS])
                sent.add(asyncio.create_task(_ask(http, **make(rng))))
            swing = 0.55 - 0.45 * math.cos(2 * math.pi * now_s / PERIOD_S)
            await asyncio.sleep(rng.expovariate(per_s * swing))
        await asyncio.gather(*sent)
    return len(sent)


async def _ask(
    http: httpx.AsyncClient,
    *,
    content: str,
    max_tokens: int,
    system: str | None = None,
    session: str | None = None,
    priority: str | None = None,
    leaves: bool = False,
) -> None:
    """One stream, read to its end or, by one who leaves, for a few chunks."""
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    headers = {"x-session-id": session, "x-priority": priority}
    body = {"model": "tiny", "messages": messages, "max_tokens": max_tokens, "stream": True}
    async with http.stream(
        "POST",
        "/v1/chat/completions",
        json=body,
        headers={name: value for name, value in headers.items() if value is not None},
    ) as response:
        chunks = 0
        async for _ in response.aiter_lines():
            chunks += 1
            if leaves and chunks > _LEAVE_AFTER_CHUNKS:
                return
