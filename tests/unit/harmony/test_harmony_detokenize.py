"""Incremental text equals the text of the whole, for every kind of vocabulary."""

from __future__ import annotations

import itertools

from harmony_vocabularies import TINY, llama2_like, wordpiece_like
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.harmony.detokenize import Utf8Stream
from gpt_oss_server.harmony.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer.from_folder(TINY)
SENTENCEPIECE = Tokenizer(llama2_like())


def streamed(tokenizer: Tokenizer, ids: list[int], *, continuation: bool = False) -> list[str]:
    """The text after each token, and the flushed rest."""
    detokenizer = tokenizer.detokenizer(continuation=continuation)
    return [*(detokenizer.feed(i) for i in ids), detokenizer.finish()]


@given(st.lists(st.integers(0, 1030)))
def test_byte_level_stream_equals_decode(ids: list[int]) -> None:
    """Any ids, invalid UTF-8 and unknown ids included."""
    assert "".join(streamed(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(st.lists(st.integers(0, SENTENCEPIECE.vocab_size)))
def test_sentencepiece_stream_equals_decode(ids: list[int]) -> None:
    """The same for `▁` and byte-fallback tokens."""
    assert "".join(streamed(SENTENCEPIECE, ids)) == SENTENCEPIECE.decode(ids)


@given(st.text(alphabet="helowrd €😀", max_size=20))
def test_sentencepiece_round_trip(text: str) -> None:
    """Encode, then stream: the same text, with its own leading space intact."""
    assert "".join(streamed(SENTENCEPIECE, SENTENCEPIECE.encode(text))) == text


def test_half_characters_are_held_back() -> None:
    """An emoji of four one-byte tokens shows itself only with the last."""
    ids = BYTE_LEVEL.encode("😀")
    assert len(ids) == 4
    assert streamed(BYTE_LEVEL, ids) == ["", "", "", "😀", ""]


def test_finish_replaces_an_incomplete_character() -> None:
    """What never completes becomes U+FFFD, once."""
    ids = BYTE_LEVEL.encode("a😀")[:-1]
    assert streamed(BYTE_LEVEL, ids) == ["a", "", "", "", "�"]


def test_continuation_keeps_the_leading_space() -> None:
    """A completion goes on where the prompt ended; a chat answer starts a text."""
    ids = SENTENCEPIECE.encode("hello hello")
    assert streamed(SENTENCEPIECE, ids) == ["hello", " hello", ""]
    assert streamed(SENTENCEPIECE, ids, continuation=True) == [" hello", " hello", ""]


def test_other_vocabularies_stream_through_a_window() -> None:
    """Tokens that join up or stand apart come out as the library would print the whole."""
    tokenizer = Tokenizer(wordpiece_like())
    ids = [1, 2, 3, 4, 5, 5]
    assert streamed(tokenizer, ids) == ["un", "der", " stand", "ing", " a", " a", ""]
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_utf8_stream_equals_whole_decoding(data: bytes, cuts: list[int]) -> None:
    """However the bytes are cut; `pending` says exactly whether something is held back."""
    stream = Utf8Stream()
    edges = [0, *sorted(cuts), len(data)]
    text = ""
    for start, end in itertools.pairwise(edges):
        text += stream.feed(data[start:end])
    pending = stream.pending
    rest = stream.finish()
    assert bool(rest) == pending
    assert text + rest == data.decode("utf-8", errors="replace")
    assert not stream.pending
