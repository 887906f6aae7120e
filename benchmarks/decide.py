"""How long one routing decision takes, over random facts and fleets of 1, 8 and 64 replicas.

    python benchmarks/decide.py                  # 1,000,000 decisions per fleet size, a minute
    python benchmarks/decide.py --quick          # a smoke run; writes nothing

Times one `decide` call each, garbage collection on, nothing else in the process. The timer's own
cost is measured and printed, not subtracted. Results are written, dated, to
`benchmarks/results/`. Exits 2 when a decision contradicts itself or, in a full run, when a target
is missed.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_bench import machine
from gpt_oss_server.facts import Decision, FleetView, GpuView, ReplicaView, RequestFacts
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from promises import RESULTS, Promise, exit_status, keep, table

TARGET_REPLICAS = 8
TARGETS_US = {"p50_us": 10.0, "p99_us": 50.0}
QUICK_COUNT = 20_000
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


def sound(request: RequestFacts, fleet: FleetView, decision: Decision) -> bool:
    """Whether a decision agrees with itself and names every replica once."""
    named = [entry.id for entry in (*decision.ranking, *decision.excluded)]
    first = decision.ranking[0].route if decision.ranking else None
    return (
        (decision.route == "multi_gpu") == (decision.trigger is not None)
        and bool(decision.reasons) == (decision.trigger is not None)
        and decision.executed == first
        and sorted(named) == sorted(replica.id for replica in fleet.replicas)
        and decision.predicted_kv_bytes == request.predicted_kv_bytes
    )


def measure(replicas: int, count: int, seed: int) -> dict[str, Any]:
    """Quantiles, in microseconds, of `count` decisions with a fleet of `replicas`."""
    rng = random.Random(seed)
    policy = TriggerPolicy(RoutingConfig())
    facts = [random_facts(rng, index) for index in range(VARIANTS)]
    fleets = [random_fleet(rng, replicas) for _ in range(VARIANTS)]
    clock = time.perf_counter_ns
    decide = policy.decide
    pairs = list(zip(facts, fleets, strict=True))
    unsound = sum(not sound(*pair, decide(*pair)) for pair in pairs)
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
    row: dict[str, Any] = {"replicas": replicas, "decisions": count, "unsound": unsound}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)):
        row[f"{name}_us"] = round(times_ns[math.ceil(share * count) - 1] / 1000, 2)
    row["triggered_percent"] = round(100 * triggered / count, 1)
    return row


def timer_cost_us() -> float:
    """Median of two successive readings of the clock."""
    clock = time.perf_counter_ns
    gaps = sorted(-clock() + clock() for _ in range(10_001))
    return round(gaps[len(gaps) // 2] / 1000, 3)


def promises(result: dict[str, Any]) -> list[Promise]:
    rows = result["rows"]
    unsound = sum(row["unsound"] for row in rows)
    found = [Promise("decisions that contradict themselves", str(unsound), "0", unsound == 0)]
    for row in rows:
        if row["replicas"] == TARGET_REPLICAS:
            for name, most in TARGETS_US.items():
                what = f"{name.removesuffix('_us')} with {TARGET_REPLICAS} replicas"
                met = row[name] <= most
                found.append(Promise(what, f"{row[name]} µs", f"≤ {most:g} µs", met, timing=True))
    return found


def markdown(result: dict[str, Any]) -> str:
    described = result["machine"]
    lines = [
        "# Decision latency",
        "",
        f"{described['date']}; {described['cpu']}, {described['cores']} cores, "
        f"{described['memory_gib']} GiB; Python {described['python']}; load average at the end "
        f"{described['load_average']}; timer {result['timer_us']} µs per reading.",
        "",
        f"`{result['command']}`",
        "",
        *table(promises(result)),
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, help="decisions per fleet size (default: 1,000,000)")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    args = parser.parse_args(argv)
    count = args.count or (QUICK_COUNT if args.quick else 1_000_000)
    if count < 1 or min(args.replicas) < 1:
        parser.error("--count and --replicas must be at least 1")
    result: dict[str, Any] = {
        "machine": machine.describe(None),
        "command": f"python benchmarks/decide.py --count {count} --seed {args.seed}",
        "timer_us": timer_cost_us(),
        "rows": [measure(replicas, count, args.seed) for replicas in args.replicas],
    }
    result["machine"]["load_average"] = round(os.getloadavg()[0], 1)
    text = markdown(result)
    sys.stdout.write(text)
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        keep(folder, result["machine"]["date"], "decide", text, result)
    return exit_status(promises(result), quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
