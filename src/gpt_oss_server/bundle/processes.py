"""What the system says of a server's processes, whether or not they still answer.

Knows: /proc, through psutil where it can. Does not know: what the processes do. Of a command line
only the names of our own flags are read: what follows them may be a key.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from gpt_oss_server.config import TABLE

_FLAGS = frozenset({row.flag for row in TABLE} | {"--config"})
_PROC = Path("/proc")
MAX_THREADS = 100


def listening_on(port: int) -> list[int]:
    """The processes that listen on a TCP port, as far as this user may see them."""
    return sorted(
        {
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.pid is not None
            and connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
        }
    )


def family_of(pids: Sequence[int]) -> list[int]:
    """These processes and all that they have started, each once."""
    found: dict[int, None] = {}
    for pid in pids:
        found[pid] = None
        with contextlib.suppress(psutil.Error):
            found.update((child.pid, None) for child in psutil.Process(pid).children(True))
    return list(found)


def describe_process(pid: int) -> dict[str, Any]:
    """One process: state, memory, CPU time, files, threads with what the kernel waits for.
    What this user may not see is left out. Raises psutil.NoSuchProcess."""
    process = psutil.Process(pid)
    found: dict[str, Any] = {"pid": pid}
    with process.oneshot():
        reads = {
            "parent_pid": process.ppid,
            "name": process.name,
            "state": process.status,
            "age_s": lambda: round(time.time() - process.create_time(), 1),
            "flags": lambda: _flags(process.cmdline()),
            "rss_bytes": lambda: process.memory_info().rss,
            "cpu_user_s": lambda: process.cpu_times().user,
            "cpu_system_s": lambda: process.cpu_times().system,
            "open_files": process.num_fds,
            "context_switches": lambda: process.num_ctx_switches()._asdict(),
            "thread_count": process.num_threads,
        }
        for name, read in reads.items():
            with contextlib.suppress(psutil.AccessDenied, psutil.ZombieProcess, OSError):
                found[name] = read()
    found["threads"] = _threads(pid)
    return found


def describe_processes(pids: Sequence[int]) -> list[dict[str, Any]]:
    """Those of them that still exist."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(describe_process(pid))
    return found


def _flags(command_line: Sequence[str]) -> list[str]:
    given = (word.partition("=")[0] for word in command_line)
    return sorted({word for word in given if word in _FLAGS})


def _threads(pid: int) -> list[dict[str, Any]]:
    """Name, state and kernel function of each thread (Linux)."""
    found = []
    with contextlib.suppress(OSError):
        for task in sorted((_PROC / str(pid) / "task").iterdir())[:MAX_THREADS]:
            with contextlib.suppress(OSError, IndexError):
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                thread = {"id": int(task.name), "state": state}
                thread["name"] = (task / "comm").read_text().strip()
                with contextlib.suppress(OSError):
                    thread["waits_in"] = (task / "wchan").read_text().strip()
                found.append(thread)
    return found
