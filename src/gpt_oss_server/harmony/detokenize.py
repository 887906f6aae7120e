"""From token ids to text, a token at a time, without ever showing half a character.

Knows: that a character may span tokens and is held back until it is complete. Does not know: which
tokens are special, what the text means.

For vocabularies whose tokens are bytes the text is the UTF-8 decoding of the concatenated bytes,
invalid ones replaced by U+FFFD; any sequence fed token by token gives exactly
`Tokenizer.decode(ids)`. Other vocabularies go through their own decoder in a sliding window.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """The text of one sequence, as it arrives."""

    def feed(self, token_id: int) -> str:
        """The text that is now certain; "" while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD. Ready for a new text."""
        ...


class Utf8Stream:
    """Incremental UTF-8 decoding with replacement; equal to decoding the whole at once."""

    __slots__ = ("_decoder", "pending")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = False

    def feed(self, data: bytes) -> str:
        """Decode what is complete; `pending` tells whether something is held back."""
        text = self._decoder.decode(data)
        self.pending = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        """Flush: U+FFFD if a character was incomplete, else ""."""
        if not self.pending:
            return ""
        self.pending = False
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes.

    Args:
        token_bytes: token id → its bytes (empty for an unknown id).
        token_text: token id → its text where the bytes are whole characters, else None; one
            dictionary look-up for nearly every token, which is what makes `feed` cheap.
        strip_space: drop one space at the very start.
    """

    __slots__ = ("_strip", "_token_bytes", "_token_text", "_utf8")

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        token_text: Callable[[int], str | None],
        *,
        strip_space: bool = False,
    ) -> None:
        self._token_bytes = token_bytes
        self._token_text = token_text
        self._utf8 = Utf8Stream()
        self._strip = strip_space

    def feed(self, token_id: int) -> str:
        text = None if self._utf8.pending else self._token_text(token_id)
        if text is None:
            text = self._utf8.feed(self._token_bytes(token_id))
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        return self._utf8.finish()


class WindowDetokenizer:
    """For any other vocabulary: decode a short window with and without the new tokens.

    Exact wherever more tokens only ever append text, which holds for the decoders that generating
    models come with.
    """

    __slots__ = ("_decode", "_ids", "_shown_at", "_start")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # first token of the window
        self._shown_at = 0  # tokens before this one have had their text shown

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        new = self._new_text()
        if not new or new.endswith("�"):  # may be half a character
            return ""
        self._start, self._shown_at = self._shown_at, len(self._ids)
        return new

    def finish(self) -> str:
        new = self._new_text()
        self._ids, self._start, self._shown_at = [], 0, 0
        return new

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._start : self._shown_at])
        return self._decode(self._ids[self._start :])[len(before) :]
