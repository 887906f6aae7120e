"""What the device did, by name: from a trace that torch's profiler wrote.

Knows: the trace's JSON (Chrome's format). Does not know: what was profiled.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from gpu_bench.figures import covered, uncovered

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_WORK = ("cpu_op",)
TOP = 25


@dataclass(frozen=True)
class Kernel:
    """All launches of one name, over the whole trace."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Busy:
    """`seconds` in which the device did something, and, between the first and the last of them,
    `idle_seconds` in which it had been given nothing: the pauses between the kernels of a graph are
    not among these. Kernels by their time, longest first."""

    seconds: float
    idle_seconds: float
    launches: int
    kernels: tuple[Kernel, ...]

    def table(self, steps: int) -> list[dict[str, Any]]:
        """Per step, the longest `TOP`."""
        return [
            {
                "kernel": one.name[:100],
                "launches": round(one.count / steps, 1),
                "microseconds": round(one.seconds / steps * 1e6, 1),
                "share": round(one.seconds / max(self.seconds, 1e-12), 3),
            }
            for one in self.kernels[:TOP]
        ]


def _nothing() -> None:
    """No work."""


def traced(work: Callable[[], object], device: str, warm: Callable[[], object] = _nothing) -> Busy:
    """What `work` made the device do. On a CPU: its operators, those inside others too. `warm` is
    done before, under a profiler that keeps nothing: its own start slows what it sees first."""
    on_gpu = device.startswith("cuda")
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    once = schedule(wait=0, warmup=1, active=1, repeat=1)
    with profile(activities=[activity], schedule=once) as found:
        warm()
        found.step()
        work()
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return busy(events, DEVICE_WORK if on_gpu else HOST_WORK)


def busy(events: Iterable[Mapping[str, Any]], categories: tuple[str, ...]) -> Busy:
    """Of a trace's events; times there are microseconds."""
    counts: dict[str, int] = defaultdict(int)
    times_us: dict[str, float] = defaultdict(float)
    intervals = []
    # What one call of the host began has its number; all of a graph has that of its launch.
    calls: dict[object, tuple[float, float]] = {}
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in categories:
            begin, took = float(event["ts"]), float(event["dur"])
            counts[event["name"]] += 1
            times_us[event["name"]] += took
            intervals.append((begin, begin + took))
            call = event.get("args", {}).get("correlation", ("none", len(intervals)))
            first, last = calls.get(call, intervals[-1])
            calls[call] = min(first, begin), max(last, begin + took)
    kernels = sorted(
        (Kernel(name, counts[name], took / 1e6) for name, took in times_us.items()),
        key=lambda one: -one.seconds,
    )
    idle_s = uncovered(list(calls.values())) / 1e6
    return Busy(covered(intervals) / 1e6, idle_s, len(intervals), tuple(kernels))
