"""How long one routing decision takes, over random facts and fleets of 1, 8 and 64 replicas.

    python benchmarks/decide.py                  # 1,000,000 decisions per fleet size
    python benchmarks/decide.py --count 100000 --out decide.json

Times one `decide` call each, garbage collection on, nothing else in the process. `--out` writes
JSON or, for a name ending in `.md`, a table. The timer's own cost is measured and printed, not
subtracted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt_oss_server.facts import FleetView, GpuView, ReplicaView, RequestFacts
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy

GIB = 1 << 30
KV_BYTES_PER_TOKEN = 24_576
VARIANTS = 1024


def random_facts(rng: random.Random, index: int) -> RequestFacts:
    """Log-uniform inputs from 1 to 131,072 tokens, so that every trigger occurs."""
    input_tokens = int(2 ** rng.uniform(0, 17))
    output_tokens = rng.choice((256, 1024, 4096, 131_072 - input_tokens))
    tokens = input_tokens + output_tokens
    return RequestFacts(
        request_id=f"req_{index}",
        input_tokens=input_tokens,
        max_output_tokens=output_tokens,
        # Every fourth model has full attention in every layer of a larger cache.
        predicted_kv_bytes=tokens * KV_BYTES_PER_TOKEN * rng.choice((1, 1, 1, 6)),
    )


def random_fleet(rng: random.Random, replicas: int) -> FleetView:
    """Half single-GPU, half multi-GPU replicas, some not ready or stale; at most 8 GPUs seen."""
    now_s = 1000.0
    views = tuple(
        ReplicaView(
            id=f"replica-{index:02d}",
            gpus=rng.choice((1, 1, 2, 4)),
            measured_at_s=now_s - rng.choice((0.5, 1.0, 2.0, 30.0)),
            kv_capacity_bytes=40 * GIB,
            kv_free_bytes=rng.randrange(40 * GIB),
            capacity_tokens=1_600_000,
            load_tokens=rng.randrange(2_000_000),
            ready=rng.random() > 0.05,
        )
        for index in range(replicas)
    )
    gpus = tuple(
        GpuView(
            id=str(index),
            total_bytes=80 * GIB,
            measured_at_s=now_s - rng.choice((0.5, 1.0, 1.5, 2.0)),
            others_bytes=rng.randrange(4 * GIB),
            weights_bytes=14 * GIB,
            activations_peak_bytes=2 * GIB,
            kv_in_use_bytes=rng.randrange(60 * GIB),
            utilization_percent=rng.uniform(0, 100),
        )
        for index in range(min(replicas, 8))
    )
    return FleetView(
        gpu_mode="auto", now_s=now_s, replicas=views, gpus=gpus, machine_gpus=len(gpus)
    )


def measure(replicas: int, count: int, seed: int) -> dict[str, Any]:
    """Quantiles, in microseconds, of `count` decisions with a fleet of `replicas`."""
    rng = random.Random(seed)
    policy = TriggerPolicy(RoutingConfig())
    facts = [random_facts(rng, index) for index in range(VARIANTS)]
    fleets = [random_fleet(rng, replicas) for _ in range(VARIANTS)]
    clock = time.perf_counter_ns
    decide = policy.decide
    for index in range(VARIANTS):
        decide(facts[index], fleets[index])
    times_ns = [0] * count
    triggered = 0
    for index in range(count):
        request = facts[index % VARIANTS]
        # A prime stride pairs each request with ever other fleets.
        fleet = fleets[(index * 17 + index // VARIANTS) % VARIANTS]
        start = clock()
        decision = decide(request, fleet)
        times_ns[index] = clock() - start
        triggered += decision.trigger is not None
    times_ns.sort()
    row: dict[str, Any] = {"replicas": replicas, "decisions": count}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        row[f"{name}_us"] = round(times_ns[math.ceil(share * count) - 1] / 1000, 2)
    row["triggered_percent"] = round(100 * triggered / count, 1)
    return row


def timer_cost_us() -> float:
    """Median of two successive readings of the clock."""
    clock = time.perf_counter_ns
    gaps = sorted(-clock() + clock() for _ in range(10_001))
    return round(gaps[len(gaps) // 2] / 1000, 3)


def as_table(result: dict[str, Any]) -> str:
    lines = [
        f"# Decision latency, {result['date']}",
        "",
        f"{result['machine']}; Python {result['python']}; `{result['command']}`; "
        f"timer {result['timer_us']} µs per reading.",
        "",
        "| replicas | decisions | p50 µs | p90 µs | p99 µs | p99.9 µs | triggered |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['replicas']} | {row['decisions']:,} | {row['p50_us']} | {row['p90_us']} "
        f"| {row['p99_us']} | {row['p99.9_us']} | {row['triggered_percent']} % |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=1_000_000, help="decisions per fleet size")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write .json or .md here as well")
    args = parser.parse_args(argv)
    if args.count < 1 or min(args.replicas) < 1:
        parser.error("--count and --replicas must be at least 1")
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "command": f"python benchmarks/decide.py --count {args.count} --seed {args.seed}",
        "timer_us": timer_cost_us(),
        "rows": [measure(replicas, args.count, args.seed) for replicas in args.replicas],
    }
    table = as_table(result)
    sys.stdout.write(table)
    if args.out is not None:
        text = table if args.out.suffix == ".md" else json.dumps(result, indent=2) + "\n"
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
