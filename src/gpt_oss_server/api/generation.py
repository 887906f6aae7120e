"""What the two generating endpoints share: ids, counting, and one choice's text from its tokens.

Knows: how a request's answer is named and its tokens are counted. Does not know: chat or
completion shapes.
"""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from gpt_oss_server.api import wire
from gpt_oss_server.api.choice import ChoiceText, TextDelta
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.dispatch.desk import Lease
from gpt_oss_server.errors import BadRequest, EngineFailed
from gpt_oss_server.types import Job

T = TypeVar("T")

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
    return ChoiceStreams(services.engine, lease.jobs, lease.count, exchange.trail.saw)


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """Run `work` in the text pool, so that the event loop never waits for it."""
    context = contextvars.copy_context()  # for the ids that log lines carry
    return await asyncio.get_running_loop().run_in_executor(pool, context.run, work)


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
