"""The benchmark of experts runs here, interpreted, so that it runs where there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu" / "experts.py"


def test_the_tiny_run_is_right_and_writes_its_results(tmp_path: Path) -> None:
    """Both forms of weights, each number of tokens checked against float32."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.glob("*-gpu-experts-4.json")
    rows = json.loads(file.read_text())["rows"]
    cases = [(row["form"], row["tokens"]) for row in rows]
    assert cases == [(form, tokens) for form in ("bfloat16", "mxfp4") for tokens in (1, 5, 40)]
    assert all(row["error"] < 1e-5 for row in rows)
    assert all(len(row["parts_us"]) == 4 for row in rows)
    assert file.with_suffix(".md").read_text() == done.stdout.removesuffix("\n")
