"""Published measurements in the columns that InferenceMAX publishes, as points to calibrate on.

Knows: the columns, units and what is wrong with a row. Does not know: fitting.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.simulate.calibrate.calibration import LENGTH_SHARE, Point
from gpt_oss_server.simulate.cost.gpu_types import gpu_names, gpu_type

_NEEDED = ("hw", "isl", "osl", "tp", "conc", "mean_tpot", "median_ttft")


def read_points(path: Path) -> tuple[list[Point], list[str]]:
    """The points of a CSV file (times in seconds), and a line for each row that is left out.

    Raises StartupError where the file cannot be read, ConfigError where columns are missing.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read {path}: {error}") from error
    missing = [name for name in _NEEDED if rows and name not in rows[0]]
    if missing or not rows:
        raise ConfigError(f"{path}: no column {', '.join(missing)}" if rows else f"{path}: empty")
    points, problems = [], []
    known = gpu_names()
    for number, row in enumerate(rows, 2):
        try:
            points.append(_point(row, known))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    return points, problems


def _point(row: Mapping[str, str], known: tuple[str, ...]) -> Point:
    if row["hw"] not in known:
        raise ValueError(f"unknown GPU type {row['hw']}")
    if float(row.get("ep") or 1) != 1:
        raise ValueError("expert parallelism is not modelled")
    numbers = {name: float(row[name]) for name in _NEEDED[1:]}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}")
    return Point(
        gpu=gpu_type(row["hw"]),
        tp=int(numbers["tp"]),
        concurrency=int(numbers["conc"]),
        input_tokens=numbers["isl"] * LENGTH_SHARE,
        output_tokens=numbers["osl"] * LENGTH_SHARE,
        tpot_s=numbers["mean_tpot"],
        ttft_s=numbers["median_ttft"],
    )
