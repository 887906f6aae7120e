"""A real uvicorn server over the fake engine, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
import openai
import uvicorn

from gpt_oss_server.api.app import build_app
from gpt_oss_server.api.services import Services
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.http_protocol import ConnectionLimits, within

T = TypeVar("T")

MODEL = "tiny"
TIMEOUT_S = 30.0


class _AnnouncingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._stop = asyncio.Event()
        self.up.set()

    async def main_loop(self) -> None:
        """Ends when told to, where uvicorn's own looks ten times a second."""
        await self._stop.wait()

    def stop(self) -> None:
        self._stop.set()


class LiveServer:
    """The server, its engine, and clients for it."""

    def __init__(
        self,
        engine: FakeEngine,
        services: Services,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self.engine = engine
        self.services = services
        # asyncio switches Nagle's algorithm off only for sockets made with the protocol named.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            build_app(services),
            http=within(limits or ConnectionLimits()),
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        self._server = _AnnouncingServer(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve)
        self._clients: list[openai.OpenAI] = []
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._server.up.wait(TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.http.close()
        self.steer(self._server.stop)
        self._thread.join(TIMEOUT_S)
        self._listener.close()
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's event loop and wait for it."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def until(self, predicate: Callable[[FakeEngine], bool]) -> None:
        """Wait until something is true of the engine."""
        self.run(self.engine.until(predicate))

    def steer(self, act: Callable[[], None]) -> None:
        """Call one of the engine's steering methods on its own event loop."""

        async def call() -> None:
            act()

        self.run(call())

    def openai(self, key: str = "none") -> openai.OpenAI:
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT_S
        )
        self._clients.append(client)
        return client

    def connect(self) -> socket.socket:
        """A bare TCP connection to the server."""
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)


Serve = Callable[..., LiveServer]
