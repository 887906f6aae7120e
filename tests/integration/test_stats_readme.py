"""The README's large request against a real server: one story, told from every side."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WARNING = "Large request detected but model in single GPU mode"


def printed_story() -> list[str]:
    """The lines that the README says the example prints."""
    (block,) = re.findall(r"```\n(prompt tokens:.*?)```", README, re.DOTALL)
    return str(block).splitlines()


def test_the_large_request_tells_one_story(tmp_path: Path) -> None:
    """Warning, headers, `/stats`, `/memory_stats` and the decision log agree, and the example
    prints what the README shows."""
    decisions, output = tmp_path / "decisions.jsonl", tmp_path / "server.log"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    flags = ["--port", "0", "--threads", "1", "--kv-cache-memory", "32MiB"]
    flags += ["--decision-log", str(decisions), "--device", "cpu"]
    command = [sys.executable, "-m", "gpt_oss_server", "serve", *flags]
    with (
        output.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ) as up,
    ):
        try:
            assert up.stdout is not None
            url = up.stdout.readline().split()[-1]
            assert any(line.startswith("ready in") for line in iter(up.stdout.readline, ""))
            done = subprocess.run(
                [sys.executable, str(ROOT / "examples" / "large_request.py")],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env=environ | {"OPENAI_BASE_URL": f"{url}/v1"},
            )
            with httpx.Client(base_url=url, trust_env=False) as http:
                stats, memory = http.get("/stats").json(), http.get("/memory_stats").json()
            up.terminate()
            rest = up.stdout.read()
            assert up.wait(timeout=30) == 0
        finally:
            up.kill()
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    shown = printed_story()
    sampled = [n for n, line in enumerate(shown) if line.startswith("  while it ran:")]
    assert [line for n, line in enumerate(said[:-1]) if n not in sampled] == [
        line for n, line in enumerate(shown) if n not in sampled
    ]
    in_use, predicted = re.findall(r"([0-9.]+) MiB", said[sampled[0]])
    assert in_use == predicted  # nothing was shared: the arithmetic is what is really held
    assert 0 < float(in_use) <= 13.31
    assert said[-1].startswith("  pressure:      0.")
    assert stats["gpu_routing"]["unmet_recommendations"] == 1
    assert stats["admission"] == memory["admission"]
    assert memory["kv"]["peak_reserved_bytes"] == (563 + 5) * 24_576
    warnings = [line for line in (rest + output.read_text()).splitlines() if WARNING in line]
    assert len([line for line in warnings if "Recommendation: " in line]) == 1
    assert f"{WARNING} (large_input: 8992 > 8000 tokens)" in warnings[0]
    (line,) = decisions.read_text().splitlines()
    assert '"trigger":"large_input"' in line
    assert '"unmet_recommendation":true' in line
