"""One choice's tokens to the text its client sees.

Knows: the output parser, stop strings, which tokens count as what. Does not know: the engine,
JSON, or how a token becomes text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from gpt_oss_server.api.tool_calls import CallDelta, CallsOfChoice
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.harmony.stop import StopStrings
from gpt_oss_server.ports import OutputParser, Piece
from gpt_oss_server.types import TokenDelta, TokenLogprob

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ContentLogprob:
    """A content token's logprob and where, in characters of the content, its text begins."""

    logprob: TokenLogprob
    offset_chars: int


@dataclass
class TextDelta:
    """The text that some tokens added. Empty text and no finish: nothing to tell the client."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)
    finish: Finish | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls or self.logprobs or self.finish)


class ChoiceText:
    """Follows one choice from its first token to its finish reason.

    A tool call that a model makes though none was offered (`calls` is None) is not shown: no
    client could act on it. Its tokens still count. Stop strings are looked for in content only.
    Text after a stop string, and the stop string itself, are never
    shown; so is the text of a stop token that the client named, while the ids in
    `turn_end_ids` go through the parser, which needs them to see the end. A token's logprob comes
    with the first of its text, and not at all if none of it is shown.

    Attributes:
        completion_tokens: tokens consumed, stop token included.
        reasoning_tokens: of these, the ones whose text is reasoning.
        cached_tokens: prompt tokens that the engine found in its prefix cache.
        finish: why the choice ended; None while it has not.
    """

    def __init__(
        self,
        parser: OutputParser,
        stops: list[str],
        *,
        silent_stop_ids: Collection[int] = (),
        start_chars: int = 0,
        calls: CallsOfChoice | None = None,
    ) -> None:
        self._parser = parser
        self._calls = calls
        self._stops = StopStrings(stops) if stops else None
        self._silent_stop_ids = silent_stop_ids
        self._content_chars = start_chars
        self._shown_chars = start_chars
        self._held_logprobs: list[ContentLogprob] = []
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens = 0
        self.finish: Finish | None = None

    def feed(self, delta: TokenDelta) -> TextDelta:
        """The text that `delta` adds. Raises EngineFailed if the engine cut the job short."""
        text = TextDelta()
        if self.finish is not None:
            return text
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
        for position, token_id in enumerate(delta.token_ids):
            self.completion_tokens += 1
            if self._is_silent_stop(delta, position):
                continue
            logprob = delta.logprobs[position] if delta.logprobs is not None else None
            self._add(self._parser.feed(token_id), logprob, text)
            if self.finish is not None:
                return text
        if delta.finish is not None:
            self._end(delta.finish, text)
        return text

    def _is_silent_stop(self, delta: TokenDelta, position: int) -> bool:
        return (
            delta.finish == "stop"
            and position == len(delta.token_ids) - 1
            and delta.token_ids[position] in self._silent_stop_ids
        )

    def _add(self, piece: Piece, logprob: TokenLogprob | None, text: TextDelta) -> None:
        if piece.kind == "reasoning":
            self.reasoning_tokens += 1
            text.reasoning += piece.text
        elif piece.kind == "content":
            self._add_content(piece.text, logprob, text)
        elif piece.kind == "tool_call" and self._calls is not None:
            self._add_call(piece, self._calls, logprob, text)

    def _add_call(
        self, piece: Piece, calls: CallsOfChoice, logprob: TokenLogprob | None, text: TextDelta
    ) -> None:
        if not calls.takes(piece):
            if piece.text:
                self._add_content(piece.text, logprob, text)
        elif calls.exceeds(piece):
            self._complete("stop", text)
        else:
            text.calls += calls.feed(piece)

    def _add_content(self, content: str, logprob: TokenLogprob | None, text: TextDelta) -> None:
        if logprob is not None:
            self._held_logprobs.append(ContentLogprob(logprob, self._content_chars))
        self._content_chars += len(content)
        if self._stops is None:
            self._show(content, text, whole=True)
            return
        shown, stopped = self._stops.feed(content)
        self._show(shown, text)
        if stopped:
            self._complete("stop", text, flush=False)

    def _show(self, content: str, text: TextDelta, *, whole: bool = False) -> None:
        """`whole` says that nothing is held back: tokens without text of their own (the first
        bytes of a character) need not wait for it then."""
        text.content += content
        self._shown_chars += len(content)
        held = self._held_logprobs
        while held and (whole or held[0].offset_chars < self._shown_chars):
            text.logprobs.append(held.pop(0))

    def _end(self, finish: str, text: TextDelta) -> None:
        if finish not in ("stop", "length"):
            raise EngineFailed("The server ended this generation before it was complete.")
        for piece in self._parser.finish():
            if piece.kind == "reasoning":
                text.reasoning += piece.text
            elif self.finish is None:
                self._add(piece, None, text)
        if self.finish is None:
            self._complete("stop" if finish == "stop" else "length", text)

    def _complete(
        self, finish: Literal["stop", "length"], text: TextDelta, *, flush: bool = True
    ) -> None:
        """`flush`: show what was held back because it might have begun a stop string."""
        if flush and self._stops is not None:
            self._show(self._stops.flush(), text, whole=True)
        self.finish = finish
        if finish == "stop" and self._calls is not None and self._calls.count:
            text.calls += self._calls.close()
            self.finish = "tool_calls"
        text.finish = self.finish
