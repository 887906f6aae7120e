"""What the figures were measured on: hardware, versions, date. No paths, no host names."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from engine_bench.systems import version_of


def describe(peer_python: str | None) -> dict[str, Any]:
    own = {name: version_of(sys.executable, name) for name in ("torch", "transformers")}
    peer = None
    if peer_python is not None:
        peer = {name: version_of(peer_python, name) for name in ("torch", "transformers")}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 1),
        "ours": own,
        "peer": peer,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
