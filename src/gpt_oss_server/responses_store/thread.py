"""The store's own thread, so that no disk ever holds the event loop.

Knows: one thread, a bounded queue, how long a caller waits. Does not know: SQL, HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from gpt_oss_server.responses_store.records import StoreUnavailable
from gpt_oss_server.responses_store.sqlite import SqliteResponses

T = TypeVar("T")
log = logging.getLogger(__name__)

Work = tuple[Callable[[SqliteResponses], Any], "Future[Any]"]

_CLOSE_WAIT_S = 1.0


class ResponseStore:
    """Runs calls on the table, one after the other. The thread begins with the first call.

    Args:
        table: used by this thread alone from now on.
        capacity: calls that may wait; one more is refused.
        patience_s: how long a caller waits for its result.
        sweep_every_s: how often what is too old is looked for while nothing else happens.
    """

    def __init__(
        self,
        table: SqliteResponses,
        *,
        capacity: int = 256,
        patience_s: float = 5.0,
        sweep_every_s: float = 3600.0,
    ) -> None:
        self._table = table
        self._queue: queue.Queue[Work | None] = queue.Queue(capacity)
        self._patience_s = patience_s
        self._sweep_every_s = sweep_every_s
        self._thread: threading.Thread | None = None
        self._closed = False
        self._complained = False

    def start(self) -> None:
        """Begin the thread now; the first thing it does is to drop what is too old."""
        self._begin()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((self._sweep, Future()))

    async def ask(self, work: Callable[[SqliteResponses], T]) -> T:
        """The result of `work`. A caller that is cancelled does not hold up others; what has begun
        is finished.

        Raises what `work` raises; StoreUnavailable too if the queue is full, the disk too slow or
        the store closed.
        """
        result: Future[T] = Future()
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._begin()
        try:
            self._queue.put_nowait((work, result))
        except queue.Full:
            raise self._complain("too many requests wait for the disk") from None
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.wrap_future(result)
        except TimeoutError:
            raise self._complain(f"no answer within {self._patience_s:g} s") from None
        except StoreUnavailable as error:
            raise self._complain(str(error)) from error.__cause__

    def close(self) -> None:
        """Finish what waits, for at most a second or two, and close the file."""
        if self._closed:
            return
        self._closed = True
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_WAIT_S)
            self._thread.join(_CLOSE_WAIT_S)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while (work := self._next()) is not None:
                self._do(*work)
        finally:
            self._table.close()

    def _next(self) -> Work | None:
        while True:
            try:
                return self._queue.get(timeout=self._sweep_every_s)
            except queue.Empty:
                self._do(self._sweep, Future())

    def _sweep(self, table: SqliteResponses) -> None:
        """One part of what is to be cleared; the rest comes behind those who wait."""
        if table.expire():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait((self._sweep, Future()))

    def _do(self, work: Callable[[SqliteResponses], Any], result: Future[Any]) -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            done = work(self._table)
        except Exception as error:  # noqa: BLE001 - it is the caller's to handle
            result.set_exception(error)
            return
        self._complained = False
        result.set_result(done)

    def _complain(self, reason: str) -> StoreUnavailable:
        """Said in the log once, until something works again."""
        if not self._complained:
            self._complained = True
            log.error("responses cannot be stored or read: %s", reason)
        return StoreUnavailable(reason)
