"""Server, Prometheus and load, up for as long as a block runs.

Knows: which programs to start, with which flags, and how to tell that they are up. Does not know:
dashboards, or what the queries are.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
# Thresholds that a model of two million parameters on a laptop comes to.
SERVER_FLAGS = (
    "--port=0",
    "--model=tiny",
    "--threads=1",
    "--kv-cache-memory=2MiB",
    "--max-num-seqs=16",
    "--max-queue=12",
    "--max-wait-s=4",
    "--session-idle-s=5",
    "--large-input-tokens=800",
    "--large-kv-mb=0.5",
    "--pressure-input-tokens=350",
    "--pressure-kv-mb=0.25",
    "--max-p95-ttft-seconds=0.3",
    "--max-p95-e2e-seconds=2.5",
)
_UP_WITHIN_S = 60.0
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@contextlib.contextmanager
def demo_server(folder: Path, *flags: str) -> Iterator[str]:
    """A server with recorded GPU readings, coming up; its address. Its log is
    `folder/server.log`, its decisions `folder/decisions.jsonl`. Later flags win.

    Raises RuntimeError if it ends before it has an address.
    """
    chosen = {
        flag.partition("=")[0]: flag
        for flag in (
            *SERVER_FLAGS,
            f"--log-file={folder / 'server.log'}",
            f"--decision-log={folder / 'decisions.jsonl'}",
            *flags,
        )
    }
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.dashboards.demo.server", *chosen.values()],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=ROOT,
    ) as process:
        try:
            address = process.stdout.readline().split()[-1:] if process.stdout else []
            if not address:
                raise RuntimeError("the server did not come up: see what it printed")
            yield address[0]
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
        finally:
            process.kill()


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes `target` each second, once that takes requests; its address."""
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(  # JSON is YAML
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {
                        "job_name": "gpt-oss-server",
                        "static_configs": [{"targets": [target.removeprefix("http://")]}],
                    }
                ],
            }
        ),
        encoding="utf-8",
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            until_ready(url)
            yield url
        finally:
            process.terminate()


def until_ready(url: str) -> None:
    """Wait until what is scraped takes requests. Raises TimeoutError."""
    deadline_s = time.monotonic() + _UP_WITHIN_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if ask(url, "query", query="gpt_oss_engine_ready == 1"):
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url} has seen no server that is ready for {_UP_WITHIN_S:g} s")


def ask(url: str, path: str, **parameters: str) -> list[dict[str, Any]]:
    """The result of a query (`path` `query`) or of one over time (`query_range`)."""
    address = f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with _OPEN(address, timeout=10) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result
