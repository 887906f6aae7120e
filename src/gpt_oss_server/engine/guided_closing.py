"""The shortest ending: from wherever a grammar stands to where it may stop.

Knows: matchers, single bytes, what closes JSON. Does not know: bounds on output, sampling.

A search in the space of bytes, greedy rather than exhaustive: whatever the grammar forces is
taken at once, and where there is a choice, what closes something comes first. It finds an
ending that is short, not always the shortest; what it returns has been checked against the matcher.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from llguidance import LLMatcher

from gpt_oss_server.engine.guided_vocab import GuidedVocabulary, has_bit

ATTEMPTS: Final = 4
BEST_OF: Final = 8
MAX_BYTES: Final = 16 << 10
SUFFIXES: Final = 8

# Most texts are short; an attempt that goes round in circles should notice early.
_WIDENING_BYTES: Final = (512, 4 << 10, MAX_BYTES)
BYTES_PER_TOKEN: Final = 8
"""Longer than what a token stands for on the way to an ending."""

_WHITESPACE: Final = frozenset(b" \t\r\n")
_OPENERS: Final = frozenset(b"{[\\")
_CLOSERS: Final = b'}]",:'
_QUOTE: Final = ord('"')
# Where a string may end, so may nearly every other byte come; where a value may begin, 17 may.
_INSIDE_STRING_ABOVE: Final = 24

Choose = Callable[[list[int]], int]


def closing_of(
    matcher: LLMatcher, vocabulary: GuidedVocabulary, *, json: bool, most_tokens: int
) -> list[int] | None:
    """At most about `most_tokens` tokens that lead `matcher`, which is left as it is, to
    acceptance: the first such way found. None if none is."""
    most_bytes = min(MAX_BYTES, BYTES_PER_TOKEN * most_tokens + 1)
    for ids in _endings(matcher, vocabulary, ATTEMPTS, most_bytes, json=json):
        if len(ids) <= most_tokens:
            return ids
    return None


def shortest_text(
    matcher: LLMatcher, vocabulary: GuidedVocabulary, *, json: bool
) -> tuple[int, ...] | None:
    """The shortest of several endings; for a grammar's start, when there is time to look."""
    for most_bytes in _WIDENING_BYTES:
        found = _endings(matcher, vocabulary, BEST_OF, most_bytes, json=json)
        best = min(found, key=len, default=None)
        if best is not None:
            return tuple(best)
    return None


def kept_closing(
    matcher: LLMatcher, vocabulary: GuidedVocabulary, path: list[int]
) -> list[int] | None:
    """A way that begins where `path` did, as seen from some tokens further on: it still holds
    (text went on inside a string), or its first tokens have been said in other words."""
    for said in range(min(SUFFIXES, len(path)) + 1):
        if is_closing(matcher, vocabulary, path[said:]):
            return path[said:]
    return None


def is_closing(matcher: LLMatcher, vocabulary: GuidedVocabulary, path: list[int]) -> bool:
    """Whether `path` leads to acceptance. Cheap: no mask is computed."""
    return matcher.validate_tokens([*path, vocabulary.end_id]) == len(path) + 1


def _endings(
    matcher: LLMatcher, vocabulary: GuidedVocabulary, attempts: int, most_bytes: int, *, json: bool
) -> Iterator[list[int]]:
    rng = random.Random(0)
    for attempt in range(attempts):
        choose = _chooser(rng, json=json, first=attempt == 0)
        text = _ending(matcher.deep_copy(), vocabulary, choose, most_bytes)
        ids = None if text is None else _tokens_of(text, matcher, vocabulary)
        if ids is not None:
            yield ids


def _ending(
    matcher: LLMatcher, vocabulary: GuidedVocabulary, choose: Choose, most_bytes: int
) -> bytes | None:
    """Bytes to acceptance; `matcher` is used up."""
    row = np.zeros(vocabulary.words, dtype=np.int32)
    text = bytearray()
    while len(text) < most_bytes:
        forced = matcher.compute_ff_bytes()
        if not forced:
            matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if has_bit(row, vocabulary.end_id):
                return bytes(text)
            allowed = vocabulary.single_bytes(row)
            if not allowed:
                return None
            forced = bytes([choose(allowed)])
        ids_forced = [vocabulary.byte_ids[byte] for byte in forced]
        if min(ids_forced) < 0 or not matcher.consume_tokens(ids_forced):
            return None
        text += forced
    return None


def _tokens_of(text: bytes, matcher: LLMatcher, vocabulary: GuidedVocabulary) -> list[int] | None:
    ids = vocabulary.ids_of(text)
    if is_closing(matcher, vocabulary, ids):
        return ids
    ids = [vocabulary.byte_ids[byte] for byte in text]
    return ids if is_closing(matcher, vocabulary, ids) else None


def _chooser(rng: random.Random, *, json: bool, first: bool) -> Choose:
    """The first attempt is by rule alone; later ones leave it now and then, as a rule may run in
    a circle (the digits of a multiple of ten)."""

    def choose(allowed: list[int]) -> int:
        solid = [byte for byte in allowed if byte not in _WHITESPACE] or allowed
        if json and (first or rng.random() < 0.8):
            if _QUOTE in solid and len(solid) > _INSIDE_STRING_ABOVE:
                return _QUOTE
            for byte in _CLOSERS:
                if byte in solid:
                    return byte
        plain = [byte for byte in solid if byte not in _OPENERS] or solid
        return plain[0] if first else rng.choice(plain)

    return choose
