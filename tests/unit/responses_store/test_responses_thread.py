"""The store's thread: bounded, patient for so long, and never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import BOUNDS, OWNER, SteeredClock, response

from gpt_oss_server.responses_store.records import NotStored, StoreUnavailable
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore

OpenTable = Callable[..., SqliteResponses]


class Hold:
    """Work that keeps the thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, table: SqliteResponses) -> str:
        self.begun.set()
        self.go.wait()
        return "held"


async def held(store: ResponseStore, hold: Hold) -> asyncio.Task[str]:
    """A task that holds the thread now."""
    task = asyncio.ensure_future(store.ask(hold))
    await asyncio.to_thread(hold.begun.wait)
    return task


def test_work_comes_back(table: SqliteResponses) -> None:
    """Results and errors reach who asked, from a thread of the store's own."""

    async def main() -> None:
        store = ResponseStore(table)
        await store.ask(lambda table: table.put(response("a")))
        assert (await store.ask(lambda table: table.get(OWNER, "a"))).id == "a"
        with pytest.raises(NotStored):
            await store.ask(lambda table: table.get(OWNER, "b"))
        assert await store.ask(lambda _: threading.current_thread().name) == "responses"
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.ask(SqliteResponses.totals)

    asyncio.run(main())


def test_the_loop_runs_while_the_disk_does_not(table: SqliteResponses) -> None:
    """A disk that hangs holds those who wait for it, for so long, and nobody else."""

    async def main() -> None:
        store, hold = ResponseStore(table, patience_s=0.05), Hold()
        task = await held(store, hold)
        with pytest.raises(StoreUnavailable, match=r"0\.05 s"):
            await store.ask(SqliteResponses.totals)
        with pytest.raises(StoreUnavailable):
            await task
        hold.go.set()
        totals = None
        while totals is None:
            with contextlib.suppress(StoreUnavailable):
                totals = await store.ask(SqliteResponses.totals)
        assert totals == (0, 0)
        store.close()

    asyncio.run(main())


def test_the_queue_is_bounded(table: SqliteResponses, caplog: pytest.LogCaptureFixture) -> None:
    """One call more than may wait is refused at once; the log says so once until it is over."""

    async def main() -> None:
        store, hold = ResponseStore(table, capacity=1), Hold()
        task = await held(store, hold)
        waiting = asyncio.ensure_future(store.ask(SqliteResponses.totals))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="too many"):
                await store.ask(SqliteResponses.totals)
        hold.go.set()
        assert await task == "held"
        assert await waiting == (0, 0)
        store.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert len(caplog.records) == 1


def test_who_leaves_before_the_turn_comes_does_no_work(table: SqliteResponses) -> None:
    """A caller that is cancelled while it waits stores nothing."""

    async def main() -> None:
        store, hold = ResponseStore(table), Hold()
        task = await held(store, hold)
        leaving = asyncio.ensure_future(store.ask(lambda table: table.put(response("a"))))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        hold.go.set()
        await task
        assert await store.ask(SqliteResponses.totals) == (0, 0)
        store.close()

    asyncio.run(main())


def test_the_end_finishes_what_waits(open_table: OpenTable) -> None:
    """What was asked for before the end is done."""

    async def main() -> None:
        store = ResponseStore(open_table())
        puts = [
            asyncio.ensure_future(store.ask(lambda table, n=n: table.put(response(f"r{n}"))))
            for n in range(10)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        await asyncio.gather(*puts)

    asyncio.run(main())
    assert open_table().totals()[0] == 10


def test_the_start_drops_what_is_too_old(
    open_table: OpenTable, path: Path, clock: SteeredClock
) -> None:
    """A server that comes up clears its file although nobody asks for anything."""
    with_old = open_table()
    for number in range(200):
        with_old.put(response(f"r{number}", body=b"x" * 5000))
    with_old.close()
    clock.now_s += BOUNDS.max_age_s + 1
    store = ResponseStore(open_table())
    store.start()

    async def until_empty() -> None:
        while await store.ask(SqliteResponses.totals) != (0, 0):
            pass
        store.close()

    asyncio.run(until_empty())
    assert path.stat().st_size < 100_000


def test_idle_stores_expire_too(open_table: OpenTable, clock: SteeredClock) -> None:
    """While nothing happens, what gets too old is dropped all the same."""
    table = open_table()
    table.put(response("a"))
    table.close()
    swept = threading.Event()

    class Watched(SqliteResponses):
        def expire(self) -> bool:
            more = super().expire()
            if self.totals()[0] == 0:
                swept.set()
            return more

    watched = Watched(table._path, BOUNDS, clock=clock)
    store = ResponseStore(watched, sweep_every_s=0.01)
    clock.now_s += BOUNDS.max_age_s + 1
    store._begin()
    assert swept.wait(30)
    store.close()
