"""How well the simulator foresees measured points of gpt-oss-120b.

    python benchmarks/sim_accuracy.py POINTS.csv [--out benchmarks/results]

POINTS.csv has InferenceMAX's columns (`hw, isl, osl, tp, conc, mean_tpot, median_ttft, mean_e2el`;
times in seconds). Three questions: how well one degree of tensor parallelism, and one type of GPU,
is foreseen from the others; and what the simulator itself, with everything fitted, says of each
closed loop. Exit status 2 where a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.calibrate.calibration import Fit, Point, accuracy, fit, leave_one_out
from gpt_oss_server.simulate.calibrate.measurements import read_points
from gpt_oss_server.simulate.cost.layout import EngineSettings, Shape, lay_out
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.requests import Request, workload_of
from promises import RESULTS, Promise, exit_status, keep, table
from sim_inputs import CONFIG, MODEL, machine

TARGET = 0.06
ROUNDS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=Path)
    parser.add_argument("--out", type=Path, default=None, help=f"write a result (as {RESULTS})")
    options = parser.parse_args()
    points, problems = read_points(options.points)
    for problem in problems:
        print(f"left out: {problem}")
    fitted = fit(points, MODEL)
    by_tp = leave_one_out(points, MODEL, key=lambda point: point.tp)
    by_gpu = leave_one_out(points, MODEL, key=lambda point: point.gpu.name)
    whole = accuracy(points, MODEL, fitted)
    lines = [
        f"{len(points)} points; all fitted: TPOT {_of(whole)}",
        "",
        "| held out | points | mean abs. error | mean error | worst |",
        "|---|---|---|---|---|",
    ]
    for what, found in (("TP", by_tp), ("GPU", by_gpu)):
        for value, one in found.items():
            lines.append(
                f"| {what} {value} | {one.points} | {one.mean_absolute:.1%} | {one.mean:+.1%} "
                f"| {one.worst:+.1%} |"
            )
    lines += ["", *simulated(points, fitted, options.points)]
    lines += ["", f"Efficiencies: {asdict(fitted.efficiency)}; memory: {fitted.bandwidth}"]
    promises = [
        Promise(
            f"TPOT, TP {tp} held out",
            f"{one.mean_absolute:.1%}",
            f"≤ {TARGET:.0%}",
            one.mean_absolute <= TARGET,
        )
        for tp, one in by_tp.items()
    ]
    text = "\n".join(["# Accuracy of the step formula", "", machine(), "", *lines, ""])
    text += "\n".join(["", *table(promises), ""])
    print(text)
    if options.out is not None:
        result = {
            "efficiency": asdict(fitted.efficiency),
            "bandwidth": fitted.bandwidth,
            "held_out_tp": {str(tp): asdict(one) for tp, one in by_tp.items()},
            "held_out_gpu": {str(gpu): asdict(one) for gpu, one in by_gpu.items()},
        }
        keep(options.out, datetime.now(UTC).isoformat(), "sim-accuracy", text, result)
    return exit_status(promises, quick=False)


def simulated(points: list[Point], fitted: Fit, path: Path) -> list[str]:
    """Each measured loop played by the simulator: lengths drawn as the benchmark draws them."""
    with path.open(newline="") as rows:
        measured = [float(row["mean_e2el"]) for row in csv.DictReader(rows)]
    errors: dict[str, list[float]] = {"TPOT mean": [], "TTFT median": [], "E2E mean": []}
    for point, e2e_s in zip(points, measured, strict=True):
        tpot, ttft, e2e = _play(point, fitted)
        errors["TPOT mean"].append(tpot / (point.tpot_s or 1.0) - 1)
        errors["TTFT median"].append(ttft / (point.ttft_s or 1.0) - 1)
        errors["E2E mean"].append(e2e / e2e_s - 1)
    lines = [
        "The simulator's closed loops against the measured ones, all fitted:",
        "",
        "| | mean abs. error | mean error | worst |",
        "|---|---|---|---|",
    ]
    for name, found in errors.items():
        size = statistics.mean(map(abs, found))
        worst = max(found, key=abs)
        lines.append(f"| {name} | {size:.1%} | {statistics.mean(found):+.1%} | {worst:+.1%} |")
    return lines


def _play(point: Point, fitted: Fit) -> tuple[float, float, float]:
    rng = random.Random(7)
    requests = [
        Request(
            0.0,
            round(point.input_tokens / 0.9 * rng.uniform(0.8, 1.0)),
            round(point.output_tokens / 0.9 * rng.uniform(0.8, 1.0)),
        )
        for _ in range(ROUNDS * point.concurrency)
    ]
    settings = EngineSettings(prefill_order="fcfs", prefix_caching=False)
    shape = Shape(replace(fitted.gpu(point.gpu)), point.tp)
    machine_ = lay_out(CONFIG, MODEL, shape, settings, fitted.efficiency)
    found = simulate(
        workload_of("loop", requests),
        Fleet((Pool(machine_, 1),)),
        policy("round_robin"),
        clients=point.concurrency,
    )
    # As such benchmarks do: the first round warms up, the last one drains.
    middle = slice(point.concurrency, (ROUNDS - 1) * point.concurrency)
    return (
        float(np.mean(found.tpot_s[middle])),
        float(np.median(found.ttft_s[middle])),
        float(np.mean(found.e2e_s[middle])),
    )


def _of(one: object) -> str:
    return f"{one.mean_absolute:.1%} mean absolute, worst {one.worst:+.1%}"  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
