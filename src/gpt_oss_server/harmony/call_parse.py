"""Generated text of a model with a chat template of its own, taken apart into content and calls.

Knows: where in a text a call of a given form begins, what of it is framing, where its arguments
end. Does not know: sampling, which functions there are, whether arguments fit a schema.

The text decides, not how it was cut into tokens. What begins like a call and does not go on like
one is content. White space before and between calls is framing; arguments are passed on as the
model wrote them, as they come. A call that breaks off has the arguments that came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

from gpt_oss_server.harmony.call_forms import MAX_HEAD_CHARS, CallForm
from gpt_oss_server.harmony.detokenize import Detokenizer
from gpt_oss_server.ports import Piece

_FRAMING: Final = Piece("none")
_NO_TEXT: Final = Piece("content")
_MAX_SPACE_CHARS: Final = 64

_Place = Literal["text", "head", "arguments", "tail", "answer"]


class CallParser:
    """Implements `OutputParser`. A token that ends one thing and begins another gives the first
    at once and the second with the next token, or in the end.

    Args:
        detokenizer: makes text of tokens.
        hidden: special tokens; they show nothing.
        marks: of these, the ones that are the form's own marks, with their text.
        form: how calls are written.
    """

    __slots__ = (
        "_at_start",
        "_before",
        "_calls",
        "_depth",
        "_detokenizer",
        "_escaped",
        "_form",
        "_head",
        "_hidden",
        "_in_string",
        "_marks",
        "_name",
        "_partial_head",
        "_partial_tail",
        "_pieces",
        "_place",
        "_rest",
        "_steps",
        "_tail",
    )

    def __init__(
        self,
        detokenizer: Detokenizer,
        hidden: frozenset[int],
        marks: Mapping[int, str],
        form: CallForm,
    ) -> None:
        self._detokenizer = detokenizer
        self._hidden = hidden
        self._marks = marks
        self._form = form
        self._head, self._tail = form.head_pattern, form.tail_pattern
        self._partial_head = form.partial_head_pattern
        self._partial_tail = form.partial_tail_pattern
        self._steps = {
            "text": self._in_text if form.opening else self._at_turn,
            "head": self._in_head,
            "arguments": self._in_arguments,
            "tail": self._in_tail,
            "answer": self._in_answer,
        }
        self._place: _Place = "text"
        self._rest = ""  # text that is not told yet
        self._at_start = True  # nothing but white space since the beginning or the last call
        self._before = ""  # white space before what opened last
        self._calls = 0
        self._name = ""
        self._pieces: deque[Piece] = deque()

    def feed(self, token_id: int) -> Piece:
        """The piece of text that this token contributed, or one that was waiting."""
        if token_id in self._marks:
            text = self._detokenizer.finish() + self._marks[token_id]
        elif token_id in self._hidden:
            return self._next(_FRAMING)
        else:
            text = self._detokenizer.feed(token_id)
        if not text:
            # The first bytes of a character: a token of content without text of its own yet.
            shows = self._place in ("text", "answer") and not self._rest
            return self._next(_NO_TEXT if shows else _FRAMING)
        self._rest += text
        self._go_on(final=False)
        return self._next(_FRAMING)

    def finish(self) -> list[Piece]:
        """Flush what was held back."""
        self._rest += self._detokenizer.finish()
        self._go_on(final=True)
        found = list(self._pieces)
        self._pieces.clear()
        return found

    def _next(self, nothing: Piece) -> Piece:
        return self._pieces.popleft() if self._pieces else nothing

    def _go_on(self, *, final: bool) -> None:
        while self._rest or (final and self._place == "head"):
            if not self._steps[self._place](final):
                return

    # Each step takes some of the rest and says whether there may be more to take.

    def _in_text(self, final: bool) -> bool:
        """Content, until a call opens."""
        opening = self._form.opening
        at = self._rest.find(opening)
        if at >= 0:
            self._before = self._rest[:at]
            if not (self._at_start and self._before.isspace()):
                self._content(self._before)
                self._before = ""
            self._rest = self._rest[at + len(opening) :]
            self._place = "head"
            return True
        kept = 0 if final else _beginning_at_end(self._rest, opening)
        shown = self._rest[: len(self._rest) - kept]
        if self._at_start and shown.isspace() and len(shown) <= _MAX_SPACE_CHARS:
            if not final:
                return False
            if self._calls:
                self._rest = ""
                return False
        self._content(shown)
        self._rest = self._rest[len(shown) :]
        return False

    def _at_turn(self, final: bool) -> bool:
        """The beginning of a turn, or what follows a call: another one, or an answer."""
        between = " \t\r\n;" if self._calls else " \t\r\n"
        stripped = self._rest.lstrip(between)
        space_chars = len(self._rest) - len(stripped)
        if not stripped and space_chars <= _MAX_SPACE_CHARS:
            if final and self._calls:
                self._rest = ""
            elif final:
                self._content(self._rest)
                self._rest = ""
            return False
        self._place = "head" if stripped.startswith("{") else "answer"
        if self._place == "head":
            self._before, self._rest = self._rest[:space_chars], stripped
        return True

    def _in_answer(self, final: bool) -> bool:
        """What did not begin with a call has none."""
        self._content(self._rest)
        self._rest = ""
        return False

    def _in_head(self, final: bool) -> bool:
        """What opens a call, up to its arguments."""
        match = self._head.match(self._rest)
        if match is not None:
            self._name = match[1]
            self._pieces.append(Piece("tool_call", "", self._name, self._calls))
            self._calls += 1
            self._depth, self._in_string, self._escaped = 0, False, False
            self._rest = self._rest[match.end() :]
            self._place = "arguments"
            return True
        could_be = self._partial_head.fullmatch(self._rest) is not None
        if could_be and not final and len(self._rest) <= MAX_HEAD_CHARS:
            return False
        self._content(self._before + self._form.opening)
        self._place = "text" if self._form.opening else "answer"
        return True

    def _in_arguments(self, final: bool) -> bool:
        """One JSON object, as far as brackets tell."""
        for at, letter in enumerate(self._rest):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    return self._end_arguments(at + 1)
            elif letter == "<" and self._form.closing:  # never JSON: the call closes too early
                return self._end_arguments(at)
        self._arguments(self._rest)
        self._rest = ""
        return False

    def _end_arguments(self, at: int) -> bool:
        self._arguments(self._rest[:at])
        self._rest = self._rest[at:]
        self._place = "tail"
        return True

    def _in_tail(self, final: bool) -> bool:
        """What closes a call. Without its closing bracket it is closed all the same."""
        match = self._tail.match(self._rest)
        closing = self._form.closing
        if match is not None:
            self._rest = self._rest[match.end() :]
        elif closing and self._rest.startswith(closing):
            self._rest = self._rest[len(closing) :]
        elif self._could_be_tail():
            if final:
                self._rest = ""
            return False
        self._place = "text"
        self._at_start = True
        return True

    def _could_be_tail(self) -> bool:
        closing = self._form.closing
        return self._partial_tail.fullmatch(self._rest) is not None or (
            bool(closing) and closing.startswith(self._rest)
        )

    def _content(self, text: str) -> None:
        if text:
            self._at_start = False
            self._tell(Piece("content", text))

    def _arguments(self, text: str) -> None:
        if text:
            self._tell(Piece("tool_call", text, self._name, self._calls - 1))

    def _tell(self, piece: Piece) -> None:
        """Queue a piece, as one with the last where both are text of the same kind."""
        last = self._pieces[-1] if self._pieces else None
        if last and last.text and (last.kind, last.index) == (piece.kind, piece.index):
            self._pieces[-1] = Piece(last.kind, last.text + piece.text, last.recipient, last.index)
        else:
            self._pieces.append(piece)


def _beginning_at_end(text: str, mark: str) -> int:
    """How many characters at the end of a text may begin a mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
