"""One process of the benchmark: a host, and the sections that run in it.

    python -m gpu_bench.worker SETTINGS.json HOST SECTION...

Knows: hosts, the words to the process that started it (one line each on the real stdout: `begin`,
`end`, `skip`, `cannot`). Does not know: order, other processes. All else that is printed goes to
stderr. After a section that failed it exits: what is left of the device is not to be trusted.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from gpu_bench.catalog import Section, catalog
from gpu_bench.records import Record, drop
from gpu_bench.settings import Settings

FAILED, CANNOT = 3, 4
LONGEST_TROUBLE = 400
# What `engine.worker` has, which needs all of msgspec.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
GROWING_SEGMENTS = "expandable_segments:True"


def settle_allocator(environment: MutableMapping[str, str]) -> None:
    """PyTorch's allocator as it is where the engine serves, unless it was told otherwise."""
    if not any(name in environment for name in ALLOCATOR_SETTINGS):
        environment[ALLOCATOR_SETTINGS[0]] = GROWING_SEGMENTS


def bench_of(settings: Settings, host: str) -> Any:
    """The object whose methods are the host's sections."""
    kind, _, form = host.partition(":")
    if kind == "engine":
        from gpu_bench.engine_sections import EngineBench

        return EngineBench(settings, form)
    if kind == "transformers":
        from gpu_bench.peer_sections import PeerBench

        return PeerBench(settings, form)
    from gpu_bench.plain_sections import PlainBench

    return PlainBench(settings)


def trouble_of(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST_TROUBLE]


def run(bench: Any, section: Section, settings: Settings) -> bool:
    """Writes the record; whether it went well."""
    began_s = time.perf_counter()
    figures: dict[str, Any] = {}
    trouble = None
    try:
        figures = getattr(bench, section.method)()
    except Exception as error:  # noqa: BLE001 it is recorded, and ends this process
        traceback.print_exc()
        trouble = trouble_of(error)
    took_s = round(time.perf_counter() - began_s, 2)
    record = Record(section.name, section.host, took_s, time.time(), figures, trouble)
    record.write(settings.records)
    return trouble is None


def main(argv: list[str]) -> int:
    settings, host = Settings.read(Path(argv[0])), argv[1]
    known = {one.name: one for one in catalog()}
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        bench = _started(settings, host)
    except Exception as error:  # noqa: BLE001 it is told, and ends this process
        traceback.print_exc()
        print(f"cannot {trouble_of(error)}", file=words)
        return CANNOT
    for name in argv[2:]:
        section = known[name]
        if time.time() + section.seconds > settings.deadline_s:
            print(f"skip {name}", file=words)
            continue
        drop(settings.records, name)
        print(f"begin {name}", file=words)
        well = run(bench, section, settings)
        print(f"end {name}", file=words)
        if not well:
            return FAILED
    return 0


def _started(settings: Settings, host: str) -> Any:
    if host.startswith("engine"):
        settle_allocator(os.environ)
    import torch

    if not settings.device.startswith("cuda"):
        torch.set_num_threads(1)
    form = host.partition(":")[2]
    if form:
        from gpu_bench import models

        models.ensure(settings, form)
    return bench_of(settings, host)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
