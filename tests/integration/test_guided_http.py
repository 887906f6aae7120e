"""Structured output over HTTP: OpenAI's own client against a real server with random weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from guided_schemas import problem_of

ROOT = Path(__file__).parents[2]
HELLO: list[Any] = [{"role": "user", "content": "Tell me of someone."}]


class Person(pydantic.BaseModel):
    """What an answer is parsed into."""

    name: str
    age: int
    mood: Literal["good", "bad"]
    friends: list[str]


SCHEMA = Person.model_json_schema()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where a real server listens, ready; at the end it must stop cleanly."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    flags = ["--port", "0", "--threads", "1", "--kv-cache-memory", "64MiB"]
    flags += ["--load-format", "random"]
    command = [sys.executable, "-m", "gpt_oss_server", "serve", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            assert any(line.startswith("ready in") for line in iter(server.stdout.readline, ""))
            yield first.split()[-1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60, http_client=http
    ) as made:
        yield made


def response_format(schema: Any, *, strict: bool = True) -> Any:
    wanted = {"name": "answer", "schema": schema, "strict": strict}
    return {"type": "json_schema", "json_schema": wanted}


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"temperature": 1.5, "max_tokens": 160, "seed": 1, **fields}
    return client.chat.completions.create(model="tiny", messages=HELLO, **fields)


class Mood(pydantic.BaseModel):
    """As little as a random model says in a few tokens."""

    mood: Literal["good", "bad"]
    certain: bool


def parsed(client: openai.OpenAI, kind: type[pydantic.BaseModel], **fields: Any) -> Any:
    answer = client.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=kind, temperature=1.5, seed=3, **fields
    )
    return answer.choices[0].message.parsed


def test_parse_gives_an_object_of_the_class(client: openai.OpenAI) -> None:
    """`chat.completions.parse` returns what the class says."""
    mood = parsed(client, Mood, max_tokens=300)
    assert isinstance(mood, Mood)


def test_a_shortened_answer_is_told_and_complete(client: openai.OpenAI) -> None:
    """Where the bound decided how the answer ends, OpenAI's client raises for its finish reason
    `length`; the content is an object of the class all the same."""
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        parsed(client, Person, max_tokens=70)
    content = cut.value.completion.choices[0].message.content
    assert content is not None
    Person.model_validate_json(content)


@pytest.mark.parametrize("strict", [True, False])
def test_json_schema_whole_and_streamed(client: openai.OpenAI, strict: bool) -> None:
    """Several choices, each valid; streamed with the same seed, the same text."""
    wanted = response_format(SCHEMA, strict=strict)
    whole = ask(client, response_format=wanted, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert [problem_of(text, SCHEMA) for text in texts] == [None] * 3
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    with ask(client, response_format=wanted, n=3, stream=True) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_reasoning_stays_free(client: openai.OpenAI) -> None:
    """Some answers reason first, in text that is no JSON; the content is JSON always."""
    reasoning = ""
    for seed in range(8):
        message = ask(client, response_format={"type": "json_object"}, seed=seed).choices[0].message
        assert isinstance(json.loads(message.content), dict)
        reasoning += (message.model_extra or {}).get("reasoning_content", "")
    assert reasoning


EXTRA: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": "[ab]{3}-[0-9]{2}"}}, "[ab]{3}-[0-9]{2}"),
    ({"guided_regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}}, r"\(*x\)*"),
    ({"guided_grammar": 'root ::= "x" | "[" root "]"'}, r"\[*x\]*"),
    ({"structured_outputs": {"json": {"enum": [1, 22]}}}, "1|22"),
    ({"guided_json": json.dumps({"enum": [1, 22]})}, "1|22"),
    ({"structured_outputs": {"json_object": True}}, r"(?s)\{.*\}"),
]


@pytest.mark.parametrize(("extra", "pattern"), EXTRA)
def test_extra_parameters(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    """vLLM's parameters, by their present and their older names, in chat and completions."""
    chat = ask(client, extra_body=extra, n=2)
    for choice in chat.choices:
        assert re.fullmatch(pattern, choice.message.content)
    done = client.completions.create(
        model="tiny", prompt="Say:", max_tokens=60, temperature=1.5, n=2, extra_body=extra
    )
    for choice in done.choices:
        assert re.fullmatch(pattern, choice.text)


def test_completions_take_a_response_format(client: openai.OpenAI) -> None:
    """As vLLM's do, though OpenAI's do not."""
    done = client.completions.create(
        model="tiny",
        prompt=["a", "b"],
        max_tokens=90,
        temperature=1.5,
        extra_body={"response_format": response_format(SCHEMA)},
    )
    assert [problem_of(choice.text, SCHEMA) for choice in done.choices] == [None, None]


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"response_format": response_format({"type": "strin"})},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": response_format({"uniqueItems": True})},
        "response_format.json_schema.schema",
    ),
    ({"response_format": response_format([])}, "response_format.json_schema.schema"),
    (
        {"response_format": response_format({"type": "string", "minLength": 10**7})},
        "response_format.json_schema.schema",
    ),
    ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
    ({"extra_body": {"guided_grammar": "((("}}, "guided_grammar"),
    ({"extra_body": {"guided_decoding_backend": "outlines"}}, "guided_decoding_backend"),
    (
        {"extra_body": {"structured_outputs": {"regex": "(?=a)"}}},
        "structured_outputs.regex",
    ),
    ({"response_format": response_format(SCHEMA), "max_tokens": 3}, "max_tokens"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param"), BAD)
def test_bad_input_is_a_400_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str, stream: bool
) -> None:
    """A schema, expression or grammar that cannot be used: 400 naming the parameter, streamed or
    not, and never 500."""
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, stream=stream, **fields)
    assert refusal.value.status_code == 400
    assert refusal.value.param == param


def test_guided_beside_free_and_refused(client: openai.OpenAI) -> None:
    """Sixteen requests at once, guided, free and refused: each gets what it would get alone."""
    expected = ask(client, max_tokens=40, extra_body={"ignore_eos": True}).choices[0].message

    def one(n: int) -> str:
        if n % 4 == 1:
            with pytest.raises(openai.BadRequestError):
                ask(client, extra_body={"guided_regex": f"({'a' * n}"})
            return "refused"
        if n % 2 == 0:
            text = ask(client, response_format=response_format(SCHEMA), seed=n)
            return problem_of(text.choices[0].message.content, SCHEMA) or "valid"
        free = ask(client, max_tokens=40, extra_body={"ignore_eos": True}).choices[0].message
        return "same" if free == expected else "changed"

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(one, range(16)))
    assert got == ["valid", "refused", "valid", "same"] * 4


def test_the_documented_command(url: str) -> None:
    """The request printed in docs/structured-output.md gets what the page says."""
    page = (ROOT / "docs" / "structured-output.md").read_text(encoding="utf-8")
    [body] = re.findall(r"-d '(.*?)'\n```", page, re.DOTALL)
    with httpx.Client(trust_env=False, timeout=60) as http:
        answer = http.post(f"{url}/v1/chat/completions", json=json.loads(body)).json()
    content = answer["choices"][0]["message"]["content"]
    assert re.fullmatch("[A-Z]{3}-[0-9]{4}", content)


def test_the_example_runs_as_printed(url: str) -> None:
    """`examples/structured_output.py` against the server, to its end."""
    environ = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "structured_output.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    assert "a person:" in done.stdout
