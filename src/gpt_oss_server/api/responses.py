"""`POST /v1/responses`, step by step.

Knows: the order in which a request for a response is checked, run, kept and answered. Does not
know: how any of the steps works inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.generation import generate
from gpt_oss_server.api.identity import named_session, opening_session
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.responses_answer import ResponseAnswer
from gpt_oss_server.api.responses_events import ItemShapes
from gpt_oss_server.api.responses_items import (
    Item,
    Message,
    chat_messages,
    check_calls,
    input_items,
    new_id,
)
from gpt_oss_server.api.responses_object import ResponseObject
from gpt_oss_server.api.responses_output import ResponseOutput
from gpt_oss_server.api.responses_shelf import Shelf, items_of_turn, owner_of
from gpt_oss_server.api.responses_tools import plan_response_turn
from gpt_oss_server.api.responses_truncation import render_fitting, room_for_prompt
from gpt_oss_server.api.sampling import (
    JobPlan,
    OutputLimit,
    check_fewest_tokens,
    check_prompt_length,
)
from gpt_oss_server.api.schema_common import SamplingFields
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.tool_calls import CallsOfChoice
from gpt_oss_server.api.tools import TurnPlan
from gpt_oss_server.errors import BadRequest, ContextTooLong
from gpt_oss_server.responses_store.records import History
from gpt_oss_server.types import EngineInfo, Job


async def create_response(exchange: Exchange, services: Services) -> None:
    """Read and parse the request, then answer it for as long as the client is there."""
    request, pool = await read_request(exchange, services, ResponsesRequest)
    await exchange.while_connected(_answer(exchange, services, request, pool))


async def _answer(
    exchange: Exchange, services: Services, request: ResponsesRequest, pool: Executor
) -> None:
    model = services.model.resolve(request.model)
    session = named_session(exchange, request.user)
    shelf = Shelf(services.responses, owner_of(exchange, services.api_keys))
    head = ResponseObject(
        id=new_id("resp"),
        model=model,
        created_at=int(services.clock()),
        request=request,
        store=await shelf.will_keep(request.store),
    )
    exchange.trail.named(head.id, model, stream=bool(request.stream))
    info = services.ready_engine_info()
    conversation = await _conversation(shelf, request, pool)
    prompt = await in_pool(pool, partial(_prepare, services, request, conversation, info))
    jobs = _plan(services, request, head.id, prompt)
    answer = _new_answer(services, head, prompt.turn)
    await generate(
        exchange,
        services,
        jobs,
        session or prompt.session,
        answer.of_jobs,
        stream=bool(request.stream),
    )

    async def keep(response: wire.Response) -> bool:
        ids = [item["id"] for item in conversation.new]
        return await shelf.keep(response, prompt.stored, ids, insisted=request.store is True)

    await answer.conclude(exchange, keep)


@dataclass(frozen=True)
class _Conversation:
    """What was said before (None: nothing), and the items of this request."""

    before: History | None
    new: list[Item]


async def _conversation(shelf: Shelf, request: ResponsesRequest, pool: Executor) -> _Conversation:
    before = None
    if request.previous_response_id is not None:
        before = await shelf.history(request.previous_response_id)
        if not before.complete and request.truncation != "auto":
            raise ContextTooLong(
                "The conversation is larger than can be read at once.",
                param="previous_response_id",
            )
    items = await in_pool(pool, partial(input_items, request.input))
    return _Conversation(before, await shelf.with_references(items))


@dataclass(frozen=True)
class _Prompt:
    """A conversation as ids, the session that its beginning says it belongs to, how the turn is
    to go, and the request's own items as they are stored."""

    ids: list[int]
    session: str
    turn: TurnPlan
    stored: bytes


def _prepare(
    services: Services, request: ResponsesRequest, conversation: _Conversation, info: EngineInfo
) -> _Prompt:
    """All the work that grows with the conversation; runs in a pool."""
    before = [
        item
        for turn in (conversation.before.turns if conversation.before else ())
        for item in items_of_turn(turn)
    ]
    check_calls(before, conversation.new)
    messages = chat_messages(request.instructions, [*before, *conversation.new])
    turn = plan_response_turn(services.chat_format, request)
    try:
        ids = _render(services, request, messages, turn, info)
    except BadRequest as refused:
        # The conversation is called `messages` where it is rendered.
        if refused.param is not None and refused.param.startswith("messages"):
            refused.param = "input"
        raise
    return _Prompt(ids, opening_session(messages), turn, msgspec.json.encode(conversation.new))


def _render(
    services: Services,
    request: ResponsesRequest,
    messages: Sequence[Message],
    turn: TurnPlan,
    info: EngineInfo,
) -> list[int]:
    chat_format = services.chat_format
    effort = None if request.reasoning is None else request.reasoning.effort
    told = _told(request, turn)

    def render(kept: Sequence[Message]) -> list[int]:
        return chat_format.render_chat(kept, reasoning_effort=effort, **told)

    if request.truncation == "auto":
        room_tokens = room_for_prompt(info.max_model_len, request.max_output_tokens)
        ids = render_fitting(messages, render, chat_format.fewest_chat_tokens, room_tokens)
    else:
        check_fewest_tokens(chat_format.fewest_chat_tokens(messages), info, param="input")
        ids = render(messages)
    check_prompt_length(len(ids), info, param="input")
    return ids


def _told(request: ResponsesRequest, turn: TurnPlan) -> dict[str, Any]:
    """What a prompt says only where the client asked for it."""
    told: dict[str, Any] = {}
    if turn.shown is not None:
        told["tools"] = turn.shown
    if request.answer_format is not None and request.answer_format.named is not None:
        told["response_format"] = request.answer_format.named
    return told


def _plan(
    services: Services, request: ResponsesRequest, id_prefix: str, prompt: _Prompt
) -> list[Job]:
    plan = JobPlan(
        request=SamplingFields.model_validate(
            {
                "model": request.model,
                "temperature": request.temperature,
                "top_p": request.top_p,
            }
        ),
        limit=OutputLimit(
            request.max_output_tokens,
            "max_output_tokens",
            default_tokens=services.limits.default_max_tokens,
        ),
        turn_end_ids=services.chat_format.stop_token_ids,
        logprobs=request.wanted_logprobs,
        info=services.ready_engine_info(),
        draw_seed=services.draw_seed,
        guided=prompt.turn.guide,
    )
    return plan.jobs([prompt.ids], id_prefix)


def _new_answer(services: Services, head: ResponseObject, turn: TurnPlan) -> ResponseAnswer:
    request, chat_format = head.request, services.chat_format
    calls = CallsOfChoice(parallel=turn.parallel) if turn.offered else None
    return ResponseAnswer(
        head=head,
        output=ResponseOutput(chat_format.chat_parser(tools=turn.offered), calls),
        shapes=ItemShapes(
            chat_format.token_bytes,
            with_summary=request.wants_summary,
            with_sealed=request.wants_encrypted_reasoning,
        ),
        clock=services.clock,
    )
