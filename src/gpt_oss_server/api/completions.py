"""`POST /v1/completions`, step by step.

Knows: the order in which a completion request is checked, run and answered. Does not know: how
any of the steps works inside.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

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
from gpt_oss_server.api.identity import named_session
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.logprobs import completion_logprobs
from gpt_oss_server.api.sampling import (
    JobPlan,
    OutputLimit,
    check_fewest_tokens,
    check_prompt_length,
)
from gpt_oss_server.api.schema_completions import DEFAULT_MAX_TOKENS, CompletionRequest
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.types import EngineInfo, GuidedSpec, Job


async def completions(exchange: Exchange, services: Services) -> None:
    """Read and parse the request, then answer it for as long as the client is there."""
    request, pool = await read_request(exchange, services, CompletionRequest)
    await exchange.while_connected(_answer(exchange, services, request, pool))


async def _answer(
    exchange: Exchange, services: Services, request: CompletionRequest, pool: Executor
) -> None:
    model = services.model.resolve(request.model)
    check_choices(
        len(request.prompts) * request.choices_per_prompt,
        services,
        param="n" if request.choices_per_prompt > 1 else "prompt",
    )
    session = named_session(exchange, request.user)
    head = AnswerHead.new("cmpl", model, services)
    exchange.trail.named(head.id, model, stream=bool(request.stream))
    info = services.ready_engine_info()
    prompts = await in_pool(pool, partial(_tokenise, services.chat_format, request, info))
    jobs = _plan(services, request, head, prompts)
    answer = partial(_Answer, services, request, head, [prompt.echo for prompt in prompts])
    with parameters_called({"messages": "prompt"}):
        await generate(exchange, services, jobs, session, answer, stream=bool(request.stream))


@dataclass(frozen=True)
class _Prompt:
    """One prompt as ids, and the text that its answers begin with (empty without `echo`)."""

    ids: list[int]
    echo: str


def _tokenise(
    chat_format: ChatFormat, request: CompletionRequest, info: EngineInfo
) -> list[_Prompt]:
    """All the work that grows with the prompts; runs in a pool."""
    prompts: list[_Prompt] = []
    for index, prompt in enumerate(request.prompts):
        param = f"prompt[{index}]" if request.batched else "prompt"
        if isinstance(prompt, str):
            check_fewest_tokens(chat_format.fewest_tokens(prompt), info, param=param)
        ids = chat_format.encode(prompt) if isinstance(prompt, str) else prompt
        check_prompt_length(len(ids), info, param=param)
        if max(ids) >= info.vocab_size:
            raise BadRequest(
                f"A token id is outside the vocabulary (0 to {info.vocab_size - 1}).", param=param
            )
        echo = ""
        if request.echo:
            echo = prompt if isinstance(prompt, str) else chat_format.decode(prompt)
        prompts.append(_Prompt(ids, echo))
    return prompts


def _plan(
    services: Services, request: CompletionRequest, head: AnswerHead, prompts: list[_Prompt]
) -> list[Job]:
    grammar = request.grammar
    plan = JobPlan(
        request=request,
        limit=OutputLimit(request.max_tokens, default_tokens=DEFAULT_MAX_TOKENS),
        turn_end_ids=(),
        logprobs=request.logprobs,
        info=services.ready_engine_info(),
        draw_seed=services.draw_seed,
        defaults=services.sampling_defaults,
        guided=None if grammar is None else GuidedSpec.whole(grammar),
    )
    return plan.jobs([prompt.ids for prompt in prompts], head.id)


@dataclass(frozen=True)
class _Answer:
    """The two ways to write one answer: as it comes, or whole. Choices run prompt by prompt."""

    services: Services
    request: CompletionRequest
    head: AnswerHead
    echoes: list[str]
    jobs: list[Job]

    def echo(self, index: int) -> str:
        return self.echoes[index // self.request.choices_per_prompt]

    def choices(self) -> list[ChoiceText]:
        silent = frozenset(self.request.stop_token_ids or ())
        return [
            ChoiceText(
                self.services.chat_format.text_parser(), self.request.stops, silent_stop_ids=silent
            )
            for _ in self.jobs
        ]

    async def stream(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send chunks; the 200 head goes out with the first of them."""
        choices = exchange.trail.follow(self.choices())
        opening = b"".join(
            self._event(index, TextDelta(content=self.echo(index)))
            for index in range(len(choices))
            if self.request.echo
        )
        async for batch in text_batches(streams, choices):
            events = b"".join([self._event(index, text) for index, text in batch])
            await exchange.send_events(opening + events)
            opening = b""
        usage = b""
        if self.request.include_usage:
            usage = event(self._object([], self._usage(choices)))
        await exchange.end_events(usage + DONE_EVENT)

    async def collect(self, exchange: Exchange, streams: ChoiceStreams) -> None:
        """Send the whole answer once every choice is complete."""
        choices = exchange.trail.follow(self.choices())
        texts = [[self.echo(index)] for index in range(len(choices))]
        logprobs: list[list[ContentLogprob]] = [[] for _ in choices]
        async for batch in text_batches(streams, choices):
            for index, text in batch:
                texts[index].append(text.content)
                logprobs[index].extend(text.logprobs)
        written = [
            wire.CompletionChoice(
                index=index,
                text="".join(texts[index]),
                logprobs=self._logprobs(logprobs[index]),
                finish_reason=choice.finish,
            )
            for index, choice in enumerate(choices)
        ]
        await exchange.reply(self._object(written, self._usage(choices)))

    def _usage(self, choices: list[ChoiceText]) -> wire.Usage:
        return usage_of(self.jobs, choices, self.request.choices_per_prompt)

    def _logprobs(self, logprobs: list[ContentLogprob]) -> wire.CompletionLogprobs | None:
        if self.request.logprobs is None:
            return None
        token_bytes = self.services.chat_format.token_bytes
        return completion_logprobs(logprobs, token_bytes, wanted=self.request.logprobs)

    def _event(self, index: int, text: TextDelta) -> bytes:
        choice = wire.CompletionChoice(
            index=index,
            text=text.content,
            logprobs=self._logprobs(text.logprobs) if text.logprobs else None,
            finish_reason=text.finish,
        )
        # With usage asked for, OpenAI writes null on every chunk but the last.
        return event(self._object([choice], None if self.request.include_usage else UNSET))

    def _object(
        self, choices: list[wire.CompletionChoice], usage: wire.Usage | UnsetType | None
    ) -> wire.Completion:
        return wire.Completion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self.head.system_fingerprint,
        )
