"""The README's examples, run as printed against a real server with the built-in model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PRINTED_ADDRESS = "http://127.0.0.1:8000"


def example(language: str, containing: str) -> str:
    """The one fenced block of that language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    assert isinstance(found, str)
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a real server listens, ready; at the end it must stop cleanly."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    flags = ["--port", "0", "--threads", "1", "--kv-cache-memory", "32MiB"]
    command = [sys.executable, "-m", "gpt_oss_server", "serve", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            lines = iter(server.stdout.readline, "")
            assert any(line.startswith("ready in") for line in lines)
            yield first.split()[-1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


def run(command: list[str]) -> str:
    """What the command prints; it must succeed."""
    environ = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_curl_example(address: str) -> None:
    """The printed curl command gets a sensible answer from the built-in model."""
    command = example("bash", "curl").replace(PRINTED_ADDRESS, address)
    answer = json.loads(run(["bash", "-euc", command]))
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].startswith("route4 is the name of the multi-GPU route.")
    assert choice["message"]["reasoning_content"] == "The user asks about route4."


def test_the_client_example(address: str) -> None:
    """The printed program streams a sensible answer with OpenAI's own client, to its end."""
    program = example("python", "OpenAI").replace(PRINTED_ADDRESS, address)
    program += "\nprint(f'\\n{chunk.choices[0].finish_reason}')\n"
    said = run([sys.executable, "-c", program])
    assert said.startswith("Open /stats. total_requests is the sum of single_gpu_requests and")
    assert said.endswith("\nstop\n")
