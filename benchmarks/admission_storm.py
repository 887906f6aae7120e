"""Twenty times more requests than fit, for minutes: does the server stay whole, and as fast?

    python benchmarks/admission_storm.py                  # 300 s of storm, ten minutes in all
    python benchmarks/admission_storm.py --seconds 60
    python benchmarks/admission_storm.py --quick          # a smoke run; writes nothing

Results are written, dated, to `benchmarks/results/`. Exits 2 when a promise is broken; a smoke run
is too short to judge goodput and memory by.

Starts `gpt-oss-server serve` with the built-in model and a KV pool of 192 MiB. Prompts are random
text of 100 to 30,000 tokens (log-uniform), outputs 8 to 128 tokens, half of the bounds left open.
Three phases, each to its last answer:

- *unloaded*, before and after: half as many clients as fit on average, so that the engine is busy
  and hardly anyone waits. The better of the two is the un-overloaded maximum.
- *storm*: 20 times as many clients as fit, each with always one request that it wants served; it
  comes back when `Retry-After` says, at the latest after ten seconds. 15 % of the requests are
  abandoned at a random moment of their first 20 seconds, waiting or running.

Goodput is useful tokens a second: what the engine computed a second in the phase's window, times
the share of all it computed in the phase that belongs to complete answers (the rest was computed
for clients that left, or twice). So neither the phase's edges nor a lucky draw of sizes count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from engine_bench import machine
from engine_bench.systems import BenchError, HttpSystem
from http_load import Answer, Prompts, calibrate, complete, nearest_rank
from promises import RESULTS, Promise, exit_status, keep, table

REST_TIMEOUT_S = 120.0
WHEN = ("before", "after")


@dataclass(frozen=True)
class Load:
    """What is sent. Tokens and seconds."""

    seconds: float = 300.0
    unloaded_seconds: float = 90.0
    warm_up_seconds: float = 10.0
    kv_cache: str = "192MiB"
    prompt_tokens: tuple[int, int] = (100, 30_000)
    output_tokens: tuple[int, int] = (8, 128)
    times_what_fits: int = 20
    abandoned_share: float = 0.15
    abandoned_within_s: float = 20.0
    patience_s: float = 10.0

    @property
    def mean_need_tokens(self) -> float:
        low, high = self.prompt_tokens
        prompt = (high - low) / math.log(high / low)
        return prompt + sum(self.output_tokens) / 2


QUICK = Load(
    seconds=15.0,
    unloaded_seconds=10.0,
    warm_up_seconds=2.0,
    prompt_tokens=(50, 2000),
    kv_cache="12MiB",
)


@dataclass
class Phase:
    """One phase: every answer, what was abandoned, what the engine did meanwhile, what the
    server's processes held in memory at its end and at most in each quarter of its window."""

    clients: int
    answers: list[Answer] = field(default_factory=list)
    abandoned: int = 0
    window_s: float = 0.0
    window_computed_tokens: int = 0
    computed_tokens: int = 0
    rss_bytes: dict[str, int] = field(default_factory=dict)
    quarters_bytes: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        complete_ones = [answer for answer in self.answers if answer.complete]
        useful = sum(answer.tokens for answer in complete_ones)
        # Prompt and output, but for the last token of each, which is never fed back.
        computed_for_them = useful - len(complete_ones)
        share = computed_for_them / self.computed_tokens if self.computed_tokens else 0.0
        rate = self.window_computed_tokens / self.window_s
        broken = [a.error for a in self.answers if a.status == 200 and not a.complete]
        return {
            "clients": self.clients,
            "statuses": dict(sorted(Counter(a.status for a in self.answers).items())),
            "abandoned": self.abandoned,
            "broken_streams": len(broken),
            "first_errors": broken[:3],
            "complete": len(complete_ones),
            "complete_prompt_tokens_mean": round(
                sum(a.prompt_tokens for a in complete_ones) / max(1, len(complete_ones))
            ),
            "computed_tokens_per_s": round(rate, 1),
            "useful_share": round(share, 4),
            "goodput_tokens_per_s": round(rate * share, 1),
            "ttft_p50_s": _rounded(
                nearest_rank([a.first_s for a in complete_ones if a.first_s is not None], 0.5)
            ),
        }


def _maxima(values: Sequence[int], parts: int) -> list[int]:
    """The largest of each of `parts` equal stretches."""
    edges = [len(values) * n // parts for n in range(parts + 1)]
    return [max(values[a:b], default=0) for a, b in zip(edges, edges[1:], strict=False)]  # noqa: RUF007


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


class Storm:
    """Plays phases against one server and watches it."""

    def __init__(self, system: HttpSystem, pid: int, load: Load, seed: int) -> None:
        self._system = system
        self._load = load
        self._rng = random.Random(seed)
        self._prompts = Prompts(self._rng)
        self._process = psutil.Process(pid)
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{system.port}", trust_env=False, timeout=60
        )
        self._seen_bytes: list[int] = []

    async def run(self) -> dict[str, Any]:
        load = self._load
        await calibrate(self._system.port, self._prompts)
        memory = await self._get("/memory_stats")
        (full,) = [g for g in memory["kv"]["groups"] if g["window"] is None]
        pool_tokens = full["blocks_total"] * memory["kv"]["block_size"]
        fit = max(2, int(pool_tokens / load.mean_need_tokens))
        say(f"the pool holds {pool_tokens} tokens, {fit} requests of average size")
        watching = asyncio.create_task(self._watch())
        phases: dict[str, Phase] = {}
        for name, clients, seconds in (
            ("unloaded before", fit // 2, load.unloaded_seconds),
            ("storm", fit * load.times_what_fits, load.seconds),
            ("unloaded after", fit // 2, load.unloaded_seconds),
        ):
            phases[name] = await self._play(clients, seconds, storm=name == "storm")
            say(f"{name}: {phases[name].summary()}")
        rest = await self._rest()
        alive = (await self._http.get("/health")).status_code == 200
        watching.cancel()
        await self._http.aclose()
        return {
            "alive": alive,
            "fit": fit,
            "pool_tokens": pool_tokens,
            "phases": {name: phase.summary() for name, phase in phases.items()},
            "rest": rest,
            "rss": {name: phase.rss_bytes for name, phase in phases.items()},
            "storm_rss_quarters": phases["storm"].quarters_bytes,
        }

    async def _play(self, clients: int, seconds: float, *, storm: bool) -> Phase:
        phase = Phase(clients)
        began_s = time.perf_counter()
        before = await self._computed()
        end_s = began_s + self._load.warm_up_seconds + seconds
        tasks = [asyncio.create_task(self._client(phase, end_s, storm)) for _ in range(clients)]
        self._seen_bytes.clear()
        await asyncio.sleep(self._load.warm_up_seconds)
        opened_s, opened = time.perf_counter(), await self._computed()
        await asyncio.sleep(max(0.0, end_s - time.perf_counter()))
        phase.window_computed_tokens = await self._computed() - opened
        phase.window_s = time.perf_counter() - opened_s
        phase.quarters_bytes = _maxima(self._seen_bytes, 4)
        await asyncio.gather(*tasks)
        await self._rest()
        phase.computed_tokens = await self._computed() - before
        phase.rss_bytes = self._rss_bytes()
        return phase

    async def _client(self, phase: Phase, end_s: float, storm: bool) -> None:
        """Always one request that it wants served, until the phase's end."""
        await asyncio.sleep(self._rng.random() * (2.0 if storm else 0.5))
        while time.perf_counter() < end_s:
            patience_s = None
            if storm and self._rng.random() < self._load.abandoned_share:
                patience_s = self._rng.random() * self._load.abandoned_within_s
            try:
                async with asyncio.timeout(patience_s):
                    answer = await complete(self._system.port, self._body())
            except TimeoutError:
                phase.abandoned += 1
                continue
            phase.answers.append(answer)
            if answer.status != 200:
                wait_s = min(answer.retry_after_s or 1.0, self._load.patience_s)
                left_s = max(0.0, end_s - time.perf_counter())
                await asyncio.sleep(min(wait_s * (0.5 + self._rng.random() / 2), left_s))

    def _body(self) -> dict[str, Any]:
        load = self._load
        body: dict[str, Any] = {
            "prompt": self._prompts.of(self._prompts.log_uniform(*load.prompt_tokens)),
            "temperature": 1.0,
        }
        if self._rng.random() < 0.5:  # else 16, the endpoint's own default
            body["max_tokens"] = self._rng.randint(*load.output_tokens)
        return body

    async def _rest(self) -> dict[str, Any]:
        """Wait until nothing runs or waits; returns what is then still held."""
        deadline_s = time.perf_counter() + REST_TIMEOUT_S
        while True:
            stats = await self._get("/stats")
            admission, engine = stats["admission"], stats["engine"]
            idle = not admission["running"] and not admission["waiting"]
            idle = idle and not engine["running"] and not engine["waiting"]
            if idle or time.perf_counter() > deadline_s:
                break
            await asyncio.sleep(0.2)
        counts = admission["counts"]
        routing = stats["gpu_routing"]
        started = counts["accepted"] + counts["shrunk"] + counts["started_from_queue"]
        memory = await self._get("/memory_stats")
        return {
            "running": admission["running"] + engine["running"],
            "waiting": admission["waiting"] + engine["waiting"],
            "blocks_reserved": sum(admission["blocks_used"].values()),
            "blocks_in_use": sum(engine["blocks_in_use"].values()),
            "sessions_active": memory["sessions"]["active"],
            "leases_unreturned": started - counts["released"] - counts["cancelled_running"],
            "undecided": routing["total_requests"] - counts["offered"],
            "restarts": engine["restarts"],
            "preemptions": engine["preemptions"],
            "counts": counts,
        }

    async def _computed(self) -> int:
        engine = (await self._get("/stats"))["engine"]
        return int(engine["prefill_tokens"] + engine["decode_tokens"])

    async def _get(self, path: str) -> dict[str, Any]:
        answer = await self._http.get(path)
        answer.raise_for_status()
        return dict(answer.json())

    async def _watch(self) -> None:
        while True:
            self._seen_bytes.append(sum(self._rss_bytes().values()))
            await asyncio.sleep(1.0)

    def _rss_bytes(self) -> dict[str, int]:
        """Resident memory of the front process and of its engine worker."""
        found = {"front": self._process.memory_info().rss, "engine": 0}
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found["engine"] += child.memory_info().rss
        return found


def measure(load: Load, seed: int, flags: Sequence[str], work: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "gpt_oss_server", "serve", "--port", "{port}"]
    command += ["--load-format", "random", "--threads", "1"]
    command += ["--kv-cache-memory", load.kv_cache, *flags]
    log = work / "server.log"
    system = HttpSystem("ours", command, "tiny", log)
    say(f"up after {system.start():.1f} s")
    try:
        (pid,) = [p.pid for p in psutil.Process().children() if p.is_running()][:1]
        result = asyncio.run(Storm(system, pid, load, seed).run())
    finally:
        system.stop()
    lines = log.read_text(errors="replace").splitlines()
    result["log_errors"] = [line for line in lines if "rror" in line][:5]
    return {"machine": machine.describe(None), "load": asdict(load), **result}


def promises(result: dict[str, Any]) -> list[Promise]:
    """Every promise that a storm can break."""
    phases, rest = result["phases"], result["rest"]
    best = max(phases[f"unloaded {when}"]["goodput_tokens_per_s"] for when in WHEN)
    goodput = phases["storm"]["goodput_tokens_per_s"] / best if best else 0.0
    statuses = Counter()
    for phase in phases.values():
        statuses.update(phase["statuses"])
    bad = sum(n for status, n in statuses.items() if status >= 500 or status == 0)
    bad += sum(phase["broken_streams"] for phase in phases.values())
    left = {k: v for k, v in rest.items() if isinstance(v, int) and k not in ("preemptions",)}
    # The first quarter still warms up: pools and buffers are touched for the first time.
    quarters = result["storm_rss_quarters"]
    grown = quarters[3] - quarters[1]
    alive = result["alive"] and not rest["restarts"]
    return [
        Promise(
            "goodput in the storm / un-overloaded",
            f"{goodput:.1%}",
            "≥ 90 %",
            goodput >= 0.9,
            timing=True,
        ),
        Promise("5xx answers, broken streams, lost connections", str(bad), "0", bad == 0),
        Promise("out of memory, crashes, restarts", "none" if alive else "some", "none", alive),
        Promise(
            "left at rest: " + ", ".join(left), str(sum(left.values())), "0", not any(left.values())
        ),
        Promise(
            "resident memory, last quarter of the storm against its second",
            f"{grown / 2**20:+.1f} MiB",
            "≤ 64 MiB",
            grown <= 64 * 2**20,
            timing=True,
        ),
    ]


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    described, load = result["machine"], result["load"]
    lines = [
        "# Admission under a storm",
        "",
        f"{described['date']}; {described['cpu']}, {described['cores']} cores, "
        f"{described['memory_gib']} GiB; Python {described['python']}, torch "
        f"{described['ours']['torch']}; load average at the end {described['load_average']}.",
        "",
        f"`{result['command']}`",
        "",
        f"Built-in `tiny` model, one engine thread, a KV pool of {result['pool_tokens']:,} tokens: "
        f"{result['fit']} requests of average size fit. Prompts of {load['prompt_tokens'][0]:,} to "
        f"{load['prompt_tokens'][1]:,} tokens; {load['abandoned_share']:.0%} of the storm's "
        f"requests abandoned; {load['seconds']:g} s of storm.",
        "",
        *table(promises(result)),
        "",
        "| phase | clients | statuses | abandoned | complete | mean prompt | computed tokens/s "
        "| useful | goodput tokens/s | TTFT p50 s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, p in result["phases"].items():
        statuses = ", ".join(f"{n} × {status}" for status, n in p["statuses"].items())
        lines.append(
            f"| {name} | {p['clients']} | {statuses} | {p['abandoned']} | {p['complete']} "
            f"| {p['complete_prompt_tokens_mean']:,} | {p['computed_tokens_per_s']:,} "
            f"| {p['useful_share']:.1%} | {p['goodput_tokens_per_s']:,} | {p['ttft_p50_s']} |"
        )
    rss = result["rss"]
    shown = ", ".join(
        f"{one['front'] / 2**20:.0f} + {one['engine'] / 2**20:.0f} MiB after {name}"
        for name, one in rss.items()
    )
    lines += [
        "",
        f"Resident memory of front + engine: {shown}. Together at most, in the quarters of the "
        f"storm: {', '.join(f'{size / 2**20:.0f}' for size in result['storm_rss_quarters'])} MiB. "
        f"Engine preemptions: {result['rest']['preemptions']}.",
        "",
        f"Admission counts: {json.dumps(result['rest']['counts'])}",
    ]
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="seconds of storm (default: 300)")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve-arg", action="append", default=[], help="one more server flag")
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/)")
    args = parser.parse_args(argv)
    load = QUICK if args.quick else Load()
    if args.seconds is not None:
        shorter = min(load.unloaded_seconds, args.seconds)
        load = Load(**{**asdict(load), "seconds": args.seconds, "unloaded_seconds": shorter})
    try:
        with tempfile.TemporaryDirectory(prefix="storm-") as work:
            result = measure(load, args.seed, args.serve_arg, Path(work))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = ["--quick"] if args.quick else []
    shown += [f"--seconds {args.seconds:g}"] if args.seconds is not None else []
    shown += [f"--serve-arg={flag}" for flag in args.serve_arg]
    result["command"] = " ".join(["python benchmarks/admission_storm.py", *shown])
    result["machine"]["load_average"] = round(os.getloadavg()[0], 1)
    text = markdown(result)
    print(text)
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        keep(folder, result["machine"]["date"], "admission-storm", text, result)
    return exit_status(promises(result), quick=args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
