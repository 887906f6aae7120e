"""One sink in front of many: every event to each, none harmed by another.

Knows: the `EventSink` port. Does not know: what the sinks do with an event.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from gpt_oss_server.events import Event
from gpt_oss_server.ports import EventSink

log = logging.getLogger(__name__)


class FanOut:
    """Never raises. `errors` counts, per sink, the events that it failed to take; the first
    failure of each sink is logged."""

    def __init__(self, sinks: Mapping[str, EventSink]) -> None:
        self._sinks = tuple(sinks.items())
        self.errors = dict.fromkeys(sinks, 0)

    def emit(self, event: Event) -> None:
        for name, sink in self._sinks:
            try:
                sink.emit(event)
            except Exception as error:  # noqa: BLE001 - telemetry must never harm a request
                self.errors[name] += 1
                if self.errors[name] == 1:
                    # Not the message: it may quote what it choked on.
                    log.error(
                        "telemetry: %s failed on %s: %s",
                        name,
                        type(event).__name__,
                        type(error).__name__,
                    )
