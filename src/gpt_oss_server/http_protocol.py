"""What uvicorn's protocol leaves open: who is refused before there is a request, and how long a
client may take to bring one.

Knows: uvicorn's protocol class over httptools. Does not know: the application.

- What is not HTTP is refused like everything else, in the error envelope, with a request id.
- A client that asks for another protocol gets this one.
- A connection that is neither answered nor idle between two requests runs against a clock: the
  head of a request must be complete in time and not be endless, however slowly it drips in.
- A client that leaves takes with it every request that it had sent, the queued ones as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gpt_oss_server.api.exchange import refusal
from gpt_oss_server.api.services import UNDECIDED
from gpt_oss_server.errors import (
    BadRequest,
    NotReady,
    PayloadTooLarge,
    RequestTimeout,
    ServerError,
    spec_of,
)

# Of a request's head, or of the trailers behind its body; one read may go beyond it.
MAX_HEAD_BYTES = 64 * 2**10
# What one client may have queued behind the request that is being answered. With more, nothing is
# read, and so a client that leaves is only noticed when it is written to.
_MAX_QUEUED = 8


@dataclass(frozen=True)
class ConnectionLimits:
    """What one client may take of the server before it has asked for anything.

    Args:
        header_timeout_s: within which a request's head must be complete, from its first byte or,
            for the first one, from the connection's beginning.
        keep_alive_s: how long a connection may be idle between two requests.
        connections: at once; None for no bound.
    """

    header_timeout_s: float = 20.0
    keep_alive_s: float = 75.0
    connections: int | None = None


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's protocol, within `limits`, and with an answer of ours where it makes one itself."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._clock: asyncio.TimerHandle | None = None
        # uvicorn's own `cycle` is the request that came last; this is the one being answered.
        self._running: RequestResponseCycle | None = None
        self._in_head = False
        self._in_body = False
        self._unclaimed_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        bound = self.limits.connections
        if bound is not None and len(self.connections) > bound:
            self._refuse(NotReady("Too many connections.", retry_after_s=1.0))
        else:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, and forget those behind it."""
        self._stop_clock()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and see that it leads to a request in time."""
        if self.transport.is_closing():  # whatever else it sends is not looked at
            return
        self._unclaimed_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._unclaimed_bytes > MAX_HEAD_BYTES:
            self._refuse(PayloadTooLarge("The request's headers are too large."))
        elif not self._answering() and self.timeout_keep_alive_task is None:
            self._start_clock()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Raises HttpParserError."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # A client that would rather speak HTTP/2 (Java's does by default) or WebSocket and
                # is not obliged. The parser stops at the end of the head and would lose the body:
                # the same request once more, without the wish.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = [t for t in tokens if t.lower() not in (b"upgrade", b"http2-settings")]
                lines.append(b"connection: " + b", ".join(kept))
            elif name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes behind a body is none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the one that is being answered."""
        if self._wants_upgrade():
            return
        self._in_head, self._in_body = False, True
        self._unclaimed_bytes = 0
        self._stop_clock()
        super().on_headers_complete()
        if len(self.pipeline) <= _MAX_QUEUED:
            # uvicorn reads nothing while a request is queued, and would not see the client leave.
            # A queued body still stops the reading once it is large.
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self._unclaimed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come to its end."""
        if self._wants_upgrade():
            return
        super().on_message_complete()
        self._in_body = False
        self._unclaimed_bytes = 0
        if not self._answering():
            # It was answered before its body had come: the connection is idle only now.
            self._stop_clock()
            self._start_keep_alive()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        super().on_response_complete()
        if self._answering() or self.transport.is_closing():
            return
        if self._in_head or self._in_body:
            # The next request has begun, or the answer did not wait for the body.
            self._unset_keepalive_if_required()
            self._start_clock()
        else:
            self._start_keep_alive()

    def send_400_response(self, msg: str) -> None:
        """Refuse what could not be parsed and close the connection."""
        self._refuse(BadRequest(msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _wants_upgrade(self) -> bool:
        # CONNECT names no path; it is refused as any other nonsense is.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _start_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.limits.keep_alive_s, self.timeout_keep_alive_handler
        )

    def _start_clock(self) -> None:
        """Give the client its time to bring a request, unless it is running out already."""
        if self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(self.limits.header_timeout_s, self._too_late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_late(self) -> None:
        self._clock = None
        if self._in_head:
            waited_s = f"{self.limits.header_timeout_s:g} seconds"
            message = f"The request's headers were not complete after {waited_s}."
            self._refuse(RequestTimeout(message))
        else:
            self.transport.close()

    def _refuse(self, error: ServerError) -> None:
        """Answer without a request, where nothing of another answer is on its way, and close."""
        self._stop_clock()
        if self._running is None or not self._running.response_started or not self._answering():
            offered_id = dict(self.headers or ()).get(b"x-request-id")
            headers, body = refusal(error, offered_id, UNDECIDED)
            lines = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
            head = b"".join([b"%b: %b\r\n" % line for line in lines])
            self.transport.write(STATUS_LINE[spec_of(error).status] + head + b"\r\n" + body)
        # Else the answer to an earlier request is half written: nothing may be put into it.
        self.transport.close()


def within(limits: ConnectionLimits) -> type[EnvelopeProtocol]:
    """The protocol class with other limits."""
    return type("BoundedProtocol", (EnvelopeProtocol,), {"limits": limits})
