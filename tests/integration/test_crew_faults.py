"""A rank that dies, hangs or runs out of memory at work: what its front makes of it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import psutil
import pytest

from crew_runs import answers, crew_spec, eventually, gone, started, talkative_folder
from engine_runs import job
from gpt_oss_server.engine import client as client_module
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.errors import EngineFailed, spec_of
from gpt_oss_server.types import Job, TokenDelta

# What the operator is promised, whichever rank it is.
ANSWERED_WITHIN_S = 10.0
# For tests that wait for it.
SHORT_TIMEOUT_S = 3.0
# Twenty restarts of four ranks on two busy cores.
MANY_DEADLINE_S = 1800.0
SHARED_MEMORY = Path("/dev/shm")
# What NCCL, torch and Python call what they share.
SHARED_NAMES = ("nccl", "torch", "psm_", "gloo")
_PR_SET_CHILD_SUBREAPER = 36
FRONT = """
import asyncio, sys
import msgspec
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.types import Job, SamplingParams

JOB = Job(id="", prompt=[3], sampling=SamplingParams(max_tokens=1900, ignore_eos=True))

async def main():
    client = EngineClient(msgspec.json.decode(sys.argv[1], type=EngineSpec))
    await client.start()
    stream = client.generate(JOB)
    await anext(stream)
    print(*client.pids, flush=True)
    async for _ in stream:
        pass
    print(client.state().restarts, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def shared_memory() -> set[str]:
    """What of ours is shared now."""
    return {file.name for file in SHARED_MEMORY.iterdir() if file.name.startswith(SHARED_NAMES)}


def endless(key: int) -> Job:
    return job([3, 4, key], max_tokens=100_000, explicit=False, ignore_eos=True)


@dataclass
class Crew:
    """A started crew that is hurt again and again. `told` is what its client said."""

    client: EngineClient
    runner: asyncio.Runner
    told: list[str] = field(default_factory=list)

    def run(self, test: Callable[[EngineClient], Coroutine[None, None, None]]) -> None:
        self.runner.run(asyncio.wait_for(test(self.client), 240))


def hurt_crew(folder: str, mode: str) -> Iterator[Crew]:
    """Two ranks with room for long prompts; the first restart comes at once."""
    spec = crew_spec(
        folder,
        mode,
        rank_timeout_s=SHORT_TIMEOUT_S,
        max_batch_tokens=2048,
        kv_cache_bytes=64 << 20,
    )
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)
        told: list[str] = []
        crew = started(spec, MANY_DEADLINE_S, told.append)
        yield Crew(runner.run(crew.__aenter__()), runner, told)
        runner.run(crew.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return talkative_folder(Path(tmp_path_factory.mktemp("talkative")))


@pytest.fixture(scope="module")
def pipeline(folder: str) -> Iterator[Crew]:
    yield from hurt_crew(folder, "pipeline")


@pytest.fixture(scope="module")
def tensor(folder: str) -> Iterator[Crew]:
    yield from hurt_crew(folder, "tensor")


@pytest.fixture
def first_of_a_container() -> Iterator[None]:
    """Whose parent is gone becomes a child of this process."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def leader_of(client: EngineClient) -> int:
    """Its rank."""
    ranks = client.info().ranks
    return next(rank.rank for rank in ranks if rank.pid == client.worker_pid)


def pid_of(client: EngineClient, victim: str) -> int:
    leader = leader_of(client)
    pid = client.info().ranks[leader if victim == "leader" else 1 - leader].pid
    assert pid is not None
    return pid


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


@asynccontextmanager
async def idle(client: EngineClient) -> AsyncIterator[list[float]]:
    """Nothing runs. Behind the body a job comes, and ends as those of `under_load`, or is turned
    away by what has been noticed by then."""
    await eventually(lambda: client.stats().running == 0)
    took_s: list[float] = []
    yield took_s
    began_s = time.monotonic()
    result = (await answers(client, {0: endless(0)}))[0]
    assert result.error is not None
    assert spec_of(result.error).status == 503
    took_s.append(time.monotonic() - began_s)


async def replaced(client: EngineClient, restarts: int, old: Iterable[int]) -> None:
    """Until there is a whole new crew, and nothing left of the old one; it answers."""
    await eventually(lambda: client.state().ready and client.state().restarts == restarts)
    assert not set(client.pids) & set(old)
    assert len(client.pids) == len(client.info().ranks)
    assert all(map(gone, old))
    assert len((await answers(client, {0: job([5, 6], ignore_eos=True)}))[0].tokens) == 8


async def hurt(
    client: EngineClient, victim: str, number: signal.Signals, when: str = "load"
) -> str:
    """Send a rank the signal; all is answered in time, and replaced. What the state said, with
    `{victim}` for its name."""
    restarts, pids, pid = client.state().restarts, client.pids, pid_of(client, victim)
    rank = next(rank.rank for rank in client.info().ranks if rank.pid == pid)
    async with (under_load if when == "load" else idle)(client) as took_s:
        os.kill(pid, number)
    assert took_s[0] < ANSWERED_WITHIN_S
    assert not client.state().ready
    await eventually(lambda: "restarting" in client.state().reason)
    reason = client.state().reason
    await replaced(client, restarts + 1, pids)
    return reason.replace(f"rank {rank} (process {pid})", "{victim}")


REASONS = {
    (signal.SIGKILL, "follower"): "{victim} was killed (SIGKILL)",
    (signal.SIGKILL, "leader"): "exit status -9",
    (signal.SIGSTOP, "follower"): "{victim} does not respond",
    (signal.SIGSTOP, "leader"): "the leading rank does not respond",
}
# Those of a crew that the quick suite runs; the others cost a restart each and are slow.
QUICK = {
    ("pipeline", signal.SIGKILL, "follower", "load"),
    ("pipeline", signal.SIGSTOP, "follower", "idle"),
}
HURTS = [
    pytest.param(
        *one,
        marks=() if one in QUICK else pytest.mark.slow,
        id=f"{mode}-{number.name}-{victim}-{when}",
    )
    for mode in ("pipeline", "tensor")
    for number, victim in REASONS
    for when in ("load", "idle")
    if (one := (mode, number, victim, when))
]


@pytest.mark.parametrize(("mode", "number", "victim", "when"), HURTS)
def test_a_lost_rank_takes_its_replica_down_and_is_replaced(
    request: pytest.FixtureRequest, mode: str, number: signal.Signals, victim: str, when: str
) -> None:
    """Killed or stopped, at work or with nothing to do: what runs gets an error, all ranks end,
    new ones start, and the state says who it was."""

    async def test(client: EngineClient) -> None:
        reason = await hurt(client, victim, number, when)
        assert REASONS[number, victim] in reason

    request.getfixturevalue(mode).run(test)


def test_ranks_without_a_leader_leave_nothing(pipeline: Crew, first_of_a_container: None) -> None:
    """SIGKILL of the leader, where the others then are children of this process, as in a
    container: not even their status is left."""

    def zombies() -> set[psutil.Process]:
        children = psutil.Process().children()
        return {child for child in children if child.status() == psutil.STATUS_ZOMBIE}

    async def test(client: EngineClient) -> None:
        before = zombies()
        reason = await hurt(client, "leader", signal.SIGKILL)
        assert REASONS[signal.SIGKILL, "leader"] in reason
        assert {child.pid for child in psutil.Process().children()} & set(client.pids) == {
            client.worker_pid
        }
        assert not zombies() - before

    pipeline.run(test)


OUT_OF_MEMORY = [
    pytest.param("pipeline", "leader"),
    pytest.param("tensor", "follower"),
    pytest.param("pipeline", "follower", marks=pytest.mark.slow),
    pytest.param("tensor", "leader", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("mode", "victim"), OUT_OF_MEMORY)
def test_a_rank_that_runs_out_of_memory_says_so(
    request: pytest.FixtureRequest, mode: str, victim: str
) -> None:
    """An allocation that fails: its replica ends, the state says why, and the log where."""
    crew: Crew = request.getfixturevalue(mode)

    async def test(client: EngineClient) -> None:
        restarts, pids, pid = client.state().restarts, client.pids, pid_of(client, victim)
        rank = next(rank.rank for rank in client.info().ranks if rank.pid == pid)
        process = psutil.Process(pid)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + (1 << 20), -1))
        prompts = {key: [2 + (n * 7 + key) % 900 for n in range(2000)] for key in range(4)}
        results = await answers(client, {key: job(p) for key, p in prompts.items()})
        assert {type(result.error) for result in results.values()} == {EngineFailed}
        await eventually(lambda: "restarting" in client.state().reason)
        who = "the leading rank" if victim == "leader" else f"rank {rank} (process {pid})"
        assert f"{who} ran out of memory" in client.state().reason
        (line,) = [line for line in crew.told if "ran out of memory" in line and ".py:" in line]
        assert "\n" not in line
        crew.told.clear()
        await replaced(client, restarts + 1, pids)

    crew.run(test)


def test_an_idle_crew_may_be_silent(tensor: Crew) -> None:
    """Without work nobody is judged, however short the time is that a step may stand still."""

    async def test(client: EngineClient) -> None:
        pids, restarts = client.pids, client.state().restarts
        await asyncio.sleep(SHORT_TIMEOUT_S + 1.5)  # longer than a step may stand still
        assert client.state().ready
        assert (client.pids, client.state().restarts) == (pids, restarts)
        assert len((await answers(client, {0: job([5, 6])}))[0].tokens) > 0

    tensor.run(test)


def test_short_visits_do_not_hide_a_stopped_leader(tensor: Crew) -> None:
    """Jobs that are each cancelled before the time is up: the leader is found out all the same."""

    async def test(client: EngineClient) -> None:
        restarts, pids = client.state().restarts, client.pids
        os.kill(pid_of(client, "leader"), signal.SIGSTOP)
        began_s = time.monotonic()
        while client.state().ready:
            visit = cast("AsyncGenerator[TokenDelta, None]", client.generate(endless(1)))
            waiting = asyncio.ensure_future(anext(visit))
            await asyncio.wait((waiting,), timeout=SHORT_TIMEOUT_S / 4)
            waiting.cancel()
            await asyncio.wait((waiting,))
            await visit.aclose()
            assert time.monotonic() - began_s < ANSWERED_WITHIN_S
        await replaced(client, restarts + 1, pids)

    tensor.run(test)


@pytest.mark.slow
def test_the_usual_timeout_answers_in_time(folder: str) -> None:
    """With the timeout that is the default, a stopped tensor rank's jobs are answered in time."""

    async def test() -> None:
        async with started(crew_spec(folder, "tensor")) as client:
            for victim in ("follower", "leader"):
                await hurt(client, victim, signal.SIGSTOP)

    asyncio.run(test())


@pytest.mark.slow
@pytest.mark.timeout(MANY_DEADLINE_S)
@pytest.mark.parametrize(("mode", "gpus"), [("pipeline", 2), ("tensor", 2), ("pipeline", 4)])
def test_twenty_kills(folder: str, mode: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times SIGKILL under load, each rank in turn: answered in time, ready again, and
    nothing left. Prints how long it took."""
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(client_module, "BACKOFF_MAX_S", 0.01)
    errors_s, ready_s = [], []

    async def test() -> None:
        async with started(crew_spec(folder, mode, gpus), MANY_DEADLINE_S) as client:
            for count in range(20):
                pids = client.pids
                victim = client.info().ranks[count % gpus].pid
                assert victim is not None
                async with under_load(client) as took_s:
                    began_s = time.monotonic()
                    os.kill(victim, signal.SIGKILL)
                assert took_s[0] < ANSWERED_WITHIN_S
                await replaced(client, count + 1, pids)
                errors_s.append(took_s[0])
                ready_s.append(time.monotonic() - began_s)

    before = shared_memory()
    asyncio.run(test())
    assert shared_memory() <= before
    print(
        f"\n{mode} {gpus}: {len(errors_s)} kills, longest to the last error {max(errors_s):.3f} s, "
        f"to ready and answered again {max(ready_s):.1f} s"
    )


@contextmanager
def front_of(folder: str, **changes: object) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A front in a process of its own whose ranks are at work, and their process ids, the leader's
    first."""
    spec = msgspec.json.encode(crew_spec(folder, **changes)).decode()
    with subprocess.Popen(
        [sys.executable, "-c", FRONT, spec], stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        pids = [int(pid) for pid in front.stdout.readline().split()]
        assert len(pids) == 2
        yield front, pids
        front.kill()
    asyncio.run(asyncio.wait_for(eventually(lambda: all(map(gone, pids))), ANSWERED_WITHIN_S))


@pytest.mark.parametrize(
    ("number", "stopped"),
    [
        pytest.param(signal.SIGKILL, (), marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, (), marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, (0,)),
        pytest.param(signal.SIGKILL, (0, 1), marks=pytest.mark.slow),
    ],
    ids=["killed", "terminated", "killed, leader stopped", "killed, all stopped"],
)
def test_no_rank_outlives_its_front(
    folder: str, number: signal.Signals, stopped: tuple[int, ...]
) -> None:
    """The front's end, however it comes, is the end of every rank, also of those that can do
    nothing about it."""
    with front_of(folder) as (front, pids):
        for rank in stopped:
            os.kill(pids[rank], signal.SIGSTOP)
        front.send_signal(number)
        front.wait()


@pytest.mark.slow
def test_a_front_that_was_stopped_blames_nobody(folder: str) -> None:
    """SIGSTOP of the front for longer than its ranks may be silent: they go on."""
    with front_of(folder, rank_timeout_s=1.0) as (front, _):
        front.send_signal(signal.SIGSTOP)
        time.sleep(4.0)  # longer than a leader may be silent
        front.send_signal(signal.SIGCONT)
        assert front.stdout is not None
        assert front.stdout.readline() == "0\n"
