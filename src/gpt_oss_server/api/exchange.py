"""One HTTP exchange over ASGI: its id, its body, its answer, and whether the client is still there.

Knows: ASGI messages, the headers every response carries, the error envelope, server-sent-event
framing. Does not know: what any endpoint does. ASGI is spoken directly because an application
that does not read `http.disconnect` itself goes on generating for clients that have left.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import msgspec

from gpt_oss_server.api.services import RouteLabel
from gpt_oss_server.errors import (
    BadRequest,
    PayloadTooLarge,
    RequestTimeout,
    ServerError,
    Unauthorized,
    envelope,
    spec_of,
)
from gpt_oss_server.trail import Trail

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

T = TypeVar("T")

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_RETRYABLE_STATUSES = frozenset({429, 503})
_DEFAULT_RETRY_AFTER_S = 1.0
_JSON: Header = (b"content-type", b"application/json")
_EVENT_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx buffers proxied responses unless told not to.
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """The client closed the connection before its answer was complete; nobody is to be told."""


class Exchange:
    """A request and the one answer to it.

    Attributes:
        request_id: the client's own `X-Request-Id` if sane, else a generated one.
        route: what `X-Route`, `X-Route-Reason` and `X-KV-Predicted-Bytes` will say; an endpoint
            may replace it before it starts its answer.
        query: what follows the path's `?`, as it came.
        rest: the part of the path that an endpoint's trailing `{name}` matched.
        status: of the answer; None until it has begun.
        extra_headers: sent with whatever answer there is.
        failure_event: the last event of a stream that fails.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, route: RouteLabel) -> None:
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._started = False
        self._streaming = False
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        client = scope.get("client")
        self.client_host: str | None = client[0] if client else None
        self.request_id = _request_id(self._headers.get(b"x-request-id"))
        self.route = route
        self.rest = ""
        self.status: int | None = None
        self.extra_headers: tuple[Header, ...] = ()
        self.failure_event: Callable[[ServerError], bytes] = _error_event
        self._trail: Trail | None = None

    @property
    def trail(self) -> Trail:
        """Where a generating endpoint notes what becomes of the request."""
        if self._trail is None:
            self._trail = Trail()
        return self._trail

    @trail.setter
    def trail(self, trail: Trail) -> None:
        self._trail = trail

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name."""
        return self._headers.get(name)

    async def read_json_body(self, limit_bytes: int, *, timeout_s: float) -> bytes:
        """The body of a JSON request.

        Raises BadRequest for another content type, PayloadTooLarge as soon as the announced or
        the received size passes `limit_bytes` (nothing beyond it is kept), RequestTimeout if it is
        not complete after `timeout_s`, ClientGone.
        """
        self._require_json()
        self._check_announced_size(limit_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._receive_body(limit_bytes)
        except TimeoutError:
            raise RequestTimeout(
                f"The request body was not complete after {timeout_s:g} seconds."
            ) from None

    async def _receive_body(self, limit_bytes: int) -> bytes:
        chunks: list[bytes] = []
        size_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, cancelled (and awaited) as soon as the client leaves: then ClientGone.

        Only after the body has been read: it listens to what the client sends next.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientGone
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def reply(
        self, content: object, *, status: int = 200, extra: tuple[Header, ...] = ()
    ) -> None:
        """Answer with `content` (anything msgspec encodes) as JSON."""
        await self.reply_bytes(msgspec.json.encode(content), (_JSON, *extra), status=status)

    async def reply_bytes(
        self, body: bytes, headers: tuple[Header, ...], *, status: int = 200
    ) -> None:
        """Answer with bytes that are ready; `headers` holds at least the content type. A 304 has
        no body, and no length, which would be that of the body it stands for."""
        length: tuple[Header, ...] = ((b"content-length", b"%d" % len(body)),)
        await self._start(status, headers if status == 304 else (*headers, *length))
        await self._send({"type": "http.response.body", "body": body})

    async def send_events(self, events: bytes) -> None:
        """Send framed events; the first call also sends the 200 head."""
        if not self._started:
            self._streaming = True
            await self._start(200, _EVENT_STREAM)
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end_events(self, events: bytes = b"") -> None:
        """Send the last events and end the response."""
        await self._send({"type": "http.response.body", "body": events})

    async def fail(self, error: ServerError, extra: tuple[Header, ...] = ()) -> None:
        """Answer with the error: an envelope, or, in a stream, an `error` event and the end.

        A failed stream has no `[DONE]`: that marks a complete answer, and a client that only
        looks for it must not take a cut answer for one. OpenAI's client raises on the event.
        """
        if self._streaming:
            await self.end_events(self.failure_event(error))
            return
        if self._started:
            return
        extra = (*extra, *_error_headers(error))
        if isinstance(error, RequestTimeout):
            # RFC 9110, 15.5.9; without it the rest of the body could go on dripping in.
            extra = (*extra, (b"connection", b"close"))
        await self.reply(envelope(error), status=spec_of(error).status, extra=extra)

    async def _start(self, status: int, headers: tuple[Header, ...]) -> None:
        self._started = True
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    *self.extra_headers,
                    *_own_headers(self.request_id, self.route),
                ],
            }
        )

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _require_json(self) -> None:
        encoding = self._headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding != b"identity":
            raise BadRequest(
                "Compressed request bodies are not supported.", param="content-encoding"
            )
        declared = self._headers.get(b"content-type")
        if declared is None:
            return
        media_type = declared.partition(b";")[0].strip().lower()
        if media_type != b"application/json" and not media_type.endswith(b"+json"):
            raise BadRequest("Content-Type must be application/json.", param="content-type")

    def _check_announced_size(self, limit_bytes: int) -> None:
        announced = self._headers.get(b"content-length", b"0")
        # More than 18 digits is too large whatever they are, and int() refuses thousands of them.
        if announced.isdigit() and (len(announced) > 18 or int(announced) > limit_bytes):
            raise _too_large(limit_bytes)


def event(content: object) -> bytes:
    """One server-sent event carrying `content` as JSON."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def _error_event(error: ServerError) -> bytes:
    return event(envelope(error))


DONE_EVENT = b"data: [DONE]\n\n"


def refusal(
    error: ServerError, offered_id: bytes | None, route: RouteLabel
) -> tuple[tuple[Header, ...], bytes]:
    """Headers and body of an error answer that is written without an exchange, because what came
    was not HTTP enough to make one; `offered_id` is the `X-Request-Id` it came with, if any."""
    body = msgspec.json.encode(envelope(error))
    length: Header = (b"content-length", b"%d" % len(body))
    own = _own_headers(_request_id(offered_id), route)
    return (_JSON, length, *_error_headers(error), *own), body


def _error_headers(error: ServerError) -> tuple[Header, ...]:
    """What the error's class says beside its envelope."""
    if spec_of(error).status in _RETRYABLE_STATUSES:
        wait_s = error.retry_after_s or _DEFAULT_RETRY_AFTER_S
        return ((b"retry-after", b"%d" % max(1, math.ceil(wait_s))),)
    if isinstance(error, Unauthorized):
        return ((b"www-authenticate", b"Bearer"),)
    return ()


def _own_headers(request_id: str, route: RouteLabel) -> tuple[Header, ...]:
    """What every response carries, and the KV prediction of those that have one."""
    own: tuple[Header, ...] = (
        (b"x-request-id", request_id.encode()),
        (b"x-route", route.route.encode()),
        (b"x-route-reason", _header_text(route.reason)),
    )
    if route.predicted_kv_bytes is None:
        return own
    return (*own, (b"x-kv-predicted-bytes", b"%d" % route.predicted_kv_bytes))


def _request_id(offered: bytes | None) -> str:
    if offered is not None and _SANE_REQUEST_ID.fullmatch(offered):
        return offered.decode()
    return f"req_{secrets.token_hex(16)}"


def _header_text(text: str) -> bytes:
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than the limit of {limit_bytes} bytes.")
