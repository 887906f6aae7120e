"""Ends what a process has left of its group, and tells when that holds nothing any more.

Knows: process groups, processes that have ended and whose status nobody has asked for. Does not
know: workers, ranks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import psutil

_POLL_S = 0.02


async def end_group(group: int, patience_s: float) -> None:
    """Kill all processes of a group, once its leader has ended, and wait until they have too."""
    deadline_s = time.monotonic() + patience_s
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline_s:
            os.killpg(group, signal.SIGKILL)
            alive = _alive_in(group)
            _bury(group)
            if not alive:
                return
            await asyncio.sleep(_POLL_S)


def _bury(group: int) -> None:
    """Ask for the status of those that are this process's children. Where it is a container's
    first, all whose parent is gone are, and stay in the table of processes until somebody asks."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def _alive_in(group: int) -> bool:
    """Whether a process of the group still holds something."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(pid) == group and _holds(psutil.Process(pid)):
                return True
    return False


def _holds(process: psutil.Process) -> bool:
    """One that only waits for its parent to ask for its status holds nothing, once its last thread
    has ended: the first may do so before."""
    return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
