"""What the two generating endpoints share: the way from jobs to an answer, its ids and counts.

Knows: in what order jobs are admitted, run and answered, how an answer is named and its tokens
are counted. Does not know: chat or completion shapes.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from gpt_oss_server.api import wire
from gpt_oss_server.api.choice import ChoiceText, TextDelta
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.identity import call_of
from gpt_oss_server.api.services import RouteLabel, Services
from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.dispatch.desk import Lease
from gpt_oss_server.errors import BadRequest, EngineFailed
from gpt_oss_server.types import Job, TokenDelta

TextBatch = list[tuple[int, TextDelta]]


@dataclass(frozen=True)
class AnswerHead:
    """What every object of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, model: str, services: Services) -> AnswerHead:
        return cls(
            id=f"{prefix}-{secrets.token_hex(16)}",
            created=int(services.clock()),
            model=model,
            system_fingerprint=services.system_fingerprint,
        )


def choice_streams(exchange: Exchange, services: Services, lease: Lease) -> ChoiceStreams:
    """The streams of an admitted request, watched by those who count tokens."""

    trail = exchange.trail

    def saw(index: int, delta: TokenDelta) -> None:
        trail.saw(index, delta)
        lease.saw(index, delta)

    return ChoiceStreams(services.engine, lease.jobs, saw, lease.parallel)


@contextmanager
def parameters_called(names: Mapping[str, str]) -> Iterator[None]:
    """What is behind the endpoints calls parameters as chat completions do: `names` says how the
    request's own API calls them, so that a refusal names what the client knows."""
    try:
        yield
    except BadRequest as refused:
        name = refused.param
        if name is not None and name in names:
            refused.param = names[name]
            refused.message = refused.message.replace(f"'{name}'", f"'{names[name]}'")
        raise


class Answer(Protocol):
    """The two ways to write one answer: as it comes, or whole."""

    async def stream(self, exchange: Exchange, streams: ChoiceStreams) -> None: ...

    async def collect(self, exchange: Exchange, streams: ChoiceStreams) -> None: ...


async def generate(
    exchange: Exchange,
    services: Services,
    jobs: list[Job],
    session: str | None,
    answer_of: Callable[[list[Job]], Answer],
    *,
    stream: bool,
) -> None:
    """Have the jobs admitted, run them and write their answer. `answer_of` makes it of the jobs
    as they were admitted. Raises what the desk and the engine raise."""
    exchange.trail.planned(jobs)
    async with services.desk.admit(call_of(exchange, services, jobs, session)) as lease:
        exchange.route = RouteLabel(lease.route, lease.reason, lease.predicted_kv_bytes)
        answer = answer_of(lease.jobs)
        async with choice_streams(exchange, services, lease) as streams:
            if stream:
                await answer.stream(exchange, streams)
            else:
                await answer.collect(exchange, streams)


def check_choices(choices: int, services: Services, *, param: str) -> None:
    """Raises BadRequest if one request asks for more sequences than the server allows."""
    if choices > services.limits.max_choices:
        raise BadRequest(
            f"The request asks for {choices} choices; at most {services.limits.max_choices} are "
            "allowed.",
            param=param,
        )


async def text_batches(
    streams: ChoiceStreams, choices: Sequence[ChoiceText]
) -> AsyncIterator[TextBatch]:
    """The choices' text as it comes, all that waits at once; never an empty batch.

    Ends when every choice has its finish reason. Raises what the engine raises, and EngineFailed
    if it ends a choice without a reason.
    """
    unfinished = len(choices)
    while unfinished:
        batch = await streams.next_batch()
        if not batch:
            raise EngineFailed("The engine ended a generation without saying why.")
        texts: TextBatch = []
        for index, delta in batch:
            choice = choices[index]
            if choice.finish is not None:
                continue
            text = choice.feed(delta)
            if text:
                texts.append((index, text))
            if choice.finish is not None:
                unfinished -= 1
                if delta.finish is None:
                    await streams.stop(index)
        if texts:
            yield texts


def usage_of(jobs: Sequence[Job], choices: Sequence[ChoiceText], n: int) -> wire.Usage:
    """Token counts of a whole request: each prompt counted once, though it has `n` choices."""
    prompt_tokens = sum(len(job.prompt) for job in jobs[::n])
    cached_tokens = sum(choice.cached_tokens for choice in choices[::n])
    completion_tokens = sum(choice.completion_tokens for choice in choices)
    return wire.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=wire.PromptTokensDetails(cached_tokens),
        completion_tokens_details=wire.CompletionTokensDetails(
            sum(choice.reasoning_tokens for choice in choices)
        ),
    )
