"""`GET /metrics`: a snapshot taken on the event loop, rendered in a thread.

Knows: HTTP. Does not know: any metric.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Access, Endpoint, Services
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.snapshot import Snapshots


class MetricsEndpoint:
    """Serves the page. `pool` is where it is rendered: a thread of its own, so that scrapes wait
    for nothing but each other."""

    def __init__(self, snapshots: Snapshots, page: MetricsPage, pool: Executor) -> None:
        self._snapshots = snapshots
        self._page = page
        self._pool = pool

    def endpoint(self) -> Endpoint:
        return Endpoint("GET", "/metrics", self._metrics, Access.OPEN)

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page as it is now, and its content type."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._page.render, self._snapshots.take(), accept
        )

    async def _metrics(self, exchange: Exchange, services: Services) -> None:
        accept = (exchange.header(b"accept") or b"").decode("latin-1")
        body, content_type = await self.render(accept)
        await exchange.reply_bytes(body, ((b"content-type", content_type.encode()),))
