"""Polling a `GpuProbe` in a thread, so that nobody ever waits for a driver.

Knows: when a poll began and ended, the last good reading of each GPU and its age. Does not know:
NVML, what a reading is used for, or when one is too old to be believed (its age says).

A probe that raises, hangs or returns nonsense harms nobody: the last good reading stays, grows
older, and `errors` counts. A driver call that hangs cannot be interrupted, so its thread is left
behind: no second one is started, and polling goes on if the call ever returns.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from gpt_oss_server.limits import check_number
from gpt_oss_server.ports import GpuProbe, GpuReading
from gpt_oss_server.telemetry.probes.sanity import why_impossible

DEFAULT_INTERVAL_S = 2.0
HANG_AFTER_S = 10.0
_CLOSE_WAIT_S = 1.0


class ProbedGpu(msgspec.Struct, frozen=True):
    """The last good reading of one GPU. `measured_at_s` is when the poll that brought it began,
    on the poller's clock; `age_s` is how long ago that was."""

    reading: GpuReading
    measured_at_s: float
    age_s: float


class ProbeView(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the GPUs now; empty until the first good poll.

    `polls` counts the polls that ended, `errors` those that raised, brought something
    impossible, lost a GPU seen before, or took longer than the poller allows; a poll counts once.
    `hung` is True while one takes longer. `last_error` stays until a poll is without fault.
    """

    gpus: tuple[ProbedGpu, ...]
    polls: int
    errors: int
    hung: bool
    last_error: str | None

    @property
    def oldest_age_s(self) -> float | None:
        """The age of the oldest reading; None without any."""
        return max((gpu.age_s for gpu in self.gpus), default=None)


class PollingProbe:
    """Asks `probe` every `interval_s`, in a daemon thread from `start` on.

    Args:
        probe: used, and in the end closed, by that thread alone.
        interval_s: pause between polls, 1 to 5 s.
        clock: seconds, monotonic; readings are stamped with it.
        hang_after_s: a poll that takes longer counts as hung.

    Raises:
        ConfigError: an interval out of range.
    """

    def __init__(
        self,
        probe: GpuProbe,
        *,
        interval_s: float = DEFAULT_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        hang_after_s: float = HANG_AFTER_S,
    ) -> None:
        check_number("interval_s", interval_s, low=1, high=5)
        check_number("hang_after_s", hang_after_s, low=0, above=True)
        self._probe = probe
        self._interval_s = interval_s
        self._clock = clock
        self._hang_after_s = hang_after_s
        self._lock = threading.Lock()
        self._good: dict[str, tuple[GpuReading, float]] = {}
        self._polls = 0
        self._errors = 0
        self._last_error: str | None = None
        self._poll_began_s: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to poll; does nothing when it has begun or was closed."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="gpu-probe", daemon=True)
            self._thread.start()

    def view(self) -> ProbeView:
        """What is known now. Never waits for the probe."""
        now_s = self._clock()
        with self._lock:
            late_s = self._late_s(now_s)
            return ProbeView(
                gpus=tuple(
                    ProbedGpu(reading, at_s, max(0.0, now_s - at_s))
                    for reading, at_s in self._good.values()
                ),
                polls=self._polls,
                errors=self._errors + (late_s is not None),
                hung=late_s is not None,
                last_error=self._last_error if late_s is None else _hang_text(late_s),
            )

    def poll_once(self) -> None:
        """One poll, in the calling thread; never raises. For tests and for `start`'s thread."""
        began_s = self._clock()
        with self._lock:
            self._poll_began_s = began_s
        good: list[GpuReading] = []
        try:
            good, fault = _sorted_out(self._probe.read())
        except Exception as error:  # noqa: BLE001 - whatever a driver raises must harm nobody
            fault = _one_line(error)
        with self._lock:
            late_s = self._late_s(self._clock())
            lost = sorted(self._good.keys() - {reading.id for reading in good})
            if fault is None and lost:
                fault = f"GPU {', '.join(lost)} no longer answers"
            if fault is None and late_s is not None:
                fault = _hang_text(late_s)
            self._good.update({reading.id: (reading, began_s) for reading in good})
            self._polls += 1
            self._errors += fault is not None
            self._last_error = fault
            self._poll_began_s = None

    def close(self) -> None:
        """Stop polling. Does not wait for a poll under way; the thread closes the probe."""
        self._closing.set()
        with self._lock:
            polling = self._poll_began_s is not None
        if self._thread is None:
            self._probe.close()
        elif not polling:
            self._thread.join(_CLOSE_WAIT_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            self.poll_once()
            self._closing.wait(self._interval_s)
        with contextlib.suppress(Exception):
            self._probe.close()

    def _late_s(self, now_s: float) -> float | None:
        """For how long the poll under way has been going on, if that is too long."""
        if self._poll_began_s is None or now_s - self._poll_began_s <= self._hang_after_s:
            return None
        return now_s - self._poll_began_s


def _sorted_out(readings: Sequence[GpuReading]) -> tuple[list[GpuReading], str | None]:
    """The readings that can be true, and what is wrong with the first that cannot."""
    good: dict[str, GpuReading] = {}
    fault = None if readings else "the probe returned no reading"
    for reading in readings:
        wrong = "seen twice" if reading.id in good else why_impossible(reading)
        if wrong is None:
            good[reading.id] = reading
        else:
            fault = fault or f"GPU {reading.id}: {wrong}"
    return list(good.values()), fault


def _hang_text(late_s: float) -> str:
    return f"the probe has not answered for {late_s:.0f} s"


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
