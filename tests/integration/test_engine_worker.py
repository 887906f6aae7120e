"""The engine in its own process: speaking with it, its death, its front's death, bad starts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

import gpt_oss_server
from engine_runs import job
from gpt_oss_server.engine import client as client_module
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import BadRequest, EngineFailed, NotReady, StartupError
from gpt_oss_server.types import Job, TokenDelta

TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
DEADLINE_S = 60.0
FRONT = """
import asyncio, sys
from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec

async def main():
    client = EngineClient(EngineSpec(folder=sys.argv[1], load_format="random", device="cpu"))
    await client.start()
    print(client.worker_pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def tiny_spec(**changes: Any) -> EngineSpec:
    defaults: dict[str, Any] = {
        "folder": str(TINY),
        "load_format": "random",
        "device": "cpu",
        "kv_cache_bytes": 16 << 20,
        "max_num_seqs": 16,
        "threads": 1,
    }
    return EngineSpec(**{**defaults, **changes})


@dataclass
class Shared:
    """One started client for the tests that leave it as they found it. Its folder may be written
    to, and it restarts at once. `progress` collects what it says."""

    client: EngineClient
    folder: Path
    progress: list[str]
    runner: asyncio.Runner

    def run(self, test: Callable[[EngineClient], Coroutine[Any, Any, None]]) -> None:
        async def within_deadline() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await test(self.client)

        self.runner.run(within_deadline())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("config.json", "generation_config.json"):
        shutil.copy(TINY / name, folder)
    progress: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch, asyncio.Runner() as runner:
        monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)
        client = EngineClient(tiny_spec(folder=str(folder)), on_progress=progress.append)
        runner.run(client.start())
        try:
            yield Shared(client, folder, progress, runner)
        finally:
            runner.run(client.close())


async def collect(client: EngineClient, one: Job) -> list[int]:
    return [token async for delta in client.generate(one) for token in delta.token_ids]


async def eventually(predicate: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not predicate():  # noqa: ASYNC110 - other processes give no event to wait for
            await asyncio.sleep(0.01)


def endless(key: int) -> Job:
    return job([3, 4, key], max_tokens=100_000, explicit=False, ignore_eos=True)


def some_jobs() -> list[Job]:
    return [
        job([5, 9, 2, key], max_tokens=20, temperature=1.0, seed=key, ignore_eos=True)
        for key in range(8)
    ]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_concurrent_equals_alone(shared: Shared) -> None:
    """Eight jobs at once say what each says alone; the model behind is the packaged one."""

    async def test(client: EngineClient) -> None:
        assert client.state().ready
        info = client.info()
        assert (info.vocab_size, info.max_model_len) == (2048, 131_072)
        assert [(group.name, group.window) for group in info.kv_groups] == [
            ("full", None),
            ("sliding", 64),
        ]
        before = client.stats().jobs_finished
        together = await asyncio.gather(*(collect(client, one) for one in some_jobs()))
        alone = [await collect(client, one) for one in some_jobs()]
        assert together == alone
        assert [len(tokens) for tokens in alone] == [20] * 8
        assert len({token for tokens in alone for token in tokens}) > 40
        await eventually(lambda: client.stats().jobs_finished == before + 16)
        assert not any(client.stats().blocks_in_use.values())

    shared.run(test)
    assert "initialising random weights (seed 0)" in shared.progress
    assert not any(line.startswith("warning") for line in shared.progress)


def test_leaving_frees_what_the_job_held(shared: Shared) -> None:
    """Closing the iterator cancels the job in the worker, at once, and no other."""

    async def test(client: EngineClient) -> None:
        before = client.stats().jobs_cancelled
        expected = await collect(client, some_jobs()[0])
        leaving = cast("AsyncGenerator[TokenDelta, None]", client.generate(endless(7)))
        await anext(leaving)
        staying = asyncio.ensure_future(collect(client, some_jobs()[0]))
        await eventually(lambda: any(client.stats().blocks_in_use.values()))
        await leaving.aclose()
        await eventually(lambda: client.stats().jobs_cancelled == before + 1)
        await eventually(lambda: not any(client.stats().blocks_in_use.values()))
        assert await staying == expected

    shared.run(test)


def test_errors_of_jobs_cross_the_processes(shared: Shared) -> None:
    """A refused job raises its own error in the front; the worker goes on."""

    async def test(client: EngineClient) -> None:
        good = asyncio.ensure_future(collect(client, some_jobs()[1]))
        with pytest.raises(BadRequest, match="outside the vocabulary") as caught:
            await collect(client, job([999_999]))
        assert caught.value.param == "prompt"
        assert len(await good) == 20
        assert client.state().ready

    shared.run(test)


def test_a_killed_worker_is_replaced(shared: Shared) -> None:
    """SIGKILL: jobs in flight end in EngineFailed, the state says not ready and then ready again
    with one restart more, and outputs are what they were."""

    async def test(client: EngineClient) -> None:
        restarts = client.state().restarts
        expected = await collect(client, some_jobs()[2])
        flights = [asyncio.ensure_future(collect(client, endless(key))) for key in range(4)]
        await eventually(lambda: client.stats().running == 4)
        pid = client.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for result in await asyncio.gather(*flights, return_exceptions=True):
            assert type(result) is EngineFailed
        assert not client.state().ready
        assert client.state().reason
        assert client.stats().running == 0
        with pytest.raises(NotReady):
            await collect(client, some_jobs()[2])
        await eventually(lambda: client.state().ready)
        assert client.state().restarts == restarts + 1
        assert client.worker_pid not in (None, pid)
        assert await collect(client, some_jobs()[2]) == expected

    shared.run(test)
    assert any("exit status -9" in line for line in shared.progress)
    assert shared.progress[-1] == "the engine is ready again"


def test_a_worker_that_cannot_come_back_is_tried_again(shared: Shared) -> None:
    """When a restart fails, the state says why, and a later try succeeds."""
    config = shared.folder / "config.json"

    async def test(client: EngineClient) -> None:
        restarts = client.state().restarts
        good = config.read_bytes()
        config.write_text("{")
        assert client.worker_pid is not None
        os.kill(client.worker_pid, signal.SIGKILL)
        await eventually(lambda: "cannot read the model's config" in client.state().reason)
        assert not client.state().ready
        config.write_bytes(good)
        await eventually(lambda: client.state().ready)
        assert client.state().restarts >= restarts + 2

    shared.run(test)


@pytest.mark.parametrize(
    ("changes", "message", "exit_status"),
    [
        ({"folder": "/no/such/folder"}, "cannot read the model's config", 1),
        ({"load_format": "auto"}, "holds no weights", 1),
        ({"attention_backend": "fastest"}, "unknown attention backend", 1),
        ({"kv_cache_bytes": 1}, "too little memory for a KV cache", 1),
    ],
    ids=["no folder", "no weights", "no backend", "no memory"],
)
def test_a_worker_that_cannot_start(
    changes: dict[str, Any], message: str, exit_status: int, tmp_path: Path
) -> None:
    """`start` raises one clear line, and leaves no process behind."""
    shutil.copy(TINY / "config.json", tmp_path)
    changes = {"folder": str(tmp_path)} | changes

    async def main() -> None:
        client = EngineClient(tiny_spec(**changes))
        with pytest.raises(StartupError, match=message) as caught:
            await client.start()
        assert caught.value.exit_status == exit_status
        assert "\n" not in str(caught.value)
        assert not client.state().ready
        pid = client.worker_pid
        await client.close()
        assert pid is None or gone(pid)

    asyncio.run(main())


def test_close_ends_the_process_and_its_jobs() -> None:
    """After `close` the worker is gone and a job that was running has its error."""

    async def main() -> None:
        client = EngineClient(tiny_spec())
        await client.start()
        pid = client.worker_pid
        assert pid is not None
        flight = asyncio.ensure_future(collect(client, endless(1)))
        await eventually(lambda: client.stats().running == 1)
        await client.close()
        with pytest.raises(EngineFailed):
            await flight
        assert gone(pid)
        assert not client.state().ready

    asyncio.run(main())


def test_the_worker_does_not_outlive_its_front() -> None:
    """A front that is killed takes its worker with it: the socket's end is enough."""
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, str(TINY)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        assert not gone(pid)
        front.kill()
        front.wait()
        asyncio.run(eventually(lambda: gone(pid)))
    finally:
        front.kill()
        front.wait()
        if front.stdout is not None:
            front.stdout.close()
