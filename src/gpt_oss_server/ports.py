"""The seams between rooms. Each has one contract suite in `tests/contract/`.

Knows: protocols. Does not know: any implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from gpt_oss_server.types import EngineInfo, EngineState, EngineStats, Job, TokenDelta


class Engine(Protocol):
    """Turns token ids into token ids. Knows nothing of text.

    `generate` raises `BadRequest`/`ContextTooLong` for a job that can never run, `NotReady` when
    no worker is up and `EngineFailed` when the worker dies under the job. Closing the iterator
    (`aclose`) cancels the job and frees all it holds. `info` is valid once `start` has returned.
    """

    async def start(self) -> None: ...

    def generate(self, job: Job) -> AsyncIterator[TokenDelta]: ...

    def info(self) -> EngineInfo: ...

    def state(self) -> EngineState: ...

    def stats(self) -> EngineStats: ...

    async def close(self) -> None: ...


PieceKind = Literal["content", "reasoning", "tool_call", "none"]


class Piece(msgspec.Struct, frozen=True):
    """The text that one token contributed, and where it belongs.

    `kind == "none"` is framing (headers, specials) that no client sees as text. `text` may be
    empty while a multi-byte character is incomplete. For `tool_call`, `text` is a delta of the
    arguments, `recipient` names the function and `index` counts calls from 0.
    """

    kind: PieceKind
    text: str = ""
    recipient: str | None = None
    index: int = 0


class OutputParser(Protocol):
    """One per generated sequence; turns its tokens into pieces. Never raises, whatever the
    tokens; the result does not depend on how the tokens were batched."""

    def feed(self, token_id: int) -> Piece: ...

    def finish(self) -> list[Piece]:
        """Flush what was held back (an incomplete character becomes U+FFFD)."""
        ...


class ChatFormat(Protocol):
    """A model's text side: tokenizer, prompt rendering, output parsing. Thread-safe; the calls
    that may take long (`encode`, `render_chat`) run off the event loop."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn (for harmony `<|return|>` and `<|call|>`)."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; special-token strings in the text are NOT turned into specials."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, specials included as their strings; invalid bytes become U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for (for logprobs)."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, reasoning_effort: str | None = None
    ) -> list[int]:
        """Messages (already validated, OpenAI's shapes, `content` a string or None) to the ids
        of a prompt that ends where the assistant speaks. Raises BadRequest if the model's own
        template refuses the conversation."""
        ...

    def chat_parser(self) -> OutputParser: ...

    def text_parser(self) -> OutputParser:
        """For `/v1/completions`: every token is content; specials are not shown."""
        ...
