"""A live server over the fake engine with the telemetry of the real one, debug bundle included."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from byte_format import ByteFormat
from live_server import LiveServer

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.services import ServedModel, Services
from gpt_oss_server.api.stats import Statistics
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.hub import identify
from gpt_oss_server.nccl import nccl_environment
from gpt_oss_server.parts import Instruments, build_desk
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.telemetry.logs import log_output
from gpt_oss_server.telemetry_parts import Telemetry

PATH = "/admin/debug/bundle"


class BundleServer(LiveServer):
    """Its bundle, as JSON or as the bytes of a zip."""

    def bundle(self, **headers: str) -> dict[str, Any]:
        answer = self.http.get(PATH, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def zip(self, **headers: str) -> httpx.Response:
        return self.http.get(PATH, params={"format": "zip"}, headers=headers)


@contextmanager
def bundle_server(
    log: Path,
    settings: Settings,
    *,
    engine: FakeEngine | None = None,
    chat_format: ChatFormat | None = None,
    environ: dict[str, str] | None = None,
) -> Iterator[BundleServer]:
    """Serve; the log goes to `log`."""
    engine = engine or FakeEngine()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    asyncio.run(engine.start())
    with ExitStack() as stack:
        logs = stack.enter_context(log_output(log, "json", level))
        telemetry = stack.enter_context(closing(Telemetry(settings, identify("tiny"), logs)))
        instruments = stack.enter_context(closing(Instruments(settings, lambda: ())))
        instruments.begin(engine.info())
        desk = build_desk(settings, engine, instruments, 0, telemetry.journal)
        nccl = nccl_environment(4, "tensor", environ or {})
        statistics = Statistics(desk, engine, nccl)
        services = Services(
            engine=engine,
            chat_format=chat_format or ByteFormat(),
            model=ServedModel(("tiny",)),
            text_pool=stack.enter_context(ThreadPoolExecutor(2)),
            desk=desk,
            journal=telemetry.journal,
            api_keys=KeyRing(settings.api_key),
            admin_keys=KeyRing((settings.admin_key,) if settings.admin_key else ()),
            extra_endpoints=(
                *statistics.endpoints(),
                *telemetry.endpoints(engine, desk, instruments, statistics, nccl),
            ),
        )
        yield stack.enter_context(BundleServer(engine, services))
