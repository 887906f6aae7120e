"""Short requests beside a stream of giant prompts: how much later does their first token come?

    python benchmarks/fairness.py                     # about ten minutes
    python benchmarks/fairness.py --quick             # a smoke run; writes nothing
    python benchmarks/fairness.py --seconds 300       # per phase

Starts the server with the built-in model twice: as it comes, and with `--prefill-order fcfs
--max-batch-tokens 131072`, which is a server without chunked prefill and without fairness. Each
gets short requests (64 to 256 prompt tokens, arrivals at random) first alone and then beside
clients that keep sending giant prompts. The figure is the ratio of the short requests' TTFT p99,
beside against alone. Short and giant requests come with keys of their own.

Every short request counts, late ones too: a phase ends when the last one is answered. Results are
written, dated, to `benchmarks/results/`. Exits 2 when a request of either kind fails or, in a full
run, when the ratio misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from engine_bench import machine
from engine_bench.systems import BenchError, HttpSystem
from http_load import Answer, Prompts, calibrate, complete, nearest_rank
from promises import RESULTS, Promise, exit_status, keep, table

SHORT_KEY, GIANT_KEY = "short", "giant"
TARGET = 3.0
OURS, PLAIN = "as it comes", "no chunking, first come first served"
FLAGS = {OURS: [], PLAIN: ["--prefill-order", "fcfs", "--max-batch-tokens", "131072"]}


@dataclass(frozen=True)
class Load:
    """What is sent. Tokens; arrivals of short requests per second."""

    seconds: float = 120.0
    short_per_s: float = 2.0
    short_tokens: tuple[int, int] = (64, 256)
    short_output: int = 8
    giants: int = 2
    giant_tokens: tuple[int, int] = (20_000, 30_000)
    giant_output: int = 8


QUICK = Load(seconds=10.0, giant_tokens=(4000, 6000))


@dataclass
class Phase:
    """One phase's answers."""

    short: list[Answer]
    giant: list[Answer]
    wall_s: float

    def summary(self) -> dict[str, Any]:
        first = [answer.first_s for answer in self.short if answer.first_s is not None]
        return {
            "short": len(self.short),
            "short_failed": sum(not answer.complete for answer in self.short),
            "ttft_p50_ms": _ms(nearest_rank(first, 0.5)),
            "ttft_p90_ms": _ms(nearest_rank(first, 0.9)),
            "ttft_p99_ms": _ms(nearest_rank(first, 0.99)),
            "ttft_max_ms": _ms(max(first, default=None)),
            "giants_answered": sum(answer.complete for answer in self.giant),
            "giants_failed": sum(not answer.complete for answer in self.giant),
            "giant_whole_p50_s": _round(
                nearest_rank([a.whole_s for a in self.giant if a.complete], 0.5)
            ),
            "wall_s": round(self.wall_s, 1),
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


class Player:
    """Plays phases against one server."""

    def __init__(self, port: int, load: Load, text_id: int, seed: int) -> None:
        self._port = port
        self._load = load
        self._rng = random.Random(seed)
        self.prompts = Prompts(self._rng)
        # Always a visible token, so that the first token is the first text.
        self._bias = {str(text_id): 100}

    async def _ask(self, tokens: int, output: int, key: str) -> Answer:
        body = {
            "prompt": self.prompts.of(tokens),
            "max_tokens": output,
            "temperature": 0,
            "logit_bias": self._bias,
        }
        return await complete(self._port, body, key)

    async def play(self, *, giants: bool) -> Phase:
        """Short requests for the load's time, giants beside them from a little before."""
        load = self._load
        answered: list[Answer] = []
        beside = [
            asyncio.create_task(self._giants(answered)) for _ in range(load.giants if giants else 0)
        ]
        if giants:
            await asyncio.sleep(min(5.0, load.seconds / 4))
        began_s = time.perf_counter()
        short: list[asyncio.Task[Answer]] = []
        while time.perf_counter() - began_s < load.seconds:
            await asyncio.sleep(self._rng.expovariate(load.short_per_s))
            tokens = self._rng.randint(*load.short_tokens)
            short.append(asyncio.create_task(self._ask(tokens, load.short_output, SHORT_KEY)))
        answers = list(await asyncio.gather(*short))
        wall_s = time.perf_counter() - began_s
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        return Phase(answers, answered, wall_s)

    async def _giants(self, answered: list[Answer]) -> None:
        load = self._load
        while True:
            tokens = self._rng.randint(*load.giant_tokens)
            answered.append(await self._ask(tokens, load.giant_output, GIANT_KEY))


def server(name: str, log: Path) -> HttpSystem:
    command = [sys.executable, "-m", "gpt_oss_server", "serve", "--port", "{port}"]
    command += ["--load-format", "random", "--threads", "1"]
    command += ["--api-key", SHORT_KEY, "--api-key", GIANT_KEY, *FLAGS[name]]
    return HttpSystem(name, command, "tiny", log)


async def measure_one(system: HttpSystem, load: Load, seed: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {SHORT_KEY}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as http:
        url = f"http://127.0.0.1:{system.port}/tokenize"
        text_id = (await http.post(url, json={"model": "tiny", "prompt": "a"})).json()["tokens"][-1]
    player = Player(system.port, load, text_id, seed)
    await calibrate(system.port, player.prompts, SHORT_KEY)
    alone = await player.play(giants=False)
    say(f"{system.name}, alone: {alone.summary()}")
    beside = await player.play(giants=True)
    say(f"{system.name}, beside giants: {beside.summary()}")
    first, second = alone.summary(), beside.summary()
    ratio = None
    if first["ttft_p99_ms"] and second["ttft_p99_ms"]:
        ratio = round(second["ttft_p99_ms"] / first["ttft_p99_ms"], 2)
    return {"alone": first, "beside": second, "ttft_p99_ratio": ratio}


def measure(load: Load, seed: int, work: Path) -> dict[str, Any]:
    """Both servers, one after the other."""
    systems: dict[str, Any] = {}
    for number, name in enumerate(FLAGS):
        system = server(name, work / f"server-{number}.log")
        say(f"{name}: up after {system.start():.1f} s")
        try:
            systems[name] = asyncio.run(measure_one(system, load, seed))
        finally:
            system.stop()
    return {"machine": machine.describe(None), "load": asdict(load), "systems": systems}


def promises(result: dict[str, Any]) -> list[Promise]:
    """What our server is held to; the other one is only measured beside it."""
    ours, plain = result["systems"][OURS], result["systems"][PLAIN]
    phases = (ours["alone"], ours["beside"])
    ratio = ours["ttft_p99_ratio"]
    failed = sum(phase["short_failed"] + phase["giants_failed"] for phase in phases)
    answered = ours["beside"]["giants_answered"]
    return [
        Promise(
            f"short TTFT p99, beside giants / alone ({PLAIN}: {plain['ttft_p99_ratio']}×)",
            f"{ratio}×",
            f"≤ {TARGET:g}×",
            ratio is not None and ratio <= TARGET,
            timing=True,
        ),
        Promise("requests that failed", str(failed), "0", failed == 0),
        Promise("giants answered meanwhile", str(answered), "> 0", answered > 0, timing=True),
    ]


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    described, load = result["machine"], result["load"]
    lines = [
        "# Short requests beside giant prompts",
        "",
        f"{described['date']}; {described['cpu']}, {described['cores']} cores, "
        f"{described['memory_gib']} GiB; Python {described['python']}, torch "
        f"{described['ours']['torch']}; load average at the end {described['load_average']}.",
        "",
        f"`{result['command']}`",
        "",
        f"Built-in `tiny` model, one engine thread. {load['short_per_s']:g} short requests a "
        f"second of {load['short_tokens'][0]} to {load['short_tokens'][1]} tokens for "
        f"{load['seconds']:g} s, alone and beside {load['giants']} clients that keep sending "
        f"prompts of {load['giant_tokens'][0]:,} to {load['giant_tokens'][1]:,} tokens.",
        "",
        "| server | phase | short requests | failed | TTFT p50 ms | p90 | p99 | max | giants |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["systems"].items():
        for phase in ("alone", "beside"):
            row = found[phase]
            cells = (name, phase, row["short"], row["short_failed"], row["ttft_p50_ms"])
            cells += (row["ttft_p90_ms"], row["ttft_p99_ms"], row["ttft_max_ms"])
            lines.append(f"| {' | '.join(map(str, cells))} | {row['giants_answered']} |")
    lines += ["", *table(promises(result))]
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="seconds of each of the four phases")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    args = parser.parse_args(argv)
    load = QUICK if args.quick else Load()
    if args.seconds is not None:
        load = Load(**{**asdict(load), "seconds": args.seconds})
    try:
        with tempfile.TemporaryDirectory(prefix="fairness-") as work:
            result = measure(load, args.seed, Path(work))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = ["--quick"] if args.quick else []
    shown += [f"--seconds {args.seconds:g}"] if args.seconds is not None else []
    result["command"] = " ".join(["python benchmarks/fairness.py", *shown])
    result["machine"]["load_average"] = round(os.getloadavg()[0], 1)
    text = markdown(result)
    print(text)
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        keep(folder, result["machine"]["date"], "fairness", text, result)
    return exit_status(promises(result), quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
