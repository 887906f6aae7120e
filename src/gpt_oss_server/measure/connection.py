"""One kept-alive connection to an OpenAI-compatible server, and what an answer on it was like.

Knows: HTTP/1.1, TLS, server-sent events, clocks. Does not know: what is asked, or why. Frugal, as
its own work is part of what it measures when it shares the server's machine: one callback per
piece that comes, and of each event only the fields that are needed are decoded.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import httptools
import msgspec

from gpt_oss_server.errors import ConfigError

CONNECT_S = 10.0
MAX_BODY_BYTES = 16 << 20
MAX_EVENT_BYTES = 1 << 20
"""Of a line of a stream. No event is as long."""


@dataclass(frozen=True)
class Address:
    """Where a server is. `path` is what stands before `/v1`."""

    host: str
    port: int
    tls: bool
    path: str = ""
    key: str | None = None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As it may be written down: without a name and password that it was given with."""
        return f"http{'s' if self.tls else ''}://{self.authority}{self.path}"


def address_of(url: str, key: str | None = None) -> Address:
    """The server of an address as people write it, with or without `/v1`. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"not an http:// or https:// address: {url}")
    path = parts.path.rstrip("/").removesuffix("/v1")
    tls = parts.scheme == "https"
    port = (443 if tls else 80) if port is None else port
    return Address(parts.hostname, port, tls, path, key)


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


@dataclass
class Answer:
    """What one streamed request got. Seconds count from its first byte sent: `first_s` to its
    first piece of text (None: no text came), `whole_s` to its end. `status` 0 is no answer."""

    status: int = 0
    sent_s: float = 0.0
    first_s: float | None = None
    whole_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    pieces: int = 0
    retry_after_s: float | None = None
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.status == 200 and self.error is None and self.tokens > 0

    @property
    def tokens(self) -> int:
        """Tokens of the answer: as the server counts them, else the pieces that came."""
        return self.completion_tokens or self.pieces


class Connection(asyncio.Protocol):
    """Requests one after another. Opens itself again where the server closed it. `close` it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._over: asyncio.Future[None] | None = None
        self._answer = Answer()
        self._stream = False
        self._framed = False
        self._done = False
        self._rest = b""
        self._body = bytearray()

    async def stream(self, path: str, body: dict[str, Any], timeout_s: float) -> Answer:
        """Ask for a streamed answer and read it to its end. Never raises for what the server
        does: a connection that breaks, or an answer too late, is an answer with an error."""
        await self._exchange("POST", path, msgspec.json.encode(body), timeout_s, stream=True)
        if self._answer.status not in (0, 200) and self._answer.error is None:
            self._answer.error = _message_of(bytes(self._body))
        return self._answer

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status (0: no answer) and body of a plain GET."""
        await self._exchange("GET", path, b"", timeout_s, stream=False)
        if self._answer.error is not None:
            return 0, self._answer.error.encode()
        return self._answer.status, bytes(self._body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _exchange(
        self, method: str, path: str, content: bytes, timeout_s: float, *, stream: bool
    ) -> None:
        self._answer = Answer(sent_s=time.perf_counter())
        self._stream, self._rest, self._body = stream, b"", bytearray()
        self._framed = self._done = False
        try:
            await self._open()
            assert self._transport is not None
            self._over = asyncio.get_running_loop().create_future()
            self._answer.sent_s = time.perf_counter()
            self._transport.write(self._head(method, path, len(content)) + content)
            await asyncio.wait_for(self._over, timeout_s)
        except TimeoutError:
            self._answer.error = f"no whole answer within {timeout_s:g} s"
            self.close()
        except OSError as error:
            self._answer.error = f"cannot connect: {error.strerror or error}"
            self.close()
        except UnicodeError:  # a host name, path or key that cannot be sent
            self._answer.error = "cannot connect: no address, or key, that can be sent"
            self.close()

    async def _open(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            return
        where = self._address
        context = ssl.create_default_context() if where.tls else None
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(lambda: self, where.host, where.port, ssl=context)
        await asyncio.wait_for(connecting, CONNECT_S)

    def _head(self, method: str, path: str, length: int) -> bytes:
        where = self._address
        lines = [
            f"{method} {where.path}{path} HTTP/1.1",
            f"Host: {where.authority}",
            "User-Agent: gpt-oss-server-calibrate",
        ]
        if length:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        if where.key:
            lines.append(f"Authorization: Bearer {where.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.MsgspecError) as error:
            self._answer.error = f"not understood: {error}"
            self._end()
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._over is not None and not self._over.done():
            if exc is not None or not self._ends_with_connection():
                self._answer.error = "the connection broke off"
            self._end()

    def _ends_with_connection(self) -> bool:
        """Whether that is how this answer says that it is whole: without a length of its own (RFC
        9112, 6.3), and a stream by its last event."""
        stopped = self._stream and self._answer.status == 200 and not self._done
        return self._answer.status > 0 and not self._framed and not stopped

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._body.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            self._answer.retry_after_s = float(value)
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._stream or self._answer.status != 200:
            if len(self._body) < MAX_BODY_BYTES:
                self._body += body
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())
        if len(self._rest) > MAX_EVENT_BYTES:
            self._answer.error = f"not understood: a line of more than {MAX_EVENT_BYTES} bytes"
            self._end()
            self.close()

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        self._end()
        if not keep:
            self.close()
        elif self._transport is not None:
            self._parser = httptools.HttpResponseParser(self)

    def _end(self) -> None:
        self._answer.whole_s = time.perf_counter() - self._answer.sent_s
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _take(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        event = _DECODER.decode(payload)
        answer = self._answer
        if event.error is not None:
            answer.error = _text_of(event.error)
        if any(_has_text(choice) for choice in event.choices):
            answer.pieces += 1
            if answer.first_s is None:
                answer.first_s = time.perf_counter() - answer.sent_s
        if event.usage is not None:
            details = event.usage.prompt_tokens_details
            answer.prompt_tokens = event.usage.prompt_tokens
            answer.completion_tokens = event.usage.completion_tokens
            answer.cached_tokens = None if details is None else details.cached_tokens


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is not None:
        return bool(delta.content or delta.reasoning_content or delta.reasoning)
    return bool(choice.text)


def _message_of(body: bytes) -> str:
    """What an error's body says, on one line."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return " ".join(body.decode(errors="replace").split())[:200] or "no reason given"
    if isinstance(content, dict) and "error" in content:
        return _text_of(content["error"])
    return _text_of(content)


def _text_of(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message", error)
    return " ".join(str(error).split())[:200]
