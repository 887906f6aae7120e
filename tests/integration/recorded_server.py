"""A real server on this CPU, with the built-in model, that records itself under a mixed load.

Run as a program it serves with `recording_worker` for an engine. What is recorded: the decision log
and the structured log, which any server can write, and the engine's steps.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
from recording_worker import STEPS_FILE

from gpt_oss_server import cli
from gpt_oss_server.engine import client as engine_client
from gpt_oss_server.routing.replay import DecisionRecord, from_line

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recorded:
    """A run's three files, read."""

    decisions: list[DecisionRecord]
    log: Path
    steps: list[dict[str, Any]]

    def ended(self) -> list[dict[str, Any]]:
        """The log's lines of requests that are over."""
        lines = [msgspec.json.decode(line) for line in self.log.read_bytes().splitlines()]
        return [line for line in lines if line["event_type"] == "request.end"]


Phase = Sequence[Sequence[Mapping[str, Any]]]
"""Clients that begin together: the requests of each, one after the other, as path and body."""


def record(folder: Path, flags: Sequence[str], phases: Sequence[Phase]) -> Recorded:
    """Serve the phases, one when the one before is over, and read what was recorded."""
    files = [folder / name for name in ("decisions.jsonl", "server.log", "steps.jsonl")]
    decisions, log, steps = files
    flags = [*flags, "--decision-log", str(decisions), "--log-file", str(log)]
    with _serving(flags, steps) as url:
        for phase in phases:
            with ThreadPoolExecutor(len(phase)) as clients:
                list(clients.map(partial(_ask, url), phase))
    return Recorded(
        [from_line(line) for line in decisions.read_bytes().splitlines()],
        log,
        [msgspec.json.decode(line) for line in steps.read_bytes().splitlines()],
    )


@contextlib.contextmanager
def _serving(flags: Sequence[str], steps: Path) -> Iterator[str]:
    """The server's address while it runs; it ends as when told to by its operator."""
    environ = {name: v for name, v in os.environ.items() if not name.startswith("GPT_OSS_")}
    paths = [str(HERE), environ.get("PYTHONPATH", "")]
    environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        STEPS_FILE: str(steps),
        "NO_PROXY": "127.0.0.1",
    }
    server = subprocess.Popen(
        [sys.executable, __file__, "--port", "0", "--device", "cpu", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        url = next(line for line in lines if line.startswith("gpt-oss-server")).split()[-1]
        next(line for line in lines if line.startswith("ready"))
        yield url
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


def _ask(url: str, requests: Sequence[Mapping[str, Any]]) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
        for request in requests:
            answer = http.post(request["path"], json=request["body"])
            assert answer.is_success, answer.text


if __name__ == "__main__":
    engine_client.WORKER = "recording_worker"
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
