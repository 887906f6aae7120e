"""Polling: good readings age, bad ones harm nobody, and nobody waits for a hung driver."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.telemetry.gpu import PollingProbe
from gpt_oss_server.telemetry.probes.recorded import RecordedProbe
from gpt_oss_server.telemetry.probes.sanity import why_impossible

GOOD = GpuReading(
    id="0",
    total_bytes=100,
    used_bytes=40,
    free_bytes=60,
    utilization=0.5,
    power_w=300.0,
    energy_j=1.0,
    temperature_c=40.0,
)
OTHER = replace(GOOD, id="1")
WAIT_S = 30


@dataclass
class HandClock:
    """A clock that stands still until it is set."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class StuckProbe:
    """Answers once `release` is set; tells when it is asked and when it is closed."""

    asked: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def read(self) -> Sequence[GpuReading]:
        self.asked.set()
        self.release.wait(WAIT_S)
        return (GOOD,)

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, None),
        ({"utilization": None, "power_w": None, "used_bytes": None}, None),
        ({"used_bytes": 100, "free_bytes": 0, "utilization": 1.0}, None),
        ({"used_bytes": -1}, "used_bytes is negative (-1)"),
        ({"used_bytes": 101}, "used_bytes (101) exceeds total_bytes (100)"),
        ({"free_bytes": 101}, "free_bytes (101) exceeds total_bytes (100)"),
        ({"total_bytes": 0, "used_bytes": 0}, "total_bytes is 0"),
        ({"utilization": 1.01}, "utilization is above 1 (1.01)"),
        ({"utilization": math.nan}, "utilization is nan"),
        ({"power_w": math.inf}, "power_w is inf"),
        ({"energy_j": -0.5}, "energy_j is negative (-0.5)"),
        ({"temperature_c": 255.0}, "temperature_c is 255.0"),
        ({"temperature_c": -20.0}, None),
    ],
)
def test_what_is_impossible(change: dict[str, Any], wrong: str | None) -> None:
    """Negative, not finite, more than there is: each is named; unknown values are possible."""
    assert why_impossible(replace(GOOD, **change)) == wrong


def test_nothing_is_known_before_the_first_poll() -> None:
    """No reading is no reading, not zeros."""
    view = PollingProbe(RecordedProbe([[GOOD]]), clock=HandClock()).view()
    assert (view.gpus, view.polls, view.errors, view.hung) == ((), 0, 0, False)
    assert view.oldest_age_s is None


def test_a_reading_grows_older() -> None:
    """Age is the time since the poll that brought the reading began."""
    clock = HandClock()
    poller = PollingProbe(RecordedProbe([[GOOD], [OTHER, GOOD]]), clock=clock)
    poller.poll_once()
    clock.now_s += 12.5
    (gpu,) = poller.view().gpus
    assert (gpu.reading, gpu.measured_at_s, gpu.age_s) == (GOOD, 100.0, 12.5)
    poller.poll_once()
    assert [gpu.age_s for gpu in poller.view().gpus] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (OSError("driver gone\nand more"), "driver gone"),
        (RuntimeError(), "RuntimeError"),
        ([], "the probe returned no reading"),
        ([replace(GOOD, used_bytes=-5)], "GPU 0: used_bytes is negative (-5)"),
        ([replace(GOOD, utilization=math.nan)], "GPU 0: utilization is nan"),
        ([GOOD, GOOD], "GPU 0: seen twice"),
        (None, "'NoneType' object is not iterable"),
        ([replace(GOOD, power_w="much")], "must be real number, not str"),
    ],
)
def test_a_bad_poll_keeps_the_last_good_reading(bad: Any, error: str) -> None:
    """The reading stays with its age, the error is counted and named, and a good poll heals."""
    clock = HandClock()

    class Probe(RecordedProbe):
        def read(self) -> Sequence[GpuReading]:
            entry = self._recording[self._next]
            if isinstance(entry, Exception):
                self._next += 1
                raise entry
            self._next += 1
            return entry

    poller = PollingProbe(Probe([[GOOD], bad, [GOOD]]), clock=clock)
    poller.poll_once()
    clock.now_s += 3
    poller.poll_once()
    view = poller.view()
    assert [gpu.reading for gpu in view.gpus] == [GOOD]
    assert view.gpus[0].age_s == (0.0 if error.endswith("twice") else 3.0)
    assert (view.polls, view.errors, view.last_error) == (2, 1, error)
    poller.poll_once()
    view = poller.view()
    assert (view.gpus[0].age_s, view.errors, view.last_error) == (0.0, 1, None)


def test_one_bad_gpu_does_not_age_the_others() -> None:
    """Readings are kept per GPU, also of one that no longer answers."""
    clock = HandClock()
    recording = [[GOOD, OTHER], [replace(GOOD, used_bytes=101), OTHER], [OTHER]]
    poller = PollingProbe(RecordedProbe(recording), clock=clock)
    poller.poll_once()
    for error in ("GPU 0: used_bytes (101) exceeds total_bytes (100)", "GPU 0 no longer answers"):
        clock.now_s += 2
        poller.poll_once()
        assert poller.view().last_error == error
    view = poller.view()
    assert [(gpu.reading.id, gpu.age_s) for gpu in view.gpus] == [("0", 4.0), ("1", 0.0)]
    assert (view.errors, view.oldest_age_s) == (2, 4.0)


def test_a_hung_probe_blocks_nobody() -> None:
    """The reader sees that it hangs, close returns, and a late answer is as old as its question."""
    clock, probe = HandClock(), StuckProbe()
    poller = PollingProbe(probe, clock=clock, hang_after_s=10)
    poller.start()
    assert probe.asked.wait(WAIT_S)
    assert (poller.view().hung, poller.view().errors) == (False, 0)
    clock.now_s += 11
    view = poller.view()
    assert (view.gpus, view.hung, view.errors) == ((), True, 1)
    assert view.last_error == "the probe has not answered for 11 s"
    poller.close()
    assert not probe.closed.is_set(), "the thread that is inside the driver closes it"
    clock.now_s += 9
    probe.release.set()
    assert probe.closed.wait(WAIT_S)
    view = poller.view()
    assert [(gpu.reading, gpu.age_s) for gpu in view.gpus] == [(GOOD, 20.0)]
    assert (view.polls, view.errors, view.hung) == (1, 1, False)


def test_the_thread_polls_and_ends() -> None:
    """It polls from start on, once only, and close ends it and closes the probe."""
    probe = StuckProbe()
    probe.release.set()
    poller = PollingProbe(probe, interval_s=5)
    poller.start()
    thread = poller._thread
    poller.start()
    assert poller._thread is thread
    assert thread is not None
    assert thread.daemon
    assert probe.asked.wait(WAIT_S)
    poller.close()
    assert probe.closed.wait(WAIT_S)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert poller.view().polls == 1


def test_close_without_start() -> None:
    """A poller that never ran closes its probe, and does not start afterwards."""
    probe = StuckProbe()
    poller = PollingProbe(probe)
    poller.close()
    assert probe.closed.is_set()
    poller.start()
    assert poller._thread is None


@pytest.mark.parametrize("interval_s", [0.5, 6, math.nan, -1])
def test_impossible_intervals(interval_s: float) -> None:
    """Only 1 to 5 s: never per request, never forgotten."""
    with pytest.raises(ConfigError, match="interval_s"):
        PollingProbe(RecordedProbe([[GOOD]]), interval_s=interval_s)
