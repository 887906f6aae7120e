"""Text work of one request never holds up another's, nor the event loop, nor an absent client's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
from live_server import TIMEOUT_S, Serve

from gpt_oss_server.api import chat
from gpt_oss_server.api.services import Limits

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
LARGE = {**HELLO, "user": "x" * 300_000}


class Blocked(Executor):
    """One thread that does nothing until the gate opens; remembers what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.submitted = threading.Event()
        self.cancelled = threading.Event()
        self.futures: list[Future[Any]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="blocked")
        self._pool.submit(self.gate.wait, TIMEOUT_S)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(fn, *args, **kwargs)
        future.add_done_callback(lambda done: done.cancelled() and self.cancelled.set())
        self.futures.append(future)
        self.submitted.set()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.gate.set()
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    """A pool that is opened and emptied after the test, whatever happened."""
    with Blocked() as pool:
        yield pool


def post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode() + (
        content
    )


def test_small_requests_pass_large_ones(serve: Serve, blocked: Blocked) -> None:
    """While all the bulk lane's threads are busy, a small request is answered."""
    live = serve(services={"bulk_pool": blocked})
    with live.connect() as client:
        client.sendall(post(LARGE))
        assert blocked.submitted.wait(TIMEOUT_S)
        assert live.http.post(CHAT, json=HELLO).status_code == 200
        assert len(live.engine.jobs) == 1
        blocked.gate.set()
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert len(blocked.futures) == 2  # parsed there and rendered there
    assert len(live.engine.jobs) == 2


def test_the_lanes_part_at_a_body_s_size(serve: Serve, blocked: Blocked) -> None:
    """A body of exactly the bound is not bulk; one byte more is."""
    limit = len(json.dumps(HELLO))
    live = serve(services={"bulk_pool": blocked, "limits": Limits(bulk_bytes=limit)})
    fits = live.http.post(CHAT, content=json.dumps(HELLO))
    assert fits.status_code == 200
    assert blocked.futures == []
    blocked.gate.set()
    assert live.http.post(CHAT, content=json.dumps(HELLO) + " ").status_code == 200
    assert len(blocked.futures) == 1


def test_without_a_bulk_lane_large_requests_are_served_too(serve: Serve) -> None:
    """They share the text pool then."""
    assert serve().http.post(CHAT, json=LARGE).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO),
        (CHAT, LARGE),
        ("/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [20]}),
    ],
    ids=["rendering", "parsing", "completion", "tokenize", "detokenize"],
)
def test_work_that_waits_is_dropped_when_its_client_leaves(
    serve: Serve, blocked: Blocked, path: str, body: dict[str, Any]
) -> None:
    """Nothing is parsed or rendered for a client that is gone before its turn comes."""
    live = serve(services={"text_pool": blocked})
    with live.connect() as client:
        client.sendall(post(body).replace(CHAT.encode(), path.encode(), 1))
        assert blocked.submitted.wait(TIMEOUT_S)
    assert blocked.cancelled.wait(TIMEOUT_S)
    assert live.engine.jobs == []
    assert live.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            CHAT,
            {"model": "tiny", "messages": [{"role": "user", "content": "x" * 9000}]},
            "messages",
        ),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 9000}, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "x" * 9000]}, "prompt[1]"),
    ],
)
def test_what_is_certainly_too_long_is_not_tokenised(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], param: str
) -> None:
    """The size alone says that it cannot fit; tokenising it would take long for nothing."""
    live = serve()
    encoded: list[str] = []
    monkeypatch.setattr(
        type(live.services.chat_format),
        "encode",
        lambda self, text: encoded.append(text) or [20] * len(text),
    )
    response = live.http.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert "at least 4500 tokens" in error["message"]
    assert all(len(text) < 9000 for text in encoded)


def test_a_conversation_is_walked_once_and_off_the_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, blocked: Blocked
) -> None:
    """Its messages are copied once, for rendering and session alike, by a thread of the pool."""
    live = serve(services={"text_pool": blocked})
    walked: list[tuple[str, str]] = []

    def noting(name: str) -> None:
        real = getattr(chat, name)

        def note(messages: Any) -> Any:
            walked.append((name, threading.current_thread().name.partition("_")[0]))
            return real(messages)

        monkeypatch.setattr(chat, name, note)

    noting("message_mappings")
    noting("opening_session")
    blocked.gate.set()
    assert live.http.post(CHAT, json=HELLO).status_code == 200
    assert walked == [("message_mappings", "blocked"), ("opening_session", "blocked")]
