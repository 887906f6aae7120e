"""Generated tokens to pieces of content, reasoning and tool-call arguments, one by one.

Knows: harmony's framing, token by token, and what to make of output that breaks it. Does not know:
sampling, HTTP, what a client wants to see.

The machine starts behind the prompt's `<|start|>assistant`. Rules for output that is not as it
should be: nothing raises; text is never lost (text between messages, or in a header that turns out
not to be one, is content); an unknown channel is content; a special token in an odd place is
framing and shows nothing; `<|channel|>` inside a message begins the next one.

Every piece follows from the tokens alone, so it does not matter how they were batched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gpt_oss_server.harmony.detokenize import Detokenizer, Utf8Stream
from gpt_oss_server.harmony.header import (
    Destination,
    Section,
    could_be_header,
    destination,
    is_framing,
)
from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer
from gpt_oss_server.ports import Piece

_FRAMING: Final = Piece("none")
_CONTENT: Final = Destination("content")


class HarmonyParser:
    """Implements `OutputParser` for one generated sequence.

    A tool call announces itself: the `<|message|>` that opens it gives an empty `tool_call` piece
    with its name, so that a call without arguments is seen as well.
    """

    __slots__ = (
        "_actions",
        "_calls",
        "_hidden",
        "_in_header",
        "_index",
        "_kind",
        "_recipient",
        "_sections",
        "_token_bytes",
        "_token_text",
        "_utf8",
    )

    def __init__(self, tokenizer: Tokenizer, specials: HarmonySpecials) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._token_text = tokenizer.token_text
        self._hidden = tokenizer.special_ids
        self._actions: dict[int, Callable[[], Piece]] = {
            specials.start: self._on_start,
            specials.channel: self._on_channel,
            specials.constrain: self._on_constrain,
            specials.message: self._on_message,
            specials.end: self._on_end,
            specials.return_: self._on_end,
            specials.call: self._on_end,
        }
        self._utf8 = Utf8Stream()
        self._calls = 0
        self._aim(_CONTENT)
        self._open_header("implied")

    def feed(self, token_id: int) -> Piece:
        """The piece of text that this token contributed."""
        if token_id in self._hidden:
            action = self._actions.get(token_id)
            return _FRAMING if action is None else action()
        if self._in_header:
            return self._header_token(token_id)
        text = None if self._utf8.pending else self._token_text(token_id)
        if text is None:
            text = self._utf8.feed(self._token_bytes(token_id))
        return Piece(self._kind, text, self._recipient, self._index)

    def finish(self) -> list[Piece]:
        """Flush what was held back: half a character, or stray text in an unfinished header."""
        last = self._close()
        return [last] if last.text else []

    def _header_token(self, token_id: int) -> Piece:
        """Collect header text; once it cannot be a header, it was content all along."""
        section, data = self._sections[-1]
        self._sections[-1] = section, data + self._token_bytes(token_id)
        if could_be_header(section, self._text_of(section)):
            return _FRAMING
        stray = self._stray_bytes()
        self._in_header = False
        self._aim(_CONTENT)
        return self._piece(self._utf8.feed(stray))

    def _on_start(self) -> Piece:
        closed = self._close()
        self._open_header("role")
        return closed

    def _on_channel(self) -> Piece:
        if self._in_header and all(section != "channel" for section, _ in self._sections):
            return self._next_section("channel")
        closed = self._close()
        self._open_header("channel")
        return closed

    def _on_constrain(self) -> Piece:
        return self._next_section("constrain") if self._in_header else _FRAMING

    def _on_message(self) -> Piece:
        if not self._in_header:
            return _FRAMING
        self._in_header = False
        self._aim(destination(self._text_of("implied", "role"), self._text_of("channel")))
        if self._kind != "tool_call":
            return _FRAMING
        self._index = self._calls
        self._calls += 1
        return Piece("tool_call", "", self._recipient, self._index)

    def _on_end(self) -> Piece:
        closed = self._close()
        self._in_header = False
        self._aim(_CONTENT)
        return closed

    def _open_header(self, section: Section) -> None:
        self._in_header = True
        # In the order in which they came: a broken header may have one of them twice.
        self._sections: list[tuple[Section, bytes]] = [(section, b"")]

    def _next_section(self, section: Section) -> Piece:
        self._sections.append((section, b""))
        return _FRAMING

    def _close(self) -> Piece:
        """End whatever is open; its last text, if any, still belongs to it."""
        if not self._in_header:
            return self._piece(self._utf8.finish())
        stray = self._stray_bytes(only_unknown=True)
        self._in_header = False
        self._aim(_CONTENT)
        return self._piece(stray.decode("utf-8", errors="replace"))

    def _stray_bytes(self, *, only_unknown: bool = False) -> bytes:
        """The header's text that is no framing; all of the current section's, unless asked to
        judge that one too."""
        current = len(self._sections) - 1
        parts = (
            data
            for at, (section, data) in enumerate(self._sections)
            if (at == current and not only_unknown)
            or not is_framing(section, data.decode("utf-8", errors="replace"))
        )
        return b"".join(parts)

    def _text_of(self, *sections: Section) -> str:
        data = b"".join(data for section, data in self._sections if section in sections)
        return data.decode("utf-8", errors="replace")

    def _aim(self, to: Destination) -> None:
        self._kind = to.kind
        self._recipient = to.recipient
        self._index = 0

    def _piece(self, text: str) -> Piece:
        return Piece(self._kind, text, self._recipient, self._index) if text else _FRAMING


class TextParser:
    """Implements `OutputParser` where output has no framing: all text is content, special tokens
    show nothing."""

    __slots__ = ("_detokenizer", "_hidden")

    def __init__(self, detokenizer: Detokenizer, hidden: frozenset[int]) -> None:
        self._detokenizer = detokenizer
        self._hidden = hidden

    def feed(self, token_id: int) -> Piece:
        if token_id in self._hidden:
            return _FRAMING
        return Piece("content", self._detokenizer.feed(token_id))

    def finish(self) -> list[Piece]:
        text = self._detokenizer.finish()
        return [Piece("content", text)] if text else []
