"""`POST /tokenize` and `POST /detokenize`: the model's own tokeniser, for clients that count.

Knows: how the two requests are answered. Does not know: tokenisers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpt_oss_server.api import wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.intake import in_pool, read_request
from gpt_oss_server.api.schema_chat import message_mappings
from gpt_oss_server.api.schema_tokenize import DetokenizeRequest, TokenizeRequest
from gpt_oss_server.api.services import Services
from gpt_oss_server.api.tools import shown_tool
from gpt_oss_server.errors import BadRequest


async def tokenize(exchange: Exchange, services: Services) -> None:
    """Ids and their count for a text or, as the chat endpoint would render it, a conversation."""
    request, pool = await read_request(exchange, services, TokenizeRequest)
    if request.model is not None:
        services.model.resolve(request.model)
    info = services.ready_engine_info()
    work = in_pool(pool, partial(_tokens_of, services, request))
    tokens = await exchange.while_connected(work)
    await exchange.reply(
        wire.Tokenized(count=len(tokens), max_model_len=info.max_model_len, tokens=tokens)
    )


def _tokens_of(services: Services, request: TokenizeRequest) -> list[int]:
    if request.prompt is not None:
        return services.chat_format.encode(request.prompt)
    told: dict[str, Any] = (
        {} if request.tools is None else {"tools": [shown_tool(t) for t in request.tools]}
    )
    return services.chat_format.render_chat(
        message_mappings(request.messages or ()), reasoning_effort=request.reasoning_effort, **told
    )


async def detokenize(exchange: Exchange, services: Services) -> None:
    """The text of token ids, special tokens as their names."""
    request, pool = await read_request(exchange, services, DetokenizeRequest)
    if request.model is not None:
        services.model.resolve(request.model)
    vocab_size = services.chat_format.vocab_size
    for index, token in enumerate(request.tokens):
        if token >= vocab_size:
            raise BadRequest(
                f"The token id is outside the vocabulary (0 to {vocab_size - 1}).",
                param=f"tokens[{index}]",
            )
    work = in_pool(pool, partial(services.chat_format.decode, request.tokens))
    text = await exchange.while_connected(work)
    await exchange.reply(wire.Detokenized(prompt=text))
