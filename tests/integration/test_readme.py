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

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_file())
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


def run(command: list[str], **environment: str) -> str:
    """What the command prints; it must succeed, and complain of nothing."""
    environ = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | environment
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environ
    )
    assert (done.returncode, done.stderr) == (0, "")
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


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(address: str, name: str) -> None:
    """Each script runs to its end as it is, against a server that was told nothing special."""
    if name.endswith(".sh") and shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    interpreter = "bash" if name.endswith(".sh") else sys.executable
    printed = run(
        [interpreter, str(ROOT / "examples" / name)], URL=address, OPENAI_BASE_URL=f"{address}/v1"
    )
    assert printed.strip()
    assert "Traceback" not in printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_curl_script_shows_what_it_says(address: str) -> None:
    """Under each of its headings is what the heading promises."""
    printed = run(["bash", str(ROOT / "examples" / "curl.sh")], URL=address)
    parts = {part.partition("\n")[0]: part for part in printed.split("\n== ")[1:]}
    assert '{"status":"ready"}' in parts["is it ready?"]
    assert '"id":"tiny"' in parts["what does it serve?"]
    assert '"tokens":[' in parts["how many tokens is that?"]
    assert "x-request-id: req_" in parts["a chat (-i shows the request id and the route)"]
    assert parts["the same, streamed"].rstrip().endswith("data: [DONE]")
    assert '"param":"temperature"' in parts["a mistake is named"]
