"""The token streams of one request's choices, read as one and closed as one.

Knows: the engine port, concurrency, cancellation. Does not know: text or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from gpt_oss_server.ports import Engine
from gpt_oss_server.types import Job, TokenDelta

Batch = list[tuple[int, TokenDelta]]


class ChoiceStreams:
    """Runs the jobs while the `async with` block lasts; leaving it cancels what still runs.

    One job is read directly, without a task of its own: every task switch per token is paid by
    every stream. Several are pumped by one task each, and whatever has arrived comes together.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        saw: Callable[[int, TokenDelta], None] = lambda _, __: None,
        parallel: int | None = None,
    ) -> None:
        """`saw` is told of every delta as it comes from the engine, with its choice's index. At
        most `parallel` jobs run at once (None: all); the others follow as these end."""
        self._engine = engine
        self._saw = saw
        self._places = asyncio.Semaphore(parallel or len(jobs))
        self._jobs = jobs
        self._single: AsyncGenerator[TokenDelta, None] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._waiting: Batch = []
        self._open = 0
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        if len(self._jobs) == 1:
            self._single = _generate(self._engine, self._jobs[0])
            return self
        for index, job in enumerate(self._jobs):
            pump = asyncio.ensure_future(self._pump(index, job))
            pump.add_done_callback(self._on_end)
            self._pumps.append(pump)
        self._open = len(self._pumps)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._single is not None:
            await self._single.aclose()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def next_batch(self) -> Batch:
        """The deltas that have come since the last call, at least one, each with its choice's
        index; empty when every choice has ended. Raises what the engine raised for any of them.
        """
        if self._single is not None:
            delta = await anext(self._single, None)
            if delta is None:
                return []
            self._saw(0, delta)
            return [(0, delta)]
        while self._failure is None and not self._waiting and self._open:
            self._wake.clear()
            await self._wake.wait()
        if self._failure is not None:
            raise self._failure
        batch, self._waiting = self._waiting, []
        return batch

    async def stop(self, index: int) -> None:
        """Cancel one choice: its answer is complete before its tokens are."""
        if self._single is not None:
            await self._single.aclose()
            return
        self._pumps[index].cancel()
        self._waiting = [(i, delta) for i, delta in self._waiting if i != index]

    def _on_end(self, pump: asyncio.Task[None]) -> None:
        self._open -= 1
        if not pump.cancelled() and self._failure is None:
            self._failure = pump.exception()
        self._wake.set()

    async def _pump(self, index: int, job: Job) -> None:
        async with self._places, aclosing(_generate(self._engine, job)) as deltas:
            async for delta in deltas:
                self._saw(index, delta)
                self._waiting.append((index, delta))
                self._wake.set()


def _generate(engine: Engine, job: Job) -> AsyncGenerator[TokenDelta, None]:
    return engine.generate(job)
