"""Clients that bring nothing, or too much, or too slowly: what they cost is bounded."""

from __future__ import annotations

import json
import re
import socket

import pytest
from live_server import LiveServer, Serve

from gpt_oss_server.http_protocol import MAX_HEAD_BYTES, ConnectionLimits

# Long enough to be told apart by what happens, never by how long it takes.
LONG_S = 3600.0
SOON_S = 0.2
COMPLETION = json.dumps({"model": "tiny", "prompt": "abc"}).encode()


def completion(*lines: bytes) -> bytes:
    head = (b"POST /v1/completions HTTP/1.1", b"host: x", *lines)
    return b"\r\n".join((*head, b"content-length: %d" % len(COMPLETION), b"", COMPLETION))


def rest(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    while data := client.recv(65_536):
        received += data
    return received


def one_answer(client: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer with a length, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    body = b""
    while len(body) < int(length[1]):
        body += client.recv(int(length[1]) - len(body))
    return int(head.split()[1]), body


def drip(client: socket.socket, data: bytes) -> bytes:
    """Send byte after byte, again and again, until the server closes; what it said until then."""
    client.settimeout(0.01)
    received = b""
    place = 0
    while True:
        try:
            client.sendall(data[place % len(data) :][:1])
            place += 1
            more = client.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionError:
            return received
        if not more:
            return received
        received += more


def still_serves(live: LiveServer) -> bool:
    return live.http.get("/health").status_code == 200


def test_a_silent_connection_is_closed(serve: Serve) -> None:
    """Who connects and says nothing loses the connection, without an answer to nothing."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=LONG_S))
    with live.connect() as client:
        assert rest(client) == b""
    assert still_serves(live)


@pytest.mark.parametrize("before", [b"", b"\r\n"], ids=["at once", "behind an empty line"])
def test_an_unfinished_head_is_408(serve: Serve, before: bytes) -> None:
    """Half a head, and then nothing: 408 in the envelope, with the id that was offered."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=LONG_S))
    with live.connect() as client:
        client.sendall(before + b"POST /tokenize HTTP/1.1\r\nx-request-id: mine-1\r\nhost: ")
        head, _, body = rest(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"\r\nx-request-id: mine-1\r\n" in head
    assert head.endswith(b"\r\nconnection: close")
    error = json.loads(body)["error"]
    assert error["code"] == "request_timeout"
    assert error["message"] == "The request's headers were not complete after 0.2 seconds."


@pytest.mark.parametrize("used", [False, True], ids=["first request", "second request"])
def test_a_head_that_drips_in_is_408(serve: Serve, used: bool) -> None:
    """A byte now and then does not keep a connection: neither a new one nor one that was used."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=LONG_S))
    with live.connect() as client:
        if used:
            client.sendall(completion())
            assert one_answer(client)[0] == 200
        answer = drip(client, b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 100_000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert still_serves(live)


def test_empty_lines_do_not_keep_a_connection(serve: Serve) -> None:
    """Line ends, which are allowed before a request, are no request."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=LONG_S))
    with live.connect() as client:
        assert drip(client, b"\r\n") == b""


def test_an_idle_connection_is_closed(serve: Serve) -> None:
    """Between two requests it is the keep-alive limit that counts."""
    live = serve(limits=ConnectionLimits(header_timeout_s=LONG_S, keep_alive_s=SOON_S))
    with live.connect() as client:
        client.sendall(completion())
        assert one_answer(client)[0] == 200
        assert rest(client) == b""


@pytest.mark.parametrize("body", [b"x", b"1\r\nx\r\n"], ids=["length", "chunked"])
def test_a_body_behind_its_refusal_is_not_waited_for(serve: Serve, body: bytes) -> None:
    """An answer that did not need the body does not give the client for ever to send it."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=LONG_S))
    framing = b"content-length: 99999" if body == b"x" else b"transfer-encoding: chunked"
    with live.connect() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n")
        assert one_answer(client)[0] == 404
        drip(client, body)
    assert still_serves(live)


def test_a_body_behind_its_refusal_may_come(serve: Serve) -> None:
    """When it has come, the connection is as good as any, and idle."""
    live = serve(limits=ConnectionLimits(header_timeout_s=LONG_S, keep_alive_s=SOON_S))
    with live.connect() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        assert one_answer(client)[0] == 404
        client.sendall(b"hello" + completion())
        assert one_answer(client)[0] == 200
        assert rest(client) == b""


def test_the_clock_does_not_run_against_the_server(serve: Serve) -> None:
    """A request that takes longer to answer than to bring is answered."""
    live = serve(limits=ConnectionLimits(header_timeout_s=SOON_S, keep_alive_s=SOON_S))
    live.steer(live.engine.close_gate)
    with live.connect() as waits, live.connect() as clock:
        waits.sendall(completion())
        live.until(lambda engine: engine.active == 1)
        assert rest(clock) == b""  # opened later: every clock of the first has struck by now
        with live.connect() as clock_too:
            assert rest(clock_too) == b""
        live.steer(live.engine.open_gate)
        assert one_answer(waits)[0] == 200


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET /live HTTP/1.1\r\n", b"name: value\r\n"),
        (b"GET /live HTTP/1.1\r\nname: ", b"v" * 1000),
        (b"GET /live?", b"v" * 1000),
        (
            b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
            b"name: value\r\n",
        ),
    ],
    ids=["headers", "one header", "address", "trailers"],
)
def test_what_has_no_end_is_refused(serve: Serve, beginning: bytes, more: bytes) -> None:
    """A head, or what is behind a body, that goes on and on is cut off before it fills memory."""
    live = serve(limits=ConnectionLimits(header_timeout_s=LONG_S, keep_alive_s=LONG_S))
    sent = 0
    with live.connect() as client:
        try:
            client.sendall(beginning)
            # What the buffers of both sides hold is on its way when the server closes.
            while sent < 100 * MAX_HEAD_BYTES:
                sent += client.send(more)
        except ConnectionError:
            pass
    assert sent < 100 * MAX_HEAD_BYTES
    assert still_serves(live)


def test_too_large_a_head_is_told(serve: Serve) -> None:
    """The refusal is 413 in the envelope."""
    live = serve()
    with live.connect() as client:
        client.sendall(b"GET /live HTTP/1.1\r\nname: " + b"v" * MAX_HEAD_BYTES)
        head, _, body = rest(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["error"]["message"] == "The request's headers are too large."


def test_one_connection_too_many(serve: Serve) -> None:
    """It is told to come back; those that are there are served, and leave room when they go."""
    live = serve(limits=ConnectionLimits(connections=2))
    with live.connect() as first, live.connect() as second:
        for client in (first, second):
            client.sendall(completion())
            assert one_answer(client)[0] == 200
        with live.connect() as third:
            head, _, body = rest(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in head
        assert json.loads(body)["error"]["message"] == "Too many connections."
        first.sendall(completion())
        assert one_answer(first)[0] == 200
    with live.connect() as fourth:
        fourth.sendall(completion())
        assert one_answer(fourth)[0] == 200


@pytest.mark.parametrize(
    "wish",
    [
        (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
        (b"connection: keep-alive, Upgrade", b"upgrade: websocket"),
    ],
    ids=["HTTP/2", "WebSocket"],
)
def test_a_client_that_would_rather_speak_another_protocol(
    serve: Serve, wish: tuple[bytes, ...]
) -> None:
    """The wish is ignored and the request answered, body and all, as often as it comes: one by
    one, or many at once."""
    live = serve()
    with live.connect() as client:
        for times in (1, 1, 40):
            client.sendall(completion(*wish) * times)
            for _ in range(times):
                status, body = one_answer(client)
                assert status == 200
                assert json.loads(body)["choices"][0]["text"] == "abc"


def test_what_is_no_upgrade_is_refused(serve: Serve) -> None:
    """CONNECT asks for a tunnel, and there is none."""
    live = serve()
    with live.connect() as client:
        client.sendall(b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 400 ")


def test_trailers_are_no_headers(serve: Serve) -> None:
    """What comes behind a chunked body does not become a header of the request."""
    live = serve()
    with live.connect() as client:
        client.sendall(
            b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"%x\r\n%b\r\n0\r\nx-request-id: late\r\n\r\n" % (len(COMPLETION), COMPLETION)
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65_536)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"x-request-id: req_" in head
