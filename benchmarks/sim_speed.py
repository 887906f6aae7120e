"""How fast the simulator is, on one core.

    python benchmarks/sim_speed.py TRACES [--out benchmarks/results]

TRACES is a folder with the traces of `sim_inputs`. CPU time of `simulate` alone, best of three
after a warm-up: reading a trace is counted apart. Exit status 2 where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.fleet.cluster import simulate
from promises import RESULTS, Promise, exit_status, keep, table
from sim_inputs import fleet, machine, trace

RUNS = (
    ("mooncake", "8xtp1", 2.0, 3),
    ("mooncake", "4xtp2", 2.0, 3),
    ("azure", "8xtp1", None, 2),
    ("servegen", "4xtp2", 60.0, 1),
    # Far more than it bears: thousands wait, and sequences are put back all the time.
    ("servegen", "4xtp1", None, 1),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, default=None, help=f"write a result (as {RESULTS})")
    options = parser.parse_args()
    lines = [
        "| trace | fleet | requests | tokens | simulated s | read s | simulate s | µs a request |",
        "|---|---|---|---|---|---|---|---|",
    ]
    promises = []
    results = []
    for name, pools, target_s, repeats in RUNS:
        began_s = time.process_time()
        asked = trace(options.traces, name)
        read_s = time.process_time() - began_s
        found = fleet(pools)
        rule = policy("earliest_completion")
        simulate(asked.first(500), found, rule)
        best_s = float("inf")
        for _ in range(repeats):
            began_s = time.process_time()
            outcome = simulate(asked, found, rule)
            best_s = min(best_s, time.process_time() - began_s)
        count = len(asked.requests)
        tokens = int(outcome.input_tokens.sum() + outcome.output_tokens.sum())
        lines.append(
            f"| {name} | {found.name} | {count} | {tokens:,} | {outcome.end_s:.0f} | {read_s:.2f} "
            f"| {best_s:.2f} | {1e6 * best_s / count:.0f} |"
        )
        results.append({"trace": name, "pools": pools, "requests": count, "cpu_s": best_s})
        if target_s is not None:
            promises.append(
                Promise(
                    f"{name}, {pools}",
                    f"{best_s:.2f} s",
                    f"≤ {target_s:g} s",
                    best_s <= target_s,
                    timing=True,
                )
            )
    text = "\n".join(
        ["# Speed of the simulator", "", machine(), "", *lines, "", *table(promises), ""]
    )
    print(text)
    if options.out is not None:
        date = datetime.now(UTC).isoformat()
        keep(options.out, date, "sim-speed", text, {"machine": machine(), "runs": results})
    return exit_status(promises, quick=False)


if __name__ == "__main__":
    sys.exit(main())
