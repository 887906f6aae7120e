"""How well the simulator foresees this server on this machine's CPU, calibrated by `calibrate`.

    python benchmarks/sim_own.py                       # about half an hour, best on a quiet machine
    python benchmarks/sim_own.py --quick               # a smoke run; writes nothing
    python benchmarks/sim_own.py --repeats 1 --keep FILE   # in parts: each adds to FILE

Starts one replica (built-in model, one engine thread, a core of its own), measures it with the
closed loops of `calibrate`, and plays two open loads that calibration never saw: bursts of chats,
code and documents in lengths of their own, at just over half of what it bears and near that. Then
two replicas behind a splitter, by round robin and by least request (the simulator's own policy
code). The simulator gets the same requests at the moments at which they were really sent.

Every load is played several times, which tells how far real runs are apart; calibration's loops
are played before, between and after. A probe on each replica's core times a fixed piece of work all
the while: the cores of a virtual machine are not always equally fast, and near saturation a few per
cent of speed are many of latency. So each run is foreseen twice: as calibrated, and told how fast
the probe found the cores then; the targets are for the second, both are in the tables. Times of a
request are from its sending to its first piece of text and to its end, at the client, which is on
the last core.
Writes `results/<date>-sim-own.md` and `.json`. Exit status 2 where a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from engine_bench import machine
from engine_bench.systems import BenchError
from gpt_oss_server.doctor.models import model_facts
from gpt_oss_server.measure.connection import address_of
from gpt_oss_server.measure.loops import pace
from gpt_oss_server.measure.loops import play as play_closed
from gpt_oss_server.measure.server import look
from gpt_oss_server.routing.policies import policy
from gpt_oss_server.routing.policies.view import PoolFacts
from gpt_oss_server.simulate.calibrate.fit_server import fit_server
from gpt_oss_server.simulate.calibrate.likeness import replica_like, unknown_hardware
from gpt_oss_server.simulate.calibrate.served import Served
from gpt_oss_server.simulate.calibrate.trial import Measured, Trial, grid, within
from gpt_oss_server.simulate.cost.layout import Shape
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.made import Arrivals, Kind, Lengths, make_workload
from gpt_oss_server.simulate.workload.requests import Request, Workload, workload_of
from own_bench import report
from own_bench.compare import Figures, quantiles
from own_bench.open_loop import Played, Replica, play, settled
from own_bench.pinned import PinnedServer, Quiet, pin_client, put_first
from own_bench.probe import Probe
from promises import RESULTS, exit_status, keep

CONFIG = model_facts("tiny", {}).config
MODEL = model_cost(CONFIG)
SHAPE = Shape(unknown_hardware())
# Azure's chats and code (`workload_made`) at an eighth and a quarter, and documents.
KINDS = (
    Kind("chat", 0.7, Lengths(128, 342, 4, 2000), Lengths(32, 106, 2, 200)),
    Kind("code", 0.2, Lengths(240, 560, 8, 2000), Lengths(8, 20, 2, 100)),
    Kind("document", 0.1, Lengths(1100, 1900, 600, 2500), Lengths(40, 90, 4, 150)),
)
ARRIVALS = Arrivals(burstiness=1.5)
# The fields of `Efficiency` that are times, or scale one; the others are shares of a peak.
SPANS = ("overhead", "sequence_s", "hop_latency_s", "first_token_s", "chunk_s")
LOADS = {"moderate": 0.55, "high": 0.85}
FLAGS = ["--load-format", "random", "--max-num-seqs", "32", "--kv-cache-memory", "256MiB"]


@dataclass(frozen=True)
class Scale:
    """How long things take, in seconds."""

    loop_s: float = 2.0
    full_s: float = 8.0
    run_s: float = 30.0
    runs: int = 3


QUICK = Scale(loop_s=0.4, full_s=1.5, run_s=4.0, runs=1)


@dataclass
class Bench:
    """One repeat's servers, and what was learnt of each."""

    servers: Sequence[PinnedServer]
    probes: Sequence[Probe]
    scale: Scale
    seed: int

    def __post_init__(self) -> None:
        self.passes: list[list[tuple[float, float]]] = [[] for _ in self.servers]

    async def prepare(self) -> None:
        self.replicas: list[Replica] = []
        self.served: list[Served] = []
        self.trials: list[Trial] = []
        self.loops: list[dict[Trial, Measured]] = [{} for _ in self.servers]
        for place, server in enumerate(self.servers):
            address = address_of(server.url)
            served, _ = await look(address, None, None)
            asker = await settled(address, served.model, 1000 * self.seed + place)
            speed = await pace(asker, 4 * self.scale.loop_s)
            if not place:
                found = grid(8192, served.max_num_seqs or 32)
                shrunk = (within(trial, speed, self.scale.loop_s) for trial in found)
                self.trials = list(dict.fromkeys(shrunk))
            self.served.append(served)
            self.replicas.append(Replica(f"replica/{place}", asker, _facts(served)))

    async def loops_once(self) -> None:
        """Every loop of the calibration once more, on all replicas at once: they share caches,
        memory and the client's core, as they do under load."""
        began_s = time.monotonic()
        for trial in self.trials:
            played = await asyncio.gather(
                *(play_closed(trial, one.asker, self.scale.loop_s) for one in self.replicas)
            )
            for loops, loop in zip(self.loops, played, strict=True):
                loops[trial] = loops[trial].joined(loop) if trial in loops else loop
        for passes in self.passes:
            passes.append((began_s, time.monotonic()))

    def slowness(self) -> list[float]:
        """Of each replica's core during its calibration: the median pass, as for the loops."""
        return [
            median(probe.slowness(*times) for times in passes)
            for probe, passes in zip(self.probes, self.passes, strict=True)
        ]

    async def most_per_s(self) -> float:
        """What all replicas serve of the load when none ever waits for requests."""
        clients = sum(served.max_num_seqs or 32 for served in self.served)
        made = _load(40.0 * len(self.servers), 60.0, self.seed + 500).requests
        together = [request._replace(arrival_s=0.0) for request in made]
        place, done = 0, 0
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.scale.full_s

        async def client() -> None:
            nonlocal place, done
            while loop.time() < end_s and place < len(together):
                request = together[place]
                place += 1
                await play([request], self.replicas, policy("least_request"))
                done += loop.time() < end_s

        await asyncio.gather(*(client() for _ in range(clients)))
        return done / self.scale.full_s

    def foreseen(self, load: Workload, rule: str, fleet: Fleet) -> Figures:
        found = simulate(load, fleet, policy(rule))
        return quantiles(found.input_tokens, found.ttft_s, found.e2e_s)

    def fleet(self, fitted: Sequence[Efficiency], slower: Sequence[float]) -> Fleet:
        """Replicas as calibrated, on cores that take so many times as long for everything."""
        pools = []
        for place, served in enumerate(self.served):
            efficiency = slowed(fitted[place], slower[place])
            replica = replica_like(served, CONFIG, MODEL, SHAPE, efficiency)
            pools.append(Pool(replica, 1, f"core{place}"))
        return Fleet(tuple(pools))

    def fitted(self) -> list[tuple[Efficiency, dict[str, Any]]]:
        """What each replica was found to attain, and what the fit is worth."""
        replicas = []
        for served, loops in zip(self.served, self.loops, strict=True):
            found = fit_server(list(loops.values()), served, CONFIG, MODEL, SHAPE)
            verdict = found.verdict
            worth = {
                "efficiency": {k: v for k, v in vars(found.efficiency).items() if v is not None},
                "held_out": {k: v._asdict() for k, v in verdict.held_out.items()},
                "spread": sum(loop.spread() for loop in loops.values()) / len(loops),
                "loops": len(loops),
                "requests": sum(len(loop.rows) for loop in loops.values()),
            }
            replicas.append((found.efficiency, worth))
        return replicas


class Run(NamedTuple):
    """One load as it was played: others' use of the machine, and when."""

    rows: list[Played]
    others: float
    began_s: float
    ended_s: float


async def repeat(bench: Bench, rules: Sequence[str], loads: Sequence[str]) -> list[dict[str, Any]]:
    """Calibrates, plays every load and foresees it: a result per policy and load."""
    await bench.prepare()
    most = await bench.most_per_s()
    runs: dict[tuple[str, str], list[Run]] = {(r, n): [] for r in rules for n in loads}
    await bench.loops_once()
    for number in range(bench.scale.runs):
        for (rule, name), mine in runs.items():
            rate = LOADS[name] * most
            load = _load(rate, bench.scale.run_s, bench.seed)
            quiet, began_s = Quiet([server.pid for server in bench.servers]), time.monotonic()
            rows = await play(load.requests, bench.replicas, policy(rule))
            mine.append(Run(rows, quiet.others(), began_s, time.monotonic()))
            say(f"run {number + 1}, {rule}, {name}: {len(rows)} requests at {rate:.1f}/s")
        await bench.loops_once()
    for one in (*bench.servers, *bench.probes):
        one.close()
    say("fitting")
    fitted = bench.fitted()
    efficiencies = [efficiency for efficiency, _ in fitted]
    usual = bench.slowness()
    results = []
    for (rule, name), mine in runs.items():
        found = []
        for run in mine:
            now = [probe.slowness(run.began_s, run.ended_s) for probe in bench.probes]
            speeds = [a / b for a, b in zip(now, usual, strict=True)]
            load = _workload(run.rows)
            calibrated = bench.fleet(efficiencies, [1.0] * len(speeds))
            found.append(
                {
                    "requests": len(run.rows),
                    "slower": speeds,
                    "others_cores": run.others,
                    "measured": _measured(run.rows),
                    "as_calibrated": bench.foreseen(load, rule, calibrated),
                    "foreseen": bench.foreseen(load, rule, bench.fleet(efficiencies, speeds)),
                    "rows": [list(row) for row in run.rows],
                }
            )
        results.append(
            {
                "replicas": len(bench.servers),
                "policy": rule,
                "load": name,
                "seed": bench.seed,
                "most_per_s": most,
                "calibration": [worth for _, worth in fitted],
                "slowness": usual,
                "runs": found,
            }
        )
    return results


def slowed(efficiency: Efficiency, factor: float) -> Efficiency:
    """Where everything takes `factor` times as long: times by it, shares of peaks over it."""
    values = {name: value for name, value in vars(efficiency).items() if value is not None}
    times = {name: values.pop(name) * factor for name in SPANS}
    return Efficiency(**times, **{name: share / factor for name, share in values.items()})


def _facts(served: Served) -> PoolFacts:
    """What the splitter knows of a replica: counting policies look at nothing else."""
    replica = replica_like(served, CONFIG, MODEL, SHAPE, Efficiency())
    return PoolFacts(
        name="replica",
        gpus=1,
        speed=replica.time,
        kv_tokens=replica.kv_tokens,
        longest_tokens=replica.longest_tokens,
        step_prefill_s=0.0,
        max_num_seqs=replica.settings.max_num_seqs,
    )


def _load(rate: float, seconds: float, seed: int) -> Workload:
    return make_workload(
        KINDS, requests_per_s=rate, duration_s=seconds, seed=seed, arrivals=ARRIVALS
    )


def _measured(rows: Sequence[Played]) -> Figures:
    columns = np.array([row[1:5] for row in rows], dtype=np.float64)
    return quantiles(columns[:, 0], columns[:, 2], columns[:, 3])


def _workload(rows: Sequence[Played]) -> Workload:
    """What was really sent, when it was."""
    requests = [
        Request(row.at_s, row.input_tokens, row.output_tokens, (), (), row.output_tokens)
        for row in rows
    ]
    return workload_of("as sent", requests)


def measure(args: argparse.Namespace, seed: int, work: Path) -> list[dict[str, Any]]:
    """One repeat of what is wanted."""
    scale = QUICK if args.quick else Scale(run_s=args.seconds)
    cores = sorted(os.sched_getaffinity(0))
    results = []
    for count in args.replicas:
        if count > len(cores):
            say(f"{count} replicas need as many cores: left out")
            continue
        probes: list[Probe] = []
        servers = [
            PinnedServer(core, FLAGS, work / f"{count}-{core}.log", first=args.first)
            for core in cores[:count]
        ]
        try:
            for server in servers:
                server.start()
            pin_client(cores[-1])
            rules = ["round_robin"] if count == 1 else ["round_robin", "least_request"]
            loads = ["moderate", "high"] if count == 1 else ["high"]
            probes += [Probe(server.core) for server in servers]
            results += asyncio.run(repeat(Bench(servers, probes, scale, seed), rules, loads))
        finally:
            os.sched_setaffinity(0, set(cores))
            for one in (*servers, *probes):
                one.close()
    return results


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the first repeat")
    parser.add_argument("--seconds", type=float, default=Scale.run_s, help="of each run")
    parser.add_argument("--first", action="store_true", help="run before others' processes (Linux)")
    parser.add_argument("--keep", type=Path, help="add results to this file, and report all in it")
    parser.add_argument("--report", action="store_true", help="measure nothing, report --keep")
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    args = parser.parse_args(argv)
    if args.first:
        put_first()
    kept: list[dict[str, Any]] = []
    if args.keep is not None and args.keep.exists():
        kept = json.loads(args.keep.read_text())
    try:
        with tempfile.TemporaryDirectory(prefix="sim-own-") as work:
            for seed in range(args.seed, args.seed + (0 if args.report else args.repeats)):
                kept += measure(args, seed, Path(work))
                if args.keep is not None:
                    args.keep.write_text(json.dumps(kept))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    described = machine.describe(None)
    text = report.markdown(kept, described)
    print(text)
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        slim = [
            {**one, "runs": [{k: v for k, v in run.items() if k != "rows"} for run in one["runs"]]}
            for one in kept
        ]
        keep(folder, described["date"], "sim-own", text, {"machine": described, "results": slim})
    return exit_status(report.promises(kept), quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
