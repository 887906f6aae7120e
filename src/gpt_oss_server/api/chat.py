"""`POST /v1/chat/completions`, step by step.

Knows: the order in which a chat request is checked, run and answered. Does not know: how any of
the steps works inside.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec import UNSET, UnsetType

from gpt_oss_server.api import wire
from gpt_oss_server.api.choice import ChoiceText, ContentLogprob, TextDelta
from gpt_oss_server.api.exchange import DONE_EVENT, Exchange, event
from gpt_oss_server.api.generation import (
    AnswerHead,
    check_choices,
    generate,
    parameters_called,
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
from gpt_oss_server.api.tool_calls import CallDelta, CallsOfChoice, ToolCall, collect, joined
from gpt_oss_server.api.tools import TurnPlan, plan_turn
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
    jobs = _plan(services, request, head, prompt)
    answer = partial(_Answer, services, request, head, prompt.turn)
    with parameters_called({"max_tokens": request.output_limit_name}):
        await generate(
            exchange, services, jobs, session or prompt.session, answer, stream=bool(request.stream)
        )


@dataclass(frozen=True)
class _Prompt:
    """A conversation as ids, the session that its beginning says it belongs to, and how the turn
    that follows is to go."""

    ids: list[int]
    session: str
    turn: TurnPlan


def _render(chat_format: ChatFormat, request: ChatRequest, info: EngineInfo) -> _Prompt:
    """All the work that grows with the conversation; runs in a pool."""
    messages = message_mappings(request.messages)
    check_fewest_tokens(chat_format.fewest_chat_tokens(messages), info, param="messages")
    turn = plan_turn(chat_format, request)
    ids = chat_format.render_chat(
        messages, reasoning_effort=request.reasoning_effort, **_told(request, turn)
    )
    check_prompt_length(len(ids), info, param="messages")
    return _Prompt(ids, opening_session(messages), turn)


def _plan(services: Services, request: ChatRequest, head: AnswerHead, prompt: _Prompt) -> list[Job]:
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
        defaults=services.sampling_defaults,
        guided=prompt.turn.guide,
    )
    return plan.jobs([prompt.ids], head.id)


def _told(request: ChatRequest, turn: TurnPlan) -> dict[str, Any]:
    """What a prompt says only where the client asked for it."""
    told = {"response_format": request.named_format, "tools": turn.shown}
    return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class _Answer:
    """The two ways to write one answer: as it comes, or whole."""

    services: Services
    request: ChatRequest
    head: AnswerHead
    turn: TurnPlan
    jobs: list[Job]

    def choices(self) -> list[ChoiceText]:
        chat_format = self.services.chat_format
        silent = set(self.request.stop_token_ids or ()) - set(chat_format.stop_token_ids)
        turn = self.turn
        return [
            ChoiceText(
                chat_format.chat_parser(tools=turn.offered),
                self.request.stops,
                silent_stop_ids=silent,
                calls=CallsOfChoice(parallel=turn.parallel) if turn.offered else None,
            )
            for _ in self.jobs
        ]

    async def stream(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send chunks. The 200 head goes out with the first of them, so that a failure before
        the first token still gets a status of its own."""
        choices = exchange.trail.follow(self.choices())
        opening = b"".join(map(self._role_event, range(len(choices))))
        async for batch in text_batches(streams, choices):
            events = b"".join([self._events(index, text) for index, text in batch])
            await exchange.send_events(opening + events)
            opening = b""
        await exchange.end_events(self._usage_event(choices) + DONE_EVENT)

    async def collect(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send the whole answer once every choice is complete."""
        choices = exchange.trail.follow(self.choices())
        collected = [_Collected() for _ in choices]
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
                service_tier=self._service_tier,
            )
        )

    def _choice(self, index: int, choice: ChoiceText, parts: _Collected) -> wire.ChatChoice:
        content = "".join(parts.content)
        return wire.ChatChoice(
            index=index,
            message=wire.ChatMessage(
                content=None if parts.calls and not content else content,
                tool_calls=[_whole_call(call) for call in parts.calls] or UNSET,
                reasoning_content="".join(parts.reasoning) if parts.reasoning else UNSET,
            ),
            logprobs=self._logprobs(parts.logprobs) if self.request.logprobs else None,
            finish_reason=choice.finish or "stop",
        )

    def _logprobs(self, logprobs: list[ContentLogprob]) -> wire.ChatLogprobs:
        return chat_logprobs(logprobs, self.services.chat_format.token_bytes)

    def _role_event(self, index: int) -> bytes:
        return self._choice_event(index, wire.ChatDelta(role="assistant", content=""))

    def _events(self, index: int, text: TextDelta) -> bytes:
        """One chunk; where there are calls, one for each part of them and one for the end: OpenAI's
        client takes one entry per call and chunk."""
        delta = wire.ChatDelta(
            content=text.content or UNSET, reasoning_content=text.reasoning or UNSET
        )
        logprobs = self._logprobs(text.logprobs) if text.logprobs else None
        if not text.calls:
            return self._choice_event(index, delta, logprobs, text.finish)
        events = []
        if text.content or text.reasoning or logprobs:
            events.append(self._choice_event(index, delta, logprobs))
        for call in joined(text.calls):
            events.append(self._choice_event(index, wire.ChatDelta(tool_calls=[_part_of(call)])))
        if text.finish:
            events.append(self._choice_event(index, wire.ChatDelta(), finish=text.finish))
        return b"".join(events)

    def _choice_event(
        self,
        index: int,
        delta: wire.ChatDelta,
        logprobs: wire.ChatLogprobs | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = wire.ChatChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish
        )
        return self._chunk_event([choice])

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
                service_tier=self._service_tier,
            )
        )

    @property
    def _service_tier(self) -> str | UnsetType:
        """The tier that the request ran in, told where it asked for one: there is one for all."""
        return UNSET if self.request.service_tier is None else "default"


def _whole_call(call: ToolCall) -> wire.ToolCall:
    return wire.ToolCall(id=call.id, function=wire.CalledFunction(call.name, call.arguments))


def _part_of(call: CallDelta) -> wire.ToolCallDelta:
    if call.id is None or call.name is None:
        return wire.ToolCallDelta(
            index=call.index, function=wire.FunctionDelta(arguments=call.arguments)
        )
    return wire.ToolCallDelta(
        index=call.index,
        id=call.id,
        type="function",
        function=wire.FunctionDelta(name=call.name, arguments=call.arguments),
    )


@dataclass(frozen=True)
class _Collected:
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, text: TextDelta) -> None:
        if text.content:
            self.content.append(text.content)
        if text.reasoning:
            self.reasoning.append(text.reasoning)
        collect(self.calls, text.calls)
        self.logprobs.extend(text.logprobs)
