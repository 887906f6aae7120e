"""What the sections read of threads, tasks, processes, versions and decisions."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from bundle_decisions import OWN_ID, TRACE_ID, decided

from gpt_oss_server import __version__
from gpt_oss_server.bundle.health import checked, harmless, running_torch, versions
from gpt_oss_server.bundle.local import LOG_TAIL_LINES, tail
from gpt_oss_server.bundle.processes import (
    describe_process,
    describe_processes,
    family_of,
    listening_on,
)
from gpt_oss_server.bundle.recent import RecentDecisions
from gpt_oss_server.bundle.stacks import task_stacks, thread_stacks
from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.checks import CHECKS
from gpt_oss_server.events import HttpAnswered

SECRET = "words of a prompt"


def test_every_thread_is_shown_by_its_places() -> None:
    """Name and frames, innermost last; nothing of what its variables hold."""
    entered, leave = threading.Event(), threading.Event()

    def hold(prompt: str) -> None:
        entered.set()
        leave.wait()

    thread = threading.Thread(target=hold, args=(SECRET,), name="holder")
    thread.start()
    try:
        assert entered.wait(30)
        found = {one["name"]: one for one in thread_stacks()}
    finally:
        leave.set()
        thread.join()
    frames = found["holder"]["frames"]
    assert any(
        frame.endswith("test_every_thread_is_shown_by_its_places.<locals>.hold") for frame in frames
    )
    assert found["holder"]["daemon"] is False
    assert "MainThread" in found
    assert SECRET not in str(found)


def test_every_task_is_shown_with_what_it_waits_for() -> None:
    """The chain of coroutines and streams, outermost first; no names, arguments or results."""

    async def inner(prompt: str) -> AsyncIterator[str]:
        yield prompt
        await asyncio.Event().wait()

    async def middle(prompt: str) -> AsyncIterator[str]:
        async for text in inner(prompt):
            yield text

    async def outer() -> None:
        stream = middle(SECRET)
        await anext(stream)
        await anext(stream, SECRET)

    async def story() -> list[dict[str, object]]:
        task = asyncio.create_task(outer(), name=SECRET)
        await asyncio.sleep(0)
        try:
            return task_stacks()
        finally:
            task.cancel()

    found = asyncio.run(story())
    waiting = next(one for one in found if str(one["task"]).endswith("<locals>.outer"))
    frames = [str(frame).rpartition(" ")[2].rpartition(".")[2] for frame in waiting["frames"]]
    assert frames == ["outer", "middle", "inner", "wait"]
    assert SECRET not in str(found)


@pytest.fixture
def other() -> subprocess.Popen[str]:
    """A process with a key among its flags, and a child."""
    program = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); "
        "print(child.pid, flush=True); input(); child.communicate(b'')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--api-key", "sk-key", "--port=1", "--unknown", SECRET],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate("\n", timeout=30)


def test_a_process_is_shown_without_its_arguments(other: subprocess.Popen[str]) -> None:
    """Figures from the system, and the names of our own flags."""
    assert other.stdout is not None
    child = int(other.stdout.readline())
    assert family_of([other.pid]) == [other.pid, child]
    found = describe_process(other.pid)
    assert (found["pid"], found["parent_pid"]) == (other.pid, os.getpid())
    assert found["flags"] == ["--api-key", "--port"]
    assert found["rss_bytes"] > 0
    assert [thread["id"] for thread in found["threads"]] == [other.pid]
    assert "sk-key" not in str(found)
    assert SECRET not in str(found)


def test_a_process_that_is_gone_is_left_out(other: subprocess.Popen[str]) -> None:
    """One of several may have ended in the meantime."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(psutil.NoSuchProcess):
        describe_process(gone.pid)
    assert [one["pid"] for one in describe_processes([gone.pid, other.pid])] == [other.pid]


def test_the_process_behind_a_port_is_found() -> None:
    """The one that listens, not those that are connected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listening_on(port) == [os.getpid()]
    assert listening_on(port) == []


def test_versions_name_what_matters() -> None:
    """This server, Python, and each package with its version or None."""
    found = versions()
    assert found["gpt_oss_server"] == __version__
    assert found["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert found["packages"]["uvicorn"].count(".") >= 1
    assert "kernels" in found["packages"]


def test_the_doctor_is_asked_without_its_torch_probe() -> None:
    """Every check has its state; nothing of the environment but harmless values."""
    environ = {"NCCL_DEBUG": SECRET, "CUDA_VISIBLE_DEVICES": "", "HF_TOKEN": SECRET}
    found = checked(Settings(port=0), environ, lambda _: running_torch("cpu"))
    assert [check["id"] for check in found["checks"]] == [check.id for check in CHECKS]
    assert found["environment"]["NCCL_DEBUG"] == "set"
    assert "HF_TOKEN" not in found["environment"]
    assert found["machine"]["torch"]["error"] is None
    assert SECRET not in str(found)


def test_a_check_does_not_say_where_the_model_lies(tmp_path: Path) -> None:
    """A folder that is not there, or is no model: it is called by its own name."""
    for name, wrong in (("gone", "does not exist"), ("empty", "is not a model folder")):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        settings = Settings(port=0, model=str(folder))
        found = checked(settings, {}, lambda _: running_torch("cpu"))
        (problem,) = [check for check in found["checks"] if wrong in check.get("message", "")]
        assert problem["message"].startswith(f"model folder {name} {wrong}") or problem[
            "message"
        ].startswith(f"{name} {wrong}")
        assert str(tmp_path) not in str(found["checks"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1", "1"),
        ("0,1,2", "0,1,2"),
        ("8388608", "8388608"),
        ("True", "True"),
        ("", "set"),
        ("sk-1", "set"),
        ("/home/alice", "set"),
        ("12345678901234567890", "set"),
    ],
)
def test_harmless_values(value: str, shown: str) -> None:
    """Small numbers and switches are shown; anything else only as set."""
    assert harmless({"X": value}) == {"X": shown}


def test_the_last_decisions_are_kept_as_facts() -> None:
    """At most so many, oldest first; not who asked, nor in which conversation."""
    recent = RecentDecisions(kept=2)
    for request_id in ("first", "my-own-id", OWN_ID):
        recent.emit(decided(request_id))
    recent.emit(HttpAnswered("/live", 200, 0.1))
    client, own = recent.shown()
    assert client["request_id"].startswith("sha256:")
    assert own == {
        "at_unix_s": 1.0,
        "request_id": OWN_ID,
        "trace_id": TRACE_ID,
        "route": "multi_gpu",
        "executed": "single_gpu",
        "trigger": "large_input",
        "reason": "large_input: 10000 > 8000 tokens",
        "unmet_recommendation": True,
        "input_tokens": 10_000,
        "max_output_tokens": 5,
        "predicted_kv_mb": 7500.0,
        "memory_pressure": 0.72,
        "priority": 5,
        "gpu_mode": "single",
        "decide_us": 20.0,
    }


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    """The last lines, whole ones only, however large the file."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n\ntwo\n")
    assert tail(path) == [b"one", b"two"]
    path.write_bytes(b"x" * (1 << 20) + b"\n" + b"\n".join(b"%d" % n for n in range(1000)))
    lines = tail(path)
    assert (len(lines), lines[0], lines[-1]) == (LOG_TAIL_LINES, b"500", b"999")
    path.write_bytes(b"x" * (2 << 20))
    assert tail(path) == []
