"""A server that answers as a test wants it to: what `calibrate` meets out there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = Callable[["Handler", int, dict[str, Any]], None]
"""Answers a POST: the connection, how many came before it, the body."""

TOKEN = {"choices": [{"text": "na "}]}


def usage(body: dict[str, Any]) -> dict[str, Any]:
    """What a server says of a whole answer: a word of the prompt is a token."""
    prompt, answer = len(body["prompt"].split()), body["max_tokens"]
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": answer}}


class Handler(BaseHTTPRequestHandler):
    """One connection to an `Upstream`."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        pages = {"/v1/models": {"data": [{"id": "tiny"}]}, **self.server.pages}
        found = pages.get(self.path)
        self.plain(404 if found is None else 200, found)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        before = self.server.posts
        self.server.posts += 1
        self.server.answer(self, before, body)

    def plain(self, status: int, content: object, **headers: str) -> None:
        """A whole answer in JSON."""
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def event(self, content: object) -> None:
        self.chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def end_stream(self) -> None:
        self.chunk(b"")

    def hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Tests' output is theirs."""


class Upstream(ThreadingHTTPServer):
    """Counts `posts`; `pages` are answered to a GET beside the list of models."""

    daemon_threads = True

    def __init__(self, answer: Answer, pages: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.pages, self.posts = answer, pages, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def well(handler: Handler, before: int, body: dict[str, Any]) -> None:
    """The answer that was asked for, token by token."""
    handler.begin_stream()
    for _ in range(body["max_tokens"]):
        handler.event(TOKEN)
    handler.event(usage(body))
    handler.chunk(b"data: [DONE]\n\n")
    handler.end_stream()


@contextmanager
def upstream(answer: Answer = well, **pages: Any) -> Iterator[Upstream]:
    """A server for as long as a test needs it; pages by their path without its slash."""
    server = Upstream(answer, {f"/{name}": page for name, page in pages.items()})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
