"""The desk and its instruments, out of settings: used by the composition root alone.

Knows: which setting becomes which part's parameter. Does not know: when the parts come up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from gpt_oss_server.admission.config import AdmissionConfig
from gpt_oss_server.admission.sessions import SessionConfig, SessionTable
from gpt_oss_server.config import Settings
from gpt_oss_server.dispatch.desk import Desk
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.doctor.running import Advisor, Seen
from gpt_oss_server.errors import ConfigError
from gpt_oss_server.ports import Engine, GpuProbe
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.decide import TriggerPolicy
from gpt_oss_server.routing.replay import DecisionRecord, to_line
from gpt_oss_server.telemetry.gpu import PollingProbe, ProbedGpu, ProbeView
from gpt_oss_server.telemetry.lines import LineWriter
from gpt_oss_server.telemetry.probes.nvml import NvmlProbe
from gpt_oss_server.telemetry.probes.process import ProcessProbe
from gpt_oss_server.trail import Journal
from gpt_oss_server.types import EngineInfo


def routing_config(settings: Settings) -> RoutingConfig:
    """Raises ConfigError for thresholds that contradict each other, naming them."""
    return RoutingConfig(
        **{name: getattr(settings, name) for name in RoutingConfig.__struct_fields__}
    )


def admission_config(settings: Settings) -> AdmissionConfig:
    """Raises ConfigError for bounds that contradict each other, naming them."""
    return AdmissionConfig(
        mode=settings.admission_mode,
        open_output_tokens=settings.open_output_tokens,
        min_open_output_tokens=settings.min_open_output_tokens,
        max_queue_length=settings.max_queue,
        max_wait_s=settings.max_wait_s,
    )


def check_desk_settings(settings: Settings) -> None:
    """Refuse impossible thresholds before anything is started. Raises ConfigError."""
    routing_config(settings)
    admission_config(settings)
    if settings.decision_log is not None and Path(settings.decision_log).is_dir():
        raise ConfigError(f"decision_log: {settings.decision_log} is a folder")


class Instruments:
    """The probe and the decision log: what runs beside the requests, with a start and an end."""

    def __init__(
        self,
        settings: Settings,
        engine_pids: Callable[[], Sequence[int]],
        probe: GpuProbe | None = None,
    ) -> None:
        """`probe` takes the place of the one that fits the engine's device.

        Raises StartupError if the decision log cannot be written.
        """
        self._settings = settings
        self._probe = probe
        self._engine_pids = engine_pids
        self._polling: PollingProbe | None = None
        self._decisions: LineWriter[DecisionRecord] | None = None
        if settings.decision_log is not None:
            self._decisions = LineWriter(Path(settings.decision_log), to_line)

    def begin(self, info: EngineInfo) -> None:
        """Start to poll what fits the device that the engine found itself on."""
        probe: GpuProbe
        if self._probe is not None:
            probe = self._probe
        elif info.device == "cpu":
            budget = self._settings.memory_budget or psutil.virtual_memory().total
            probe = ProcessProbe(budget, self._pids)
        else:
            probe = NvmlProbe(os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._polling = PollingProbe(probe)
        self._polling.start()

    def readings(self) -> Sequence[ProbedGpu]:
        return self._polling.view().gpus if self._polling is not None else ()

    def probe_view(self) -> ProbeView | None:
        """What is known of the GPUs; None before polling began."""
        return self._polling.view() if self._polling is not None else None

    def dropped(self) -> dict[str, int]:
        """Lines lost, by writer."""
        return {} if self._decisions is None else {"decision_log": self._decisions.dropped}

    def record(self, decision: DecisionRecord) -> None:
        if self._decisions is not None:
            self._decisions.write(decision)

    def close(self) -> None:
        if self._polling is not None:
            self._polling.close()
        if self._decisions is not None:
            self._decisions.close()

    def _pids(self) -> Sequence[int]:
        return [os.getpid(), *self._engine_pids()]


def build_desk(
    settings: Settings,
    engine: Engine,
    instruments: Instruments,
    machine_gpus: int | None,
    journal: Journal | None = None,
) -> Desk:
    """The desk of a server with one replica on this machine."""
    routing = routing_config(settings)
    return Desk(
        engine=engine,
        fleet=LocalFleet(
            engine=engine,
            readings=instruments.readings,
            clock=time.monotonic,
            gpu_mode=settings.gpu_mode,
            machine_gpus=machine_gpus,
        ),
        policy=TriggerPolicy(routing),
        routing=routing,
        admission=admission_config(settings),
        sessions=SessionTable(
            SessionConfig(
                max_sessions=settings.max_sessions,
                max_session_kv_bytes=settings.session_kv_limit,
                idle_s=settings.session_idle_s,
            )
        ),
        clock=time.monotonic,
        on_decision=instruments.record,
        journal=journal,
    )


def build_advisor(settings: Settings, folder: Path, engine: Engine, desk: Desk) -> Advisor:
    """What advises which GPU mode suits the model in `folder` and what this server has seen."""

    def see() -> Seen:
        return Seen(
            info=engine.info(),
            stats=engine.stats(),
            readings=tuple(gpu.reading for gpu in desk.fleet.readings()),
            gpu_mode=settings.gpu_mode,
            machine_gpus=desk.fleet.machine_gpus,
            request_tokens=desk.lengths.quantile(0.5),
            longest_tokens=desk.lengths.quantile(1.0),
        )

    return Advisor(folder, settings, see)
