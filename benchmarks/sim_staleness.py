"""What it costs that a dispatcher sees replicas as they last reported, by policy.

    python benchmarks/sim_staleness.py TRACES [--traces azure] [--out benchmarks/results]

Capacity, as in `sim_capacity`, on a part of each of its stretches, with reports every 0 (always as
they are), 0.1, 1 and 5 s. What a dispatcher sent since a report, and what it has under way, it
knows by itself. Some two minutes a trace.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.results.slo import Slo
from gpt_oss_server.simulate.results.sweep import capacity
from promises import RESULTS, keep
from sim_inputs import LAYOUTS, fleet, machine, trace

AGES_S = (0.0, 0.1, 1.0, 5.0)
POLICIES = (
    "least_request",
    "power_of_two",
    "new_tokens_times_batch",
    "earliest_completion",
)
# Seconds of the trace that are played, and the load factor at which the search begins.
STRETCHES: Mapping[str, tuple[float, float, float]] = {
    "mooncake": (0.0, 800.0, 2.0),
    "azure": (600.0, 1200.0, 9.0),
}
WHERE = ("8×TP1", "4×TP1+2×TP2")
SETTINGS = {"seed": 1, "kv_bytes_per_token": 36_864}
Cells = dict[str, dict[str, list[float]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", nargs="+", choices=tuple(STRETCHES), default=list(STRETCHES))
    parser.add_argument("--out", type=Path, default=None, help=f"write a result (as {RESULTS})")
    options = parser.parse_args()
    cells: Cells = {}
    for name in options.traces:
        start_s, end_s, start = STRETCHES[name]
        asked = trace(options.folder, name).between(start_s, end_s)
        for layout in WHERE:
            began_s = time.monotonic()
            row = cells[f"{name}, {layout}"] = {}
            for rule in POLICIES:
                row[rule] = []
                for age_s in AGES_S:
                    knee = capacity(
                        asked,
                        fleet(LAYOUTS[layout]),
                        lambda rule=rule: policy(rule, SETTINGS),  # type: ignore[misc]
                        Slo(),
                        start=start,
                        view_age_s=age_s,
                    )
                    row[rule].append(knee.requests_per_s)
            spent_s = time.monotonic() - began_s
            print(f"{name}, {layout}: {row} ({spent_s:.0f} s)", file=sys.stderr, flush=True)
    text = "\n".join(["# Capacity by the age of views", "", machine(), "", *_table(cells), ""])
    print(text)
    if options.out is not None:
        date = datetime.now(UTC).isoformat()
        keep(options.out, date, "sim-staleness", text, {"ages_s": AGES_S, "capacity_per_s": cells})
    return 0


def _table(cells: Cells) -> list[str]:
    lines = [
        "Requests per second borne, with reports every so many seconds.",
        "",
        "| trace, layout | policy | " + " | ".join(f"{age_s:g} s" for age_s in AGES_S) + " |",
        "|---|---|" + "---|" * len(AGES_S),
    ]
    for place, row in cells.items():
        for rule, borne in row.items():
            figures = " | ".join(f"{value:.2f}" for value in borne)
            lines.append(f"| {place} | {rule} | {figures} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
