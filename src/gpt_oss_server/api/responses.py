"""`POST /v1/responses`, step by step.

Knows: the order in which a request for a response is checked, run, kept and answered. Does not
know: how any of the steps works inside.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.generation import generate, parameters_called
from gpt_oss_server.api.identity import named_session
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.responses_answer import ResponseAnswer
from gpt_oss_server.api.responses_events import ItemShapes
from gpt_oss_server.api.responses_items import (
    new_id,
)
from gpt_oss_server.api.responses_object import ResponseObject
from gpt_oss_server.api.responses_output import ResponseOutput
from gpt_oss_server.api.responses_prompt import Prompt, prepared, read_conversation
from gpt_oss_server.api.responses_shelf import Shelf, owner_of
from gpt_oss_server.api.sampling import (
    JobPlan,
    OutputLimit,
)
from gpt_oss_server.api.schema_common import SamplingFields
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.tool_calls import CallsOfChoice
from gpt_oss_server.api.tools import TurnPlan
from gpt_oss_server.types import Job


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
        defaults=services.sampling_defaults,
    )
    exchange.trail.named(head.id, model, stream=bool(request.stream))
    info = services.ready_engine_info()
    conversation = await read_conversation(shelf, request, pool)
    prompt = await in_pool(pool, partial(prepared, services, request, conversation, info))
    jobs = _plan(services, request, head.id, prompt)
    answer = _new_answer(services, head, prompt.turn)
    with parameters_called({"max_tokens": "max_output_tokens", "messages": "input"}):
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


def _plan(
    services: Services, request: ResponsesRequest, id_prefix: str, prompt: Prompt
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
        defaults=services.sampling_defaults,
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
