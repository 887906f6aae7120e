"""Responses of the real engine with the built-in model: kept through a killed server, and the
example as printed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from app_process import running
from openai.types.responses import Response

EXAMPLE = Path(__file__).parents[2] / "examples" / "responses.py"


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """Where a real server listens, ready; killed at the end, as by a power button."""
    flags = ("--threads", "1", "--kv-cache-memory", "32MiB", "--responses-store", str(path))
    with running("real", *flags) as server:
        url = server.url()
        server.read_until("ready in")
        yield url


def create(url: str, **fields: Any) -> Response:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return client.responses.create(
            **{"model": "tiny", "temperature": 0, "max_output_tokens": 24, **fields}
        )


def test_a_conversation_survives_a_killed_server(tmp_path: Path) -> None:
    """What the first server answered the second continues: it has every token of it in its
    prompt, and answers a repeated request alike."""
    path = tmp_path / "responses.sqlite3"
    with serving(path) as url:
        first = create(url, input="What does route4 mean?")
        assert first.usage is not None
        assert first.usage.output_tokens > 0
    with serving(path) as url:
        second = create(url, input="And why?", previous_response_id=first.id)
        assert second.usage is not None
        assert second.usage.input_tokens > first.usage.input_tokens
        again = create(url, input="What does route4 mean?")
        assert [i.to_dict().get("content") for i in again.output] == [
            i.to_dict().get("content") for i in first.output
        ]


def test_the_example(tmp_path: Path) -> None:
    """examples/responses.py runs to its end against a server with default sampling."""
    with serving(tmp_path / "responses.sqlite3") as url:
        environ = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environ,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("answer:")
    assert any(line.startswith("call:      count_gpus {'machine':") for line in lines)
    assert lines[-1] == "deleted:   404"
