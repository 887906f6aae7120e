"""The experts' kernels compile for GPUs that are not here, into what their speed rests on."""

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
SHARED_BYTES = {80: 166_912, 90: 232_448}
"""What one program may have on an A100 and on an H100."""


def compiled(function: str, capability: int, cache: Path) -> list[dict[str, Any]]:
    """In a process of its own, which does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kernel_compile.py"), function, str(capability)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


@pytest.mark.parametrize("capability", [80, 90])
def test_routers_compile(tmp_path: Path, capability: int) -> None:
    """For few tokens and many, choosing and only sorting, of 32 experts and of 128; and for no more
    numbers of tokens than three, padded or not."""
    reports = compiled("expert_launches:routers", capability, tmp_path)
    assert Counter(report["name"] for report in reports) == {
        "logits_kernel": 12,
        "choose_kernel": 12,
        "sort_kernel": 6,
        "count_kernel": 2,
        "_combine_kernel": 2,
    }
    for report in reports:
        assert report["stack_bytes"] <= 16, report
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report


@pytest.mark.parametrize("capability", [80, 90])
def test_plain_products_copy_wide(tmp_path: Path, capability: int) -> None:
    """Weights and rows come by 16-byte copies, stages ahead; nothing is spilt; a prefill
    multiplies by warpgroups on Hopper."""
    reports = compiled("expert_launches:plain", capability, tmp_path)
    products = [report for report in reports if report["name"] == "_grouped_kernel"]
    assert len(products) == 10  # of five batches, gated and not
    for report in products:
        assert report["stack_bytes"] == 0, report
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report
        assert report["wide_copies"] >= 16, report
    by_warpgroups = [report["warpgroup_products"] > 0 for report in products]
    assert by_warpgroups.count(True) == (4 if capability == 90 else 0)


@pytest.mark.parametrize("capability", [80, 90])
def test_mxfp4_products_widen_in_registers(tmp_path: Path, capability: int) -> None:
    """As plain ones; on Hopper every batch multiplies by warpgroups, with weights from
    registers: shared memory holds no more than four bits a number beside rows and scales."""
    reports = compiled("expert_launches:mxfp4", capability, tmp_path)
    products = [report for report in reports if report["name"] == "_mxfp4_kernel"]
    assert len(products) == 10
    for report in products:
        # On an A100 tiles of 64 rows are a few numbers more than there are registers.
        assert report["stack_bytes"] <= (0 if capability == 90 else 160), report
        assert report["shared_bytes"] <= (1 << 16) + (1 << 15), report
        assert report["wide_copies"] >= 8, report
        assert (report["warpgroup_products"] > 0) == (capability == 90), report
