"""Telemetry out of settings: who listens to events, and where it shows. Used by the composition
root alone.

Knows: which setting becomes which part's parameter. Does not know: what an event means.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from prometheus_client.registry import Collector

from gpt_oss_server import __version__
from gpt_oss_server.api.bundle import BundleEndpoint
from gpt_oss_server.api.metrics import MetricsEndpoint
from gpt_oss_server.api.services import Endpoint
from gpt_oss_server.api.stats import Statistics
from gpt_oss_server.bundle.recent import RecentDecisions
from gpt_oss_server.bundle.server import ServerBundle, Sources
from gpt_oss_server.config import Settings
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.hub import ModelName
from gpt_oss_server.nccl import NcclSettings
from gpt_oss_server.parts import Instruments
from gpt_oss_server.ports import Engine, EventSink
from gpt_oss_server.telemetry.fanout import FanOut
from gpt_oss_server.telemetry.logs import LogSink, LogWriter, log_output
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.prometheus import PrometheusSink
from gpt_oss_server.telemetry.readings import Identity
from gpt_oss_server.telemetry.snapshot import Snapshots
from gpt_oss_server.telemetry.tracing import open_tracing
from gpt_oss_server.trail import Journal


def log_to(settings: Settings) -> AbstractContextManager[LogWriter]:
    """The log as the settings want it, while the block runs. Raises StartupError."""
    path = Path(settings.log_file) if settings.log_file is not None else None
    return log_output(path, settings.log_format, _level(settings))


class Telemetry:
    """The journal that the core writes, its sinks, and what shows what they took in.

    Args:
        sinks: further listeners, by name.
        collectors: of further metrics, shown after the catalogue's.
    """

    def __init__(
        self,
        settings: Settings,
        model: ModelName,
        logs: LogWriter,
        *,
        sinks: Mapping[str, EventSink] | None = None,
        collectors: Sequence[Collector] = (),
    ) -> None:
        identity = Identity(
            model_id=model.short_name,
            model_name=model.names(settings.served_model_name)[0],
            version=__version__,
            gpu_mode=settings.gpu_mode,
            ttft_target_s=settings.max_p95_ttft_seconds,
            e2e_target_s=settings.max_p95_e2e_seconds,
        )
        self._prometheus = prometheus = PrometheusSink(
            model_id=identity.model_id,
            model_name=identity.model_name,
            ttft_target_s=identity.ttft_target_s,
            e2e_target_s=identity.e2e_target_s,
        )
        self._settings = settings
        self._logs = logs
        self._decisions = RecentDecisions()
        self._tracing = tracing = open_tracing(settings)
        listening: dict[str, EventSink] = {
            "prometheus": prometheus,
            "log": LogSink(logs, _level(settings)),
            "bundle": self._decisions,
            **(sinks or {}),
        }
        if tracing is not None:
            listening["traces"] = tracing
        self._sinks = FanOut(listening)
        self._page = MetricsPage(identity, collectors)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self.journal = Journal(
            self._sinks.emit,
            sampled=(lambda _: False) if tracing is None else tracing.sampled,
        )

    def endpoints(
        self,
        engine: Engine,
        desk: Desk | None = None,
        instruments: Instruments | None = None,
        statistics: Statistics | None = None,
        nccl: NcclSettings | None = None,
    ) -> tuple[Endpoint, ...]:
        """The metrics page and the debug bundle over these parts; with the engine alone, of a
        server that is coming up."""
        metrics = self._metrics(engine, desk, instruments)

        async def page() -> str:
            return (await metrics.render())[0].decode()

        sources = Sources(
            settings=self._settings,
            engine=engine,
            desk=desk,
            stats=None if statistics is None else statistics.stats,
            memory_stats=None if statistics is None else statistics.memory_stats,
            metrics=page,
            log_lines=self._logs.recent,
            decisions=self._decisions,
            probe=(lambda: None) if instruments is None else instruments.probe_view,
            nccl=nccl,
        )
        return metrics.endpoint(), BundleEndpoint(ServerBundle(sources)).endpoint()

    def _metrics(
        self, engine: Engine, desk: Desk | None, instruments: Instruments | None
    ) -> MetricsEndpoint:

        def dropped() -> Mapping[str, int]:
            lost = {} if instruments is None else instruments.dropped()
            if self._tracing is not None:
                lost = {**lost, "traces": self._tracing.dropped}
            return {"log": self._logs.dropped, **lost}

        snapshots = Snapshots(
            engine=engine,
            meter=self.journal.meter,
            desk=desk,
            probe=(lambda: None) if instruments is None else instruments.probe_view,
            sink_errors=lambda: self._sinks.errors,
            dropped=dropped,
            moved=self._prometheus.taken,
        )
        return MetricsEndpoint(snapshots, self._page, self._pool)

    def close(self) -> None:
        """No more scrapes; the last traces are sent, for less than a second. The log is closed by
        whoever opened it."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._tracing is not None:
            self._tracing.close()


def _level(settings: Settings) -> int:
    return logging.getLevelNamesMapping()[settings.log_level.upper()]
