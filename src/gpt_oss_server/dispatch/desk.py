"""The desk that every generation passes: facts, decision, lease, record.

Knows: the order of these steps and who is told of what. Does not know: how any of them works,
text, HTTP. What a request holds, it holds for exactly as long as its `async with` block.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from gpt_oss_server.admission.config import DEFAULT_PRIORITY, AdmissionConfig
from gpt_oss_server.admission.core import AdmissionCore, AdmissionSnapshot
from gpt_oss_server.admission.offers import AdmissionRequest
from gpt_oss_server.admission.outputs import OutputLengths
from gpt_oss_server.admission.sessions import SessionTable
from gpt_oss_server.dispatch.estimate import (
    capacity_of,
    estimator_for,
    kv_bytes,
    predicted_kv_bytes,
)
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.dispatch.gate import AdmissionGate, Held
from gpt_oss_server.dispatch.latency import LatencyWindow
from gpt_oss_server.facts import NO_TRIGGER_REASON, Decision, RequestFacts, Route
from gpt_oss_server.memory.kv import KvEstimator
from gpt_oss_server.ports import Engine
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.decide import Policy
from gpt_oss_server.routing.ledger import RoutingLedger
from gpt_oss_server.routing.notices import NoticeLimit
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.types import EngineInfo, Job

log = logging.getLogger(__name__)

# A running request tells admission how far it has come every so many tokens.
PROGRESS_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as the desk sees it: `jobs` are its sequences, all to run at once."""

    request_id: str
    jobs: list[Job]
    client_id: str = ""
    session_id: str | None = None
    trace_id: str | None = None
    priority: int = DEFAULT_PRIORITY


class Lease:
    """A request that may run now: `jobs` with the bounds it was granted, `route` where it runs
    and `reason` why. `count` is to be told of the tokens of every delta: admission learns output
    lengths from it.
    """

    def __init__(
        self,
        jobs: list[Job],
        route: Route,
        reason: str,
        count: Callable[[int], None],
    ) -> None:
        self.jobs = jobs
        self.route = route
        self.reason = reason
        self.count = count


class _Count:
    """Counts one request's output, and tells admission now and then how far it has come."""

    def __init__(self, held: Held, gate: AdmissionGate) -> None:
        self._held = held
        self._gate = gate
        self._told = 0

    def __call__(self, tokens: int) -> None:
        held = self._held
        held.output_tokens += tokens
        if held.output_tokens - self._told >= PROGRESS_TOKENS:
            self._told = held.output_tokens
            self._gate.progress(held)


class _Serving(msgspec.Struct, frozen=True):
    """What follows from one started engine: replaced when a restart changes its pools."""

    info: EngineInfo
    estimator: KvEstimator
    gate: AdmissionGate


class OpenDesk:
    """Lets everything in, at once and undecided. For an engine that guards itself, and tests."""

    @asynccontextmanager
    async def admit(self, call: Call) -> AsyncIterator[Lease]:
        yield Lease(call.jobs, "single_gpu", NO_TRIGGER_REASON, lambda _: None)


class Desk:
    """Decides on every request, in order, and lets it in. One event loop only."""

    def __init__(
        self,
        *,
        engine: Engine,
        fleet: LocalFleet,
        policy: Policy,
        routing: RoutingConfig,
        admission: AdmissionConfig,
        sessions: SessionTable,
        clock: Callable[[], float],
        on_decision: Callable[[DecisionRecord], None] = lambda _: None,
    ) -> None:
        """`clock` is monotonic seconds; `on_decision` must not block."""
        self.ledger = RoutingLedger()
        self.latencies = LatencyWindow()
        self.sessions = sessions
        self.fleet = fleet
        self.routing = routing
        self._engine = engine
        self._policy = policy
        self._admission = admission
        self._clock = clock
        self._on_decision = on_decision
        self._notices = NoticeLimit()
        self._outputs = OutputLengths(admission.output_quantile)
        self._serving: _Serving | None = None
        self._load_tokens = 0

    @asynccontextmanager
    async def admit(self, call: Call) -> AsyncIterator[Lease]:
        """Decide, wait for a place, and hold it while the block runs.

        Raises:
            NotReady: no engine is up.
            Overloaded: full (429 with Retry-After).
            ContextTooLong: it can never fit.
        """
        began_s = self._clock()
        serving = self._current()
        decision = self._decide(call, serving)
        route: Route = decision.executed or "single_gpu"
        tokens = sum(len(job.prompt) for job in call.jobs)
        async with serving.gate.lease(self._request(call, decision, serving.info)) as held:
            self.ledger.record_executed(route)
            self._load_tokens += tokens
            tracked = self._begin_session(call)
            jobs = _granted(call.jobs, held.admission.plan.max_tokens, tracked)
            reason = decision.reason
            if decision.unmet_recommendation:
                reason += "; no multi-GPU replica"
            lease = Lease(jobs, route, reason, _Count(held, serving.gate))
            try:
                yield lease
                elapsed_s = self._clock() - began_s
                self.ledger.record_latency(route, 1e3 * elapsed_s)
                self.latencies.add(elapsed_s)
            finally:
                self._load_tokens -= tokens
                if tracked is not None:
                    self._end_session(tracked, call.jobs, serving, held.output_tokens)

    def admission_snapshot(self) -> AdmissionSnapshot | None:
        """Admission's counts; None before the first engine was up."""
        return self._serving.gate.snapshot() if self._serving is not None else None

    def _current(self) -> _Serving:
        info = self._engine.info()
        if self._serving is None or self._serving.info != info:
            core = AdmissionCore(capacity_of(info), self._admission, self._outputs)
            gate = AdmissionGate(core, self._clock)
            self._serving = _Serving(info, estimator_for(info), gate)
        return self._serving

    def _decide(self, call: Call, serving: _Serving) -> Decision:
        facts = self._facts(call, serving)
        reserved = serving.gate.snapshot().blocks_used
        view = self.fleet.view(load_tokens=self._load_tokens, reserved_blocks=reserved)
        decision = self._policy.decide(facts, view)
        self.ledger.record(decision)
        self._on_decision(
            DecisionRecord(facts=facts, fleet=view, config=self.routing, decision=decision)
        )
        self._say(decision, call)
        return decision

    def _facts(self, call: Call, serving: _Serving) -> RequestFacts:
        jobs = call.jobs
        least = None
        if not jobs[0].max_tokens_explicit:
            shortest = [_with_bound(job, self._admission.min_open_output_tokens) for job in jobs]
            least = predicted_kv_bytes(serving.estimator, shortest)
        return RequestFacts(
            request_id=call.request_id,
            input_tokens=sum(len(job.prompt) for job in _distinct(jobs)),
            max_output_tokens=sum(job.sampling.max_tokens for job in jobs),
            predicted_kv_bytes=predicted_kv_bytes(serving.estimator, jobs),
            least_kv_bytes=least,
            trace_id=call.trace_id,
            client_id=call.client_id,
            session_id=call.session_id,
            priority=call.priority,
        )

    def _request(self, call: Call, decision: Decision, info: EngineInfo) -> AdmissionRequest:
        jobs = call.jobs
        return AdmissionRequest(
            id=call.request_id,
            prompt_tokens=max(len(job.prompt) for job in jobs),
            # The last token is sampled and never fed: it takes no KV.
            max_tokens=max(job.sampling.max_tokens for job in jobs),
            explicit=jobs[0].max_tokens_explicit,
            # More sequences than slots run one after another inside the engine.
            sequences=min(len(jobs), info.max_num_seqs),
            client_id=call.client_id,
            priority=call.priority,
            route=decision.route,
        )

    def _say(self, decision: Decision, call: Call) -> None:
        if decision.notice is None:
            return
        left_out = self._notices.allow(decision.notice.partition(":")[0], self._clock())
        if left_out is None:
            return
        lines = [f"{decision.notice} ({decision.reason})"]
        if decision.recommendation is not None:
            lines.append(decision.recommendation)
        if left_out:
            lines.append(f"({left_out} more such requests since the last line)")
        level = logging.WARNING if decision.unmet_recommendation else logging.INFO
        log.log(level, "%s [%s]", ". ".join(lines), call.request_id)

    def _begin_session(self, call: Call) -> str | None:
        """The session's key if it is tracked from here on."""
        if call.session_id is None:
            return None
        session, evicted = self.sessions.begin(call.session_id, self._clock())
        for eviction in evicted:
            self._engine.forget(eviction.session.key)
        return None if session is None else call.session_id

    def _end_session(
        self, key: str, jobs: Sequence[Job], serving: _Serving, output_tokens: int
    ) -> None:
        prefix = len(jobs[0].prompt) + output_tokens // len(jobs)
        blocks = serving.estimator.footprint(prefix, 1).blocks
        size = kv_bytes(serving.info, blocks)
        session = self.sessions.end(key, self._clock(), prefix, size)
        if session.prefix_tokens < prefix:  # over its limit: what is beyond is let go
            self._engine.forget(key, session.prefix_tokens)


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """One job per prompt: the samples of one prompt share the list object."""
    return list({id(job.prompt): job for job in jobs}.values())


def _with_bound(job: Job, tokens: int) -> Job:
    if job.sampling.max_tokens <= tokens:
        return job
    return msgspec.structs.replace(
        job, sampling=msgspec.structs.replace(job.sampling, max_tokens=tokens)
    )


def _granted(jobs: list[Job], tokens: int, session: str | None) -> list[Job]:
    """The jobs as they may run: an open bound lowered to what was granted (an explicit one is
    left alone), and the session that owns what they leave in the cache."""
    return [
        msgspec.structs.replace(
            job if job.max_tokens_explicit else _with_bound(job, tokens), session=session
        )
        for job in jobs
    ]
