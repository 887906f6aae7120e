"""Whatever is sent, the answer is never a 5xx, always the envelope, and the next request works."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
import time
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from byte_format import ByteFormat
from hypothesis import given, note, settings
from hypothesis import strategies as st
from schema_strategies import Requests

import gpt_oss_server
from gpt_oss_server.admission import AdmissionConfig, SessionConfig, SessionTable
from gpt_oss_server.api.app import Application, build_app
from gpt_oss_server.api.services import Limits, ServedModel, Services
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.engine.fake import DEFAULT_INFO, FakeEngine
from gpt_oss_server.harmony.formats import open_chat_format
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.trail import Journal

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
    "/v1/responses": {
        "model": "tiny",
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "4"},
        ],
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_logprobs": 2,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}},
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "store": False,
        "service_tier": "auto",
        "stream": False,
        "tools": None,
        "user": "u",
    },
    "/v1/responses/input_tokens": {"model": "tiny", "input": "abc", "instructions": "be brief"},
    "/tokenize": {"model": "tiny", "prompt": "abc"},
    "/detokenize": {"model": "tiny", "tokens": [20, 21]},
}
# An empty Responses request counts no tokens: each of its fields may be left out.
NOTHING_REQUIRED = {"/v1/responses/input_tokens"}

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
    app: Application,
    path: str,
    body: bytes,
    method: str = "POST",
    content_type: bytes | None = None,
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
    if content_type is not None:
        headers = [(b"content-type", content_type)] if content_type else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": None}
    await app(scope, receive, send)
    assert not sent[-1].get("more_body", False)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content


class Complaints(logging.Handler):
    """What was logged as an error: here, each is a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module", autouse=True)
def complaints() -> Iterator[Complaints]:
    handler = Complaints()
    root = logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    assert handler.lines == []


@contextmanager
def serving(chat_format: ChatFormat) -> Iterator[Services]:
    """Services with a desk that decides and admits, over an engine that repeats its prompt."""
    engine = FakeEngine(info=msgspec.structs.replace(DEFAULT_INFO, vocab_size=2**18))
    asyncio.run(engine.start())
    journal = Journal()
    routing = RoutingConfig()
    desk = Desk(
        engine=engine,
        fleet=LocalFleet(engine, lambda: (), time.monotonic, "single", 0),
        policy=TriggerPolicy(routing),
        routing=routing,
        admission=AdmissionConfig(),
        sessions=SessionTable(SessionConfig()),
        clock=time.monotonic,
        journal=journal,
    )
    with ThreadPoolExecutor(1) as pool:
        yield Services(
            engine=engine,
            chat_format=chat_format,
            model=ServedModel(("tiny",)),
            text_pool=pool,
            desk=desk,
            journal=journal,
        )


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with serving(ByteFormat()) as built:
        yield built


@pytest.fixture(scope="module")
def real_services() -> Iterator[Services]:
    """The same with the text side of the built-in model."""
    folder = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
    with serving(open_chat_format(folder, today=lambda: date(2026, 1, 2))) as built:
        yield built


def assert_at_rest(services: Services) -> None:
    """Nothing runs, waits, or is held for anybody."""
    assert services.engine.stats().running == 0
    assert isinstance(services.desk, Desk)
    admission = services.desk.admission_snapshot()
    if admission is not None:
        assert (admission.running, admission.waiting, admission.waiting_by_client) == (0, 0, {})
        assert set(admission.blocks_used.values()) == {0}
    assert (services.journal.meter.in_flight, sum(services.journal.meter.waiting)) == (0, 0)


async def check(
    services: Services, path: str, body: bytes, content_type: bytes | None = None
) -> int:
    """Send it, judge the answer, and see that the next request is answered as ever."""
    app = build_app(services)
    status, headers, content = await call(app, path, body, content_type=content_type)
    assert status < 500
    assert {b"x-request-id", b"x-route", b"x-route-reason"} <= headers.keys()
    if status != 200:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    assert_at_rest(services)
    status_after, _, content_after = await call(
        app, "/v1/completions", b'{"model":"tiny","prompt":"ok"}'
    )
    assert status_after == 200
    assert json.loads(content_after)["choices"][0]["text"].startswith("ok")
    assert_at_rest(services)
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
    """Random JSON is answered with a 4xx; where nothing is required, `{}` with a 200."""
    status = asyncio.run(check(services, path, json.dumps(content).encode()))
    assert 400 <= status < 500 or (status == 200 and path in NOTHING_REQUIRED and content == {})


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
    path=st.text(min_size=1, max_size=20).map(lambda text: "/" + text),
    method=st.sampled_from(["GET", "PUT"]),
)
def test_random_paths(services: Services, path: str, method: str) -> None:
    """Unknown paths are a 404 in the envelope."""
    status, _, content = asyncio.run(call(build_app(services), path, b"", method))
    assert status == 404
    assert json.loads(content)["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("faults", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("path", sorted(VALID))
def test_the_whole_schema(real_services: Services, path: str, faults: float) -> None:
    """Everything that the published schema allows, in any combination, and with some of it
    replaced by rubbish, is answered or refused; and a plain request after it is answered."""

    @settings(max_examples=120, deadline=None)
    @given(rng=st.randoms(use_true_random=True))
    def judge(rng: random.Random) -> None:
        content = Requests(rng, faults).draw(path)
        if isinstance(content, dict) and rng.random() < 0.95:
            content["model"] = "tiny"
        body = json.dumps(content).encode()
        note(body.decode())
        assert asyncio.run(check(real_services, path, body)) < 500

    judge()
    assert asyncio.run(check(real_services, path, json.dumps(VALID[path]).encode())) == 200


HOSTILE: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "null": (b"null", 400),
    "an open brace": (b"{", 400),
    "a byte order mark": (b"\xef\xbb\xbf{}", 400),
    "UTF-16": ('{"model": "tiny"}'.encode("utf-16"), 400),
    "no UTF-8": (b'{"model": "\xff\xfe"}', 400),
    "half a character": (b'{"model": "tiny", "prompt": "\xf0\x9f"}', 400),
    "half a surrogate pair": (b'{"model": "tiny", "prompt": "\\ud800"}', 400),
    "deep lists": (b"[" * 100_000, 400),
    "deep lists, closed": (b"[" * 100_000 + b"]" * 100_000, 400),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "deep in a place that takes anything": (
        b'{"model": "tiny", "prompt": "x", "metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        400,
    ),
    "a number of 5000 digits": (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}", 400),
    "a number beyond any": (b'{"model": "tiny", "temperature": 1e999}', 400),
    "not a number": (b'{"model": "tiny", "temperature": NaN}', 400),
    "infinity": (b'{"model": "tiny", "logit_bias": {"1": -Infinity}}', 400),
    "a zero byte behind": (b'{"model": "tiny", "prompt": "x"}\x00', 400),
    "ten megabytes": (b'{"model": "tiny", "prompt": "' + b"x" * 10_000_000 + b'"}', 413),
    "many keys": (
        b"{" + b",".join(b'"k%d": 1' % number for number in range(100_000)) + b"}",
        400,
    ),
    "many messages": (
        b'{"model": "tiny", "messages": [' + b",".join([b"{}"] * 100_000) + b"]}",
        400,
    ),
}


@pytest.mark.parametrize("body", HOSTILE)
@pytest.mark.parametrize("path", sorted(VALID))
def test_hostile_bodies(services: Services, path: str, body: str) -> None:
    """Each is refused with the status that it deserves, whatever it is sent to."""
    content, status = HOSTILE[body]
    assert asyncio.run(check(services, path, content)) == status


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_ten_megabytes_where_they_are_allowed(services: Services, path: str) -> None:
    """A server that takes large bodies tells that this one is longer than the context, or what
    its tokens are."""
    limits = Limits(max_body_bytes=2**24)
    body = b'{"model": "tiny", "prompt": "' + b"x" * 10_000_000 + b'"}'
    status = asyncio.run(check(replace(services, limits=limits), path, body))
    assert status == (400 if path == "/v1/completions" else 200)


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        (b"", True),  # none: as curl's users forget it
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/problem+json", True),
        (b"text/plain", False),
        (b"application/x-www-form-urlencoded", False),
        (b"multipart/form-data; boundary=x", False),
        (b";;;", False),
        (b"\xff\xfe", False),
        (b"application/json" * 1000, False),
    ],
)
@pytest.mark.parametrize("path", sorted(VALID))
def test_content_types(services: Services, path: str, content_type: bytes, taken: bool) -> None:
    """JSON is taken, by any of its names or none; everything else is a 400."""
    body = json.dumps(VALID[path]).encode()
    status = asyncio.run(check(services, path, body, content_type))
    assert status == (200 if taken else 400)
