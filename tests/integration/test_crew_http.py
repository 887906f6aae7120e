"""`serve` over several processes: the same answers as in one, and it says where they ran."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from crew_runs import gone

READY = re.compile(r"ready in ")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
SERVE = ("-m", "gpt_oss_server", "serve", "--port", "0", "--device", "cpu", "--threads", "1")
REQUEST: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "max_tokens": 24,
    "temperature": 0,
    "logprobs": True,
}


@contextmanager
def serving(*flags: str) -> Iterator[httpx.Client]:
    """A real server with the built-in model, ended by SIGTERM; nothing of it stays."""
    command = [sys.executable, *SERVE, *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        url = ""
        for line in server.stdout:
            url = url or "".join(ADDRESS.findall(line))
            if READY.search(line):
                break
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            yield http
        server.terminate()
    assert server.returncode == 0


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What one process answers."""
    with serving() as http:
        answer = http.post("/v1/chat/completions", json=REQUEST)
        assert answer.headers["X-Route"] == "single_gpu"
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice


@pytest.mark.parametrize("mode", ["pipeline", "tensor"])
def test_serve_over_two_processes(expected: dict[str, Any], mode: str) -> None:
    """The same text, the header and the counters say `multi_gpu`, and `/stats` and `/health` are
    those of a server."""
    with serving("--gpu-mode", mode, "--gpus", "2") as http:
        answer = http.post("/v1/chat/completions", json=REQUEST)
        assert answer.status_code == 200
        assert answer.headers["X-Route"] == "multi_gpu"
        choice = answer.json()["choices"][0]
        assert (choice["message"], choice["finish_reason"]) == (
            expected["message"],
            expected["finish_reason"],
        )
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert tokens == [entry["token"] for entry in expected["logprobs"]["content"]]
        streamed = http.post("/v1/chat/completions", json={**REQUEST, "stream": True})
        assert streamed.headers["X-Route"] == "multi_gpu"
        assert streamed.text.endswith("data: [DONE]\n\n")
        stats = http.get("/stats").json()["gpu_routing"]
        assert stats["executed"] == {"single_gpu": 0, "multi_gpu": 2}
        assert http.get("/health").status_code == 200
        assert http.get("/memory_stats").status_code == 200


def test_nothing_stays_behind() -> None:
    """SIGKILL of the front ends every process of the model."""

    with subprocess.Popen(
        [sys.executable, *SERVE, "--gpu-mode", "pipeline", "--gpus", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if READY.search(line):
                break
        ranks = psutil.Process(server.pid).children(recursive=True)
        assert len(ranks) == 2
        server.kill()
    psutil.wait_procs(ranks, timeout=10)
    assert all(gone(rank.pid) for rank in ranks)
