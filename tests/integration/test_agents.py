"""Agents as their users install them, running against the real server and the built-in model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_process import running

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is the weather in Madrid? Then add 20 and 22."
SAID = [
    "  get_weather('Madrid')",
    "  add(20, 22)",
    "According to get_weather: sunny, 18 degrees",
    "According to add: 42",
]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """Of a real server with the built-in model that was told nothing special."""
    flags = ("--threads", "1", "--kv-cache-memory", "32MiB", "--responses-store", "memory")
    with running("real", *flags) as server:
        url = server.url()
        server.read_until("ready in")
        yield f"{url}/v1"


def printed(name: str, base_url: str, *flags: str) -> list[str]:
    """The lines that the example prints; it must end well."""
    environ = os.environ | {"OPENAI_BASE_URL": base_url, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *flags, QUESTION],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("flags", [(), ("--chat",)], ids=["responses", "chat completions"])
def test_the_agents_sdk(base_url: str, flags: tuple[str, ...]) -> None:
    """Two tools, called in the order of the request, and an answer from their results, over the
    API that the SDK uses by itself and over the other."""
    assert printed("agents_sdk.py", base_url, *flags) == SAID


def test_langchain(base_url: str) -> None:
    """The same by LangChain's agent."""
    assert printed("langchain_agent.py", base_url) == SAID
