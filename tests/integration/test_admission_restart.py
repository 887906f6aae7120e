"""A worker that is killed under a real server: those who wait for a place see only a delay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

TIMEOUT_S = 120.0


@contextmanager
def serving(*flags: str) -> Iterator[tuple[httpx.Client, int]]:
    """A server that is ready, and its process id."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    command = [sys.executable, "-m", "gpt_oss_server", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    ) as up:
        try:
            assert up.stdout is not None
            url = up.stdout.readline().split()[-1]
            assert any(line.startswith("ready in") for line in iter(up.stdout.readline, ""))
            with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
                yield http, up.pid
        finally:
            up.kill()


def worker_of(pid: int) -> int:
    """The engine worker's process id."""
    (worker,) = [
        child.pid
        for child in psutil.Process(pid).children(recursive=True)
        if "gpt_oss_server.engine.worker" in child.cmdline()
    ]
    return worker


def test_a_killed_worker_costs_those_who_wait_nothing_but_time() -> None:
    """One that runs ends in 503, two that wait end in 200; counts and blocks come out even."""
    flags = ["--kv-cache-memory", "9MiB", "--admission-mode", "worst_case", "--device", "cpu"]
    with serving(*flags, "--max-wait-s", "100") as (http, pid), ThreadPoolExecutor() as pool:

        def ask(words: int, output: int) -> httpx.Response:
            body = {"prompt": "word " * words, "max_tokens": output, "ignore_eos": True}
            return http.post("/v1/completions", json={"model": "tiny", **body})

        def until(reached: Callable[[dict[str, Any]], bool]) -> None:
            while not reached(http.get("/stats").json()["admission"]):
                pass

        ask(1, 1)
        running = pool.submit(ask, 800, 2000)
        until(lambda admission: admission["running"] == 1)
        waiting = [pool.submit(ask, 1100 + n, 10) for n in range(2)]
        until(lambda admission: admission["waiting"] == 2)
        os.kill(worker_of(pid), signal.SIGKILL)
        assert running.result().status_code == 503
        assert running.result().json()["error"]["code"] == "engine_failed"
        assert [one.result().status_code for one in waiting] == [200, 200]
        until(lambda admission: admission["running"] == 0)
        stats = http.get("/stats").json()
    counts = stats["admission"]["counts"]
    assert (stats["engine"]["restarts"], stats["gpu_routing"]["total_requests"]) == (1, 4)
    assert (counts["offered"], counts["released"], counts["started_from_queue"]) == (4, 4, 2)
    assert set(stats["admission"]["blocks_used"].values()) == {0}
    assert 3 <= stats["gpu_routing"]["executed"]["single_gpu"] <= 4
