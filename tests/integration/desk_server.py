"""A live server over the fake engine, with a desk that decides and admits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
from byte_format import ByteFormat
from live_server import MODEL, LiveServer

from gpt_oss_server.admission import AdmissionConfig, SessionConfig, SessionTable
from gpt_oss_server.api.services import ServedModel, Services
from gpt_oss_server.api.stats import Statistics
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.engine.fake import DEFAULT_INFO, FakeEngine
from gpt_oss_server.ports import GpuReading
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.telemetry.gpu import PollingProbe, ProbedGpu
from gpt_oss_server.types import KvGroupInfo

MB = 2**20

# 64 blocks of 16 tokens, a block of a mebibyte: 1,024 tokens in all.
INFO = msgspec.structs.replace(
    DEFAULT_INFO,
    kv_groups=(KvGroupInfo(name="full", layers=1, window=None, num_blocks=64, block_bytes=MB),),
    kv_token_capacity=1024,
    max_num_seqs=64,
)


class DeskServer(LiveServer):
    """The server, its desk and the records of its decisions."""

    desk: Desk
    records: list[DecisionRecord]

    def stats(self) -> dict[str, Any]:
        return dict(self.http.get("/stats").json())

    def memory(self) -> dict[str, Any]:
        return dict(self.http.get("/memory_stats").json())

    def until_admission(self, **expected: int) -> None:
        """Ask until `running`, `waiting` are as expected."""
        while any(self.stats()["admission"][name] != n for name, n in expected.items()):
            pass


@contextmanager
def desk_server(
    *,
    routing: RoutingConfig | None = None,
    admission: dict[str, Any] | None = None,
    sessions: SessionConfig | None = None,
    pressure: float = 0.0,
    probe: PollingProbe | None = None,
    services: dict[str, Any] | None = None,
    **engine_options: Any,
) -> Iterator[DeskServer]:
    """Serve; `pressure` is what others use of the machine's memory, 0 to 1, unless a probe says
    it."""
    engine = FakeEngine(**{"info": INFO, **engine_options})
    asyncio.run(engine.start())
    thresholds = routing or RoutingConfig()
    records: list[DecisionRecord] = []

    def readings() -> Sequence[ProbedGpu]:
        if probe is not None:
            return probe.view().gpus
        reading = GpuReading(id="cpu", total_bytes=1000, used_bytes=round(1000 * pressure))
        return [ProbedGpu(reading, time.monotonic(), 0.0)]

    desk = Desk(
        engine=engine,
        fleet=LocalFleet(engine, readings, time.monotonic, "single", 0),
        policy=TriggerPolicy(thresholds),
        routing=thresholds,
        admission=AdmissionConfig(**{"mode": "worst_case", **(admission or {})}),
        sessions=SessionTable(sessions or SessionConfig()),
        clock=time.monotonic,
        on_decision=records.append,
    )
    statistics = Statistics(desk, engine, probe=lambda: probe.view() if probe else None)
    with ThreadPoolExecutor(2) as pool:
        live = DeskServer(
            engine,
            Services(
                engine=engine,
                chat_format=ByteFormat(),
                model=ServedModel((MODEL,)),
                text_pool=pool,
                desk=desk,
                extra_endpoints=statistics.endpoints(),
                **(services or {}),
            ),
        )
        live.desk, live.records = desk, records
        with live:
            yield live


def completion(prompt_tokens: int, max_tokens: int = 2, **fields: Any) -> dict[str, Any]:
    """A completion's body; a byte is a token."""
    return {"model": MODEL, "prompt": "x" * prompt_tokens, "max_tokens": max_tokens, **fields}
