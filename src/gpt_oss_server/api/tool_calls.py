"""The function calls of one choice, from a parser's pieces to what a client is told.

Knows: ids, that arguments come in deltas, which calls a client can take. Does not know: how a
model writes calls, JSON shapes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpt_oss_server.ports import Piece

_SANE_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NO_ARGUMENTS = "{}"
"""What a call that says nothing of arguments is told with: clients parse them."""


def new_call_id() -> str:
    """As OpenAI writes them, `call_` and 24 characters."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class CallDelta:
    """What some tokens added to a call; its first has `id` and `name`, and no arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class ToolCall:
    """A whole call. `arguments` is JSON text if the model wrote JSON."""

    id: str
    name: str
    arguments: str = ""


class CallsOfChoice:
    """Numbers and names the calls. Only where the request offers tools.

    A call of a name that no function can have could not be sent back in a later request: to
    `takes` it is text. A name that is merely not among those offered is told: agents answer such
    a call with what there is.
    """

    def __init__(self, *, parallel: bool = True, new_id: Callable[[], str] = new_call_id) -> None:
        """`parallel`: whether there may be more than one."""
        self._parallel = parallel
        self._new_id = new_id
        self._parser_index: int | None = None
        self._has_arguments = True
        self.count = 0

    @staticmethod
    def takes(piece: Piece) -> bool:
        """Whether a piece belongs to a call of a function that there can be."""
        return piece.kind == "tool_call" and _SANE_NAME.fullmatch(piece.recipient or "") is not None

    def exceeds(self, piece: Piece) -> bool:
        """Whether this piece begins one call too many."""
        return not self._parallel and self.count > 0 and piece.index != self._parser_index

    def feed(self, piece: Piece) -> list[CallDelta]:
        """What a piece that `takes` accepts adds."""
        found: list[CallDelta] = []
        if piece.index != self._parser_index:
            found += self.close()
            self._parser_index = piece.index
            self._has_arguments = False
            self.count += 1
            found.append(CallDelta(self.count - 1, id=self._new_id(), name=piece.recipient))
        if piece.text:
            self._has_arguments = self._has_arguments or not piece.text.isspace()
            found.append(CallDelta(self.count - 1, piece.text))
        return found

    def close(self) -> list[CallDelta]:
        """What the last call still lacks now that it is complete."""
        if self._has_arguments:
            return []
        self._has_arguments = True
        return [CallDelta(self.count - 1, NO_ARGUMENTS)]


def joined(deltas: list[CallDelta]) -> list[CallDelta]:
    """The same, with neighbouring arguments of one call as one; an opening stays by itself."""
    found: list[CallDelta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if last and delta.id is None and last.id is None and last.index == delta.index:
            found[-1] = replace(last, arguments=last.arguments + delta.arguments)
        else:
            found.append(delta)
    return found


def collect(calls: list[ToolCall], deltas: list[CallDelta]) -> None:
    """Add deltas, in their order, to the whole calls."""
    for delta in deltas:
        if delta.id is not None and delta.name is not None:
            calls.append(ToolCall(delta.id, delta.name))
        calls[delta.index].arguments += delta.arguments
