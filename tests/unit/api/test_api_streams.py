"""Several choices read as one, and closed as one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gpt_oss_server.api.streams import ChoiceStreams
from gpt_oss_server.engine.fake import FakeEngine, Script
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.types import Job, SamplingParams


def jobs(count: int) -> list[Job]:
    return [
        Job(id=f"job-{i}", prompt=[10 + i], sampling=SamplingParams(max_tokens=3, ignore_eos=True))
        for i in range(count)
    ]


def run(engine: FakeEngine, work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        await engine.start()
        async with asyncio.timeout(30):
            await work

    asyncio.run(main())


def repeating(job: Job) -> Script:
    return Script((job.prompt[0],))


@pytest.mark.parametrize("count", [1, 3])
def test_all_deltas_arrive_and_then_nothing(count: int) -> None:
    """Every choice's tokens come in order, and an empty batch marks the end of all."""
    engine = FakeEngine(repeating)

    async def work() -> None:
        seen: dict[int, list[int]] = {index: [] for index in range(count)}
        async with ChoiceStreams(engine, jobs(count)) as streams:
            while batch := await streams.next_batch():
                for index, delta in batch:
                    seen[index].extend(delta.token_ids)
            assert await streams.next_batch() == []
        assert seen == {index: [10 + index] * 3 for index in range(count)}

    run(engine, work())
    assert (engine.finished, engine.active) == (count, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_cancels_all(count: int) -> None:
    """Leaving the block early cancels every job before it returns."""
    engine = FakeEngine(repeating)

    async def work() -> None:
        engine.close_gate()
        async with ChoiceStreams(engine, jobs(count)) as streams:
            engine.let_pass(count)
            await streams.next_batch()
            await engine.until(lambda e: e.active == count)
        assert engine.active == 0

    run(engine, work())
    assert engine.cancelled == count


@pytest.mark.parametrize("count", [1, 3])
def test_waiting_reader_cancelled(count: int) -> None:
    """Cancelling the task that waits for a batch cancels the jobs."""
    engine = FakeEngine(repeating)

    async def read() -> None:
        async with ChoiceStreams(engine, jobs(count)) as streams:
            await streams.next_batch()

    async def work() -> None:
        engine.close_gate()
        reader = asyncio.ensure_future(read())
        await engine.until(lambda e: e.active == count)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert engine.active == 0

    run(engine, work())
    assert engine.cancelled == count


def test_what_waits_comes_together() -> None:
    """Deltas that arrived while nobody read come as one batch."""
    engine = FakeEngine(repeating)

    async def work() -> None:
        async with ChoiceStreams(engine, jobs(2)) as streams:
            await engine.until(lambda e: e.finished == 2)
            batch = await streams.next_batch()
            assert sorted(index for index, _ in batch) == [0, 0, 0, 1, 1, 1]

    run(engine, work())


def test_stopping_one() -> None:
    """A stopped choice delivers no more; the others go on."""
    engine = FakeEngine(repeating)

    async def work() -> None:
        engine.close_gate()
        async with ChoiceStreams(engine, jobs(2)) as streams:
            await engine.until(lambda e: e.active == 2)
            await streams.stop(0)
            engine.open_gate()
            seen = []
            while batch := await streams.next_batch():
                seen.extend(index for index, _ in batch)
            assert seen == [1, 1, 1]

    run(engine, work())
    assert (engine.finished, engine.cancelled) == (1, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_failure_is_raised(count: int) -> None:
    """The first failure of any choice is raised to the reader, and the rest is cancelled."""
    engine = FakeEngine(
        lambda job: Script((5,), fail_after=0 if job.prompt[0] == 10 + count - 1 else None)
    )

    async def read() -> None:
        async with ChoiceStreams(engine, jobs(count)) as streams:
            while await streams.next_batch():
                pass

    async def work() -> None:
        with pytest.raises(EngineFailed):
            await read()

    run(engine, work())
    assert (engine.failed, engine.active) == (1, 0)
