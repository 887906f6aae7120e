"""A probe for machines without a GPU: this server's processes against a budget of memory.

Knows: psutil, process ids. Does not know: what the memory is used for. One pseudo GPU, `cpu`, so
that every path that a GPU takes runs on a laptop too.

Memory is the sum of the processes' resident sets. Pages that they share (libraries) count once
each per process: some tens of MiB too much, never too little. (Unique set sizes would be exact,
but walking the page tables of a large process holds its memory lock for tens of milliseconds.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import psutil

from gpt_oss_server.ports import GpuReading

PSEUDO_GPU = "cpu"


class ProcessProbe:
    """Memory and CPU share of some processes, as one reading with the id `cpu`.

    `utilization` is the processor time that they used since the last `read`, over that of all
    processors this process may use; None at first. Use above the budget is reported as all of
    the budget. A process that has ended is left out.

    Args:
        budget_bytes: what counts as the total.
        pids: the processes, asked anew at each `read` (a worker may have been restarted).
        clock: seconds, from any start.
        processors: how many there are; None asks the system.

    Raises:
        ValueError: a budget that is not positive.
    """

    def __init__(
        self,
        budget_bytes: int,
        pids: Callable[[], Sequence[int]],
        *,
        clock: Callable[[], float] = time.monotonic,
        processors: int | None = None,
    ) -> None:
        if budget_bytes < 1:
            raise ValueError(f"budget_bytes must be positive, not {budget_bytes}")
        self._budget_bytes = budget_bytes
        self._pids = pids
        self._clock = clock
        self._processors = processors
        self._last: tuple[float, dict[int, float]] | None = None

    def read(self) -> Sequence[GpuReading]:
        """One reading; raises ProcessLookupError when none of the processes exists."""
        now_s = self._clock()
        resident_bytes = 0
        cpu_s: dict[int, float] = {}
        pids = dict.fromkeys(self._pids())
        for pid in pids:
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    resident = process.memory_info().rss
                    times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            resident_bytes += resident
            cpu_s[pid] = times.user + times.system
        if not cpu_s:
            raise ProcessLookupError(f"none of the processes {list(pids)} exists")
        utilization = self._share(now_s, cpu_s)
        self._last = (now_s, cpu_s)
        used_bytes = min(resident_bytes, self._budget_bytes)
        return (
            GpuReading(
                id=PSEUDO_GPU,
                name="CPU",
                total_bytes=self._budget_bytes,
                used_bytes=used_bytes,
                free_bytes=self._budget_bytes - used_bytes,
                utilization=utilization,
            ),
        )

    def close(self) -> None:
        self._last = None

    def _share(self, now_s: float, cpu_s: dict[int, float]) -> float | None:
        """Processor time since the last reading, of the processes that were there then too."""
        if self._last is None or now_s <= self._last[0]:
            return None
        then_s, before = self._last
        used_s = sum(max(0.0, used - before[pid]) for pid, used in cpu_s.items() if pid in before)
        return min(1.0, used_s / ((now_s - then_s) * self._count()))

    def _count(self) -> int:
        if self._processors is None:
            try:
                self._processors = len(psutil.Process().cpu_affinity() or ())
            except AttributeError:  # macOS has no affinity
                self._processors = 0
            self._processors = self._processors or psutil.cpu_count() or 1
        return self._processors
