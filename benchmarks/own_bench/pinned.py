"""Our servers on chosen cores, and how quiet the machine was meanwhile.

Knows: processes, affinities, Linux's scheduling groups, CPU time. Does not know: loads, figures.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine_bench.systems import HttpSystem

FIRST = "-20"
"""Nice value that puts a group of processes before all others."""


class PinnedServer:
    """One server with one engine thread, front and engine on one core."""

    def __init__(self, core: int, flags: Sequence[str], log: Path, *, first: bool) -> None:
        self.core = core
        self._first = first
        serve = ["serve", "--port", "{port}", "--threads", "1", *flags]
        command = ["taskset", "-c", str(core), sys.executable, "-m", "gpt_oss_server", *serve]
        self._system = HttpSystem(f"replica on core {core}", command, "tiny", log)
        self.pid = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._system.port}"

    def start(self) -> None:
        before = {child.pid for child in psutil.Process().children()}
        self._system.start()
        self.pid = next(c.pid for c in psutil.Process().children() if c.pid not in before)
        if self._first:
            put_first(self.pid)

    def close(self) -> None:
        self._system.stop()


def put_first(pid: int | None = None) -> None:
    """Run a process's whole session before others, where that is allowed: on a machine that others
    use, it is measured as if they were not there."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid or 'self'}/autogroup").write_text(FIRST)


def pin_client(core: int) -> None:
    os.sched_setaffinity(0, {core})


@dataclass
class Quiet:
    """How much of the machine others used since it was made. `pids` are the servers'."""

    pids: Sequence[int]

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s, self._own_s = _busy_s(), self._used_s()

    def others(self) -> float:
        """Cores that neither the servers nor this process used, on average."""
        seconds = time.monotonic() - self._began_s
        busy = _busy_s() - self._busy_s
        return max(0.0, busy - (self._used_s() - self._own_s)) / seconds

    def _used_s(self) -> float:
        everyone = [psutil.Process()]
        for pid in self.pids:
            server = psutil.Process(pid)
            everyone += [server, *server.children(recursive=True)]
        total = 0.0
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
