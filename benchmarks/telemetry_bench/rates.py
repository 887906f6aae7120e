"""Output tokens per second of the real server with everything on against everything off.

Knows: two servers, whose turn it is, the scraper. Does not know: what telemetry consists of.

Both are up all the time; a round plays the same plan against one of them. Rounds come in pairs
(on off, off on, …), so that what else the machine does hits both, and each pair gives one ratio;
after some pairs both are started anew.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from engine_bench import vocabulary
from engine_bench.load import Item, Plan, Result
from engine_bench.systems import BenchError, HttpSystem, environment
from telemetry_bench.collector import collector
from telemetry_bench.costs import OPEN_METRICS, SCRAPE_EVERY_S

CLIENTS = 8
PROMPT_TOKENS = 32
OUTPUT_TOKENS = 64
DEADLINE_S = 60.0


class Round(msgspec.Struct, frozen=True):
    """One round of one server: output tokens per second, and the CPU time that its front (where
    telemetry is) and its engine worker took per token, in microseconds."""

    tokens_per_s: float
    front_us: float
    worker_us: float


Rounds = dict[str, list[Round]]


class Server(HttpSystem):
    """One of the two."""

    def cpu_by_process_s(self) -> tuple[float, float]:
        """CPU seconds so far of the front and of all that it has started."""
        if self._process is None:
            return 0.0, 0.0
        front = psutil.Process(self._process.pid)
        return _cpu_s(front), sum(_cpu_s(child) for child in front.children(recursive=True))


def measure(folder: Path, blocks: int, pairs: int, requests: int) -> dict[str, Any]:
    """`blocks` times `pairs` of rounds of `requests` answers each, `CLIENTS` at a time."""
    model = folder / "model"
    _run("engine_bench.model", str(model))
    found: Rounds = {"on": [], "off": []}
    for block in range(blocks):
        _block(folder, model, block, pairs, requests, found)
    return {**_summary(found["on"], found["off"]), "rounds": msgspec.to_builtins(found)}


def _block(folder: Path, model: Path, block: int, pairs: int, requests: int, found: Rounds) -> None:
    """Both servers anew, started in the other order than in the block before: a process is faster
    or slower than another like it by where its memory happens to lie."""
    order = ("on", "off") if block % 2 == 0 else ("off", "on")
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(collector())
        log = ("--log-file", str(folder / "log.jsonl"), "--log-format", "json")
        flags = {
            "on": (*log, "--trace-sample-rate", "1", "--otlp-endpoint", where),
            "off": ("--log-level", "error"),
        }
        servers = {name: _server(name, model, folder, *flags[name]) for name in order}
        for name, server in servers.items():
            stack.callback(server.stop)
            server.start()
            _round(server, f"warm-up-{block}-{name}", CLIENTS)
        for pair in range(pairs):
            for name in order if pair % 2 == 0 else order[::-1]:
                with _scraped(servers[name]) if name == "on" else contextlib.nullcontext():
                    found[name].append(_round(servers[name], f"{block}-{pair}", requests))


def _summary(on: Sequence[Round], off: Sequence[Round]) -> dict[str, float]:
    ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(on, off, strict=True)]
    low, high = _interval(ratios)
    return {
        "pairs": len(ratios),
        "on_tokens_per_s": statistics.median(one.tokens_per_s for one in on),
        "off_tokens_per_s": statistics.median(one.tokens_per_s for one in off),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "on_front_us": statistics.median(one.front_us for one in on),
        "off_front_us": statistics.median(one.front_us for one in off),
        "on_worker_us": statistics.median(one.worker_us for one in on),
        "off_worker_us": statistics.median(one.worker_us for one in off),
    }


def _interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Where the median lies with 90 % confidence (bootstrap, percentile method)."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws // 20], medians[-draws // 20]


def _server(name: str, model: Path, folder: Path, *flags: str) -> Server:
    command = [sys.executable, "-m", "telemetry_bench.server", name, "--model", str(model)]
    command += ["--served-model-name", "bench", "--port", "{port}", "--threads", "1", *flags]
    return Server(f"telemetry {name}", command, "bench", folder / f"{name}.log")


def _round(server: Server, seed: str, requests: int) -> Round:
    """Raises BenchError if an answer was not complete."""
    prompts = vocabulary.prompts(seed, requests, PROMPT_TOKENS)
    plan = Plan(
        host="127.0.0.1",
        port=server.port,
        model=server.model,
        mode="closed",
        items=[Item(vocabulary.text_of(words), OUTPUT_TOKENS) for words in prompts],
        concurrency=CLIENTS,
        deadline_s=DEADLINE_S,
    )
    front_began_s, worker_began_s = server.cpu_by_process_s()
    result = msgspec.json.decode(
        _run("engine_bench.load", data=msgspec.json.encode(plan)), type=Result
    )
    front_s, worker_s = server.cpu_by_process_s()
    tokens = sum(record.tokens for record in result.records)
    if tokens != requests * OUTPUT_TOKENS:
        errors = {record.error for record in result.records if record.error}
        raise BenchError(f"{server.name}: {tokens} tokens of {requests * OUTPUT_TOKENS}: {errors}")
    return Round(
        tokens_per_s=tokens / result.wall_s,
        front_us=1e6 * (front_s - front_began_s) / tokens,
        worker_us=1e6 * (worker_s - worker_began_s) / tokens,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _run(module: str, *arguments: str, data: bytes = b"") -> bytes:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, input=data, stdout=subprocess.PIPE, env=environment(), check=True
    ).stdout


@contextlib.contextmanager
def _scraped(server: Server) -> Iterator[None]:
    """Scrape each second while the block runs, as Prometheus does."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": OPEN_METRICS}
    )
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
            done.wait(SCRAPE_EVERY_S)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
