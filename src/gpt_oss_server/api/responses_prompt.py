"""The prompt of a response: what was said before and what is said now, as token ids.

Knows: where an earlier conversation comes from, how items become messages, how a prompt is cut to
the context. Does not know: how a response is generated or answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from gpt_oss_server.api.generation import parameters_called
from gpt_oss_server.api.identity import opening_session
from gpt_oss_server.api.intake import in_pool
from gpt_oss_server.api.responses_items import (
    Item,
    Message,
    chat_messages,
    check_calls,
    input_items,
)
from gpt_oss_server.api.responses_shelf import Shelf, items_of_turn
from gpt_oss_server.api.responses_tools import plan_response_turn
from gpt_oss_server.api.responses_truncation import render_fitting, room_for_prompt
from gpt_oss_server.api.sampling import check_fewest_tokens, check_prompt_length
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.tools import TurnPlan
from gpt_oss_server.errors import BadRequest, ContextTooLong
from gpt_oss_server.responses_store.records import History
from gpt_oss_server.types import EngineInfo


@dataclass(frozen=True)
class Conversation:
    """What was said before (None: nothing), and the items of this request."""

    before: History | None
    new: list[Item]


async def read_conversation(
    shelf: Shelf, request: ResponsesRequest, pool: Executor
) -> Conversation:
    before = None
    if request.previous_response_id is not None:
        before = await shelf.history(request.previous_response_id)
        if not before.complete and request.truncation != "auto":
            raise ContextTooLong(
                "The conversation is larger than can be read at once.",
                param="previous_response_id",
            )
    items = await in_pool(pool, partial(input_items, request.input))
    return Conversation(before, await shelf.with_references(items))


@dataclass(frozen=True)
class Prompt:
    """A conversation as ids, the session that its beginning says it belongs to, how the turn is
    to go, and the request's own items as they are stored."""

    ids: list[int]
    session: str
    turn: TurnPlan
    stored: bytes


def prepared(
    services: Services, request: ResponsesRequest, conversation: Conversation, info: EngineInfo
) -> Prompt:
    """All the work that grows with the conversation; runs in a pool. Raises BadRequest."""
    messages = _messages(request, conversation)
    turn = plan_response_turn(services.chat_format, request)
    with _called_input():
        ids = _render(services, request, messages, turn, info)
    return Prompt(ids, opening_session(messages), turn, msgspec.json.encode(conversation.new))


def input_length(services: Services, request: ResponsesRequest, conversation: Conversation) -> int:
    """How many tokens the whole conversation is, whether or not the context has room for it."""
    messages = _messages(request, conversation)
    turn = plan_response_turn(services.chat_format, request)
    with _called_input():
        return len(_renderer(services, request, turn)(messages))


def _messages(request: ResponsesRequest, conversation: Conversation) -> list[Message]:
    before = [
        item
        for turn in (conversation.before.turns if conversation.before else ())
        for item in items_of_turn(turn)
    ]
    check_calls(before, conversation.new)
    return chat_messages(request.instructions, [*before, *conversation.new])


@contextmanager
def _called_input() -> Iterator[None]:
    """The conversation is called `messages` where it is rendered, and effort as in chats."""
    try:
        with parameters_called({"reasoning_effort": "reasoning.effort"}):
            yield
    except BadRequest as refused:
        if refused.param is not None and refused.param.startswith("messages"):
            refused.param = "input"
        raise


def _render(
    services: Services,
    request: ResponsesRequest,
    messages: Sequence[Message],
    turn: TurnPlan,
    info: EngineInfo,
) -> list[int]:
    chat_format, render = services.chat_format, _renderer(services, request, turn)
    if request.truncation == "auto":
        room_tokens = room_for_prompt(info.max_model_len, request.max_output_tokens)
        ids = render_fitting(messages, render, chat_format.fewest_chat_tokens, room_tokens)
    else:
        check_fewest_tokens(chat_format.fewest_chat_tokens(messages), info, param="input")
        ids = render(messages)
    check_prompt_length(len(ids), info, param="input")
    return ids


def _renderer(
    services: Services, request: ResponsesRequest, turn: TurnPlan
) -> Callable[[Sequence[Message]], list[int]]:
    return partial(
        services.chat_format.render_chat,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        **_told(request, turn),
    )


def _told(request: ResponsesRequest, turn: TurnPlan) -> dict[str, Any]:
    """What a prompt says only where the client asked for it."""
    told: dict[str, Any] = {}
    if turn.shown is not None:
        told["tools"] = turn.shown
    if request.answer_format is not None and request.answer_format.named is not None:
        told["response_format"] = request.answer_format.named
    return told
