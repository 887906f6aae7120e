"""All that a scrape reads, at one moment.

Knows: whom to ask. Does not know: metric names, text formats. Taken on the event loop, in well
under a millisecond and without waiting for anyone; read afterwards in whatever thread. What events
have moved is part of it: a page on which a request has ended and still waits would be no moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from gpt_oss_server.admission.core import AdmissionSnapshot
from gpt_oss_server.admission.sessions import SessionTotals
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.facts import GpuView
from gpt_oss_server.ports import Engine
from gpt_oss_server.routing.balance import Balance, gpu_balance
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.ledger import RoutingSnapshot
from gpt_oss_server.routing.pressure import effective_pressure
from gpt_oss_server.telemetry.gpu import ProbeView
from gpt_oss_server.telemetry.series import Taken
from gpt_oss_server.trail import Meter
from gpt_oss_server.types import EngineInfo, EngineState, EngineStats


class MeterReading(msgspec.Struct, frozen=True):
    """A copy of the `Meter`'s totals."""

    in_flight: int
    waiting: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    gap_counts: tuple[int, ...]
    gap_total_s: float


class DeskSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions, admission and the machine as the desk sees them."""

    routing: RoutingSnapshot
    thresholds: RoutingConfig
    admission: AdmissionSnapshot | None
    sessions: SessionTotals
    gpus: tuple[GpuView, ...]
    pressure: float | None
    balance: Balance | None


class ServerSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment. `info` and `stats` are None while no engine is up, `desk` before
    the first was, `probe` until the first poll. `dropped` counts lost lines by writer; `moved` has
    the series that events move, by name."""

    meter: MeterReading
    state: EngineState
    info: EngineInfo | None
    stats: EngineStats | None
    desk: DeskSnapshot | None
    probe: ProbeView | None
    sink_errors: Mapping[str, int]
    dropped: Mapping[str, int]
    moved: Mapping[str, Taken] = {}


def read_meter(meter: Meter) -> MeterReading:
    return MeterReading(
        in_flight=meter.in_flight,
        waiting=tuple(meter.waiting),
        prompt_tokens=meter.prompt_tokens,
        cached_tokens=meter.cached_tokens,
        output_tokens=meter.output_tokens,
        gap_counts=tuple(meter.gap_counts),
        gap_total_s=meter.gap_total_s,
    )


class Snapshots:
    """Takes them. Holds references only."""

    def __init__(
        self,
        *,
        engine: Engine,
        meter: Meter,
        desk: Desk | None = None,
        probe: Callable[[], ProbeView | None] = lambda: None,
        sink_errors: Callable[[], Mapping[str, int]] = dict,
        dropped: Callable[[], Mapping[str, int]] = dict,
        moved: Callable[[], Mapping[str, Taken]] = dict,
    ) -> None:
        self._engine = engine
        self._meter = meter
        self._desk = desk
        self._probe = probe
        self._sink_errors = sink_errors
        self._dropped = dropped
        self._moved = moved

    def take(self) -> ServerSnapshot:
        engine = self._engine
        state = engine.state()
        return ServerSnapshot(
            meter=read_meter(self._meter),
            state=state,
            info=engine.info() if state.ready else None,
            stats=engine.stats() if state.ready else None,
            desk=None if self._desk is None else self._of_desk(self._desk, ready=state.ready),
            probe=self._probe(),
            sink_errors=dict(self._sink_errors()),
            dropped=dict(self._dropped()),
            moved=self._moved(),
        )

    def _of_desk(self, desk: Desk, *, ready: bool) -> DeskSnapshot:
        now_s, stale_after_s = desk.fleet.clock(), desk.routing.stale_after_s
        views = desk.fleet.gpu_views() if ready else ()
        return DeskSnapshot(
            routing=desk.ledger.snapshot(),
            thresholds=desk.routing,
            admission=desk.admission_snapshot(),
            sessions=desk.sessions.totals(),
            gpus=views,
            pressure=effective_pressure(views, now_s, stale_after_s).value,
            balance=gpu_balance(views, now_s, stale_after_s),
        )
