"""The server, with or without its telemetry.

    python -m telemetry_bench.server on|off FLAG...

`off` serves with a journal that keeps nothing: no trail, no event, no log, no page. What is left is
what would be there if telemetry had never been written.
"""

from __future__ import annotations

import sys
from typing import Any

from gpt_oss_server import app, cli
from gpt_oss_server.api import visit
from gpt_oss_server.api.services import Endpoint
from gpt_oss_server.events import TraceContext
from gpt_oss_server.trail import Journal, Trail

NO_TRACE = TraceContext("0" * 32, "0" * 16)


class SilentTrail(Trail):
    """Notes nothing per token."""

    def saw(self, index: int, delta: object) -> None:
        pass


class SilentJournal(Journal):
    """Emits nothing and makes no record."""

    def open(self, *_: object) -> Trail:
        return SilentTrail(meter=self.meter)

    def close(self, *_: object) -> None:
        pass


class NoTelemetry:
    """In the place of `Telemetry`."""

    def __init__(self, *_: object) -> None:
        self.journal = SilentJournal()

    def endpoints(self, *_: object) -> tuple[Endpoint, ...]:
        return ()

    def close(self) -> None:
        pass


def main() -> int:
    which, *flags = sys.argv[1:]
    if which == "off":
        parts: Any = app
        parts.Telemetry = NoTelemetry
        parts = visit
        parts.trace_context = lambda *_: NO_TRACE
        parts.traceparent_of = lambda *_, **__: b""
    return cli.main(["serve", *flags])


if __name__ == "__main__":
    raise SystemExit(main())
