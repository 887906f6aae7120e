"""Stand-ins for the parts of a server that are still being prepared.

Knows: how to say "not yet, because …". Does not know: what is being prepared. With these, the
HTTP surface is complete from the first second: `/live` answers, `/health` says why it is not
ready and work is refused with 503, however long a download takes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NoReturn

from gpt_oss_server.errors import NotReady
from gpt_oss_server.ports import OutputParser
from gpt_oss_server.types import (
    EngineInfo,
    EngineState,
    EngineStats,
    Grammar,
    GuidedSpec,
    Job,
    TokenDelta,
)

_RETRY_AFTER_S = 5.0


class PendingEngine:
    """An engine that never is ready; `reason` completes "not ready: …"."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def start(self) -> None:
        return None

    def generate(self, job: Job) -> AsyncGenerator[TokenDelta, None]:
        _refuse(self._reason)

    def forget(self, session: str, keep_tokens: int = 0) -> None:
        return None

    def info(self) -> EngineInfo:
        _refuse(self._reason)

    def state(self) -> EngineState:
        return EngineState(ready=False, reason=self._reason)

    def stats(self) -> EngineStats:
        return EngineStats()

    async def close(self) -> None:
        return None


class PendingChatFormat:
    """A text side that is not there yet; every use raises NotReady."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        _refuse(self._reason)

    @property
    def vocab_size(self) -> int:
        _refuse(self._reason)

    def encode(self, text: str) -> list[int]:
        _refuse(self._reason)

    def fewest_tokens(self, text: str) -> int:
        _refuse(self._reason)

    def fewest_chat_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        _refuse(self._reason)

    def decode(self, ids: Sequence[int]) -> str:
        _refuse(self._reason)

    def token_bytes(self, token_id: int) -> bytes:
        _refuse(self._reason)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        reasoning_effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> list[int]:
        _refuse(self._reason)

    def answer_guide(self, grammar: Grammar) -> GuidedSpec:
        _refuse(self._reason)

    def call_guide(
        self,
        arguments: Mapping[str, Grammar],
        *,
        required: bool,
        answer: Grammar | None = None,
        parallel: bool = True,
    ) -> GuidedSpec | None:
        _refuse(self._reason)

    def chat_parser(self, *, tools: bool = False) -> OutputParser:
        _refuse(self._reason)

    def text_parser(self) -> OutputParser:
        _refuse(self._reason)


def _refuse(reason: str) -> NoReturn:
    raise NotReady(f"The model is not ready: {reason}", retry_after_s=_RETRY_AFTER_S)
