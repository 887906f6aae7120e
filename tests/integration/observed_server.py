"""A live server over the fake engine with everything that observes it, and what it shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from byte_format import ByteFormat
from live_server import MODEL, LiveServer
from prometheus_client.parser import text_string_to_metric_families

from gpt_oss_server.api.services import ServedModel, Services
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.hub import ModelName
from gpt_oss_server.parts import Instruments, build_desk
from gpt_oss_server.ports import ChatFormat
from gpt_oss_server.telemetry.logs import LogWriter
from gpt_oss_server.telemetry_parts import Telemetry


class ObservedServer(LiveServer):
    """The server and its log file."""

    log: Path

    def page(self, accept: str = "") -> str:
        response = self.http.get("/metrics", headers={"accept": accept})
        assert response.status_code == 200
        return response.text

    def samples(self) -> dict[str, float]:
        """Every sample as `name{label="value"}`, labels in alphabetical order."""
        return {
            sample.name + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())):
            sample.value
            for family in text_string_to_metric_families(self.page())
            for sample in family.samples
        }  # fmt: skip

    def until_sample(self, name: str, value: float) -> dict[str, float]:
        """Scrape until a sample has this value; all samples of that scrape."""
        while (found := self.samples()).get(name) != value:
            pass
        return found

    def until_all_is_known(self) -> dict[str, float]:
        """Scrape until there is nothing left to appear by itself (the second reading of the
        machine brings its utilisation, and the scrapes their own count); all samples then."""
        while "gpt_oss_gpu_balance_coefficient" not in (found := self.samples()):
            pass
        return found

    def lines(self, event_type: str, count: int = 1) -> list[dict[str, Any]]:
        """The log's lines of one kind, once there are `count` of them."""
        while True:
            whole = self.log.read_text().rpartition("\n")[0]
            lines = [json.loads(line) for line in whole.splitlines()]
            found = [line for line in lines if line["event_type"] == event_type]
            if len(found) >= count:
                return found


@contextmanager
def observed_server(
    log: Path,
    settings: Settings | None = None,
    chat_format: ChatFormat | None = None,
    **engine_options: Any,
) -> Iterator[ObservedServer]:
    """Serve, with metrics and a JSON log at `log`."""
    settings = settings or Settings()
    engine = FakeEngine(**engine_options)
    asyncio.run(engine.start())
    with log.open("ab", buffering=0) as file, ThreadPoolExecutor(2) as pool:
        writer = LogWriter(file.fileno())
        telemetry = Telemetry(settings, ModelName(MODEL, MODEL), writer)
        instruments = Instruments(settings, lambda: ())
        desk = build_desk(settings, engine, instruments, 0, telemetry.journal)
        live = ObservedServer(
            engine,
            Services(
                engine=engine,
                chat_format=chat_format or ByteFormat(),
                model=ServedModel((MODEL,)),
                text_pool=pool,
                desk=desk,
                journal=telemetry.journal,
                extra_endpoints=telemetry.endpoints(engine, desk, instruments),
            ),
        )
        live.log = log
        try:
            with live:
                instruments.begin(engine.info())
                yield live
        finally:
            instruments.close()
            telemetry.close()
            writer.close()
