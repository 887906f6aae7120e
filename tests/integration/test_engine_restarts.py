"""Restarts that go wrong in ways nobody foresaw: the supervisor says so and tries again."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from gpt_oss_server.engine import client as client_module
from gpt_oss_server.engine import wire
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.worker import Channel
from gpt_oss_server.errors import StartupError
from gpt_oss_server.events import Event, WorkerRestarted
from gpt_oss_server.types import Job, SamplingParams

DEADLINE_S = 60.0
SPEC = EngineSpec(
    folder=str(files("gpt_oss_server") / "models" / "tiny"),
    device="cpu",
    load_format="random",
    kv_cache_bytes=1 << 20,
    threads=1,
)
SHORT = Job(id="s", prompt=[5], sampling=SamplingParams(max_tokens=2, ignore_eos=True))
NO_FILES = OSError(errno.EMFILE, "Too many open files")

FROZEN = """
import gc, socket, sys, threading
import msgspec
from gpt_oss_server.engine import wire, worker
from gpt_oss_server.engine.spec import EngineSpec

spec = msgspec.json.decode(sys.argv[1], type=EngineSpec)
ours, theirs = socket.socketpair()
serving = threading.Thread(target=worker.serve, args=(theirs,))
serving.start()
ours.sendall(wire.frame(wire.Start(spec)))
frames, decoder = wire.FrameBuffer(), msgspec.msgpack.Decoder(wire.ToFront)
started = False
while not started:
    for payload in frames.feed(ours.recv(65536)):
        started = started or isinstance(decoder.decode(payload), wire.Started)
print(gc.get_freeze_count() > 10_000)
ours.close()
serving.join()
"""


class BrokenClient(EngineClient):
    """Its process cannot be started while there are `troubles`: each is raised once."""

    troubles: tuple[BaseException, ...] = ()

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        if self.troubles:
            trouble, *rest = self.troubles
            self.troubles = tuple(rest)
            raise trouble
        return super()._spawn(theirs)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try comes at once."""
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)


@asynccontextmanager
async def started(client: EngineClient) -> AsyncIterator[int]:
    """Its worker's process id."""
    async with asyncio.timeout(DEADLINE_S):
        await client.start()
        try:
            assert client.worker_pid is not None
            yield client.worker_pid
        finally:
            await client.close()


async def eventually(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110 - other processes give no event to wait for
        await asyncio.sleep(0.005)


async def tokens(client: EngineClient) -> int:
    return sum([len(delta.token_ids) async for delta in client.generate(SHORT)])


def test_no_exception_ends_the_trying() -> None:
    """Out of files, out of threads, a bug: each is told with its name, counted, and survived."""
    said: list[str] = []
    events: list[Event] = []
    reasons: list[str] = []

    def progress(text: str) -> None:
        said.append(text)
        reasons.append(client.state().reason)

    client = BrokenClient(SPEC, on_progress=progress, emit=events.append)

    async def story() -> None:
        async with started(client) as pid:
            client.troubles = (NO_FILES, RuntimeError("can't start new thread"), KeyError("x"))
            said.clear()
            reasons.clear()
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: client.state().restarts == 4 and client.state().ready)
            assert client.state().reason == "ready"
            assert client.worker_pid != pid
            assert await tokens(client) == 2

    asyncio.run(story())
    failures = [
        "the engine worker ended (exit status -9)",
        "restart failed: OSError: [Errno 24] Too many open files",
        "restart failed: RuntimeError: can't start new thread",
        "restart failed: KeyError: 'x'",
    ]
    assert [event for event in events if isinstance(event, WorkerRestarted)] == [
        WorkerRestarted(reason, number) for number, reason in enumerate(failures, 1)
    ]
    assert [line.rpartition(";")[0] for line in said if "; restarting in" in line] == failures
    # While the next worker loads, /health goes on to say what was wrong with the one before.
    loading = [reason for reason in reasons if reason.startswith("initialising")]
    assert loading == [f"initialising random weights (seed 0), after: {failures[-1]}"]


def test_the_reason_stays_until_it_is_ready() -> None:
    """From the first failed try on, waiting or trying, the state names the failure; closing ends
    the trying."""
    client = BrokenClient(SPEC)

    async def story() -> None:
        async with started(client) as pid:
            client.troubles = (NO_FILES,) * 100
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: "Too many open files" in client.state().reason)
            while client.state().restarts < 6:
                await asyncio.sleep(0)
                assert not client.state().ready
                assert "restart failed: OSError: [Errno 24] Too many open" in client.state().reason
        assert client.state().reason == "shutting down"

    asyncio.run(story())


def test_a_listener_s_fault_keeps_no_engine_down() -> None:
    """Whoever is told of a restart may fail; the restart does not."""

    def fail(anything: Any) -> None:
        raise ValueError("cannot tell")

    client = EngineClient(SPEC, emit=fail)

    async def story() -> None:
        async with started(client) as pid:
            client._on_progress = fail
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: client.state().restarts == 1 and client.state().ready)
            assert await tokens(client) == 2

    asyncio.run(story())


def test_a_first_start_without_means_is_one_line() -> None:
    """A machine that can start no process: StartupError with the system's own words."""
    client = BrokenClient(SPEC)
    client.troubles = (NO_FILES,)
    with pytest.raises(StartupError) as caught:
        asyncio.run(client.start())
    assert str(caught.value) == (
        "the engine's process cannot be started: OSError: [Errno 24] Too many open files"
    )


def test_failed_tries_leave_no_file_open() -> None:
    """A try that fails gives back the sockets that it had opened."""
    client = BrokenClient(SPEC)

    async def story() -> None:
        async with started(client) as pid:
            client.troubles = (NO_FILES,) * 3
            before = len(os.listdir("/proc/self/fd"))
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: client.state().restarts == 4 and client.state().ready)
            assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


@pytest.fixture
def many_files() -> Iterator[int]:
    """A number of a file beyond what select() can wait for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2048
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("too few files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield 1500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_worker_started_beside_many_connections(many_files: int) -> None:
    """Its end of the channel may have any number, and the worker waits on it all the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, many_files)
        with socket.socket(fileno=high) as end:
            channel = Channel(end)
            assert channel.receive(wait=False) == []
            ours.sendall(wire.frame(wire.Cancel(7)))
            assert channel.receive(wait=True) == [wire.Cancel(7)]


def test_a_worker_s_start_is_no_work_for_its_collector() -> None:
    """When it says that it has started, what it has made so far is out of later collections."""
    done = subprocess.run(
        [sys.executable, "-c", FROZEN, msgspec.json.encode(SPEC).decode()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
