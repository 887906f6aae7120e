"""One generated sequence to output items: reasoning, messages and calls, in the order they come.

Knows: the output parser, which tokens count as what, where an item begins and ends. Does not know:
events, JSON, the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gpt_oss_server.api.choice import ContentLogprob, Finish
from gpt_oss_server.api.responses_items import new_id
from gpt_oss_server.api.tool_calls import CallDelta, CallsOfChoice
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.ports import OutputParser, Piece
from gpt_oss_server.types import TokenDelta, TokenLogprob

ItemKind = Literal["reasoning", "message", "function_call"]
_PREFIXES: dict[ItemKind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


@dataclass
class OutputItem:
    """One item as it grows. `call_id` and `name` are those of a function call."""

    kind: ItemKind
    index: int
    id: str
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)
    status: Literal["in_progress", "completed", "incomplete"] = "in_progress"

    @property
    def text(self) -> str:
        """All of it so far: reasoning, content, or arguments."""
        return "".join(self.texts)


@dataclass(frozen=True)
class Opened:
    item: OutputItem


@dataclass(frozen=True)
class Grown:
    item: OutputItem
    text: str
    logprobs: list[ContentLogprob]


@dataclass(frozen=True)
class Closed:
    item: OutputItem


Change = Opened | Grown | Closed


class ResponseOutput:
    """Follows one sequence from its first token to its end.

    A call that a model makes though none was offered is not shown: no client could act on it. Its
    tokens still count.

    Attributes:
        items: all items so far.
        completion_tokens: tokens consumed, stop token included.
        reasoning_tokens: of these, the ones whose text is reasoning.
        cached_tokens: prompt tokens that the engine found in its prefix cache.
        finish: why it ended; None while it has not.
    """

    def __init__(
        self,
        parser: OutputParser,
        calls: CallsOfChoice | None,
        *,
        make_id: Callable[[str], str] = new_id,
    ) -> None:
        """`calls` is None where no tools are offered."""
        self._parser = parser
        self._calls = calls
        self._new_id = make_id
        self._open: OutputItem | None = None
        self._changes: list[Change] = []
        self._chars = 0
        self.items: list[OutputItem] = []
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens = 0
        self.finish: Finish | None = None

    def feed(self, delta: TokenDelta) -> list[Change]:
        """What `delta` changes, in order; neighbouring texts of one item are one change. Raises
        EngineFailed if the engine cut the job short."""
        self._changes = []
        if self.finish is not None:
            return []
        if delta.cached_tokens is not None:
            self.cached_tokens = delta.cached_tokens
        for position, token_id in enumerate(delta.token_ids):
            self.completion_tokens += 1
            piece = self._parser.feed(token_id)
            if piece.kind == "reasoning":
                self.reasoning_tokens += 1
            self._take(piece, delta.logprobs[position] if delta.logprobs is not None else None)
            if self.finish is not None:
                return self._changes
        if delta.finish is not None:
            self._end(delta.finish)
        return self._changes

    def cut(self) -> None:
        """It ended without an end: the item that was under way stays as it is."""
        if self._open is not None:
            self._open.status = "incomplete"

    def _take(self, piece: Piece, logprob: TokenLogprob | None = None) -> None:
        if piece.kind == "none":
            return
        if piece.kind == "tool_call":
            self._take_call(piece, logprob)
        elif piece.kind == "reasoning":
            self._add("reasoning", piece.text)
        else:
            self._add("message", piece.text, logprob)

    def _take_call(self, piece: Piece, logprob: TokenLogprob | None) -> None:
        if self._calls is None:
            return
        if not self._calls.takes(piece):
            if piece.text:
                self._add("message", piece.text, logprob)
        elif self._calls.exceeds(piece):
            self._finish("stop")
        else:
            for added in self._calls.feed(piece):
                self._add_call(added)

    def _add(self, kind: ItemKind, text: str, logprob: TokenLogprob | None = None) -> None:
        logprobs = [] if logprob is None else [ContentLogprob(logprob, self._chars)]
        if not text and not logprobs:
            return
        item = self._open
        if item is None or item.kind != kind:
            item = self._begin(kind)
        if kind == "message":
            self._chars += len(text)
        self._grow(item, text, logprobs)

    def _add_call(self, added: CallDelta) -> None:
        if added.id is not None:
            self._begin("function_call", call_id=added.id, name=added.name or "")
        if added.arguments and self._open is not None:
            self._grow(self._open, added.arguments, [])

    def _begin(self, kind: ItemKind, *, call_id: str = "", name: str = "") -> OutputItem:
        # Before a call, `CallsOfChoice` has completed the one before by itself.
        self._close("completed", complete_call=kind != "function_call")
        id = self._new_id(_PREFIXES[kind])
        item = OutputItem(kind, len(self.items), id, call_id=call_id, name=name)
        self._open = item
        self.items.append(item)
        self._changes.append(Opened(item))
        return item

    def _grow(self, item: OutputItem, text: str, logprobs: list[ContentLogprob]) -> None:
        item.texts.append(text)
        item.logprobs.extend(logprobs)
        last = self._changes[-1] if self._changes else None
        if isinstance(last, Grown) and last.item is item:
            self._changes[-1] = Grown(item, last.text + text, last.logprobs + logprobs)
        else:
            self._changes.append(Grown(item, text, logprobs))

    def _close(
        self, status: Literal["completed", "incomplete"], *, complete_call: bool = False
    ) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        if complete_call and item.kind == "function_call" and self._calls is not None:
            for added in self._calls.close():
                self._grow(item, added.arguments, [])
        item.status = status
        self._changes.append(Closed(item))

    def _end(self, finish: str) -> None:
        if finish not in ("stop", "length"):
            raise EngineFailed("The server ended this generation before it was complete.")
        for piece in self._parser.finish():
            if self.finish is None:
                self._take(piece)
        if self.finish is None:
            self._finish("stop" if finish == "stop" else "length")

    def _finish(self, finish: Literal["stop", "length"]) -> None:
        cut = finish == "length"
        self._close("incomplete" if cut else "completed", complete_call=not cut)
        called = self._calls is not None and self._calls.count > 0
        self.finish = "tool_calls" if called and finish == "stop" else finish
