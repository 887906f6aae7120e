"""How much load each policy bears, on each layout and trace; ours against every baseline.

    python benchmarks/sim_capacity.py TRACES --traces mooncake [--out benchmarks/results]
    python benchmarks/sim_capacity.py TRACES --merge a.json b.json c.json --out benchmarks/results

Capacity is the largest load at which every class of requests is served as promised for 95 % (first
token within 2 s up to 2,048 prompt tokens, 10 s above; 50 ms per further token), gpt-oss-120b on 8
H100 (`--gpu`: others). A load is the trace's own requests, a stretch of it (`STRETCHES`; with
`--later` another one), played faster or slower; `--full` takes the whole trace. A built-in mix
stands beside the traces: a quarter of an hour of it, from a seed that no number of any policy was
chosen on. One trace takes some minutes. `--hindsight` also compares goodput at our own capacity
with the best of all policies that know every answer's length. Exit status 2 where a target is
missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt_oss_server.routing.policies import POLICIES, policy
from gpt_oss_server.routing.policies.view import RankingPolicy
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.results.sweep import capacity, clairvoyant_goodput, load_point
from gpt_oss_server.simulate.workload.made import MIXES, make_workload
from gpt_oss_server.simulate.workload.requests import Workload
from promises import RESULTS, Promise, exit_status, keep, table
from sim_inputs import LAYOUTS, TRACES, fleet, machine, trace

OURS = "earliest_completion"
LMETRIC = "new_tokens_times_batch"
LEAST = "least_request"
# Seconds of the trace that are played, and the load factor at which the search begins.
STRETCHES: Mapping[str, tuple[float, float, float]] = {
    "mooncake": (0.0, 1200.0, 2.0),
    "azure": (600.0, 1800.0, 9.0),
    "servegen": (30_000.0, 32_000.0, 2.5),
}
# Other parts of the same traces.
LATER: Mapping[str, tuple[float, float, float]] = {
    "mooncake": (1800.0, 3000.0, 2.0),
    "azure": (2100.0, 3300.0, 9.0),
    "servegen": (15_000.0, 17_000.0, 2.5),
}
# Of a mix: requests per second, seconds, and the seeds (the first; `--later`).
MIX = (6.0, 900.0, (100, 101))
HEAVY_TAILED = ("mooncake", "servegen", "mixed", "agents")
SETTINGS = {"seed": 1, "kv_bytes_per_token": 36_864}
Row = dict[str, float]


def main() -> int:
    options = _options()
    if options.merge:
        cells: dict[str, Any] = {}
        hindsight: dict[str, float] = {}
        for path in options.merge:
            made = json.loads(Path(path).read_text())
            cells |= made["capacity_per_s"]
            hindsight |= made["hindsight"]
    else:
        cells, hindsight = measured(options)
    promises = judged(cells, hindsight)
    text = "\n".join(["# Capacity by policy and layout", "", machine(), "", *_table(cells), ""])
    text += "\n".join(["", *table(promises), ""])
    print(text)
    if options.out is not None:
        name = "sim-capacity" + ("" if options.merge else "-" + "-".join(options.traces))
        name += "-later" if options.later else ""
        name += "" if options.gpu == "h100" else f"-{options.gpu}"
        result = {"capacity_per_s": cells, "hindsight": hindsight}
        keep(options.out, datetime.now(UTC).isoformat(), name, text, result)
    return exit_status(promises, quick=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", nargs="+", choices=(*TRACES, *MIXES), default=list(TRACES))
    parser.add_argument("--layouts", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--policies", nargs="+", choices=tuple(POLICIES), default=list(POLICIES))
    parser.add_argument("--gpu", default="h100", help="type of GPU (default: h100)")
    parser.add_argument("--full", action="store_true", help="whole traces")
    parser.add_argument("--later", action="store_true", help="another stretch of each trace")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--hindsight", action="store_true")
    parser.add_argument("--merge", nargs="+", help="results of single traces")
    parser.add_argument("--out", type=Path, default=None, help=f"write a result (as {RESULTS})")
    return parser.parse_args()


def make(name: str) -> RankingPolicy:
    return policy(name, SETTINGS)


def measured(options: argparse.Namespace) -> tuple[dict[str, Row], dict[str, float]]:
    """Requests per second by "trace, layout" and policy; and ours over hindsight's goodput."""
    slo = Slo()
    cells: dict[str, Row] = {}
    hindsight: dict[str, float] = {}
    for name in options.traces:
        asked, start = _load(options, name)
        for layout in options.layouts:
            found = fleet(LAYOUTS[layout], gpu=options.gpu)
            row: Row = {}
            began_s = time.monotonic()
            for rule in options.policies:
                knee = capacity(
                    asked,
                    found,
                    lambda rule=rule: make(rule),  # type: ignore[misc]
                    slo,
                    start=start,
                    tolerance=options.tolerance,
                )
                row[rule] = knee.requests_per_s
                if knee.best is not None:
                    start = knee.best.factor
            cells[f"{name}, {layout}"] = row
            if options.hindsight and row.get(OURS):
                factor = row[OURS] / asked.requests_per_s
                makes = [lambda rule=rule: make(rule) for rule in options.policies]  # type: ignore[misc]
                ours = load_point(asked, found, lambda: make(OURS), slo, factor).report
                bound = clairvoyant_goodput(asked, found, makes, slo, factor)
                hindsight[f"{name}, {layout}"] = ours.goodput_per_s / bound
            spent_s = time.monotonic() - began_s
            figures = ", ".join(f"{rule} {value:.2f}" for rule, value in row.items())
            print(f"{name}, {layout}: {figures} ({spent_s:.0f} s)", file=sys.stderr, flush=True)
    return cells, hindsight


def _load(options: argparse.Namespace, name: str) -> tuple[Workload, float]:
    """What is played, and the load factor at which the search begins."""
    if name in MIXES:
        per_s, seconds, seeds = MIX
        seed = seeds[options.later]
        return make_workload(name, requests_per_s=per_s, duration_s=seconds, seed=seed), 1.5
    start_s, end_s, start = (LATER if options.later else STRETCHES)[name]
    whole = trace(options.folder, name)
    return (whole if options.full else whole.between(start_s, end_s)), start


def judged(cells: Mapping[str, Row], hindsight: Mapping[str, float]) -> list[Promise]:
    """Ours against the best baseline everywhere, and on average against two of them."""
    promises = []
    ratios = {
        place: row[OURS] / max(v for rule, v in row.items() if rule != OURS)
        for place, row in cells.items()
        if OURS in row and len(row) > 1 and max(row.values()) > 0
    }
    if ratios:
        worst = min(ratios, key=lambda place: ratios[place])
        promises.append(
            Promise(
                f"ours over the best baseline, worst ({worst})",
                f"{ratios[worst]:.2f}",
                "≥ 0.97",
                ratios[worst] >= 0.97,
            )
        )
    wide = {
        place: row
        for place, row in cells.items()
        if place.split(",")[0] in HEAVY_TAILED or "+" in place
    }
    for rule, label, target in ((LMETRIC, "LMetric-style", 1.15), (LEAST, "least request", 1.5)):
        logs = [math.log(row[OURS] / row[rule]) for row in wide.values() if _both(row, rule)]
        if logs:
            mean = math.exp(sum(logs) / len(logs))
            promises.append(
                Promise(
                    f"ours over {label}, geometric mean, heavy tails and mixed pools",
                    f"{mean:.2f}",
                    f"≥ {target}",
                    mean >= target,
                )
            )
    if hindsight:
        worst = min(hindsight, key=lambda place: hindsight[place])
        promises.append(
            Promise(
                f"goodput of ours over hindsight, worst ({worst})",
                f"{hindsight[worst]:.3f}",
                "≥ 0.90",
                hindsight[worst] >= 0.9,
            )
        )
    return promises


def _both(row: Row, rule: str) -> bool:
    return row.get(OURS, 0.0) > 0 and row.get(rule, 0.0) > 0


def _table(cells: Mapping[str, Row]) -> list[str]:
    rules = sorted({rule for row in cells.values() for rule in row}, key=list(POLICIES).index)
    lines = [
        "Requests per second borne.",
        "",
        "| trace, layout | " + " | ".join(rules) + " |",
        "|---|" + "---|" * len(rules),
    ]
    for place, row in cells.items():
        best = max(row.values())
        figures = (
            f"**{row[rule]:.2f}**" if row.get(rule) == best else f"{row.get(rule, 0.0):.2f}"
            for rule in rules
        )
        lines.append(f"| {place} | " + " | ".join(figures) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
