"""The GPU benchmark of attention runs as it is, interpreted and tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu" / "attention.py"


def test_a_tiny_run_checks_and_reports_every_case(tmp_path: Path) -> None:
    """Exit 0 says that every case was right; figures and ceilings are in the dated files."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--layers", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.glob("*-gpu-attention.json")
    result = json.loads(file.read_text())
    assert [row["case"] for row in result["rows"]] == [
        "decode 3 ragged",
        "decode 2, window 20",
        "prefill 70 beside decode",
        "prefill 9 behind 90, window 20",
    ]
    assert all(0 <= row["error"] < 1e-5 for row in result["rows"])
    assert len(result["around"]) == 3
    assert done.stdout.strip() == file.with_suffix(".md").read_text().strip()
