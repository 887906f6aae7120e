"""Fixtures of the HTTP tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from byte_format import ByteFormat
from live_server import MODEL, LiveServer, Serve
from tools.browser import Chromium, chromium, program

from gpt_oss_server.api.services import ServedModel, Services
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.http_protocol import ConnectionLimits
from gpt_oss_server.types import Job


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server: `serve(script=…, engine_options…, services={…}, limits=…)`; stopped after the
    test."""
    running: list[LiveServer] = []
    with ThreadPoolExecutor(2) as pool:

        def start(
            script: Callable[[Job], Any] | None = None,
            *,
            started: bool = True,
            services: dict[str, Any] | None = None,
            limits: ConnectionLimits | None = None,
            **engine_options: Any,
        ) -> LiveServer:
            engine = FakeEngine(**({"script": script} if script else {}), **engine_options)
            if started:
                asyncio.run(engine.start())
            live = LiveServer(
                engine,
                Services(
                    engine=engine,
                    model=ServedModel((MODEL, "openai/tiny"), created=1_700_000_000),
                    **{"text_pool": pool, "chat_format": ByteFormat(), **(services or {})},
                ),
                limits,
            )
            live.__enter__()
            running.append(live)
            return live

        try:
            yield start
        finally:
            for live in running:
                live.__exit__()


@pytest.fixture(scope="session")
def one_chromium() -> Iterator[Chromium]:
    """Started once for all tests."""
    if program() is None:
        pytest.skip("needs Chromium (Debian package `chromium`)")
    with chromium() as running:
        yield running


@pytest.fixture
def browser(one_chromium: Chromium) -> Iterator[Chromium]:
    """Chromium; every page that it opens has a profile of its own, and is closed at the end."""
    yield one_chromium
    one_chromium.close_pages()
