"""Whatever a request for a response holds, it is taken or refused with a name, never a bug."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.api.parsing import parse
from gpt_oss_server.api.responses_items import chat_messages, check_calls, input_items
from gpt_oss_server.api.responses_object import ResponseObject
from gpt_oss_server.api.responses_tools import plan_response_turn
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.harmony.formats import HarmonyFormat
from gpt_oss_server.hub import resolve_model

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
VALID: dict[str, Any] = {
    "model": "tiny",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        {"role": "assistant", "content": "four", "phase": "final_answer"},
        {"type": "message", "role": "developer", "content": "now"},
    ],
    "tools": [
        {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True},
        {"type": "function", "name": "g", "parameters": None, "strict": None},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "f"}],
    },
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "max_output_tokens": 10,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["message", "function", "reasoning", "item_reference", "user", "f", "$ref"])
)
keys = st.text(max_size=4) | st.sampled_from(["type", "role", "content", "id", "text", "schema"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@cache
def harmony() -> HarmonyFormat:
    folder = resolve_model("tiny", weights=False).folder
    return HarmonyFormat(folder, today=lambda: date(2025, 6, 1))


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a request something stands."""
    entries = content.items() if isinstance(content, dict) else ()
    entries = enumerate(content) if isinstance(content, list) else entries
    return [path, *(p for key, value in entries for p in places(value, (*path, key)))]


PLACES = places(VALID)[1:]


def spoil(place: tuple[Any, ...], value: Any, how: str) -> dict[str, Any]:
    """The valid request with one place changed."""
    body = copy.deepcopy(VALID)
    parent = body
    for key in place[:-1]:
        parent = parent[key]
    if how == "drop":
        del parent[place[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[str(value)[:6]] = value
    else:
        parent[place[-1]] = value
    return body


def go_through(body: Any) -> None:
    """All that is done with a request before the engine hears of it."""
    request = parse(ResponsesRequest, json.dumps(body).encode())
    items = [item for item in input_items(request.input) if item["type"] != "item_reference"]
    check_calls([], items)
    turn = plan_response_turn(harmony(), request)
    told: dict[str, Any] = {} if turn.shown is None else {"tools": turn.shown}
    if request.answer_format is not None and request.answer_format.named is not None:
        told["response_format"] = request.answer_format.named
    harmony().render_chat(chat_messages(request.instructions, items), **told)
    ResponseObject(id="r", model="m", created_at=0, request=request, store=False).begun()


def refusal_of(work: Callable[[], object]) -> BadRequest | None:
    """With what it was refused, if it was; anything else is a bug and comes through."""
    try:
        work()
    except BadRequest as refused:
        return refused
    return None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), values, st.sampled_from(["change", "change", "drop", "add"]))
def test_one_place_changed(place: tuple[Any, ...], value: Any, how: str) -> None:
    """It goes through, or is a BadRequest that says where."""
    refused = refusal_of(partial(go_through, spoil(place, value, how)))
    if refused is not None:
        assert refused.param is not None  # the parameter may be named ""
        assert len(refused.message) < 2000


def test_the_valid_one() -> None:
    """It is valid, so that what the others change matters."""
    go_through(VALID)


@pytest.mark.parametrize("depth", [40, 100, 5000])
def test_schemas_that_are_too_deep(depth: int) -> None:
    """However deep, the answer is quick and no bug."""
    deep = '{"type":"object","properties":{"a":' * depth + "{}" + "}}" * depth
    tool = f'{{"type":"function","name":"f","parameters":{deep}}}'
    body = f'{{"model":"m","input":"x","tools":[{tool}]}}'
    refused = refusal_of(partial(parse, ResponsesRequest, body.encode()))
    assert (refused is None) == (depth == 40)
    assert refused is None or refused.param in (None, "tools[0].parameters")
