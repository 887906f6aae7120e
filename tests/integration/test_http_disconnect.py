"""A client that leaves takes its generation with it, over real sockets, at any point."""

from __future__ import annotations

import json
import re
import socket
import struct
from typing import Any

import pytest
from byte_format import END, ids_of
from live_server import LiveServer, Serve

from gpt_oss_server.engine.fake import Script

CHAT = "/v1/chat/completions"


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def chat(**fields: Any) -> bytes:
    return post(CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **fields})


def completion(**fields: Any) -> bytes:
    return post("/v1/completions", {"model": "tiny", "prompt": "abc", **fields})


def still_works(live: LiveServer) -> bool:
    """Whether the next request is answered in full."""
    live.steer(live.engine.open_gate)
    body = {"model": "tiny", "prompt": "abc"}
    answer = live.http.post("/v1/completions", json=body).json()
    return bool(answer["choices"][0]["finish_reason"] == "stop")


@pytest.mark.parametrize(
    ("request_bytes", "jobs"),
    [
        pytest.param(chat(), 1, id="chat"),
        pytest.param(chat(stream=True), 1, id="chat stream"),
        pytest.param(chat(n=3), 3, id="chat, three choices"),
        pytest.param(chat(n=3, stream=True), 3, id="chat stream, three choices"),
        pytest.param(completion(), 1, id="completion"),
        pytest.param(completion(stream=True, n=2), 2, id="completion stream, two choices"),
    ],
)
def test_leaving_before_the_first_token(serve: Serve, request_bytes: bytes, jobs: int) -> None:
    """A client that leaves while the engine has produced nothing cancels every job it had."""
    live = serve()
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(request_bytes)
        live.until(lambda engine: engine.active == jobs)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == jobs
    assert still_works(live)


@pytest.mark.parametrize("choices", [1, 2])
def test_leaving_in_a_stream(serve: Serve, choices: int) -> None:
    """A client that leaves after the first chunks cancels what is left."""
    live = serve(lambda _: Script((*ids_of("abcdef"), END)))
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(chat(stream=True, n=choices))
        live.until(lambda engine: engine.active == choices)
        live.steer(lambda: live.engine.let_pass(2))
        received = b""
        while b'"content":"a' not in received:
            received += client.recv(65_536)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == choices
    assert still_works(live)


def test_leaving_in_a_whole_answer(serve: Serve) -> None:
    """Without streaming, leaving after some tokens cancels too."""
    live = serve()
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(chat())
        live.until(lambda engine: engine.active == 1)
        live.steer(lambda: live.engine.let_pass(2))
        live.until(lambda engine: engine.stats().steps == 2)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1
    assert still_works(live)


def test_leaving_while_sending_the_body(serve: Serve) -> None:
    """Half a body and a closed connection start nothing and harm nobody."""
    live = serve()
    with live.connect() as client:
        client.sendall(chat()[:-5])
    assert still_works(live)
    assert len(live.engine.jobs) == 1


def test_one_of_two_clients_leaves(serve: Serve) -> None:
    """A client that leaves does not disturb the one that stays."""
    live = serve(lambda _: Script((*ids_of("abc"), END)))
    live.steer(live.engine.close_gate)
    with live.connect() as stays, live.connect() as leaves:
        stays.sendall(chat())
        leaves.sendall(chat())
        live.until(lambda engine: engine.active == 2)
        leaves.close()
        live.until(lambda engine: engine.cancelled == 1)
        live.steer(live.engine.open_gate)
        received = b""
        while b'"content":"abc"' not in received:
            received += stays.recv(65_536)
    live.until(lambda engine: engine.finished == 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behind", [1, 3])
def test_leaving_with_requests_queued_behind(serve: Serve, stream: bool, behind: int) -> None:
    """Pipelined requests: who leaves cancels the one that runs, and those behind never start."""
    live = serve()
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(chat(stream=stream))
        live.until(lambda engine: engine.active == 1)
        client.sendall(chat() * behind + b"GET /li")
        live.steer(lambda: live.engine.let_pass(1))
        live.until(lambda engine: engine.stats().steps == 1)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1
    assert still_works(live)
    assert len(live.engine.jobs) == 2


def test_leaving_with_requests_sent_at_once(serve: Serve) -> None:
    """The same where all of them came in one piece, and so before the first could begin."""
    live = serve()
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(chat() * 3)
        live.until(lambda engine: engine.active == 1)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1
    assert still_works(live)
    assert len(live.engine.jobs) == 2


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """More requests at once than are kept in the queue: each has its answer, one after the
    other, and the connection goes on."""
    live = serve()
    prompts = [f"p{number}" for number in range(30)]
    with live.connect() as client:
        for _ in range(2):
            client.sendall(b"".join(completion(prompt=prompt) for prompt in prompts))
            received = b""
            while received.count(b'"finish_reason":"stop"') < len(prompts):
                received += client.recv(65_536)
            assert [text.decode() for text in re.findall(rb'"text":"(p\d+)"', received)] == prompts


@pytest.mark.parametrize(
    "cut", [b"", b"GET", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx"]
)
def test_leaving_between_two_requests(serve: Serve, cut: bytes) -> None:
    """A kept connection that ends idle, or within the next request's head, harms nobody."""
    live = serve()
    with live.connect() as client:
        client.sendall(completion())
        received = b""
        while b'"finish_reason":"stop"' not in received:
            received += client.recv(65_536)
        client.sendall(cut)
    assert still_works(live)
    assert (len(live.engine.jobs), live.engine.cancelled) == (2, 0)


def test_leaving_in_the_second_request_of_a_connection(serve: Serve) -> None:
    """What was answered before on the same connection does not hide that the client left."""
    live = serve()
    with live.connect() as client:
        client.sendall(completion())
        received = b""
        while b'"finish_reason":"stop"' not in received:
            received += client.recv(65_536)
        live.steer(live.engine.close_gate)
        client.sendall(chat(stream=True))
        live.until(lambda engine: engine.active == 1)
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1
    assert still_works(live)


def test_resetting_in_a_stream(serve: Serve) -> None:
    """A connection that is reset, and not closed, cancels too."""
    live = serve(lambda _: Script((*ids_of("abcdef"), END)))
    live.steer(live.engine.close_gate)
    with live.connect() as client:
        client.sendall(chat(stream=True))
        live.until(lambda engine: engine.active == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    live.until(lambda engine: engine.active == 0)
    assert live.engine.cancelled == 1
    assert still_works(live)
