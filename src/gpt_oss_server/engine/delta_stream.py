"""One job's deltas on their way from the worker to whoever asked.

Knows: deltas, errors, one reader. Does not know: sockets, processes, jobs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from gpt_oss_server.errors import ServerError
from gpt_oss_server.types import TokenDelta


class DeltaStream:
    """Single reader, single writer, one loop. `ended` once the last delta, or an error, was
    read."""

    __slots__ = ("_items", "_waiter", "ended")

    def __init__(self) -> None:
        self._items: deque[TokenDelta | ServerError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    def put(self, item: TokenDelta | ServerError) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> TokenDelta:
        """All that has come since the last call, as one delta; an error once all before it is
        delivered. A reader that falls behind catches up in one turn."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        item = self._items.popleft()
        if isinstance(item, ServerError):
            self.ended = True
            raise item
        if self._items:
            item = self._merge(item)
        self.ended = item.finish is not None
        return item

    def _merge(self, first: TokenDelta) -> TokenDelta:
        """`first` and the deltas waiting behind it, up to an error."""
        deltas = [first]
        while self._items and not isinstance(self._items[0], ServerError):
            deltas.append(cast("TokenDelta", self._items.popleft()))
        logprobs = None
        if first.logprobs is not None:
            logprobs = tuple(entry for delta in deltas for entry in delta.logprobs or ())
        return TokenDelta(
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            logprobs=logprobs,
            finish=deltas[-1].finish,
            cached_tokens=first.cached_tokens,
            preemptions=sum(delta.preemptions for delta in deltas),
        )
