"""Plays prompts against one system and brings the result into one form.

Knows: the load generator's plans and the line systems' commands. Does not know: which rounds
are played, nor what becomes of the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from engine_bench import vocabulary
from engine_bench.figures import Request, Round
from engine_bench.systems import BenchError, HttpSystem, LineSystem, environment

SETTLE_TIMEOUT_S = 60.0
SETTLE_WINDOW_S = 0.5
IDLE_SHARE = 0.1

System = HttpSystem | LineSystem
Prompts = list[list[int]]


def _item(words: list[int], max_tokens: int) -> dict[str, Any]:
    return {"prompt": vocabulary.text_of(words), "max_tokens": max_tokens}


def closed(
    system: System, prompts: Prompts, max_tokens: int, concurrency: int, deadline_s: float = 300.0
) -> Round:
    """`concurrency` clients, each sending the next prompt when its last one is answered. After
    `deadline_s` no new request is sent. Raises BenchError if no request succeeds."""
    if isinstance(system, LineSystem):
        return _ask(system, prompts, max_tokens, concurrency)
    plan = {
        "mode": "closed",
        "items": [_item(words, max_tokens) for words in prompts],
        "concurrency": concurrency,
        "deadline_s": deadline_s,
    }
    played = _load(system, plan)
    if not played.tokens:
        errors = {r.error for r in played.requests}
        raise BenchError(f"{system.name}: every request failed: {errors}")
    return played


def mixed(
    system: HttpSystem,
    chats: Prompts,
    chat_tokens: int,
    concurrency: int,
    long: Prompts,
    long_tokens: int,
    period_s: float,
    duration_s: float,
) -> Round:
    """Chats in a closed loop beside one long prompt every `period_s`, cut off at the end."""
    plan = {
        "mode": "mixed",
        "items": [_item(words, chat_tokens) for words in chats],
        "concurrency": concurrency,
        "deadline_s": duration_s,
        "duration_s": duration_s,
        "period_s": period_s,
        "long": [_item(words, long_tokens) for words in long],
    }
    return _load(system, plan)


def settle(system: HttpSystem) -> bool:
    """Wait until it does nothing any more; False if it still works after a minute."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < SETTLE_TIMEOUT_S:
        before_s = system.cpu_s()
        time.sleep(SETTLE_WINDOW_S)
        if system.cpu_s() - before_s < IDLE_SHARE * SETTLE_WINDOW_S:
            return True
    return False


def _load(system: HttpSystem, plan: dict[str, Any]) -> Round:
    target = {"host": "127.0.0.1", "port": system.port, "model": system.model}
    cpu_before_s = system.cpu_s()
    done = subprocess.run(
        [sys.executable, "-m", "engine_bench.load"],
        input=json.dumps(target | plan).encode(),
        stdout=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"the load generator failed against {system.name}")
    result = json.loads(done.stdout)
    records = result["records"]
    return Round(
        wall_s=result["wall_s"],
        system_cpu_s=system.cpu_s() - cpu_before_s,
        client_cpu_s=result["cpu_s"],
        requests=tuple(
            Request(
                start_s=r["start_s"],
                end_s=r["end_s"],
                events_s=tuple(r["events_s"]),
                tokens=r["tokens"],
                error=r["error"],
                kind=r["kind"],
            )
            for r in records
        ),
        outputs=tuple(r["text"] for r in records),
    )


def _ask(system: LineSystem, prompts: Prompts, max_tokens: int, concurrency: int) -> Round:
    command = {
        "do": "run",
        "prompts": [vocabulary.ids_of(words) for words in prompts],
        "max_tokens": max_tokens,
        "concurrency": concurrency,
    }
    result = system.ask(command)
    left = result.get("blocks", {}).get("in_use", {})
    if any(left.values()):
        raise BenchError(f"{system.name} still holds KV blocks after a run: {left}")
    return Round(
        wall_s=result["wall_s"],
        system_cpu_s=result["cpu_s"],
        requests=tuple(
            Request(
                start_s=r["start_s"],
                end_s=r["end_s"],
                events_s=tuple(r["events_s"]),
                tokens=len(r["ids"]),
            )
            for r in result["records"]
        ),
        outputs=tuple(json.dumps(r["ids"]) for r in result["records"]),
    )
