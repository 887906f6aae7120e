"""Whatever is sent, the answer is never a 5xx, always the envelope, and the next request works."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from byte_format import ByteFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.api.app import Application, build_app
from gpt_oss_server.api.services import ServedModel, Services
from gpt_oss_server.engine.fake import FakeEngine

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
        ],
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 1,
        "n": 2,
        "stop": ["x", "yz"],
        "stop_token_ids": [7],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "min_tokens": 1,
        "ignore_eos": False,
        "reasoning_effort": "low",
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "stream": False,
        "tools": None,
    },
    "/v1/completions": {
        "model": "tiny",
        "prompt": ["ab", "c"],
        "max_tokens": 3,
        "n": 2,
        "best_of": 2,
        "echo": True,
        "logprobs": None,
        "stop": "x",
        "suffix": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/tokenize": {"model": "tiny", "prompt": "abc"},
    "/detokenize": {"model": "tiny", "tokens": [20, 21]},
}

numbers = (
    st.integers(-(2**70), 2**70)
    | st.integers(-2, 600)
    | st.floats()
    | st.sampled_from([0, -1, 1e-320, 10**400])
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
keys = st.text(max_size=8) | st.sampled_from(["role", "content"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["role", "content"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def places(content: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, (*path, index))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid request with a few of its values replaced, removed or joined by others."""
    path = draw(st.sampled_from(sorted(VALID)))
    content = copy.deepcopy(VALID[path])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(places(content))))
        parent: Any = content
        for step in place[:-1]:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[place[-1]] = draw(values)
            case "remove":
                del parent[place[-1]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=12))] = draw(values)
            case _:
                parent.append(draw(values))
        if not list(places(content)):
            break
    return path, json.dumps(content).encode()


async def call(
    app: Application, path: str, body: bytes, method: str = "POST"
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request straight into the application; status, headers and body of its answer."""
    incoming: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if incoming:
            return incoming.pop()
        return await asyncio.Future()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": None}
    await app(scope, receive, send)
    assert not sent[-1].get("more_body", False)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with ThreadPoolExecutor(1) as pool:
        engine = FakeEngine()
        asyncio.run(engine.start())
        yield Services(
            engine=engine,
            chat_format=ByteFormat(),
            model=ServedModel(("tiny",)),
            text_pool=pool,
        )


async def check(services: Services, path: str, body: bytes) -> int:
    """Send it, judge the answer, and see that the next request is answered as ever."""
    app = build_app(services)
    status, headers, content = await call(app, path, body)
    assert status < 500
    assert {b"x-request-id", b"x-route", b"x-route-reason"} <= headers.keys()
    if status != 200:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    assert services.engine.stats().running == 0
    status_after, _, content_after = await call(
        app, "/v1/completions", b'{"model":"tiny","prompt":"ok"}'
    )
    assert status_after == 200
    assert json.loads(content_after)["choices"][0]["text"] == "ok"
    return status


def test_what_is_mutated_was_valid(services: Services) -> None:
    """The requests that the fuzzing starts from are answered with 200."""
    for path, content in VALID.items():
        assert asyncio.run(check(services, path, json.dumps(content).encode())) == 200


@settings(max_examples=400, deadline=None)
@given(request=mutated())
def test_mutated_requests(services: Services, request: tuple[str, bytes]) -> None:
    """Valid requests with random damage never break the server."""
    asyncio.run(check(services, *request))


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(sorted(VALID)), content=values)
def test_random_json(services: Services, path: str, content: object) -> None:
    """Random JSON is answered with a 4xx."""
    assert 400 <= asyncio.run(check(services, path, json.dumps(content).encode())) < 500


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(sorted(VALID)),
    body=st.binary(max_size=200)
    | st.builds(
        lambda content, cut: json.dumps(content).encode()[:-cut],
        st.sampled_from([VALID[path] for path in sorted(VALID)]),
        st.integers(1, 60),
    ),
)
def test_random_and_truncated_bytes(services: Services, path: str, body: bytes) -> None:
    """Random bytes and truncated JSON are answered with a 400."""
    assert asyncio.run(check(services, path, body)) == 400


@settings(max_examples=100, deadline=None)
@given(
    path=st.text(max_size=20).map(lambda text: "/" + text), method=st.sampled_from(["GET", "PUT"])
)
def test_random_paths(services: Services, path: str, method: str) -> None:
    """Unknown paths are a 404 in the envelope."""
    status, _, content = asyncio.run(call(build_app(services), path, b"", method))
    assert status == 404
    assert json.loads(content)["error"]["code"] == "unknown_url"
