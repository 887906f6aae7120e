"""Guided jobs by hand: one walk without a model, and the built-in vocabulary's engine.

Knows: the built-in model folder, walks, text of outputs. Does not know: HTTP.
"""

from __future__ import annotations

import json
import random
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import gpt_oss_server
from gpt_oss_server.engine.guided_closing import shortest_text
from gpt_oss_server.engine.guided_demand import demand_tokens
from gpt_oss_server.engine.guided_grammar import compiled
from gpt_oss_server.engine.guided_vocab import GuidedVocabulary, has_bit, load_vocabulary
from gpt_oss_server.engine.guided_walk import CompiledGrammar, Guide, Walk
from gpt_oss_server.harmony.formats import open_chat_format
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import Grammar, GuidedSpec

FOLDER = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
VOCAB = 2048


@lru_cache(1)
def vocabulary() -> GuidedVocabulary:
    return load_vocabulary(FOLDER, VOCAB)


@lru_cache(1)
def chat_format() -> ChatFormat:
    return open_chat_format(FOLDER, today=lambda: date(2026, 1, 1))


def of_schema(schema: Any, **options: Any) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(schema), **options)


def forged(grammar: Grammar) -> CompiledGrammar:
    """As the forge makes it, without a trial."""
    matcher = compiled(vocabulary().tokenizer, grammar)
    as_json = grammar.kind in ("json_object", "json_schema")
    closing = shortest_text(matcher, vocabulary(), json=as_json)
    assert closing is not None
    demand = demand_tokens(grammar, lambda text: len(vocabulary().ids_of(text.encode())))
    return CompiledGrammar(matcher, closing, demand, as_json)


def ends() -> tuple[int, ...]:
    return chat_format().stop_token_ids


def guide_of(spec: GuidedSpec, *, end_ids: tuple[int, ...] | None = None) -> Guide:
    grammars = tuple(map(forged, spec.grammars))
    return Guide(spec, grammars, vocabulary(), ends() if end_ids is None else end_ids)


def wander(walk: Walk, rng: random.Random, most_tokens: int) -> list[int]:
    """Tokens drawn evenly from what the walk allows: a model that knows nothing at all."""
    row = np.zeros(vocabulary().words, dtype=np.int32)
    tokens: list[int] = []
    while not walk.ended and walk.failure is None and len(tokens) < most_tokens:
        walk.fill(row)
        allowed = [token for token in range(VOCAB) if has_bit(row, token)]
        tokens.append(walk.take(rng.choice(allowed)))
    return tokens


def allowed_texts(walk: Walk) -> set[bytes]:
    """What may come next, ends as `b""`."""
    row = np.zeros(vocabulary().words, dtype=np.int32)
    walk.fill(row)
    tokens = (token for token in range(VOCAB) if has_bit(row, token))
    return {vocabulary().bytes_of(t) if vocabulary().is_text(t) else b"" for t in tokens}


def shown(tokens: list[int], *, kind: str = "content", chat: bool = True) -> str:
    """What a client sees of an output."""
    parser = chat_format().chat_parser() if chat else chat_format().text_parser()
    pieces = [parser.feed(token) for token in tokens] + parser.finish()
    return "".join(piece.text for piece in pieces if piece.kind == kind)
