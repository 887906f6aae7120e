"""`GET /openapi.json`: what the server takes, from the very types that parse it.

Knows: the request models. Does not know: how they are answered; responses are described in
words, as their shapes are OpenAI's.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.responses_count import InputTokensRequest
from gpt_oss_server.api.schema_chat import ChatRequest
from gpt_oss_server.api.schema_completions import CompletionRequest
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.api.schema_tokenize import DetokenizeRequest, TokenizeRequest
from gpt_oss_server.api.services import Access, Services

_REQUESTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "A chat completion, whole or as server-sent events."),
    "/v1/completions": (CompletionRequest, "A completion, whole or as server-sent events."),
    "/v1/responses": (ResponsesRequest, "A response, whole or as server-sent events."),
    "/v1/responses/input_tokens": (InputTokensRequest, "How many tokens a response's prompt has."),
    "/tokenize": (TokenizeRequest, "The token ids of a text or of a rendered conversation."),
    "/detokenize": (DetokenizeRequest, "The text of token ids."),
}
_READS: dict[str, tuple[str, Access]] = {
    "/v1/responses/{id}": ("A stored response.", Access.API),
    "/v1/responses/{id}/input_items": ("The items of its request, by pages.", Access.API),
    "/v1/models": ("The models served.", Access.API),
    "/v1/models/{id}": ("One model.", Access.API),
    "/health": ("200 if ready, 503 with a reason if not.", Access.OPEN),
    "/live": ("200 while the process lives.", Access.OPEN),
    "/version": ("The server's version.", Access.OPEN),
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


async def openapi(exchange: Exchange, services: Services) -> None:
    """Answer with the OpenAPI 3.1 document."""
    await exchange.reply(document(services.version))


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the built-in endpoints."""
    models = [model for model, _ in _REQUESTS.values()]
    references, definitions = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {
        path: {"post": _post(references[(model, "validation")], text)}
        for path, (model, text) in _REQUESTS.items()
    }
    for path, (text, access) in _READS.items():
        paths[path] = {"get": _operation(path, text, access)}
    one = "/v1/responses/{id}"
    paths[one]["delete"] = _operation(one, "A stored response is deleted.", Access.API)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt-oss-hf-server", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _responses(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    error = {"description": "An error.", "content": {"application/json": {"schema": schema}}}
    return {"200": {"description": text}, "default": error}


def _post(request: Any, text: str) -> dict[str, Any]:
    return {
        "summary": text,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _responses(text),
        "security": [{"bearer": []}],
    }


def _operation(path: str, text: str, access: Access) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": text, "responses": _responses(text)}
    if "{id}" in path:
        operation["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if access is not Access.OPEN:
        operation["security"] = [{"bearer": []}]
    return operation
