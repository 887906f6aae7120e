"""One exchange as the journal sees it: which endpoint, how it ended, how long it took.

Knows: when a trail begins and ends, and the ids that log lines carry. Does not know: endpoints'
work, or who reads the journal.
"""

from __future__ import annotations

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Endpoint
from gpt_oss_server.errors import ServerError, spec_of
from gpt_oss_server.events import CANCELLED, HttpAnswered
from gpt_oss_server.trace_context import trace_context, traceparent_of
from gpt_oss_server.trail import CURRENT_IDS, Ids, Journal

UNKNOWN_ENDPOINT = "unknown"


class Visit:
    """`outcome` is what the record will say; until something else is known, that the client left
    (or the server cut the connection)."""

    __slots__ = ("_began_s", "_endpoint", "_exchange", "_journal", "outcome")

    def __init__(self, exchange: Exchange, journal: Journal) -> None:
        self._exchange = exchange
        self._journal = journal
        self._began_s = journal.clock()
        self._endpoint: Endpoint | None = None
        self.outcome = CANCELLED

    def found(self, endpoint: Endpoint) -> None:
        """The path is known; a generating endpoint gets its trail."""
        self._endpoint = endpoint
        exchange = self._exchange
        if endpoint.operation is None:
            CURRENT_IDS.set(Ids(exchange.request_id, ""))
            return
        trace = trace_context(exchange.header(b"traceparent"), exchange.header(b"tracestate"))
        exchange.trail = self._journal.open(
            exchange.request_id, trace, endpoint.path, endpoint.operation
        )
        CURRENT_IDS.set(Ids(exchange.request_id, trace.trace_id))
        parent = traceparent_of(trace, sampled=self._journal.sampled(trace))
        exchange.extra_headers = (*exchange.extra_headers, (b"traceparent", parent))

    def failed(self, error: ServerError) -> None:
        self.outcome = spec_of(error).label

    def end(self) -> None:
        """All is over; to be called once."""
        exchange, journal, endpoint = self._exchange, self._journal, self._endpoint
        if endpoint is not None and endpoint.operation is not None:
            journal.close(exchange.trail, self.outcome, exchange.status)
        path = UNKNOWN_ENDPOINT if endpoint is None else endpoint.path
        journal.emit(HttpAnswered(path, exchange.status, journal.clock() - self._began_s))
