"""A rank that dies, hangs, runs out of memory or never starts: what its front makes of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from crew_runs import (
    TINY,
    answers,
    crew_spec,
    eventually,
    gone,
    started,
    talkative_folder,
)
from engine_runs import job
from gpt_oss_server.engine import client as client_module
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import EngineFailed, StartupError
from gpt_oss_server.types import Job

# What the operator is promised, whichever rank it is.
ANSWERED_WITHIN_S = 10.0
# For tests that wait for it.
SHORT_TIMEOUT_S = 2.0
# Twenty restarts of four ranks on two busy cores.
MANY_DEADLINE_S = 1800.0
FRONT = """
import asyncio, sys
import msgspec
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec

async def main():
    client = EngineClient(msgspec.json.decode(sys.argv[1], type=EngineSpec))
    await client.start()
    print(*client.pids, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkative_folder(Path(tmp_path_factory.mktemp("talkative")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first restart comes at once."""
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)


def endless(key: int) -> Job:
    return job([3, 4, key], max_tokens=100_000, explicit=False, ignore_eos=True)


@asynccontextmanager
async def under_load(client: EngineClient) -> AsyncIterator[list[float]]:
    """Six jobs that run; behind the body, each must have ended in an error. Yields the seconds
    that this took from the end of the body on."""
    flights = asyncio.ensure_future(answers(client, {key: endless(key) for key in range(6)}))
    await eventually(lambda: client.stats().running == 6 and client.stats().decode_tokens > 50)
    took_s: list[float] = []
    began_s = time.monotonic()
    yield took_s
    for result in (await flights).values():
        assert type(result.error) is EngineFailed
        assert result.tokens
    took_s.append(time.monotonic() - began_s)


async def replaced(client: EngineClient, restarts: int, old: tuple[int, ...]) -> None:
    """Until there is a whole new crew, and nothing left of the old one; it answers."""
    await eventually(lambda: client.state().ready and client.state().restarts == restarts)
    assert not set(client.pids) & set(old)
    assert all(map(gone, old))
    assert len((await answers(client, {0: job([5, 6], ignore_eos=True)}))[0].tokens) == 8


async def hurt(client: EngineClient, ranks: Iterable[int], number: signal.Signals) -> list[str]:
    """Send the signal to these ranks, one after the other, under load. What the state said each
    time, with `{rank}` for the victim's name."""
    reasons = []
    for restarts, rank in enumerate(ranks, 1):
        pids = client.pids
        victim = client.info().ranks[rank].pid
        assert victim is not None
        async with under_load(client) as took_s:
            os.kill(victim, number)
        assert took_s[0] < ANSWERED_WITHIN_S
        assert not client.state().ready
        await eventually(lambda: "restarting" in client.state().reason)
        name = f"rank {rank} (process {victim})"
        reasons.append(client.state().reason.replace(name, "{rank}"))
        await replaced(client, restarts, pids)
    return reasons


@pytest.mark.parametrize(
    ("mode", "follower", "leader"), [("pipeline", 0, 1), ("tensor", 1, 0)], ids=["stages", "tensor"]
)
def test_a_killed_rank_takes_its_replica_down_and_is_replaced(
    folder: str, mode: str, follower: int, leader: int
) -> None:
    """SIGKILL of each rank under load: every job gets an error, all ranks end, new ones start."""

    async def test() -> None:
        async with started(crew_spec(folder, mode)) as client:
            follows, leads = await hurt(client, (follower, leader), signal.SIGKILL)
            assert "{rank} was killed (SIGKILL)" in follows
            assert "exit status -9" in leads

    asyncio.run(test())


def test_a_stopped_rank_takes_its_replica_down_and_is_replaced(folder: str) -> None:
    """SIGSTOP of each rank under load: nothing closes, so the silence must tell."""

    async def test() -> None:
        spec = crew_spec(folder, rank_timeout_s=SHORT_TIMEOUT_S)
        async with started(spec) as client:
            follows, leads = await hurt(client, (0, 1), signal.SIGSTOP)
            assert "{rank} does not respond" in follows
            assert "the leading rank does not respond" in leads

    asyncio.run(test())


@pytest.mark.slow
def test_the_usual_timeout_answers_in_time(folder: str) -> None:
    """With the timeout that is the default, a stopped tensor rank's jobs are answered in time."""

    async def test() -> None:
        async with started(crew_spec(folder, "tensor")) as client:
            await hurt(client, (1, 0), signal.SIGSTOP)

    asyncio.run(test())


@pytest.mark.slow
@pytest.mark.timeout(MANY_DEADLINE_S)
@pytest.mark.parametrize(("mode", "gpus"), [("pipeline", 2), ("tensor", 2), ("pipeline", 4)])
def test_twenty_kills(folder: str, mode: str, gpus: int) -> None:
    """Twenty times SIGKILL under load, each rank in turn: answered in time, ready again."""

    async def test() -> None:
        async with started(crew_spec(folder, mode, gpus), MANY_DEADLINE_S) as client:
            await hurt(client, (count % gpus for count in range(20)), signal.SIGKILL)

    asyncio.run(test())


def test_a_rank_that_runs_out_of_memory_says_so(folder: str) -> None:
    """An allocation that fails in a rank that follows: its replica ends, with a line for it."""

    async def test() -> None:
        spec = crew_spec(folder, max_batch_tokens=2048, kv_cache_bytes=64 << 20)
        async with started(spec) as client:
            pids = client.pids
            first = client.info().ranks[0].pid
            process = psutil.Process(first)
            mapped_bytes = process.memory_info().vms
            process.rlimit(psutil.RLIMIT_AS, (mapped_bytes + (1 << 20), -1))
            prompts = {key: [2 + (n * 7 + key) % 900 for n in range(2000)] for key in range(4)}
            results = await answers(client, {key: job(p) for key, p in prompts.items()})
            assert {type(result.error) for result in results.values()} == {EngineFailed}
            await eventually(lambda: "restarting" in client.state().reason)
            assert f"rank 0 (process {first}) ran out of memory" in client.state().reason
            await replaced(client, 1, pids)

    asyncio.run(test())


def test_an_idle_crew_may_be_silent(folder: str) -> None:
    """Without work nobody is judged, however short the time is that a step may stand still."""

    async def test() -> None:
        async with started(crew_spec(folder, rank_timeout_s=1.0)) as client:
            pids = client.pids
            await asyncio.sleep(2.5)  # longer than a step may stand still
            assert client.state().ready
            assert client.pids == pids
            assert len((await answers(client, {0: job([5, 6])}))[0].tokens) > 0

    asyncio.run(test())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_its_front(folder: str, number: signal.Signals) -> None:
    """The front's end, however it comes, is the end of every rank."""
    import msgspec

    spec = msgspec.json.encode(crew_spec(folder)).decode()
    with subprocess.Popen(
        [sys.executable, "-c", FRONT, spec], stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        pids = [int(pid) for pid in front.stdout.readline().split()]
        assert len(pids) == 2
        front.send_signal(number)
    asyncio.run(asyncio.wait_for(eventually(lambda: all(map(gone, pids))), 10))


def descendants() -> list[int]:
    """Live processes that this one started, and theirs."""
    return [p.pid for p in psutil.Process().children(recursive=True) if not gone(p.pid)]


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """No process stays behind."""
    before = set(descendants())
    yield
    asyncio.run(
        asyncio.wait_for(eventually(lambda: set(descendants()) <= before), ANSWERED_WITHIN_S)
    )


def failure_of(spec: EngineSpec) -> StartupError:
    """What keeps an engine of this spec from starting."""

    async def attempt() -> StartupError:
        client = EngineClient(spec)
        with pytest.raises(StartupError) as caught:
            await client.start()
        await client.close()
        return caught.value

    return asyncio.run(asyncio.wait_for(attempt(), 60))


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gpus": 5}, "5"),
        ({"kv_cache_bytes": 1000}, "too little memory for a KV cache"),
        ({"attention_backend": "fastest"}, "unknown attention backend 'fastest'"),
        ({"max_model_len": 10**7}, "exceeds the model's own context"),
        ({"mode": "tensor", "gpus": 3}, "3"),
        ({"device": "cuda"}, "no CUDA device is usable here"),
    ],
    ids=["more stages than layers", "memory", "backend", "context", "heads", "no GPU"],
)
def test_a_start_that_cannot_be_is_one_line(
    folder: str, changes: dict[str, Any], line: str
) -> None:
    """Whichever rank finds out: one line, and nothing stays behind."""
    message = str(failure_of(crew_spec(folder, **changes)))
    assert line in message
    assert "\n" not in message
    assert "Error at" not in message


@pytest.mark.usefixtures("nobody_left")
def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    """The same words as in one process."""
    shutil.copy(TINY / "config.json", tmp_path)
    assert "holds no weights" in str(failure_of(crew_spec(str(tmp_path))))


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_rank_that_dies_while_it_starts(folder: str, victim: str) -> None:
    """A start that loses a rank fails with a line that says so, and leaves nothing."""

    async def attempt() -> str:
        client = EngineClient(crew_spec(folder))
        starting = asyncio.ensure_future(client.start())
        await eventually(lambda: client.worker_pid is not None)
        leader = psutil.Process(client.worker_pid)
        await eventually(lambda: bool(leader.children()) or starting.done())
        (leader if victim == "leader" else leader.children()[0]).kill()
        with pytest.raises(StartupError) as caught:
            await starting
        await client.close()
        return str(caught.value)

    message = asyncio.run(asyncio.wait_for(attempt(), 60))
    if victim == "leader":
        assert "the engine worker ended while loading" in message
    else:
        assert "rank 0 (process" in message
        assert "was killed" in message
