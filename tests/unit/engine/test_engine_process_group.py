"""Ending what a process left of its group, whoever asks for their status."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from gpt_oss_server.engine.process_group import _holds, end_group

PATIENCE_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36
LEADER = """
import subprocess, sys
for _ in range(2):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(sleeper.pid, flush=True)
"""

CARELESS = """
import subprocess, sys, time
body = "import time; time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", body], start_new_session=True).pid, flush=True)
time.sleep(600)
"""

# Its first thread ends; the other goes on.
HEADLESS = """
import subprocess, sys
body = "import ctypes, threading, time; "
body += "threading.Thread(target=time.sleep, args=(600,)).start(); ctypes.CDLL(None).syscall(60, 0)"
print(subprocess.Popen([sys.executable, "-c", body]).pid, flush=True)
"""
_SYS_EXIT_IS_60 = ("x86_64", "AMD64")


@pytest.fixture
def first_of_a_container() -> Iterator[None]:
    """Whose parent is gone becomes a child of this process."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def abandoned() -> tuple[int, list[int]]:
    """A group whose leader has ended, and the two processes that it left."""
    with subprocess.Popen(
        [sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        return leader.pid, [int(leader.stdout.readline()) for _ in range(2)]


def test_all_of_a_group_end_and_are_buried(first_of_a_container: None) -> None:
    """Where they become this process's children, not even their status stays."""
    group, pids = abandoned()
    assert all(psutil.pid_exists(pid) for pid in pids)
    asyncio.run(end_group(group, PATIENCE_S))
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.skipif(platform.machine() not in _SYS_EXIT_IS_60, reason="another system call")
def test_a_process_whose_first_thread_has_ended(first_of_a_container: None) -> None:
    """It looks like one that has ended, and still holds all it had: it is waited for."""
    with subprocess.Popen(
        [sys.executable, "-c", HEADLESS], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        pid = int(leader.stdout.readline())
    headless = psutil.Process(pid)
    while headless.status() != psutil.STATUS_ZOMBIE:
        assert headless.is_running()
    assert _holds(headless)
    asyncio.run(end_group(leader.pid, PATIENCE_S))
    assert not psutil.pid_exists(pid)


def test_what_only_waits_for_its_burial_is_not_waited_for() -> None:
    """A process that has ended holds nothing, though its parent does not ask for its status."""
    with subprocess.Popen(
        [sys.executable, "-c", CARELESS], stdout=subprocess.PIPE, text=True
    ) as careless:
        assert careless.stdout is not None
        pid = int(careless.stdout.readline())
        asyncio.run(asyncio.wait_for(end_group(pid, 10 * PATIENCE_S), PATIENCE_S))
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        careless.kill()


def test_a_group_that_is_gone_is_no_error() -> None:
    """Nothing to do, nothing raised."""
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as ended:
        pass
    asyncio.run(end_group(ended.pid, PATIENCE_S))
