"""What telemetry costs: per request, per token, in tokens per second, on the event loop.

    python benchmarks/telemetry_cost.py              # all; writes benchmarks/results/
    python benchmarks/telemetry_cost.py --quick      # smoke run, writes nothing
    python benchmarks/telemetry_cost.py --no-rates   # without the two servers, writes nothing

Per request: CPU time of every telemetry call that one chat request makes and of the threads that
write and send what it left. Per token: one delta noted on a trail. Tokens per second: the real
server with everything on against everything off, in turns. Lag: how late a task wakes that sleeps
for a millisecond, beside 200 requests a second, scraped each second or never.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_bench.machine import describe
from engine_bench.systems import BenchError
from telemetry_bench import costs, rates
from telemetry_bench.collector import collector
from telemetry_bench.parts import Parts, one_request
from telemetry_bench.report import checks, markdown

RESULTS = Path(__file__).parent / "results"
REPEATS = 5


def per_request(count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians over repeats, untraced and traced in turns."""
    found: dict[str, list[dict[str, float]]] = {"untraced": [], "traced": []}
    with collector() as where:
        for _ in range(repeats):
            found["untraced"].append(costs.per_request(count, None))
            found["traced"].append(costs.per_request(count, where))
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in ("serving", "all")}
        for name, runs in found.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    machine = describe(None)
    quick = args.quick
    result: dict[str, Any] = {
        "machine": machine,
        "command": " ".join(["python benchmarks/telemetry_cost.py", *sys.argv[1:]]),
        "repeats": REPEATS,
        "per_request_us": per_request(500 if quick else 5_000, REPEATS),
        "per_token_ns": costs.per_token(20_000 if quick else 200_000),
    }
    with collector() as where:
        parts = Parts(where)
        for _ in range(100):
            one_request(parts.journal)
        result["render"] = costs.render(parts)
        result["loop_lag_ms"] = costs.lags(parts, 2.0 if quick else args.seconds)
        parts.close()
    result["closing_s"] = costs.closing()
    if not args.no_rates:
        with tempfile.TemporaryDirectory() as folder:
            plan = (1, 2, 8) if quick else (args.blocks, args.pairs, args.round_requests)
            result["rates"] = rates.measure(Path(folder), *plan)
    machine["load_average_after"] = round(os.getloadavg()[0], 1)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke run, writes nothing")
    parser.add_argument("--no-rates", action="store_true", help="leave out the two servers")
    parser.add_argument("--blocks", type=int, default=4, help="times that both start anew")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of rounds in a block")
    parser.add_argument("--round-requests", type=int, default=32, help="requests in a round")
    parser.add_argument("--seconds", type=float, default=20.0, help="of lag, with and without")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args(argv)
    try:
        result = measure(args)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = markdown(result)
    print(report)
    if not args.quick and not args.no_rates:
        args.out.mkdir(parents=True, exist_ok=True)
        stem = args.out / f"{result['machine']['date'][:10]}-telemetry-cost"
        stem.with_suffix(".md").write_text(report, encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(check.met for check in checks(result)) else 2


if __name__ == "__main__":
    raise SystemExit(main())
