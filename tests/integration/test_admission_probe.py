"""A probe that fails under a running server: the last good value with its age, and no request
harmed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from desk_server import completion, desk_server

from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.telemetry.gpu import PollingProbe

COMPLETIONS = "/v1/completions"
ROUTING = RoutingConfig(pressure_input_tokens=50, stale_after_s=10.0)


def reading(used: float = 900, **more: object) -> GpuReading:
    fields = {"id": "cpu", "total_bytes": 1000, "used_bytes": used, **more}
    return GpuReading(**fields)  # type: ignore[arg-type]


class Steered:
    """Reads whatever the test has put there; an exception is raised."""

    def __init__(self) -> None:
        self.next: Callable[[], Sequence[GpuReading]] = lambda: (reading(),)

    def read(self) -> Sequence[GpuReading]:
        return self.next()

    def close(self) -> None:
        pass


def fails() -> Sequence[GpuReading]:
    raise RuntimeError("the driver is gone")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (fails, "the driver is gone"),
        (lambda: (), "the probe returned no reading"),
        (lambda: (reading(-5),), "GPU cpu: used_bytes is negative (-5)"),
        (lambda: (reading(math.nan),), "GPU cpu: used_bytes is nan"),
        (lambda: (reading(2000),), "GPU cpu: used_bytes (2000) exceeds total_bytes (1000)"),
    ],
    ids=["raises", "empty", "negative", "nan", "too much"],
)
def test_a_probe_that_fails(bad: Callable[[], Sequence[GpuReading]], error: str) -> None:
    """Its last good value goes on to decide while it is fresh; then pressure is unknown, said so,
    and never 0. Requests are answered all the time, and the failures are counted."""
    ago_s = [0.0]
    source = Steered()
    probe = PollingProbe(source, clock=lambda: time.monotonic() - ago_s[0])
    probe.poll_once()
    source.next = bad
    probe.poll_once()
    with desk_server(routing=ROUTING, probe=probe) as live:
        assert live.http.post(COMPLETIONS, json=completion(60)).status_code == 200
        assert live.records[0].decision.trigger == "memory_pressure"
        shown = live.memory()["probe"]
        assert shown == {"polls": 2, "errors": 1, "hung": False, "last_error": error}
        source.next = lambda: (reading(),)
        ago_s[0] = 11.0  # a good reading, of eleven seconds ago
        probe.poll_once()
        assert live.http.post(COMPLETIONS, json=completion(60)).status_code == 200
        decision = live.records[1].decision
        memory = live.memory()
        assert (decision.trigger, decision.pressure.value) == (None, None)
        assert (decision.pressure.note or "").startswith("gpu cpu: reading is 11.")
        assert memory["pressure"]["value"] is None
        gpu = next(gpu for gpu in memory["gpus"] if gpu["id"] == "cpu")
        assert (gpu["stale"], gpu["others_bytes"], gpu["reading_age_s"] >= 11) == (True, 900, True)
        assert memory["probe"]["errors"] == 1


def test_a_probe_that_hangs() -> None:
    """Said so and counted, while it hangs; the last good reading still counts; nobody waits."""
    go, asked = threading.Event(), threading.Event()
    source = Steered()
    probe = PollingProbe(source, hang_after_s=1e-9)
    probe.poll_once()

    def hang() -> Sequence[GpuReading]:
        asked.set()
        go.wait()
        return (reading(),)

    source.next = hang
    with desk_server(routing=ROUTING, probe=probe) as live:
        thread = threading.Thread(target=probe.poll_once)
        thread.start()
        try:
            assert asked.wait(30)
            assert live.http.post(COMPLETIONS, json=completion(60)).status_code == 200
            assert live.records[0].decision.trigger == "memory_pressure"
            shown = live.memory()["probe"]
            assert shown["hung"] is True
            assert shown["last_error"] == "the probe has not answered for 0 s"
        finally:
            go.set()
            thread.join()
        assert live.memory()["probe"]["hung"] is False
