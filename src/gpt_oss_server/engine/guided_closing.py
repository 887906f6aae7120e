"""The shortest ending: from wherever a grammar stands to where it may stop.

Knows: matchers, single bytes, what closes JSON. Does not know: bounds on output, sampling.

A search in the space of bytes, greedy rather than exhaustive: whatever the grammar forces is
taken at once, and where there is a choice, what closes something comes first. It finds an
ending that is short, not always the shortest; what it returns has been checked against the matcher.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import numpy as np
from llguidance import LLMatcher

from gpt_oss_server.engine.guided_vocab import GuidedVocabulary, has_bit

ATTEMPTS: Final = 4
BEST_OF: Final = 8
MAX_BYTES: Final = 16 << 10
SUFFIXES: Final = 12
"""How many bytes of a known way one token may have said in other words."""

# Most texts are short; an attempt that goes round in circles should notice early.
_WIDENING_BYTES: Final = (512, 4 << 10, MAX_BYTES)
BYTES_PER_TOKEN: Final = 8
"""Longer than what a token stands for on the way to an ending."""

_WHITESPACE: Final = frozenset(b" \t\r\n")
_OPENERS: Final = frozenset(b"{[\\")
_CLOSERS: Final = b'}]",:'
_QUOTE: Final = ord('"')
_WORD: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# Where a string may end, so may nearly every other byte come; where a value may begin, 17 may.
_INSIDE_STRING_ABOVE: Final = 24
# So often the same byte in a row is a circle (`a*b`), or a string of a least length.
_CIRCLE_BYTES: Final = 8

# What completes a character, of which a token may be a part.
_DETOURS: Final = (b"\x80", b"\x80\x80", b"\x80\x80\x80")
_JSON_DETOURS: Final = (b'"', b"]", b"}", *_DETOURS)

Choose = Callable[[list[int]], int]


@dataclass(frozen=True, slots=True)
class Way:
    """A text that completes what has been said, and tokens for it."""

    text: bytes
    ids: tuple[int, ...]

    def __len__(self) -> int:
        """In tokens."""
        return len(self.ids)

    def behind(self, vocabulary: GuidedVocabulary) -> Way:
        """What is left of it once its first token has been said."""
        said = len(vocabulary.bytes_of(self.ids[0]))
        return Way(self.text[said:], self.ids[1:])


def closing_of(
    matcher: LLMatcher,
    vocabulary: GuidedVocabulary,
    *,
    json: bool,
    most_tokens: int,
    known: Way | None = None,
) -> Way | None:
    """At most `most_tokens` tokens that lead `matcher`, which is left as it is, to acceptance: the
    first way found, None if none is or it is longer. `known` was a way some tokens ago: the search
    ends where it gets back to it."""
    near = [] if known is None else _near(known, matcher, vocabulary, json=json)
    too_long = False
    for way in near:
        if len(way) <= most_tokens:
            return way
        too_long = True
    if too_long:  # to search on would cost most where no way fits
        return None
    most_bytes = min(MAX_BYTES, BYTES_PER_TOKEN * most_tokens + 1)
    back_to = [] if known is None else [vocabulary.byte_ids[byte] for byte in known.text]
    endings = _endings(matcher, vocabulary, ATTEMPTS, most_bytes, json=json, back_to=back_to)
    found = next(endings, None)
    return found if found is not None and len(found) <= most_tokens else None


def _near(
    known: Way, matcher: LLMatcher, vocabulary: GuidedVocabulary, *, json: bool
) -> Iterator[Way]:
    """`known` itself, where a string went on; behind a byte or three that end what the last token
    began; or without the beginning that it has said in other words."""
    if _is_closing(known.ids, matcher, vocabulary):
        yield known
    for text in _JSON_DETOURS if json else _DETOURS:
        ids = (*(vocabulary.byte_ids[byte] for byte in text), *known.ids)
        if _is_closing(ids, matcher, vocabulary):
            yield Way(text + known.text, ids)
    ids = tuple(vocabulary.byte_ids[byte] for byte in known.text)
    for said in range(1, min(SUFFIXES, len(ids)) + 1):
        if _is_closing(ids[said:], matcher, vocabulary):
            way = _checked(known.text[said:], matcher, vocabulary)
            if way is not None:
                yield way


def shortest_text(matcher: LLMatcher, vocabulary: GuidedVocabulary, *, json: bool) -> Way | None:
    """The shortest of several endings; for a grammar's start, when there is time to look."""
    for most_bytes in _WIDENING_BYTES:
        found = _endings(matcher, vocabulary, BEST_OF, most_bytes, json=json)
        best = min(found, key=len, default=None)
        if best is not None:
            return best
    return None


def _endings(
    matcher: LLMatcher,
    vocabulary: GuidedVocabulary,
    attempts: int,
    most_bytes: int,
    *,
    json: bool,
    back_to: Seq[int] = (),
) -> Iterator[Way]:
    rng = random.Random(0)
    for attempt in range(attempts):
        choose = _chooser(rng, json=json, first=attempt == 0)
        text = _ending(matcher.deep_copy(), vocabulary, choose, most_bytes, back_to)
        way = None if text is None else _checked(text, matcher, vocabulary)
        if way is not None:
            yield way


def _ending(
    matcher: LLMatcher,
    vocabulary: GuidedVocabulary,
    choose: Choose,
    most_bytes: int,
    back_to: Seq[int],
) -> bytes | None:
    """Bytes to acceptance; `matcher` is used up. `back_to` are the bytes' own tokens of a way that
    may lead on from some point."""
    row = np.zeros(vocabulary.words, dtype=np.int32)
    text = bytearray()
    while len(text) < most_bytes:
        forced = matcher.compute_ff_bytes()
        if not forced:
            if text and back_to and _is_closing(back_to, matcher, vocabulary):
                return bytes(text) + vocabulary.tokenizer.decode_bytes([*back_to])
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


def _is_closing(ids: Seq[int], matcher: LLMatcher, vocabulary: GuidedVocabulary) -> bool:
    """Whether `ids` lead to acceptance. Cheap: no mask is computed."""
    if not ids and matcher.is_stopped():  # nothing can follow, the end token included
        return bool(matcher.is_accepting())
    if ids and min(ids) < 0:
        return False
    return matcher.validate_tokens([*ids, vocabulary.end_id]) == len(ids) + 1


def _checked(text: bytes, matcher: LLMatcher, vocabulary: GuidedVocabulary) -> Way | None:
    """`text` as a way, in tokens that the matcher takes; None if it is none."""
    ids = vocabulary.ids_of(text)
    if _is_closing(ids, matcher, vocabulary):
        return Way(text, tuple(ids))
    ids = [vocabulary.byte_ids[byte] for byte in text]
    return Way(text, tuple(ids)) if _is_closing(ids, matcher, vocabulary) else None


def _chooser(rng: random.Random, *, json: bool, first: bool) -> Choose:
    """The first attempt is by rule, as long as that leads anywhere; later ones leave the rule now
    and then, as it may run in a circle (the digits of a multiple of ten)."""
    last, times = -1, 0

    def choose(allowed: list[int]) -> int:
        nonlocal last, times
        by_rule = first and times < _CIRCLE_BYTES
        chosen = _choice(allowed, rng, json=json and (by_rule or rng.random() < 0.8), rule=by_rule)
        times = times + 1 if chosen == last else 0
        last = chosen
        return chosen

    return choose


def _choice(allowed: list[int], rng: random.Random, *, json: bool, rule: bool) -> int:
    solid = [byte for byte in allowed if byte not in _WHITESPACE] or allowed
    inside_string = json and len(solid) > _INSIDE_STRING_ABOVE
    if inside_string and _QUOTE in solid:
        return _QUOTE
    if json and not inside_string:
        for byte in _CLOSERS:
            if byte in solid:
                return byte
    if inside_string:  # it may not end yet: its pattern wants something first
        return rng.choice([byte for byte in solid if byte in _WORD] or solid)
    plain = [byte for byte in solid if byte not in _OPENERS] or solid
    return plain[0] if rule else rng.choice(plain)
