"""Costs of telemetry's parts in one process: per request, per token, per scrape, at the end.

Knows: how each is timed. Does not know: servers, targets, reports.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gpt_oss_server.trace_context import trace_context
from gpt_oss_server.trail import Journal
from telemetry_bench.collector import collector
from telemetry_bench.parts import DELTA, FIRST, JOBS, Parts, one_request

OPEN_METRICS = "application/openmetrics-text"
RATE_PER_S = 200.0
SCRAPE_EVERY_S = 1.0
WATCH_EVERY_S = 0.001
WARM_UP = 200


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99, mean and maximum."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": ordered[last // 2],
        "p99": ordered[last * 99 // 100],
        "mean": sum(ordered) / len(ordered),
        "max": ordered[-1],
    }


def per_request(count: int, where: str | None) -> dict[str, float]:
    """Microseconds of CPU per request: `serving`, on the thread that serves (mean), and `all`,
    with the threads that write the log and, if `where` names a collector, send every trace."""
    parts = Parts(where)
    for _ in range(WARM_UP):
        one_request(parts.journal)
    parts.wait_for_traces(WARM_UP)
    gc.collect()
    began_s, cpu_began_s = time.thread_time(), time.process_time()
    for _ in range(count):
        one_request(parts.journal)
    serving_s = time.thread_time() - began_s
    waiting_s = time.thread_time()
    if parts.tracing is not None:
        _sleep_until(lambda: parts.tracing is None or parts.tracing.exported >= count + WARM_UP)
        parts.wait_for_traces(count + WARM_UP)
    waiting_s = time.thread_time() - waiting_s
    parts.close()
    cpu_s = time.process_time() - cpu_began_s - waiting_s
    return {"serving": 1e6 * serving_s / count, "all": 1e6 * cpu_s / count}


def per_token(count: int) -> float:
    """Mean nanoseconds per delta noted on a trail, the loop around it subtracted."""
    journal = Journal()
    trail = journal.open("req_0", trace_context(None), "/v1/chat/completions", "chat")
    trail.planned(JOBS)
    trail.saw(0, FIRST)

    def nothing(index: int, delta: object) -> None:
        pass

    def run(call: Callable[..., None]) -> float:
        began_s = time.thread_time()
        for _ in range(count):
            call(0, DELTA)
        return time.thread_time() - began_s

    run(trail.saw)
    return (
        1e9 * (min(run(trail.saw) for _ in range(3)) - min(run(nothing) for _ in range(3))) / count
    )


def render(parts: Parts) -> dict[str, float]:
    """Milliseconds of CPU to take a snapshot (on the loop) and to render the page (in a thread),
    medians of 30; and the page's lines."""
    taking: list[float] = []
    rendering: list[float] = []
    body = b""
    for _ in range(30):
        began_s = time.thread_time()
        snapshot = parts.snapshots.take()
        taken_s = time.thread_time()
        body, _ = parts.page.render(snapshot, OPEN_METRICS)
        taking.append(1e3 * (taken_s - began_s))
        rendering.append(1e3 * (time.thread_time() - taken_s))
    return {
        "snapshot_ms": quantiles(taking)["p50"],
        "page_ms": quantiles(rendering)["p50"],
        "lines": body.count(b"\n"),
    }


async def lag(parts: Parts, seconds: float, *, scraped: bool) -> list[float]:
    """How late a task wakes that sleeps for a millisecond, in milliseconds, per wake-up, beside
    `RATE_PER_S` requests that leave their telemetry behind."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    late: list[float] = []

    async def load() -> None:
        while loop.time() < end_s:
            one_request(parts.journal)
            await asyncio.sleep(1.0 / RATE_PER_S)

    async def scrape() -> None:
        with ThreadPoolExecutor(1) as pool:
            while loop.time() < end_s:
                snapshot = parts.snapshots.take()
                await loop.run_in_executor(pool, parts.page.render, snapshot, OPEN_METRICS)
                await asyncio.sleep(SCRAPE_EVERY_S)

    async def watch() -> None:
        while loop.time() < end_s:
            began_s = loop.time()
            await asyncio.sleep(WATCH_EVERY_S)
            late.append(1e3 * (loop.time() - began_s - WATCH_EVERY_S))

    await asyncio.gather(load(), watch(), *([scrape()] if scraped else []))
    return late


def lags(parts: Parts, seconds: float) -> dict[str, dict[str, float]]:
    """Quantiles with and without scrapes, in turns: what else the machine does hits both."""
    late: dict[bool, list[float]] = {False: [], True: []}
    for scraped in (False, True, True, False):
        late[scraped] += asyncio.run(lag(parts, seconds / 2, scraped=scraped))
    return {"not_scraped": quantiles(late[False]), "scraped": quantiles(late[True])}


def closing() -> dict[str, float]:
    """Seconds that the end of the process waits for a collector with traces still to send."""
    found = {}
    with collector() as fine, collector("--hang") as hanging, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for name, where in (("works", fine), ("dead", dead), ("hangs", hanging)):
            parts = Parts(where)
            for _ in range(100):
                one_request(parts.journal)
            time.sleep(0.2)
            began_s = time.monotonic()
            if parts.tracing is not None:
                parts.tracing.close()
            found[name] = time.monotonic() - began_s
            parts.close()
    return found


def _sleep_until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)
