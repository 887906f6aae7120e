"""Bytes to a typed request, or a BadRequest that names the parameter at fault.

Knows: JSON, pydantic's errors and OpenAI's way of writing a parameter's path. Does not know: any
particular request. Messages never contain what the client sent, only where it was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from gpt_oss_server.errors import BadRequest

RequestT = TypeVar("RequestT", bound=BaseModel)

UNION_TAG = "|"
"""First character of the tags of our discriminated unions: pydantic puts the tag of the chosen
member into an error's location, where it names no parameter and is taken out again."""

_MAX_PARAM_CHARS = 200


def parse(model: type[RequestT], body: bytes) -> RequestT:
    """`body` as a `model`. Raises BadRequest naming the first parameter at fault."""
    return validate(model, _json_object(body))


def validate(model: type[RequestT], content: Mapping[str, Any]) -> RequestT:
    """Decoded JSON as a `model`. Raises BadRequest naming the first parameter at fault."""
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False, include_context=True)[0]
        raise _bad_request(first) from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        # NaN and Infinity pass here, to be refused below with the name of their parameter.
        content = from_json(body, allow_inf_nan=True)
    except ValueError as broken:
        raise BadRequest(f"The request body is not valid JSON: {broken}.") from None
    if not isinstance(content, dict):
        raise BadRequest("The request body must be a JSON object.")
    return content


def _bad_request(error: ErrorDetails) -> BadRequest:
    if error["type"] == "extra_forbidden":
        *place, name = error["loc"]
        param = param_path(tuple(place), str(name))
        return BadRequest(
            f"Unrecognized request argument supplied: {param}",
            param=param,
            code="unknown_parameter",
        )
    param = param_path(error["loc"])
    if error["type"] == "missing":
        return BadRequest(
            f"Missing required parameter: '{param}'.",
            param=param,
            code="missing_required_parameter",
        )
    extra = error.get("ctx", {}).get("field")
    if isinstance(extra, str):
        param += f".{extra}" if param and not extra.startswith("[") else extra
    return BadRequest(f"Invalid value for '{param}': {error['msg']}.", param=param or None)


def param_path(location: tuple[int | str, ...], unknown: str | None = None) -> str:
    """A pydantic location as OpenAI writes it: `messages[0].role`. `unknown` is a last part of
    the client's own making, which may look like anything."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(UNION_TAG):
            path += f".{part}" if path else part
    if unknown is not None:
        path += f".{unknown}" if path else unknown
    return path[:_MAX_PARAM_CHARS]
