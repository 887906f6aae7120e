"""The host memory that a pool on a CPU lives in: how much there is, and taking it at once.

Knows: the kernel's accounts of free memory, this container's limit, page faults. Does not know:
what a pool holds.

A fresh allocation is a promise: the kernel finds a page when one is first written to. A pool left
at that would be slow for the first long request, which pays for the faults, would be killed when
the promise cannot be kept, under load and not at the start, and would make the server look
smaller than it is to whoever compares its resident memory with what it said it would take.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import psutil

from gpt_oss_server.errors import StartupError

# <linux/mman.h>, Linux 5.14: fault pages in for writing without changing what is in them.
_MADV_POPULATE_WRITE = 23
# At a time: short enough for the rest of the process to map memory in between.
_STRIDE_BYTES = 8 << 20
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """What this process may still take: what the machine has left, or its container."""
    free = psutil.virtual_memory().available
    return min([free, *_left_in_groups(cgroup, membership)])


def check_room(pool_bytes: int, free: int) -> None:
    """Raises StartupError for a pool that cannot be had."""
    if pool_bytes > free:
        raise StartupError(
            f"the KV cache would take {pool_bytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB of "
            "memory are free: choose a smaller --kv-cache-memory or --memory-budget"
        )


def take_pages(arrays: Sequence[npt.NDArray[Any]]) -> threading.Thread:
    """Have the kernel find the pages of these arrays, in a thread beside everything else.

    Beside it, because it takes 0.15 s per GiB where the machine's memory is at hand and 2.5 s in a
    virtual machine that gets its own on demand. What is in the arrays stays, and they may be
    written to meanwhile. Without Linux 5.14 nothing happens, and pages come when they are needed.
    """
    thread = threading.Thread(target=_take, args=(tuple(arrays),), name="pool-pages", daemon=True)
    thread.start()
    return thread


def _take(arrays: tuple[npt.NDArray[Any], ...]) -> None:
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for array in arrays:
        start = array.ctypes.data
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        for place in range(first, end, _STRIDE_BYTES):
            if madvise(place, min(_STRIDE_BYTES, end - place), _MADV_POPULATE_WRITE) != 0:
                return


def _left_in_groups(root: Path, membership: Path) -> list[int]:
    """What each control group (version 2) of this process, and each above it, has left."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    left = []
    group = root / own.strip("/")
    while group.is_relative_to(root):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            left.append(max(0, limit - used + _file_cache_bytes(group / "memory.stat")))
        group = group.parent
    return left


def _file_cache_bytes(stat: Path) -> int:
    """What is counted as used and given up without a word: cached files."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    """A file's one number; None if there is no such file, or no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
