"""How the front process runs and ends: HTTP beside the loading model, signals, draining.

Knows: uvicorn, the two stop signals, the order in which things end. Does not know: settings, or
how anything is built.

The first SIGTERM or SIGINT stops accepting; what runs gets a period of grace, then the engine is
closed under it (each request ends with an error of its own), then connections are cut. A second
signal skips the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, TypeVar

import uvicorn

from gpt_oss_server.http_protocol import ConnectionLimits, within
from gpt_oss_server.ports import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")
_Message = MutableMapping[str, Any]
App = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]

_STOP_S = 0.5  # uvicorn looks at `should_exit` ten times a second, and again when connections end
_ENGINE_CLOSE_S = 10.0
_LAST_BYTES_S = 2.0


class StopSignals:
    """SIGTERM and SIGINT as two events: `requested` by the first, `insisted` by the second."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.insisted = asyncio.Event()
        self._last = 0

    @property
    def exit_status(self) -> int:
        """0 for a shutdown that was allowed to take its course, else as a shell reports it."""
        return 128 + self._last if self.insisted.is_set() else 0

    def install(self) -> None:
        """Listen for the signals in the running loop (main thread only)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.receive, number)

    def receive(self, number: int) -> None:
        self._last = number
        (self.insisted if self.requested.is_set() else self.requested).set()


class HttpServer(uvicorn.Server):
    """uvicorn on a socket that is already bound, with signals left to `StopSignals`.

    `app` may be replaced while it runs: requests that come later see the new one.
    """

    def __init__(
        self, app: App, listener: socket.socket, limits: ConnectionLimits | None = None
    ) -> None:
        self.app = app
        self._listener = listener
        super().__init__(
            uvicorn.Config(
                self._call,
                http=within(limits or ConnectionLimits()),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise each signal again after a clean shutdown: the exit status would
        # never be 0.
        yield

    async def run_until_stopped(self) -> None:
        """Serve until `should_exit` is set and the last response has been sent."""
        await self.serve(sockets=[self._listener])

    def cut(self) -> None:
        """Cancel every request that is still running."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True
        for task in list(self.server_state.tasks):
            task.cancel()

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def drain(
    http: HttpServer,
    serving: asyncio.Task[None],
    engine: Engine | None,
    signals: StopSignals,
    grace_s: float,
) -> None:
    """End everything, in order; never takes longer than `grace_s` and a few seconds.

    Args:
        serving: the task of `http.run_until_stopped`.
        engine: None if there is none yet.
        grace_s: how long running requests may go on.
    """
    http.should_exit = True
    await _either(serving, signals.insisted, max(grace_s, _STOP_S))
    if http.server_state.tasks and not signals.insisted.is_set():
        running = len(http.server_state.tasks)
        log.warning("%d requests still run after %g s of grace: cancelled", running, grace_s)
    if engine is not None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(engine.close(), _ENGINE_CLOSE_S)
    # With the engine gone every request ends by itself; this is the time to say so to clients.
    await asyncio.wait((serving,), timeout=_STOP_S if signals.insisted.is_set() else _LAST_BYTES_S)
    if not serving.done():
        http.cut()
        await asyncio.wait((serving,), timeout=_LAST_BYTES_S)
    if not serving.done():
        serving.cancel()
        await asyncio.wait((serving,))


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread that nothing waits for if this task is cancelled."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(deliver: Callable[[], None]) -> None:
        if not future.done():
            deliver()

    def run() -> None:
        deliver: Callable[[], None]
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - carried to the task that waits
            caught = error
            deliver = lambda: future.set_exception(caught)  # noqa: E731
        else:
            deliver = lambda: future.set_result(result)  # noqa: E731
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, deliver)

    threading.Thread(target=run, name="preparing", daemon=True).start()
    return await future


async def _either(task: asyncio.Task[Any], event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the task or the event, whichever is first, or the timeout."""
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiter), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
