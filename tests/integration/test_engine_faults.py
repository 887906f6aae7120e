"""A worker that is signalled, stopped or cannot start: what its front makes of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import pytest

from gpt_oss_server.engine.client import EngineClient
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.errors import ConfigError, EngineFailed, StartupError
from gpt_oss_server.types import Job, SamplingParams

TINY = str(files("gpt_oss_server") / "models" / "tiny")
LONG = Job(
    id="long",
    prompt=[5, 6, 7],
    sampling=SamplingParams(max_tokens=400, temperature=1.0, seed=3, ignore_eos=True),
)


def spec(**changes: object) -> EngineSpec:
    values: dict[str, object] = {
        "folder": TINY,
        "device": "cpu",
        "load_format": "random",
        "kv_cache_bytes": 4 << 20,
        "threads": 1,
    }
    return EngineSpec(**{**values, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def started(**changes: object) -> AsyncIterator[EngineClient]:
    client = EngineClient(spec(**changes))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def until_ready(client: EngineClient, restarts: int) -> None:
    while not (client.state().ready and client.state().restarts == restarts):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_running_jobs_alone(number: signal.Signals) -> None:
    """A supervisor signals the group: the worker goes on until its front closes the socket."""

    async def work() -> None:
        async with started() as client:
            pid = client.worker_pid
            assert pid is not None
            assert os.getpgid(pid) != os.getpgid(0)
            tokens = 0
            async for delta in client.generate(LONG):
                if tokens == 0:
                    os.kill(pid, number)
                tokens += len(delta.token_ids)
            assert tokens == 400
            assert client.state().restarts == 0

    asyncio.run(work())


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    """A stopped worker with work ends its job in an error, and a new one takes over."""

    async def work() -> None:
        async with started(hang_after_s=1.0) as client:
            pid = client.worker_pid
            assert pid is not None
            stream = client.generate(LONG)
            await anext(stream)
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(EngineFailed):
                async for _ in stream:
                    pass
            await asyncio.wait_for(until_ready(client, restarts=1), 60)
            assert client.worker_pid != pid
            short = Job(id="s", prompt=[5], sampling=SamplingParams(max_tokens=2, ignore_eos=True))
            assert sum([len(d.token_ids) async for d in client.generate(short)]) == 2

    asyncio.run(work())


def test_an_idle_worker_may_be_silent() -> None:
    """Without work there is nothing to hear, and nobody is killed for it."""

    async def work() -> None:
        async with started(hang_after_s=1.0) as client:
            pid = client.worker_pid
            await asyncio.sleep(2.5)  # longer than a worker with work may be silent
            assert client.state().ready
            assert client.worker_pid == pid

    asyncio.run(work())


def failure_of(**changes: object) -> StartupError:
    """What keeps an engine of this spec from starting."""

    async def work() -> StartupError:
        client = EngineClient(spec(**changes))
        with pytest.raises(StartupError) as caught:
            await client.start()
        await client.close()
        return caught.value

    return asyncio.run(work())


def test_an_unforeseen_exception_while_loading_is_one_line(tmp_path: Path) -> None:
    """A config that breaks the model's own code: one line with the exception, no hang."""
    config = json.loads((Path(TINY) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 0}))
    message = str(failure_of(folder=str(tmp_path)))
    assert "\n" not in message
    assert "Error" in message


def test_impossible_lengths_and_budgets_are_refused() -> None:
    """More context than the model has, or fewer tokens a step than sequences: exit status 2."""
    context = failure_of(max_model_len=200_000)
    assert "exceeds the model's own context of 131072" in str(context)
    assert context.exit_status == ConfigError.exit_status
    budget = failure_of(max_batch_tokens=7, max_num_seqs=8)
    assert "max_batch_tokens 7 is less than max_num_seqs 8" in str(budget)
    assert budget.exit_status == ConfigError.exit_status
