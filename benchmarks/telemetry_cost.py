"""What telemetry costs: per request, per token, and on the event loop while it is scraped.

    python benchmarks/telemetry_cost.py
    python benchmarks/telemetry_cost.py --requests 2000 --seconds 3 --out cost.json

Per request: every telemetry call that one chat request makes, with metrics and JSON log lines on
and traces off, on the thread that serves requests; beside it the CPU time of the whole process,
which the log's writing thread adds to. Per token: one delta noted on a trail. Lag: how late a task
wakes that sleeps for a millisecond, beside 200 requests a second, scraped each second or never. The
last 0.01 per cent of times are the machine's, not telemetry's: see the quantiles, not the maximum.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.events import Admitted, DecisionTaken, HttpAnswered
from gpt_oss_server.facts import FleetView, GpuView, ReplicaView, RequestFacts
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.telemetry.fanout import FanOut
from gpt_oss_server.telemetry.logs import LogSink, LogWriter
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.prometheus import PrometheusSink
from gpt_oss_server.telemetry.readings import Identity
from gpt_oss_server.telemetry.snapshot import Snapshots
from gpt_oss_server.trace_context import trace_context
from gpt_oss_server.trail import CURRENT_IDS, Ids, Journal
from gpt_oss_server.types import Job, SamplingParams, TokenDelta

GIB = 1 << 30
RATE_PER_S = 200.0
INFO_LEVEL = 20
FACTS = RequestFacts(
    request_id="req_0", input_tokens=500, max_output_tokens=500, predicted_kv_bytes=24_576_000
)
FLEET = FleetView(
    gpu_mode="single",
    now_s=1.0,
    replicas=(
        ReplicaView(
            id="local",
            gpus=1,
            measured_at_s=1.0,
            kv_capacity_bytes=40 * GIB,
            kv_free_bytes=30 * GIB,
            capacity_tokens=1_000_000,
            load_tokens=1000,
        ),
    ),
    gpus=(GpuView(id="0", total_bytes=80 * GIB, measured_at_s=1.0, others_bytes=GIB),),
)
DECISION = TriggerPolicy(RoutingConfig()).decide(FACTS, FLEET)
JOBS = [Job(id="job", prompt=[1] * 500, sampling=SamplingParams(max_tokens=500))]
DELTA = TokenDelta(token_ids=(7,))
FIRST = TokenDelta(token_ids=(7,), cached_tokens=128)


class Parts:
    """Telemetry as the server has it, the log going to /dev/null."""

    def __init__(self) -> None:
        identity = Identity(
            model_id="tiny",
            model_name="tiny",
            version="0",
            gpu_mode="single",
            ttft_target_s=2.0,
            e2e_target_s=20.0,
        )
        self.sink = PrometheusSink(
            model_id="tiny", model_name="tiny", ttft_target_s=2.0, e2e_target_s=20.0
        )
        self.fd = os.open(os.devnull, os.O_WRONLY)
        # Room for all: in a tight loop the writer has no chance to keep up.
        self.log = LogWriter(self.fd, capacity=10**9)
        fan_out = FanOut({"prometheus": self.sink, "log": LogSink(self.log, INFO_LEVEL)})
        self.journal = Journal(fan_out.emit)
        self.page = MetricsPage(self.sink, identity)
        self.snapshots = Snapshots(engine=FakeEngine(), meter=self.journal.meter)

    def close(self) -> None:
        self.log.close()
        os.close(self.fd)


def one_request(journal: Journal) -> None:
    """All that telemetry does for one untraced chat request with two tokens."""
    began_s = journal.clock()
    trace = trace_context(None)
    trail = journal.open("req_0", trace, "/v1/chat/completions", "chat")
    CURRENT_IDS.set(Ids("req_0", trace.trace_id))
    trail.named("chatcmpl-0", "tiny", stream=True)
    trail.planned(JOBS)
    trail.client_class = "address"
    trail.session_known = False
    trail.priority = 5
    trail.decided(DECISION, "single", 20e-6)
    journal.emit(DecisionTaken(FACTS, DECISION, "single", 20e-6, journal.unix_clock()))
    trail.admitted("single_gpu", shrunk=False)
    journal.emit(
        Admitted(
            request_id="req_0",
            priority=5,
            waited_s=0.0,
            decided="single_gpu",
            executed="single_gpu",
        )
    )
    trail.saw(0, FIRST)
    trail.saw(0, DELTA)
    journal.close(trail, "ok", 200)
    journal.emit(HttpAnswered("/v1/chat/completions", 200, journal.clock() - began_s))


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


def per_request(count: int) -> dict[str, float]:
    """Microseconds on the serving thread, and of CPU in the whole process."""
    parts = Parts()
    for _ in range(200):
        one_request(parts.journal)
    times: list[float] = []
    gc.collect()
    cpu_s = time.process_time()
    for _ in range(count):
        began_s = time.thread_time()
        one_request(parts.journal)
        times.append(1e6 * (time.thread_time() - began_s))
    parts.close()
    cpu_us = 1e6 * (time.process_time() - cpu_s) / count
    return {**quantiles(times), "process_cpu_mean": cpu_us}


def per_token(count: int) -> float:
    """Mean nanoseconds per delta, the loop around it subtracted."""
    journal = Journal()
    trail = journal.open("req_0", trace_context(None), "/v1/chat/completions", "chat")
    trail.planned(JOBS)
    trail.saw(0, FIRST)

    def nothing(index: int, delta: TokenDelta) -> None:
        pass

    def run(call: Callable[[int, TokenDelta], None]) -> float:
        began_s = time.thread_time()
        for _ in range(count):
            call(0, DELTA)
        return time.thread_time() - began_s

    run(trail.saw)
    return 1e9 * (min(run(trail.saw) for _ in range(3)) - run(nothing)) / count


def render(parts: Parts) -> dict[str, float]:
    """Milliseconds to render the page, and its size."""
    snapshot = parts.snapshots.take()
    times = []
    body = b""
    for _ in range(30):
        began_s = time.thread_time()
        body, _ = parts.page.render(snapshot, "application/openmetrics-text")
        times.append(1e3 * (time.thread_time() - began_s))
    return {**quantiles(times), "lines": float(body.count(b"\n")), "bytes": float(len(body))}


async def lag(parts: Parts, seconds: float, scraped: bool) -> list[float]:
    """Milliseconds late, per wake-up."""
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
                await asyncio.sleep(1.0)
                await loop.run_in_executor(
                    pool,
                    parts.page.render,
                    parts.snapshots.take(),
                    "application/openmetrics-text",
                )

    async def watch() -> None:
        while loop.time() < end_s:
            began_s = loop.time()
            await asyncio.sleep(0.001)
            late.append(1e3 * (loop.time() - began_s - 0.001))

    await asyncio.gather(load(), watch(), *([scrape()] if scraped else []))
    return late


def measure(requests: int, seconds: float) -> dict[str, Any]:
    """Everything, in the order of the report."""
    outcome: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "command": " ".join(sys.argv),
        "per_request_us": per_request(requests),
        "per_token_ns": per_token(200_000),
    }
    parts = Parts()
    for _ in range(1000):
        one_request(parts.journal)
    outcome["render_ms"] = render(parts)
    # In turns, so that what else the machine does hits both.
    late: dict[bool, list[float]] = {False: [], True: []}
    for scraped in (False, True, True, False):
        late[scraped] += asyncio.run(lag(parts, seconds / 2, scraped))
    outcome["loop_lag_ms"] = {
        "not_scraped": quantiles(late[False]),
        "scraped_each_second": quantiles(late[True]),
    }
    parts.close()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    outcome = measure(args.requests, args.seconds)
    text = json.dumps(outcome, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
