"""Kernels compile for GPUs that are not here, into the machine code that their speed rests on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
SHARED_BYTES = {80: 166_912, 90: 232_448}
"""What one program may have on an A100 and on an H100."""


def compiled(function: str, capability: int, cache: Path) -> list[dict[str, Any]]:
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kernel_compile.py"), function, str(capability)],
        capture_output=True,
        text=True,
        env=env,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


@pytest.mark.parametrize("capability", [80, 90])
def test_attention_compiles_to_wide_copies_and_products(capability: int, tmp_path: Path) -> None:
    """For bfloat16 heads of 64: keys and values come by 16-byte copies with two tiles on the way,
    nothing is spilled, and on Hopper prefill multiplies by warpgroups."""
    reports = compiled("attention_launches:attention", capability, tmp_path)
    names = [report["name"] for report in reports]
    assert names.count("_decode_kernel") == 2
    assert names.count("_prefill_kernel") == 3
    # Nothing more for other numbers of sequences, up to 512: two sizes of plans, of two kinds.
    assert (names.count("_tiles_kernel"), names.count("_split_kernel")) == (3, 3)
    assert names.count("_merge_kernel") == 2
    for report in reports:
        # Of plans for hundreds of sequences two numbers, with Triton 3.9.
        plan = report["name"] in ("_tiles_kernel", "_split_kernel")
        assert report["stack_bytes"] <= (8 if plan else 0), report
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report
        if report["name"] in ("_decode_kernel", "_prefill_kernel"):
            # Two stages of a tile of 64 keys and 64 values of 128 bytes.
            assert report["shared_bytes"] >= 2 * 2 * 64 * 128, report
            assert report["wide_copies"] >= 12, report
        if report["name"] == "_prefill_kernel":
            assert (report["warpgroup_products"] > 0) == (capability == 90), report


@pytest.mark.parametrize("capability", [80, 90])
def test_the_small_kernels_compile_without_narrow_loads(capability: int, tmp_path: Path) -> None:
    """Rotation, KV write and norms read several numbers at a time and spill none."""
    reports = compiled("attention_launches:around", capability, tmp_path)
    names = {"_write_kernel", "_rotary_kernel", "_norm_kernel"}
    assert {report["name"] for report in reports} == names
    for report in reports:
        assert report["stack_bytes"] == 0, report
        # Cosine and sine, four bytes a lane at most, are all that may be narrow.
        assert report["narrow_loads"] <= 4, report
