"""Telemetry as the server has it, and the calls that one request makes of it.

Knows: which parts listen to events, and who calls them in which order. Does not know: clocks of
the benchmark, what is made of the figures.
"""

from __future__ import annotations

import asyncio
import os

from gpt_oss_server.bundle.recent import RecentDecisions
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.events import Admitted, DecisionTaken, HttpAnswered
from gpt_oss_server.facts import FleetView, GpuView, ReplicaView, RequestFacts
from gpt_oss_server.parts import Instruments, build_desk
from gpt_oss_server.ports import EventSink
from gpt_oss_server.routing import RoutingConfig, TriggerPolicy
from gpt_oss_server.telemetry.fanout import FanOut
from gpt_oss_server.telemetry.logs import LogSink, LogWriter
from gpt_oss_server.telemetry.page import MetricsPage
from gpt_oss_server.telemetry.prometheus import PrometheusSink
from gpt_oss_server.telemetry.readings import Identity
from gpt_oss_server.telemetry.snapshot import Snapshots
from gpt_oss_server.telemetry.tracing import Tracing
from gpt_oss_server.telemetry.tracing_otlp import OtlpExport
from gpt_oss_server.telemetry.tracing_sampling import Sampling
from gpt_oss_server.trace_context import trace_context, traceparent_of
from gpt_oss_server.trail import CURRENT_IDS, Ids, Journal
from gpt_oss_server.types import Job, SamplingParams, TokenDelta

GIB = 1 << 30
INFO_LEVEL = 20
UNBOUNDED = 10**9
EXPORT_TIMEOUT_S = 10.0
FACTS = RequestFacts(
    request_id="req_0",
    input_tokens=500,
    max_output_tokens=500,
    predicted_kv_bytes=24_576_000,
    trace_id="0" * 32,
)
FLEET = FleetView(
    gpu_mode="single",
    now_s=1.0,
    replicas=(
        ReplicaView(
            id="local",
            gpus=1,
            measured_at_s=1.0,
            kv_capacity_bytes=40 * GIB,
            kv_free_bytes=30 * GIB,
            capacity_tokens=1_000_000,
            load_tokens=1000,
        ),
    ),
    gpus=(GpuView(id="0", total_bytes=80 * GIB, measured_at_s=1.0, others_bytes=GIB),),
)
DECISION = TriggerPolicy(RoutingConfig()).decide(FACTS, FLEET)
JOBS = [Job(id="job", prompt=[1] * 500, sampling=SamplingParams(max_tokens=500))]
DELTA = TokenDelta(token_ids=(7,))
FIRST = TokenDelta(token_ids=(7,), cached_tokens=128)


class Parts:
    """Every listener that `serve` has, with a fake engine and a real desk to scrape.

    Args:
        collector: where traces go; None for none.
        sample_rate: of the requests, when there is a collector.
        log_path: the log, as JSON lines.
    """

    def __init__(
        self,
        collector: str | None = None,
        sample_rate: float = 1.0,
        log_path: str = os.devnull,
    ) -> None:
        identity = Identity(
            model_id="tiny",
            model_name="tiny",
            version="0",
            gpu_mode="single",
            ttft_target_s=2.0,
            e2e_target_s=20.0,
        )
        sink = PrometheusSink(
            model_id="tiny", model_name="tiny", ttft_target_s=2.0, e2e_target_s=20.0
        )
        self._fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Room for all: in a tight loop the writers have no chance to keep up.
        self.log = LogWriter(self._fd, capacity=UNBOUNDED)
        self.tracing: Tracing | None = None
        sinks: dict[str, EventSink] = {
            "prometheus": sink,
            "log": LogSink(self.log, INFO_LEVEL),
            "bundle": RecentDecisions(),
        }
        if collector is not None:
            self.tracing = sinks["traces"] = Tracing(
                OtlpExport(collector, EXPORT_TIMEOUT_S),
                Sampling(sample_rate, slow_s=10.0),
                capacity=UNBOUNDED,
            )
        sampled = (lambda _: False) if self.tracing is None else self.tracing.sampled
        self.journal = Journal(FanOut(sinks).emit, sampled=sampled)
        self.page = MetricsPage(identity)
        engine = FakeEngine()
        asyncio.run(engine.start())
        settings = Settings()
        self._instruments = Instruments(settings, lambda: None)
        self._instruments.begin(engine.info())
        self.snapshots = Snapshots(
            engine=engine,
            meter=self.journal.meter,
            desk=build_desk(settings, engine, self._instruments, 0, self.journal),
            probe=self._instruments.probe_view,
            moved=sink.taken,
        )

    def wait_for_traces(self, count: int) -> None:
        """Until so many were sent. Raises RuntimeError if any was lost."""
        tracing = self.tracing
        while tracing is not None and tracing.exported < count:
            if tracing.dropped:
                raise RuntimeError(f"{tracing.dropped} traces were lost")

    def close(self) -> None:
        self._instruments.close()
        if self.tracing is not None:
            self.tracing.close()
        self.log.close()
        os.close(self._fd)


def one_request(journal: Journal) -> None:
    """All that telemetry does on the serving thread for one chat request with two tokens."""
    began_s = journal.clock()
    trace = trace_context(None)
    trail = journal.open("req_0", trace, "/v1/chat/completions", "chat")
    CURRENT_IDS.set(Ids("req_0", trace.trace_id))
    traceparent_of(trace, sampled=journal.sampled(trace))
    trail.named("chatcmpl-0", "tiny", stream=True)
    trail.planned(JOBS)
    trail.client_class = "address"
    trail.session_known = False
    trail.priority = 5
    trail.decided(DECISION, "single", 20e-6)
    journal.emit(DecisionTaken(FACTS, DECISION, "single", 20e-6, journal.unix_clock()))
    trail.admitted("single_gpu", shrunk=False)
    journal.emit(
        Admitted(
            request_id="req_0",
            priority=5,
            waited_s=0.0,
            decided="single_gpu",
            executed="single_gpu",
        )
    )
    trail.saw(0, FIRST)
    trail.saw(0, DELTA)
    journal.close(trail, "ok", 200)
    journal.emit(HttpAnswered("/v1/chat/completions", 200, journal.clock() - began_s))
