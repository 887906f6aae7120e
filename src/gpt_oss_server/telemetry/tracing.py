"""Finished requests on their way to a trace collector, without anyone waiting for it.

Knows: which requests are kept, a bounded queue, the thread that sends. Does not know: spans'
contents, OpenTelemetry (which is optional and imported only when an endpoint is set).

A collector that is slow, dead or refuses costs traces, which are counted, and nothing else: a
request only appends its record to the queue.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from gpt_oss_server.config import Settings
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.events import Event, RequestEnded, RequestRecord, TraceContext
from gpt_oss_server.telemetry.tracing_sampling import Sampling
from gpt_oss_server.telemetry.tracing_spans import RequestTrace, trace_of

log = logging.getLogger(__name__)

CAPACITY = 2048
# Encoding holds the interpreter lock for some 0.2 ms a request: a larger batch would be felt by
# whoever streams tokens meanwhile.
BATCH = 16
SEND_EVERY_S = 1.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_WAIT_S = 0.8


class Export(Protocol):
    """Where traces go. A call may block and raise; `close` makes one under way end soon, if it
    can, and does not block."""

    def __call__(self, traces: Sequence[RequestTrace]) -> bool:
        """Whether they arrived."""
        ...

    def close(self) -> None: ...


class Tracing:
    """An event sink: each request that is kept becomes one trace.

    `exported` and `dropped` count requests; dropped are those that found the queue full, that
    the collector did not take, or that were left at the end.
    """

    def __init__(
        self,
        export: Export,
        sampling: Sampling,
        *,
        where: str = "the collector",
        capacity: int = CAPACITY,
        send_every_s: float = SEND_EVERY_S,
        close_wait_s: float = CLOSE_WAIT_S,
    ) -> None:
        self._export = export
        self._sampling = sampling
        self._where = where
        self._capacity = capacity
        self._send_every_s = send_every_s
        self._close_wait_s = close_wait_s
        self._queue: deque[RequestRecord] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self._refused = 0
        self._lost = 0
        self.exported = 0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def sampled(self, trace: TraceContext) -> bool:
        """What the head of an answer says of its request."""
        return self._sampling.head(trace)

    def emit(self, event: Event) -> None:
        """Take the record of a finished request; never blocks."""
        if not isinstance(event, RequestEnded) or not self._sampling.keeps(event.record):
            return
        queue = self._queue
        if self._closing or len(queue) >= self._capacity:
            self._refused += 1
            return
        queue.append(event.record)
        if len(queue) >= BATCH:
            self._wake.set()

    def close(self) -> None:
        """Send what waits, for less than a second; what is left then is dropped."""
        self._closing = True
        self._wake.set()
        self._thread.join(self._close_wait_s)
        self._export.close()
        if self._thread.is_alive():
            # It waits for a collector that does not answer; a daemon, it ends with the process.
            self._refused += len(self._queue)
            self._queue.clear()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._send_every_s)
            self._wake.clear()
            while self._queue:
                self._send(min(BATCH, len(self._queue)))
            if self._closing:
                return

    def _send(self, count: int) -> None:
        records = []
        for _ in range(count):
            try:
                records.append(self._queue.popleft())
            except IndexError:  # cleared by `close`
                break
        reason = "it refused them or did not answer"
        try:
            arrived = self._export([trace_of(record) for record in records])
        except Exception as error:  # noqa: BLE001 - whatever it is, no request is harmed
            arrived, reason = False, type(error).__name__
        if arrived:
            self.exported += len(records)
        else:
            self._lost += len(records)
        if self._failing == arrived and not self._closing:
            self._failing = not arrived
            if arrived:
                log.info("traces reach %s again; %d were dropped", self._where, self.dropped)
            else:
                log.warning("traces do not reach %s (%s); they are dropped", self._where, reason)


def check_tracing_settings(settings: Settings) -> None:
    """Refuse an endpoint without the library for it. Raises ConfigError."""
    if settings.otlp_endpoint is not None:
        _otlp_export()


def open_tracing(settings: Settings) -> Tracing | None:
    """The sink that the settings ask for; None where they name no collector.

    Raises:
        ConfigError: the `[otel]` extra is not installed.
    """
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    return Tracing(
        _otlp_export()(endpoint, EXPORT_TIMEOUT_S),
        Sampling(settings.trace_sample_rate, settings.trace_slow_s),
        where=urlsplit(endpoint).netloc.rpartition("@")[2],
    )


class _MakeExport(Protocol):
    def __call__(self, endpoint: str, timeout_s: float) -> Export: ...


def _otlp_export() -> _MakeExport:
    try:
        from gpt_oss_server.telemetry.tracing_otlp import OtlpExport
    except ImportError as error:
        raise ConfigError(
            f"otlp_endpoint: traces need a package that is not here ({error.name}): "
            "pip install 'gpt-oss-hf-server[otel]'"
        ) from None
    return OtlpExport
