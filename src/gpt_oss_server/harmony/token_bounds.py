"""How many bytes of text one token can stand for, where that is certain.

Knows: which steps of the `tokenizers` library can lose or shrink text. Does not know: formats. With
such a bound the least number of tokens of a text is known from its size, without tokenising it.

Byte-pair encoding loses nothing if every byte has a token of its own, and a text is never shorter
than its tokens' spellings together if nothing before that step shortens it: no normalizer but those
that put a longer mark for a space, no pre-tokenizer that removes what it splits at. What is not
known to be safe is taken to be unsafe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from gpt_oss_server.harmony.token_bytes import byte_alphabet

_KEEPING = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"}


def longest_token_bytes(backend: tokenizers.Tokenizer) -> int | None:
    """The most bytes of a text that one token can stand for; None where there may be no limit."""
    model = backend.model
    if (
        not isinstance(model, tokenizers.models.BPE)
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
        or not all(map(_grows, _steps(backend.normalizer, "normalizers")))
        or not all(map(_keeps, _steps(backend.pre_tokenizer, "pretokenizers")))
    ):
        return None
    added = [t for t in backend.get_added_tokens_decoder().values() if not t.special]
    if any(token.lstrip or token.rstrip for token in added):  # these swallow any number of spaces
        return None
    vocab = backend.get_vocab(with_added_tokens=False)
    longest_added = max((len(token.content.encode()) for token in added), default=0)
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        if backend.normalizer is not None or not byte_alphabet().keys() <= vocab.keys():
            return None
        return max(longest_added, max(map(len, vocab)))  # one character is one byte
    if not model.byte_fallback or any(f"<0x{byte:02X}>" not in vocab for byte in range(256)):
        return None
    return max(longest_added, max(len(piece.encode()) for piece in vocab))


def _steps(part: Any, members: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as `tokenizer.json` describes it, sequences taken apart."""
    if part is None:
        return []
    waiting = [json.loads(part.__getstate__())]
    steps = []
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting.extend(step[members])
        else:
            steps.append(step)
    return steps


def _grows(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        found = normalizer["pattern"].get("String")
        return found is not None and len(normalizer["content"].encode()) >= len(found.encode())
    return bool(normalizer["type"] == "Prepend")


def _keeps(pre_tokenizer: Mapping[str, Any]) -> bool:
    return pre_tokenizer["type"] in _KEEPING and pre_tokenizer.get("behavior") != "Removed"
