"""Which requests leave a trace.

Knows: the caller's flag, the rate, what counts as an error and as slow. Does not know: spans.

Two questions, asked at two moments. Before an answer begins its head is to say whether the
request is sampled: that follows from the trace id and the caller's flag alone (`head`). When the
request is over, one that failed or took long is kept all the same (`keeps`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_oss_server.events import CANCELLED, OK, RequestRecord, TraceContext

_LOW_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """`rate` is a share from 0 to 1 of the requests whose caller did not decide; `slow_s` is how
    long a request may take, first byte to last, without being kept for it."""

    rate: float
    slow_s: float

    def head(self, trace: TraceContext) -> bool:
        """The caller's decision where there is one; else by the trace id's low 64 bits, as
        OpenTelemetry's TraceIdRatioBased does, so that others with the same rate agree."""
        if trace.sampled is not None:
            return trace.sampled
        return int(trace.trace_id, 16) & _LOW_64 < round(self.rate * (1 << 64))

    def keeps(self, record: RequestRecord) -> bool:
        """Errors and slow requests always, others as `head` says. A client that left is no
        error."""
        if record.outcome not in (OK, CANCELLED) or record.e2e_s > self.slow_s:
            return True
        return self.head(record.trace)
