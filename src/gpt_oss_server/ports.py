"""The seams between rooms. Each has one contract suite in `tests/contract/`.

Knows: protocols. Does not know: any implementation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from gpt_oss_server.events import Event
from gpt_oss_server.types import (
    EngineInfo,
    EngineState,
    EngineStats,
    Grammar,
    GuidedSpec,
    Job,
    TokenDelta,
)


class Engine(Protocol):
    """Turns token ids into token ids. Knows nothing of text.

    `generate` raises `BadRequest`/`ContextTooLong` for a job that can never run, `NotReady` when
    no worker is up and `EngineFailed` when the worker dies under the job. Closing the iterator
    (`aclose`) cancels the job and frees all it holds. `info` is valid once `start` has returned.
    """

    async def start(self) -> None: ...

    def generate(self, job: Job) -> AsyncGenerator[TokenDelta, None]: ...

    def forget(self, session: str, keep_tokens: int = 0) -> None:
        """A session's cached prefix need not be kept beyond its first `keep_tokens` tokens.
        Advice: nothing happens where no worker is up."""
        ...

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
        """Ids that end an assistant turn (for harmony `<|return|>` and `<|call|>`), and the
        model's own end-of-text ids."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; special-token strings in the text are NOT turned into specials."""
        ...

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of `len(encode(text))` for a fraction of its cost; 0 where none is known.
        What is certainly too long need not be tokenised."""
        ...

    def fewest_chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """The same for `render_chat`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, specials included as their strings; invalid bytes become U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for (for logprobs)."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reasoning_effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages (already validated, OpenAI's shapes, `content` a string or None) to the ids
        of a prompt that ends where the assistant speaks. `response_format` (`name`, `schema`,
        `description`?) is told to models that were trained to be told. Raises BadRequest if the
        model's own template refuses the conversation."""
        ...

    def answer_guide(self, grammar: Grammar) -> GuidedSpec:
        """What holds a chat turn to an answer of the grammar; reasoning stays free."""
        ...

    def call_guide(
        self,
        arguments: Mapping[str, Grammar],
        *,
        required: bool,
        answer: Grammar | None = None,
        parallel: bool = True,
    ) -> GuidedSpec | None:
        """What holds a chat turn to calls with arguments of these grammars, by function name.
        With `required` a call must come, else `answer` (None: any text) may come in its place;
        with `parallel`, more than one may come from a model that makes several. None where the
        model cannot be held to that."""
        ...

    def chat_parser(self, *, tools: bool = False) -> OutputParser:
        """`tools`: the prompt offered some, so that calls are looked for."""
        ...

    def text_parser(self) -> OutputParser:
        """For `/v1/completions`: every token is content; specials are not shown."""
        ...


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe saw of one GPU at one moment. What is not known is None, never 0.

    `id` is the GPU's index on the machine (`0`, `1` …), `0/2` the third slice of a GPU that is
    partitioned (MIG), `cpu` the machine itself where there is no GPU. `utilization` is a share
    from 0 to 1, `energy_j` what was used since the probe's first reading.
    """

    id: str
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None


class GpuProbe(Protocol):
    """Asks what the GPUs are doing. Building one asks nothing; `read` may block, and raises
    whatever goes wrong. One thread at a time. After `close`, `read` may open it again."""

    def read(self) -> Sequence[GpuReading]:
        """One reading per GPU that answered, each id once."""
        ...

    def close(self) -> None: ...


class EventSink(Protocol):
    """Takes what happens and tells it on: as metrics, log lines, spans. Called on the event loop,
    once per event: quick (microseconds), never waiting for a disk or a network. It may raise; the
    fan-out counts that and no request is harmed."""

    def emit(self, event: Event) -> None: ...
