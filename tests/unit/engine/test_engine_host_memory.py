"""The memory of a pool on a CPU: what there is of it, and that it is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt_oss_server.engine.host_memory import check_room, free_bytes, take_pages
from gpt_oss_server.errors import StartupError

MIB = 2**20


def limit(group: Path, maximum: str, current: int, cached: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{maximum}\n")
    (group / "memory.current").write_text(f"{current}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")


def test_pages_are_taken_and_keep_their_content() -> None:
    """Before, an array has next to none; after, all; what was written meanwhile is still there."""
    array = np.zeros(256 * MIB, dtype=np.uint8)
    array[:: 64 * MIB] = 7
    process = psutil.Process()
    before = process.memory_info().rss
    take_pages([array]).join()
    grown = process.memory_info().rss - before
    if grown == 0:
        pytest.skip("this kernel takes pages only when they are written to")
    assert grown > 200 * MIB
    assert np.count_nonzero(array) == 4
    assert set(array[:: 64 * MIB]) == {7}


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    """The least that any group above this process has left; cached files are given up."""
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    root = tmp_path / "cgroup"
    limit(root / "outer" / "inner", "max", 5 * MIB)
    limit(root / "outer", str(100 * MIB), 60 * MIB, cached=10 * MIB)
    assert free_bytes(root, membership) == 50 * MIB
    limit(root / "outer" / "inner", str(MIB), 2 * MIB)
    assert free_bytes(root, membership) == 0


@pytest.mark.parametrize("content", [None, "", "7:memory:/old\n", "0::/nowhere\n"])
def test_without_groups_the_machine_counts(tmp_path: Path, content: str | None) -> None:
    """No file, no group of version 2, no limit: what the machine has."""
    membership = tmp_path / "membership"
    if content is not None:
        membership.write_text(content)
    free = free_bytes(tmp_path / "cgroup", membership)
    assert free > 0
    assert free <= psutil.virtual_memory().total


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    """One line with both figures and the settings that help; what fits is not refused."""
    check_room(MIB, MIB)
    with pytest.raises(StartupError) as caught:
        check_room(3 << 30, 1 << 30)
    assert str(caught.value) == (
        "the KV cache would take 3.00 GiB and 1.00 GiB of memory are free: choose a smaller "
        "--kv-cache-memory or --memory-budget"
    )
