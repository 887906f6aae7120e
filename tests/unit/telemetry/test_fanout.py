"""One sink in front of many."""

from __future__ import annotations

import logging

import pytest

from gpt_oss_server.events import Event, HttpAnswered, WorkerRestarted
from gpt_oss_server.telemetry.fanout import FanOut

FIRST, SECOND = HttpAnswered("/live", 200, 0.1), WorkerRestarted("gone", 1)


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


class Broken:
    def emit(self, event: Event) -> None:
        raise RuntimeError("a secret that must not be told")


def test_a_failing_sink_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Those before and behind it get every event; its failures are counted, the first is told,
    without what the exception says."""
    before, behind = Kept(), Kept()
    fan_out = FanOut({"before": before, "broken": Broken(), "behind": behind})
    with caplog.at_level(logging.ERROR):
        fan_out.emit(FIRST)
        fan_out.emit(SECOND)
    assert before.events == behind.events == [FIRST, SECOND]
    assert fan_out.errors == {"before": 0, "broken": 2, "behind": 0}
    assert caplog.messages == ["telemetry: broken failed on HttpAnswered: RuntimeError"]
