"""Which requests for a response are taken, and which parameter is named when one is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt_oss_server.api.parsing import parse
from gpt_oss_server.api.schema_responses import ResponsesRequest
from gpt_oss_server.errors import BadRequest

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}


def request(**fields: Any) -> ResponsesRequest:
    content = {"model": "m", "input": "x", **fields}
    return parse(ResponsesRequest, json.dumps(content).encode())


def part(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{**USER, "colour": "red"}]}, "input[0].colour"),
        ({"input": [{**USER, "phase": "commentary"}]}, "input[0].phase"),
        (part(type="input_image", image_url="x"), "input[0].content[0].type"),
        (part(type="input_file", file_id="x"), "input[0].content[0].type"),
        (part(type="output_text", text="x"), "input[0].content[0].type"),
        (part(type="input_text"), "input[0].content[0].text"),
        (part(type="input_text", text=1), "input[0].content[0].text"),
        (part(text="x"), "input[0].content[0].type"),
        ({"input": [USER, {"type": "web_search_call", "id": "w"}]}, "input[1].type"),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input[0].type"),
        ({"input": [{"type": "a b"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{**CALL, "name": "f g"}]}, "input[0].name"),
        ({"input": [{**CALL, "arguments": "no json"}]}, "input[0].arguments"),
        ({"input": [{**CALL, "arguments": "[1]"}]}, "input[0].arguments"),
        ({"input": [{**CALL, "arguments": '{"a": NaN}'}]}, "input[0].arguments"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{**CALL, "namespace": "n"}]}, "input[0].namespace"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        (
            {
                "input": [
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_image"}],
                    }
                ]
            },
            "input[0].output[0].type",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [{"text": "x"}]}]},
            "input[0].summary[0].type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "name": ""}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{**TOOL, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        (
            {"tools": [{**TOOL, "parameters": {"type": "object", "if": {}}, "strict": True}]},
            "tools[0].parameters",
        ),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "g"}],
                },
            },
            "tool_choice.tools[0].name",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "mcp", "server_label": "x"}],
                },
            },
            "tool_choice.tools[0].type",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "text.format.name"),
        ({"text": {"format": {"type": "text", "name": "a"}}}, "text.format.name"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": "x"}}},
            "text.format.schema",
        ),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": "xhigh"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"include": ["code_interpreter_call.outputs"]}, "include[0]"),
        ({"stream_options": {}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            "stream_options.include_usage",
        ),
        ({"background": True}, "background"),
        ({"background": 1}, "background"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"seed": 1}, "seed"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    """A 400 that names the parameter, and says nothing of what it held."""
    with pytest.raises(BadRequest) as caught:
        request(**fields)
    assert caught.value.param == param


def test_hosted_tools_are_named() -> None:
    """The message says which tool there is not."""
    with pytest.raises(BadRequest, match="this server has no tool web_search_preview"):
        request(tools=[{"type": "web_search_preview"}])
    with pytest.raises(BadRequest, match="items of the type mcp_call are not supported"):
        request(input=[{"type": "mcp_call", "id": "m"}])


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": [], "previous_response_id": "resp_1"},
        {"input": [{"id": "msg_1"}]},
        {"input": [{"role": "assistant", "content": []}]},
        {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
        {"input": [{**CALL, "async": False, "caller": {"type": "direct"}, "status": "completed"}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}]},
        {"tools": [{"type": "function", "name": "f", "parameters": None, "strict": None}]},
        {"tools": []},
        {"background": False},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_what_is_taken(fields: dict[str, Any]) -> None:
    """Forms that OpenAI's clients send."""
    assert request(**fields).model == "m"


def test_logprobs_wanted() -> None:
    """Asked for by `include`, by `top_logprobs`, or not at all."""
    include = ["message.output_text.logprobs"]
    assert request().wanted_logprobs is None
    assert request(top_logprobs=0).wanted_logprobs is None
    assert request(top_logprobs=3).wanted_logprobs == 3
    assert request(include=include).wanted_logprobs == 0
    assert request(include=include, top_logprobs=3).wanted_logprobs == 3
