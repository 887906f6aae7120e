"""The bundle of a running server: which sections it has, and one reading at a time.

Knows: whom to ask for each section, and where (on the event loop, or in a thread). Does not know:
HTTP, or how anything is counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_oss_server.bundle.health import checked, harmless, running_torch, versions
from gpt_oss_server.bundle.pack import as_document
from gpt_oss_server.bundle.processes import describe_processes, family_of
from gpt_oss_server.bundle.recent import RecentDecisions
from gpt_oss_server.bundle.redact import (
    Sieve,
    known_secrets,
    shown_line,
    shown_settings,
    shown_statistics,
)
from gpt_oss_server.bundle.sections import Absent, InThread, OnLoop, Section, collect
from gpt_oss_server.bundle.stacks import task_stacks, thread_stacks
from gpt_oss_server.config import Settings
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.lifecycle import in_daemon_thread
from gpt_oss_server.nccl import NcclSettings
from gpt_oss_server.ports import Engine
from gpt_oss_server.routing import RoutingLedger, bundle_section, gpu_balance
from gpt_oss_server.telemetry.gpu import ProbeView

_DOCTOR_LIMIT_S = 15.0
_SLOW_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Whom to ask. `desk`, `stats`, `memory_stats` are None while the server comes up.

    Args:
        stats, memory_stats: the documents of these names; called on the event loop.
        metrics: the metrics page as text.
        log_lines: the last lines of the log as JSON.
    """

    settings: Settings
    engine: Engine
    desk: Desk | None = None
    stats: Callable[[], Mapping[str, Any]] | None = None
    memory_stats: Callable[[], Mapping[str, Any]] | None = None
    metrics: Callable[[], Awaitable[str]] | None = None
    log_lines: Callable[[], Sequence[bytes]] = list
    decisions: RecentDecisions = field(default_factory=RecentDecisions)
    probe: Callable[[], ProbeView | None] = lambda: None
    nccl: NcclSettings | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


class ServerBundle:
    """Reads the sections. Requests that come while one reading is under way share it."""

    def __init__(self, sources: Sources, extra: Sequence[Section] = ()) -> None:
        """`extra` sections come after the others."""
        self._sources = sources
        self._sections = (*self._own_sections(), *extra)
        self._reading: asyncio.Task[dict[str, Any]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sections, in their order."""
        return tuple(section.name for section in self._sections)

    async def document(self) -> dict[str, Any]:
        """The whole bundle. Never raises for a section's sake."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="bundle")
        return await asyncio.shield(self._reading)

    async def _read(self) -> dict[str, Any]:
        collected = await collect(self._sections, "server")
        sources = self._sources
        sieve = Sieve(known_secrets(sources.settings, sources.environ))
        return await in_daemon_thread(lambda: as_document(collected, sieve))

    def _own_sections(self) -> tuple[Section, ...]:
        sources = self._sources
        return (
            Section("gpu_routing", OnLoop(self._gpu_routing)),
            Section("versions", InThread(versions)),
            Section(
                "configuration",
                OnLoop(lambda: shown_settings(sources.settings, sources.environ)),
            ),
            Section("engine", OnLoop(self._engine)),
            Section("gpus", OnLoop(self._gpus)),
            Section("memory_stats", OnLoop(_statistics(sources.memory_stats))),
            Section("stats", OnLoop(_statistics(sources.stats))),
            Section("decisions", OnLoop(sources.decisions.shown)),
            Section("nccl", OnLoop(self._nccl)),
            Section("metrics", self._metrics, _SLOW_LIMIT_S),
            Section("logs", InThread(self._logs), _SLOW_LIMIT_S),
            Section("threads", OnLoop(thread_stacks)),
            Section("tasks", OnLoop(task_stacks)),
            Section(
                "processes",
                InThread(lambda: describe_processes(family_of([os.getpid()]))),
                _SLOW_LIMIT_S,
            ),
            Section("doctor", InThread(self._doctor), _DOCTOR_LIMIT_S),
        )

    def _gpu_routing(self) -> dict[str, Any]:
        desk, mode = self._sources.desk, self._sources.settings.gpu_mode
        if desk is None:
            return bundle_section(RoutingLedger().snapshot(), None, mode)
        balance = None
        if self._sources.engine.state().ready:
            views = desk.fleet.gpu_views()
            balance = gpu_balance(views, desk.fleet.clock(), desk.routing.stale_after_s)
        return bundle_section(desk.ledger.snapshot(), balance, mode)

    def _engine(self) -> dict[str, Any]:
        engine = self._sources.engine
        state = engine.state()
        return {"state": state, "info": engine.info() if state.ready else None}

    def _gpus(self) -> ProbeView:
        view = self._sources.probe()
        if view is None:
            raise Absent("the GPUs are not being read yet")
        return view

    def _nccl(self) -> dict[str, Any]:
        nccl = self._sources.nccl
        if nccl is None:
            raise Absent("the server is coming up")
        return {
            "applied": harmless(nccl.applied),
            "kept_from_user": harmless(nccl.kept_from_user),
        }

    async def _metrics(self) -> str:
        if self._sources.metrics is None:
            raise Absent("there is no metrics page")
        return await self._sources.metrics()

    def _logs(self) -> list[dict[str, Any]]:
        lines = map(shown_line, self._sources.log_lines())
        return [line for line in lines if line is not None]

    def _doctor(self) -> dict[str, Any]:
        sources = self._sources
        state = sources.engine.state()
        device = sources.engine.info().device if state.ready else None
        return checked(sources.settings, sources.environ, lambda _: running_torch(device))


def _statistics(read: Callable[[], Mapping[str, Any]] | None) -> Callable[[], Any]:
    def call() -> Any:
        if read is None:
            raise Absent("the server is coming up")
        return shown_statistics(read())

    return call
