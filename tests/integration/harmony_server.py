"""A live server over the fake engine that speaks harmony, with the built-in model's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from live_server import LiveServer, Serve

from gpt_oss_server.engine.fake import DEFAULT_INFO, Script
from gpt_oss_server.harmony.formats import HarmonyFormat
from gpt_oss_server.harmony.tokenizer import Tokenizer
from gpt_oss_server.hub import resolve_model
from gpt_oss_server.responses_store.records import StoreBounds
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore
from gpt_oss_server.types import Job

BOUNDS = StoreBounds(max_count=1000, max_bytes=2**24, max_age_s=3600.0)


@cache
def harmony() -> HarmonyFormat:
    """The text side of the built-in model, on a fixed day."""
    folder = resolve_model("tiny", weights=False).folder
    return HarmonyFormat(folder, today=lambda: date(2025, 6, 1))


@cache
def _specials() -> dict[str, int]:
    folder = resolve_model("tiny", weights=False).folder
    return Tokenizer.from_folder(folder).specials()


def tokens(text: str) -> tuple[int, ...]:
    """Harmony text to ids; `<|…|>` become special tokens."""
    ids: list[int] = []
    while text:
        special = next((s for s in _specials() if text.startswith(s)), None)
        if special is not None:
            ids.append(_specials()[special])
            text = text[len(special) :]
            continue
        end = text.find("<|")
        plain = text if end <= 0 else text[:end]
        ids += harmony().encode(plain)
        text = text[len(plain) :]
    return tuple(ids)


def analysis(text: str) -> str:
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def final(text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|return|>"


def call(name: str, arguments: str) -> str:
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{header}{arguments}<|call|>"


Says = str | Callable[[Job], str]


def says(*turns: Says, **options: Any) -> Callable[[Job], Script]:
    """A script that produces one of these texts after the other, the last again and again."""
    left = list(turns)

    def script(job: Job) -> Script:
        turn = left.pop(0) if len(left) > 1 else left[0]
        return Script(tokens(turn if isinstance(turn, str) else turn(job)), **options)

    return script


def prompt_of(job: Job) -> str:
    """What the model was shown."""
    return harmony().decode(job.prompt)


@contextmanager
def store_at(path: Path | None, bounds: StoreBounds = BOUNDS) -> Iterator[ResponseStore]:
    """A store, closed at the end."""
    store = ResponseStore(SqliteResponses(path, bounds))
    try:
        yield store
    finally:
        store.close()


def harmony_server(
    serve: Serve,
    *turns: Says,
    store: ResponseStore | None = None,
    services: dict[str, Any] | None = None,
    context_tokens: int = 4096,
    **options: Any,
) -> LiveServer:
    """The server; its model says `turns`."""
    info = msgspec.structs.replace(
        DEFAULT_INFO,
        vocab_size=harmony().vocab_size,
        max_model_len=context_tokens,
        eos_token_ids=harmony().stop_token_ids,
    )
    more = {"chat_format": harmony(), "responses": store, **(services or {})}
    return serve(says(*turns, **options), services=more, info=info)
