"""Forced and strict calls by the real engine, with random weights: a model that knows nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from app_process import running

from guided_schemas import problem_of
from tool_models import function, harmony

ROOT = Path(__file__).parents[2]
HELLO: list[Any] = [{"role": "user", "content": "How is the weather?"}]
CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Oslo"]},
        "days": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME = {
    "type": "object",
    "properties": {"zone": {"enum": ["utc", "local"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": CITY, "now": TIME}
LOOK_AHEAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}


def tools(*, strict: bool = False) -> list[Any]:
    return [function(name, parameters=schema, strict=strict) for name, schema in SCHEMAS.items()]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Of a real server with random weights."""
    flags = ("--threads", "1", "--kv-cache-memory", "64MiB", "--load-format", "random")
    with running("real", *flags) as server:
        url = server.url()
        server.read_until("ready in")
        with openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=60,
            http_client=httpx.Client(trust_env=False),
        ) as made:
            yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"tools": tools(), "temperature": 1.5, "max_tokens": 120, "seed": 1, **fields}
    return client.chat.completions.create(model="tiny", messages=HELLO, **fields)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str) -> dict[str, Any]:
    names_of = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names_of}}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now"}),
        (named("weather"), {"weather"}),
        (named("now"), {"now"}),
        (allowed("now"), {"now"}),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_forced_call_comes(
    client: openai.OpenAI, choice: Any, names: set[str], strict: bool
) -> None:
    """In every choice, of a function that may be called, with arguments of its schema."""
    answer = ask(client, tools=tools(strict=strict), tool_choice=choice, n=4)
    for chosen in answer.choices:
        [call] = chosen.message.tool_calls
        assert call.function.name in names
        assert problem_of(call.function.arguments, SCHEMAS[call.function.name]) is None
        assert chosen.message.content is None
        assert chosen.finish_reason in ("tool_calls", "length")


def test_streamed_as_whole(client: openai.OpenAI) -> None:
    """The same seed gives the same call, streamed or not."""
    [call] = ask(client, tool_choice="required", seed=5).choices[0].message.tool_calls
    found: list[Any] = []
    with ask(client, tool_choice="required", seed=5, stream=True) as chunks:
        for chunk in chunks:
            found += chunk.choices[0].delta.tool_calls or []
    assert found[0].function.name == call.function.name
    assert "".join(part.function.arguments for part in found) == call.function.arguments


@pytest.mark.parametrize("likes_to_call", [True, False])
def test_a_strict_call_beside_answers(client: openai.OpenAI, likes_to_call: bool) -> None:
    """Free to answer or to call, whichever the model finds likelier; the arguments fit."""
    header = harmony().encode("commentary to=functions.weather ")
    bias = {str(token): 100 if likes_to_call else -100 for token in header}
    fields = {"tools": tools(strict=True), "logit_bias": bias, "n": 8}
    for choice in ask(client, **fields).choices:
        calls = choice.message.tool_calls or []
        assert len(calls) == likes_to_call
        for call in calls:
            assert problem_of(call.function.arguments, SCHEMAS[call.function.name]) is None


def test_an_answer_of_a_format_beside_calls(client: openai.OpenAI) -> None:
    """What comes in place of a call is JSON, as the request asks."""
    wanted = {"type": "json_object"}
    for choice in ask(client, response_format=wanted, n=8).choices:
        if choice.message.tool_calls is None:
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            [call] = choice.message.tool_calls
            assert problem_of(call.function.arguments, SCHEMAS[call.function.name]) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "max_tokens": 5}, "max_tokens"),
        (
            {"tools": [function("f", parameters=LOOK_AHEAD, strict=True)]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [*tools(), function("f", parameters={"not": {}}, strict=True)]},
            "tools[2].function.parameters",
        ),
    ],
)
def test_what_cannot_be_held_is_a_400(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    """No room for the shortest call; a pattern or a keyword that cannot be enforced."""
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **fields)
    assert refused.value.param == param
    [call] = ask(client, tool_choice="required").choices[0].message.tool_calls
    assert call.function.name in SCHEMAS


def test_the_example_runs_as_printed(client: openai.OpenAI) -> None:
    """`examples/tools.py` against the server, to its end: even here the forced call comes."""
    url = str(client.base_url).rstrip("/")
    environ = os.environ | {"OPENAI_BASE_URL": url, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tools.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("forced: current_time{'zone': ")
