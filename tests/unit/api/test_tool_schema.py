"""Tools in a request: what is taken, and which parameter is named when something is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_oss_server.api.parsing import parse
from gpt_oss_server.api.schema_chat import ChatRequest
from gpt_oss_server.api.schema_tools import NO_PARAMETERS, ToolChoice
from gpt_oss_server.errors import BadRequest
from tool_models import function

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def call(identity: str = "c1", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "f", "arguments": arguments}}


def called(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(identity: str = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": "4", "tool_call_id": identity}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


PARAMETERS = "tools[0].function.parameters"
NAME = "tools[0].function.name"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (5, "tools[0]"),
        ({}, "tools[0].type"),
        ({"type": "function"}, "tools[0].function"),
        ({"type": "custom", "custom": {"name": "f"}}, "tools[0].type"),
        ({"type": "web_search"}, "tools[0].type"),
        ({"type": "function", "function": {}}, NAME),
        *((function(name), NAME) for name in ("", "a b", "a.b", "é", "x" * 65, "a\n", "<|call|>")),
        ({"type": "function", "function": {"name": None}}, NAME),
        (function(description=7), "tools[0].function.description"),
        (function(strict="yes"), "tools[0].function.strict"),
        (function(colour="red"), "tools[0].function.colour"),
        (function(parameters=5), PARAMETERS),
        (function(parameters=[]), PARAMETERS),
        (function(parameters="{}"), PARAMETERS),
        (function(parameters={"type": "array"}), PARAMETERS),
        (function(parameters={"type": "obj"}), PARAMETERS),
        (function(parameters={"type": ["object", "null"]}), PARAMETERS),
        (function(parameters={"properties": []}), PARAMETERS),
        (function(parameters={"properties": {"a": 5}}), PARAMETERS),
        (function(parameters={"properties": {"a": {"type": "text"}}}), PARAMETERS),
        (function(parameters={"required": "a"}), PARAMETERS),
        (function(parameters={"properties": {"a": {"required": True}}}), PARAMETERS),
        (function(parameters={"anyOf": {}}), PARAMETERS),
        (function(parameters={"$ref": 3}), PARAMETERS),
        (function(parameters={"properties": {"a": {"minLength": -1}}}), PARAMETERS),
        (function(parameters={"properties": {"a": {"maximum": "5"}}}), PARAMETERS),
        (function(parameters={"x-guidance": {}}), PARAMETERS),
        (function(parameters=nested(70)), PARAMETERS),
        (function(parameters={"description": "x" * (300 << 10)}), PARAMETERS),
        (function(parameters={"not": {}}, strict=True), PARAMETERS),
    ],
)
def test_refused_tools(tool: Any, param: str) -> None:
    """Each fault of a definition is a BadRequest whose `param` is its place."""
    with pytest.raises(BadRequest) as caught:
        chat(tools=[tool])
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [function("a"), function("a")]}, "tools[1].function.name"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "tools"),
        (
            {
                "tools": [
                    function(f"f{i}", parameters={"description": "x" * (250 << 10)})
                    for i in range(5)
                ]
            },
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("weather")}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [function()], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": [function()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [function()], "tool_choice": 5}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {}}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [function()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [function()], "tool_choice": named("other")}, "tool_choice.function.name"),
        ({"tools": [function()], "tool_choice": named(5)}, "tool_choice.function.name"),
        (
            {"tools": [function()], "tool_choice": allowed("auto", "weather", "other")},
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        (
            {"tools": [function()], "tool_choice": allowed("none", "weather")},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": [function()], "tool_choice": allowed("auto")},
            "tool_choice.allowed_tools.tools",
        ),
    ],
)
def test_refused_choices(fields: dict[str, Any], param: str) -> None:
    """Faults between tools, and in the choice among them."""
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, result()], "messages[1].tool_call_id"),
        ([called(call()), result("c2")], "messages[1].tool_call_id"),
        ([called(call()), result(), result()], "messages[2].tool_call_id"),
        ([called(call()), result(), USER, result()], "messages[3].tool_call_id"),
        ([called(call())], "messages[0].tool_calls[0].id"),
        ([called(call()), USER], "messages[0].tool_calls[0].id"),
        ([called(call("a"), call("b")), result("a"), USER], "messages[0].tool_calls[1].id"),
        ([called(call(), call()), result()], "messages[0].tool_calls[1].id"),
        ([called(*(call(f"c{i}") for i in range(129)))], "messages[0].tool_calls"),
        *(
            (
                [called(call(arguments=arguments)), result()],
                "messages[0].tool_calls[0].function.arguments",
            )
            for arguments in ("", "x", "{", "[]", "5", "null", '{"a": NaN}', "{}{}", {}, "[" * 9999)
        ),
    ],
)
def test_refused_histories(messages: list[Any], param: str) -> None:
    """Results without a call, calls without a result, and arguments that are not JSON."""
    with pytest.raises(BadRequest) as caught:
        chat(messages=messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "messages",
    [
        [called(call()), result()],
        [called(call("a"), call("b")), result("b"), result("a"), USER],
        [called(call()), result(), called(call()), result()],
        [called(call(arguments=' {"a": [1, {}]} ')), result()],
    ],
)
def test_histories_with_calls(messages: list[Any]) -> None:
    """Results in any order, an id used again in a later turn, any object as arguments."""
    assert len(chat(messages=messages).messages) == len(messages)


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, ToolChoice("none")),
        ({"tools": []}, ToolChoice("none")),
        ({"tools": None, "tool_choice": "auto"}, ToolChoice("none")),
        ({"tool_choice": "none"}, ToolChoice("none")),
        ({"tools": [function()]}, ToolChoice("auto")),
        ({"tools": [function()], "tool_choice": None}, ToolChoice("auto")),
        ({"tools": [function()], "tool_choice": "auto"}, ToolChoice("auto")),
        ({"tools": [function()], "tool_choice": "none"}, ToolChoice("none")),
        ({"tools": [function()], "tool_choice": "required"}, ToolChoice("required")),
        (
            {"tools": [function(), function("b")], "tool_choice": named("b")},
            ToolChoice("required", frozenset({"b"})),
        ),
        (
            {"tools": [function(), function("b")], "tool_choice": allowed("auto", "b")},
            ToolChoice("auto", frozenset({"b"})),
        ),
        (
            {"tools": [function(), function("b")], "tool_choice": allowed("required", "b")},
            ToolChoice("required", frozenset({"b"})),
        ),
    ],
)
def test_choices(fields: dict[str, Any], choice: ToolChoice) -> None:
    """Every form of `tool_choice` that OpenAI's types have, and what is left out."""
    assert chat(**fields).chosen_tools == choice


def test_parallel_calls() -> None:
    """Several unless told otherwise; true changes nothing, even without tools."""
    assert chat(tools=[function()]).may_call_several
    assert chat(parallel_tool_calls=True).may_call_several
    assert not chat(tools=[function()], parallel_tool_calls=False).may_call_several


@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (None, NO_PARAMETERS),
        ({}, NO_PARAMETERS),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        ({"type": "object"}, {"type": "object"}),
    ],
)
def test_arguments_are_an_object(parameters: Any, schema: Any) -> None:
    """Whatever the parameters leave open."""
    [tool] = chat(tools=[function(parameters=parameters)]).tools or []
    assert tool.function.schema_of_arguments == schema


def test_bounds_of_metadata() -> None:
    """Sixteen pairs, keys of 64 and values of 512 characters, as OpenAI has them."""
    assert chat(metadata={"k" * 64: "v" * 512}).metadata == {"k" * 64: "v" * 512}
    for metadata in ({"k" * 65: "v"}, {"k": "v" * 513}, {str(i): "" for i in range(17)}):
        with pytest.raises(BadRequest) as caught:
            chat(metadata=metadata)
        assert str(caught.value.param).startswith("metadata")


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "scale", "priority", "fast"])
def test_service_tiers(tier: str) -> None:
    """Those that OpenAI's types have, and no others."""
    assert chat(service_tier=tier).service_tier == tier
    with pytest.raises(BadRequest) as caught:
        chat(service_tier=tier + "er")
    assert caught.value.param == "service_tier"
