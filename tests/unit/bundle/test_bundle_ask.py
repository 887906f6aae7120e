"""Asking a server for its bundle: to whom the admin key is given."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gpt_oss_server.bundle.ask import NoAnswer, bundle_of

KEY = "sk-admin"


class Server(HTTPServer):
    """Answers with `redirect_to`, or a body; `keys` is what it was told, in order."""

    redirect_to: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        to = self.server.redirect_to
        self.send_response(200 if to is None else 302)
        if to is not None:
            self.send_header("Location", to + self.path)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_the_key_goes_to_the_server_that_was_named() -> None:
    """As a bearer token; the body is what it answered."""
    with serving() as server:
        assert bundle_of(server.url, form="json", key=KEY, timeout_s=10) == b"{}"
        assert server.keys == [f"Bearer {KEY}"]


def test_the_key_goes_nowhere_else() -> None:
    """A redirection is reported, not followed: it would take the key along."""
    with serving() as named, serving() as other:
        named.redirect_to = other.url
        with pytest.raises(NoAnswer, match=r"it redirects \(status 302\)"):
            bundle_of(named.url, form="json", key=KEY, timeout_s=10)
        assert (named.keys, other.keys) == ([f"Bearer {KEY}"], [])
