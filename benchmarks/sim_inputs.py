"""What the simulator's benchmarks have in common: model, layouts, traces, the machine.

Knows: gpt-oss-120b on 8 H100 in the layouts of docs/simulator.md, where a trace is in a folder.
Does not know: what is measured.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.simulate.cost.layout import EngineSettings, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost
from gpt_oss_server.simulate.fleet.notation import parse_pools
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.files import read_workload
from gpt_oss_server.simulate.workload.requests import Workload

CONFIG = PUBLISHED["openai/gpt-oss-120b"]
MODEL = model_cost(CONFIG)
LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "8×TP1": "8xtp1",
        "4×TP2": "4xtp2",
        "2×TP4": "2xtp4",
        "4×TP1+2×TP2": "4xtp1+2xtp2",
        "4×TP1+1×TP4": "4xtp1+1xtp4",
    }
)
TRACES: Mapping[str, str] = MappingProxyType(
    {
        "mooncake": "mooncake_fast25_conversation",
        "azure": "azure2023_conv",
        "servegen": "servegen_r1_day_4rps_first_half",
    }
)


def fleet(pools: str, settings: EngineSettings | None = None, gpu: str = "h100") -> Fleet:
    """Replicas of gpt-oss-120b as written in `pools`."""
    limits = settings or EngineSettings()
    return Fleet(
        tuple(
            Pool(lay_out(CONFIG, MODEL, shape, limits, Efficiency()), count)
            for shape, count in parse_pools(pools, gpu)
        )
    )


def trace(folder: Path, name: str) -> Workload:
    """A trace by its short name: parquet, CSV or JSON lines, whichever the folder has."""
    found = sorted(folder.glob(f"{TRACES[name]}.*"), key=lambda path: path.suffix == ".parquet")
    if not found:
        raise SystemExit(f"error: {folder} has no {TRACES[name]}.parquet, .csv or .jsonl")
    return read_workload(found[0])


def machine() -> str:
    """One line for a result."""
    return f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs"
