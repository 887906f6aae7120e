"""What is not HTTP, and so never becomes a request, is answered like everything else."""

from __future__ import annotations

import json

import pytest
from byte_format import END, ids_of
from live_server import Serve

from gpt_oss_server.engine.fake import Script

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}

NOT_HTTP = {
    "two lengths": b"content-length: 2\r\ncontent-length: 3\r\n",
    "negative length": b"content-length: -1\r\n",
    "absurd length": b"content-length: 99999999999999999999999\r\n",
    "broken header": b"accept: */*\r\nno colon here\r\n",
}


@pytest.mark.parametrize("header", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_gets_the_envelope(serve: Serve, header: bytes) -> None:
    """Refused before there is a request, yet with its id, the common headers and the envelope."""
    live = serve()
    with live.connect() as client:
        client.sendall(b"POST /tokenize HTTP/1.1\r\nx-request-id: mine-1\r\n" + header + b"\r\n{}")
        answer = b""
        while received := client.recv(65_536):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 400 Bad Request"
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-route"] == "single_gpu"
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert live.http.get("/health").status_code == 200


def test_nothing_is_written_into_a_stream_that_has_begun(serve: Serve) -> None:
    """Rubbish behind a request whose answer is being streamed ends it, without a second head."""
    live = serve(lambda _: Script((*ids_of("abc"), END)))
    live.steer(live.engine.close_gate)
    content = json.dumps({**HELLO, "stream": True}).encode()
    with live.connect() as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(content), content)
        )
        live.until(lambda engine: engine.active == 1)
        live.steer(lambda: live.engine.let_pass(1))
        answer = b""
        while b'"content":"a"' not in answer:
            answer += client.recv(65_536)
        client.sendall(b"rubbish\r\n\r\n")
        while received := client.recv(65_536):
            answer += received
    assert answer.count(b"HTTP/1.1") == 1
    live.until(lambda engine: engine.cancelled == 1)
