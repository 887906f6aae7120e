"""`POST /v1/responses/input_tokens`: how long the prompt of a response would be.

Knows: which parameters such a question may have. Does not know: how a prompt is made.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from typing import Any, Final

from pydantic import Field, model_validator

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.responses_prompt import input_length, read_conversation
from gpt_oss_server.api.responses_shelf import Shelf, owner_of
from gpt_oss_server.api.schema_common import Unsupported, wrong
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.services import Services

COUNTED: Final = frozenset(
    {"model", "input", "instructions", "previous_response_id", "parallel_tool_calls", "reasoning"}
    | {"text", "tool_choice", "tools", "truncation", "conversation", "personality"}
)
"""What OpenAI's client can send; the other parameters of a response make no prompt longer."""


class InputTokensRequest(ResponsesRequest):
    """The part of a request for a response that its prompt depends on."""

    model: str = Field("", max_length=256)
    personality: Unsupported = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_counts(cls, content: Any) -> Any:
        if isinstance(content, dict):
            for name in content:
                if name in cls.model_fields and name not in COUNTED:
                    raise wrong("not a parameter of input token counts", field=name)
        return content

    @model_validator(mode="after")
    def _check_combinations(self) -> InputTokensRequest:
        """As for a response, but that there may be no input: instructions and tools are counted
        by themselves too."""
        self._check_tools()
        return self


async def count_input_tokens(exchange: Exchange, services: Services) -> None:
    """Read and parse the request, then count for as long as the client is there."""
    request, pool = await read_request(exchange, services, InputTokensRequest)
    await exchange.while_connected(_answer(exchange, services, request, pool))


async def _answer(
    exchange: Exchange, services: Services, request: InputTokensRequest, pool: Executor
) -> None:
    if request.model:
        services.model.resolve(request.model)
    shelf = Shelf(services.responses, owner_of(exchange, services.api_keys))
    conversation = await read_conversation(shelf, request, pool)
    counted = await in_pool(pool, partial(input_length, services, request, conversation))
    await exchange.reply(wire.InputTokens(input_tokens=counted))
