"""Which requests are taken and which parameter is named when one is not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.api.parsing import param_path, parse
from gpt_oss_server.api.schema_chat import ChatRequest, message_mappings
from gpt_oss_server.api.schema_completions import CompletionRequest
from gpt_oss_server.errors import BadRequest

USER = {"role": "user", "content": "hi"}


def called(name: object) -> dict[str, Any]:
    """A call of a function with this name."""
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"model": "m", "prompt": "p", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": ["user"], "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image_url", "image_url": {"url": "x"}},
                        ],
                    }
                ]
            },
            "messages[0].content[1].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
            "messages[0].audio",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "code"}]}]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        *(
            ({"messages": [{**message, "name": name}]}, "messages[0].name")
            for message in (USER, {**USER, "role": "system"}, {**USER, "role": "assistant"})
            for name in ("", "a b", "a.b", "é", "x" * 65, "a\n", "<|end|>", 5)
        ),
        *(
            (
                {"messages": [{"role": "assistant", "tool_calls": [called(name)]}]},
                "messages[0].tool_calls[0].function.name",
            )
            for name in ("", "f g", "f.g", "f<|message|>", "x" * 65, "f\n", 1)
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "c9"}]},
            "messages[1].tool_call_id",
        ),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.01}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"5": math.nan}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"store": True}, "store"),
        ({"service_tier": "turbo"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"audio": {}}, "audio"),
        ({"prediction": {}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"foo": 1}, "foo"),
        ({"|foo": 1}, "|foo"),
    ],
)
def test_refused_chat_requests(fields: dict[str, Any], param: str) -> None:
    """Each fault is a BadRequest whose `param` is the place of the fault."""
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "tool_choice": "auto", "functions": [], "function_call": "none"},
        {"parallel_tool_calls": True, "modalities": ["text"], "service_tier": "auto"},
        {"response_format": {"type": "text"}, "store": False, "verbosity": "medium"},
        {"audio": None, "prediction": None, "web_search_options": None, "metadata": {"a": "b"}},
        {"messages": [{**USER, "name": None}], "top_p": 0},
        {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "n": 128, "seed": -(2**63)},
        {"stop": None, "logit_bias": None, "user": None, "stream": None, "max_tokens": None},
        {"stop": [], "logit_bias": {}, "stop_token_ids": [], "metadata": {}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_parameters_that_change_nothing(fields: dict[str, Any]) -> None:
    """Nulls and the no-op values of unsupported parameters are taken."""
    assert chat(**fields).messages == chat().messages


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [[1], ["a"]]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0, "echo": True}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_refused_completion_requests(fields: dict[str, Any], param: str) -> None:
    """Each fault is a BadRequest whose `param` is the place of the fault."""
    with pytest.raises(BadRequest) as caught:
        completion(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt", "prompts", "batched"),
    [
        ("a", ["a"], False),
        (["a", "b"], ["a", "b"], True),
        ([1, 2], [[1, 2]], False),
        ([[1], [2, 3]], [[1], [2, 3]], True),
    ],
)
def test_prompt_forms(prompt: Any, prompts: list[Any], batched: bool) -> None:
    """The four forms of a prompt become one list of prompts."""
    request = completion(prompt=prompt)
    assert request.prompts == prompts
    assert request.batched is batched


def test_unknown_and_missing_parameters_have_openai_s_words() -> None:
    """Message and code of an unknown and of a missing parameter."""
    with pytest.raises(BadRequest) as unknown:
        chat(foo=1)
    assert unknown.value.message == "Unrecognized request argument supplied: foo"
    assert unknown.value.code == "unknown_parameter"
    with pytest.raises(BadRequest) as missing:
        parse(ChatRequest, b'{"model":"m"}')
    assert missing.value.message == "Missing required parameter: 'messages'."
    assert missing.value.param == "messages"


def test_errors_do_not_quote_the_client() -> None:
    """No message repeats a value that was sent: it might be a prompt."""
    for fields in (
        {"messages": [{"role": "my secret", "content": "x"}]},
        {"messages": [{"role": "user", "content": {"my secret": 1}}]},
        {"stop": ["", "my secret"]},
        {"temperature": "my secret"},
        {"reasoning_effort": "my secret"},
        {"tools": ["my secret"]},
    ):
        with pytest.raises(BadRequest) as caught:
            chat(**fields)
        assert "my secret" not in caught.value.message


def test_messages_for_rendering() -> None:
    """Parts are joined, nulls are left out, and content is always there."""
    request = chat(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}] * 2},
            {"role": "user", "content": "q", "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": None},
        ]
    )
    assert message_mappings(request.messages) == [
        {"role": "developer", "content": "aa"},
        {"role": "user", "content": "q", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    ]


def test_derived_values() -> None:
    """The short forms that the rest of the room reads."""
    request = chat(max_completion_tokens=7, stop="x", logit_bias={"3": -1})
    assert (request.output_limit, request.output_limit_name) == (7, "max_completion_tokens")
    assert request.stops == ["x"]
    assert request.bias_by_token == {3: -1.0}
    assert request.wanted_logprobs is None
    assert request.choices_per_prompt == 1
    assert chat(logprobs=True).wanted_logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).wanted_logprobs == 4
    assert not chat(stream=True).include_usage
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("messages", 0, "|user", "content", "|parts", 2, "text"), "messages[0].content[2].text"),
        (("n",), "n"),
        ((), ""),
        (("x" * 500,), "x" * 200),
    ],
)
def test_param_path(location: tuple[int | str, ...], path: str) -> None:
    """Locations are written as OpenAI writes them, without our unions' tags, and bounded."""
    assert param_path(location) == path


@given(body=st.binary(max_size=100))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    """Parsing raises BadRequest or nothing."""
    with pytest.raises(BadRequest):
        parse(ChatRequest, body)
