"""The three steps of docs/observability.md, run as printed against a real server and Prometheus."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_process import needs_prometheus, prometheus

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
SERVER, PROMETHEUS = "127.0.0.1:8000", "http://127.0.0.1:9090"
REQUEST_ID, TRACE_ID = "report-42", "4bf92f3577b34da6a3ce929d0e0e4736"
OTHERS = 20
# Values that were measured, and so differ from run to run; and how long the model's answer was.
MEASURED = re.compile(
    r'"(\w+_(?:ms|us)|\w*memory_pressure|timestamp|at_unix_s|seconds|le|output_tokens|'
    r'finish_reasons)": ?("[^"]*"|\[[^\]]*\]|[-+.\de]+)'
)
SAMPLE = re.compile(r"=> [-+.\de]+ @\[[.\d]+\]")


def blocks() -> list[tuple[str, str]]:
    """Each command with the output that the page shows."""
    found = []
    for block in re.findall(r"```console\n\$ (.*?)```", DOCS, re.DOTALL):
        lines = block.splitlines(keepends=True)
        command = 1 + next(n for n, line in enumerate([*lines[1:], ""]) if line[:1] != " ")
        found.append(("".join(lines[:command]), "".join(lines[command:])))
    return found


def settled(output: str) -> str:
    """The output without what differs from run to run."""
    return SAMPLE.sub("=> N", MEASURED.sub(r'"\1":N', output)).strip()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """The folder, the server's `host:port` and Prometheus's address, after some small requests and
    a large one. The server runs as the page says, on a port of its own."""
    folder = tmp_path_factory.mktemp("observability")
    (printed,) = re.findall(r"^gpt-oss-(server serve .*) &$", DOCS, re.MULTILINE)
    flags = [*shlex.split(printed)[1:], "--port", "0", "--device", "cpu", "--threads", "1"]
    flags += ["--kv-cache-memory", "32MiB"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    with subprocess.Popen(
        [sys.executable, "-m", "gpt_oss_server", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=folder,
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            address = url.removeprefix("http://")
            with prometheus(folder, [address]) as api:
                api.until("gpt_oss_engine_ready == 1")
                with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
                    for number in range(OTHERS):
                        ask(http, f"hello {number}", 8, {})
                    trace = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
                    headers = {"x-request-id": REQUEST_ID, "traceparent": trace}
                    ask(http, "word " * 10_000, 32, headers)
                api.until(f'sum(gpt_oss_requests_total{{outcome="ok"}}) == {OTHERS + 1}')
                yield folder, address, api.url
        finally:
            server.terminate()


def ask(http: httpx.Client, content: str, max_tokens: int, headers: dict[str, str]) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
    }
    assert http.post("/v1/chat/completions", json=body, headers=headers).is_success


@needs_prometheus
@pytest.mark.skipif(shutil.which("jq") is None, reason="needs the program jq")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl")
@pytest.mark.parametrize(("command", "shown"), blocks())
def test_a_command_prints_what_the_page_shows(
    story: tuple[Path, str, str], command: str, shown: str
) -> None:
    """With other addresses in it, and but for measured figures, the very same output."""
    folder, server, prometheus_url = story
    there = command.replace(SERVER, server).replace(PROMETHEUS, prometheus_url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", there],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert settled(done.stdout) == settled(shown)


def test_the_page_has_three_steps() -> None:
    """Log, metrics, bundle; each with a command."""
    steps = re.split(r"^## \d\. ", DOCS, flags=re.MULTILINE)[1:]
    assert len(steps) == 3
    assert all("```console\n$ " in step.partition("\n## ")[0] for step in steps)


def test_pictures_and_pages_exist() -> None:
    """Whatever the page links to is there."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", DOCS):
        assert (ROOT / "docs" / target).exists(), target
