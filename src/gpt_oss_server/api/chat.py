"""`POST /v1/chat/completions`, step by step.

Knows: the order in which a chat request is checked, run and answered. Does not know: how any of
the steps works inside.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import UNSET

from gpt_oss_server.api import wire
from gpt_oss_server.api.choice import ChoiceText, ContentLogprob, TextDelta
from gpt_oss_server.api.exchange import DONE_EVENT, Exchange, event
from gpt_oss_server.api.generation import (
    AnswerHead,
    check_choices,
    generate,
    text_batches,
    usage_of,
)
from gpt_oss_server.api.identity import named_session, opening_session
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.logprobs import chat_logprobs
from gpt_oss_server.api.sampling import (
    JobPlan,
    OutputLimit,
    check_fewest_tokens,
    check_prompt_length,
)
from gpt_oss_server.api.schema_chat import ChatRequest, message_mappings
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import EngineInfo, Job


async def chat_completions(exchange: Exchange, services: Services) -> None:
    """Read and parse the request, then answer it for as long as the client is there."""
    request, pool = await read_request(exchange, services, ChatRequest)
    await exchange.while_connected(_answer(exchange, services, request, pool))


async def _answer(
    exchange: Exchange, services: Services, request: ChatRequest, pool: Executor
) -> None:
    model = services.model.resolve(request.model)
    check_choices(request.choices_per_prompt, services, param="n")
    session = named_session(exchange, request.user)
    head = AnswerHead.new("chatcmpl", model, services)
    exchange.trail.named(head.id, model, stream=bool(request.stream))
    info = services.ready_engine_info()
    prompt = await in_pool(pool, partial(_render, services.chat_format, request, info))
    jobs = _plan(services, request, head, prompt.ids)
    answer = partial(_Answer, services, request, head)
    await generate(
        exchange, services, jobs, session or prompt.session, answer, stream=bool(request.stream)
    )


@dataclass(frozen=True)
class _Prompt:
    """A conversation as ids, and the session that its beginning says it belongs to."""

    ids: list[int]
    session: str


def _render(chat_format: ChatFormat, request: ChatRequest, info: EngineInfo) -> _Prompt:
    """All the work that grows with the conversation; runs in a pool."""
    messages = message_mappings(request.messages)
    check_fewest_tokens(chat_format.fewest_chat_tokens(messages), info, param="messages")
    ids = chat_format.render_chat(
        messages, reasoning_effort=request.reasoning_effort, **_told(request)
    )
    check_prompt_length(len(ids), info, param="messages")
    return _Prompt(ids, opening_session(messages))


def _plan(
    services: Services, request: ChatRequest, head: AnswerHead, prompt: list[int]
) -> list[Job]:
    grammar = request.grammar
    plan = JobPlan(
        request=request,
        limit=OutputLimit(
            request.output_limit,
            request.output_limit_name,
            default_tokens=services.limits.default_max_tokens,
        ),
        turn_end_ids=services.chat_format.stop_token_ids,
        logprobs=request.wanted_logprobs,
        info=services.ready_engine_info(),
        draw_seed=services.draw_seed,
        guided=None if grammar is None else services.chat_format.answer_guide(grammar),
    )
    return plan.jobs([prompt], head.id)


def _told(request: ChatRequest) -> dict[str, Any]:
    """What a prompt says only where the client asked for it."""
    wanted = request.named_format
    return {} if wanted is None else {"response_format": wanted}


@dataclass(frozen=True)
class _Answer:
    """The two ways to write one answer: as it comes, or whole."""

    services: Services
    request: ChatRequest
    head: AnswerHead
    jobs: list[Job]

    def choices(self) -> list[ChoiceText]:
        chat_format = self.services.chat_format
        silent = set(self.request.stop_token_ids or ()) - set(chat_format.stop_token_ids)
        return [
            ChoiceText(chat_format.chat_parser(), self.request.stops, silent_stop_ids=silent)
            for _ in self.jobs
        ]

    async def stream(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send chunks. The 200 head goes out with the first of them, so that a failure before
        the first token still gets a status of its own."""
        choices = exchange.trail.follow(self.choices())
        opening = b"".join(map(self._role_event, range(len(choices))))
        async for batch in text_batches(streams, choices):
            events = b"".join([self._event(index, text) for index, text in batch])
            await exchange.send_events(opening + events)
            opening = b""
        await exchange.end_events(self._usage_event(choices) + DONE_EVENT)

    async def collect(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send the whole answer once every choice is complete."""
        choices = exchange.trail.follow(self.choices())
        collected = [_Collected([], [], []) for _ in choices]
        async for batch in text_batches(streams, choices):
            for index, text in batch:
                collected[index].add(text)
        await exchange.reply(
            wire.ChatCompletion(
                id=self.head.id,
                created=self.head.created,
                model=self.head.model,
                choices=[
                    self._choice(index, choice, collected[index])
                    for index, choice in enumerate(choices)
                ],
                usage=usage_of(self.jobs, choices, len(choices)),
                system_fingerprint=self.head.system_fingerprint,
            )
        )

    def _choice(self, index: int, choice: ChoiceText, parts: _Collected) -> wire.ChatChoice:
        return wire.ChatChoice(
            index=index,
            message=wire.ChatMessage(
                content="".join(parts.content),
                reasoning_content="".join(parts.reasoning) if parts.reasoning else UNSET,
            ),
            logprobs=self._logprobs(parts.logprobs) if self.request.logprobs else None,
            finish_reason=choice.finish or "stop",
        )

    def _logprobs(self, logprobs: list[ContentLogprob]) -> wire.ChatLogprobs:
        return chat_logprobs(logprobs, self.services.chat_format.token_bytes)

    def _role_event(self, index: int) -> bytes:
        delta = wire.ChatDelta(role="assistant", content="")
        return self._chunk_event([wire.ChatChunkChoice(index=index, delta=delta)])

    def _event(self, index: int, text: TextDelta) -> bytes:
        delta = wire.ChatDelta(
            content=text.content or UNSET, reasoning_content=text.reasoning or UNSET
        )
        logprobs = self._logprobs(text.logprobs) if text.logprobs else None
        return self._chunk_event(
            [
                wire.ChatChunkChoice(
                    index=index, delta=delta, logprobs=logprobs, finish_reason=text.finish
                )
            ]
        )

    def _usage_event(self, choices: list[ChoiceText]) -> bytes:
        if not self.request.include_usage:
            return b""
        return self._chunk_event([], usage_of(self.jobs, choices, len(choices)))

    def _chunk_event(
        self, choices: list[wire.ChatChunkChoice], usage: wire.Usage | None = None
    ) -> bytes:
        return event(
            wire.ChatChunk(
                id=self.head.id,
                created=self.head.created,
                model=self.head.model,
                system_fingerprint=self.head.system_fingerprint,
                choices=choices,
                # With usage asked for, OpenAI writes null on every chunk but the last.
                usage=usage if self.request.include_usage else UNSET,
            )
        )


@dataclass(frozen=True)
class _Collected:
    content: list[str]
    reasoning: list[str]
    logprobs: list[ContentLogprob]

    def add(self, text: TextDelta) -> None:
        if text.content:
            self.content.append(text.content)
        if text.reasoning:
            self.reasoning.append(text.reasoning)
        self.logprobs.extend(text.logprobs)
