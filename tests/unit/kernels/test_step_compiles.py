"""All that a step launches compiles for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
ATTENTION = {"_tiles_kernel", "_split_kernel", "_decode_kernel", "_prefill_kernel", "_merge_kernel"}
AROUND = {"_norm_kernel", "_rotary_kernel"}
EXPERTS = {"logits_kernel", "choose_kernel", "_grouped_kernel", "_combine_kernel"}


def compiled(function: str, capability: int, cache: Path) -> list[dict[str, Any]]:
    """In a process of its own, which does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kernel_compile.py"), function, str(capability)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


@pytest.mark.parametrize("capability", [80, 90])
def test_a_step_of_gpt_oss_compiles(capability: int, tmp_path: Path) -> None:
    """A prefill and a padded decode step of gpt-oss-20b's widths: every kernel, nothing spilled."""
    reports = compiled("fused_launches:step", capability, tmp_path)
    assert {report["name"] for report in reports} >= ATTENTION | AROUND | EXPERTS
    assert [r for r in reports if r["stack_bytes"] > 16] == []


@pytest.mark.parametrize("capability", [80, 90])
def test_the_search_for_top_p_compiles(capability: int, tmp_path: Path) -> None:
    """For any number of rows four times; sums of float64 fit the registers."""
    reports = compiled("fused_launches:nucleus", capability, tmp_path)
    names = Counter(report["name"] for report in reports)
    assert names == {"_round_kernel": 4, "_found_kernel": 4}
    assert [r for r in reports if r["stack_bytes"] > 0] == []
