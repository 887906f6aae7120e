"""The desk that every generation passes: facts, decision, lease, record.

Knows: the order of these steps and who is told of what. Does not know: how any of them works,
text, HTTP. What a request holds, it holds for exactly as long as its `async with` block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import msgspec

from gpt_oss_server.admission.capacity import Capacity
from gpt_oss_server.admission.config import DEFAULT_PRIORITY, AdmissionConfig
from gpt_oss_server.admission.core import AdmissionCore, AdmissionSnapshot
from gpt_oss_server.admission.offers import AdmissionRequest
from gpt_oss_server.admission.outputs import OutputLengths
from gpt_oss_server.admission.sessions import SessionTable
from gpt_oss_server.dispatch.estimate import (
    at_once,
    capacity_of,
    estimator_for,
    kv_bytes,
    kv_capacity_bytes,
    predicted_kv_bytes,
)
from gpt_oss_server.dispatch.fleet import LocalFleet
from gpt_oss_server.dispatch.gate import AdmissionGate, Held
from gpt_oss_server.dispatch.recent import RecentValues
from gpt_oss_server.errors import ContextTooLong, NotReady, Overloaded
from gpt_oss_server.events import Admitted, DecisionTaken, TurnedAway, TurnedAwayReason
from gpt_oss_server.facts import NO_TRIGGER_REASON, Decision, RequestFacts, Route
from gpt_oss_server.memory.kv import KvEstimator
from gpt_oss_server.ports import Engine
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.decide import Policy
from gpt_oss_server.routing.ledger import RoutingLedger
from gpt_oss_server.routing.notices import NoticeLimit
from gpt_oss_server.routing.replay import DecisionRecord
from gpt_oss_server.trail import Journal, Trail
from gpt_oss_server.types import EngineInfo, Job, TokenDelta

log = logging.getLogger(__name__)

# A running request tells admission how far it has come every so many tokens.
PROGRESS_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request as the desk sees it: `jobs` are its sequences, all to run at once. What the desk
    finds out is noted on `trail`."""

    request_id: str
    jobs: list[Job]
    client_id: str = ""
    session_id: str | None = None
    trace_id: str | None = None
    priority: int = DEFAULT_PRIORITY
    trail: Trail = field(default_factory=Trail)


class Lease:
    """A request that may run now: `jobs` with the bounds it was granted, at most `parallel` of
    them at once; `route` where it runs and `reason` why, `predicted_kv_bytes` what the decision
    counted with (None: there was none). `saw` is to be told of every delta, with its job's index:
    admission learns output lengths from it.
    """

    def __init__(
        self,
        jobs: list[Job],
        route: Route,
        reason: str,
        saw: Callable[[int, TokenDelta], None] = lambda _, __: None,
        parallel: int | None = None,
        predicted_kv_bytes: int | None = None,
    ) -> None:
        self.jobs = jobs
        self.route = route
        self.reason = reason
        self.saw = saw
        self.parallel = parallel
        self.predicted_kv_bytes = predicted_kv_bytes


class _Watch:
    """Counts one request's output, and tells when the first of it comes; tells admission how far
    the longest job has come and when the engine had to put one back."""

    def __init__(
        self, held: Held, gate: AdmissionGate, jobs: int, on_first: Callable[[], None]
    ) -> None:
        held.jobs = jobs
        self._held = held
        self._gate = gate
        self._on_first = on_first
        self._seen = False
        self._lengths = [0] * jobs
        self._told = 0

    def __call__(self, index: int, delta: TokenDelta) -> None:
        if not self._seen:
            self._seen = True
            self._on_first()
        tokens = len(delta.token_ids)
        self._held.output_tokens += tokens
        length = self._lengths[index] = self._lengths[index] + tokens
        if delta.preemptions:
            self._gate.preempted(self._held)
        if length - self._told >= PROGRESS_TOKENS:
            self._told = length
            self._gate.progress(self._held, length)


class _Serving(msgspec.Struct, frozen=True):
    """What follows from one started engine: replaced when a restart changes its pools."""

    info: EngineInfo
    capacity: Capacity
    estimator: KvEstimator


class OpenDesk:
    """Lets everything in, at once and undecided. For an engine that guards itself, and tests."""

    @asynccontextmanager
    async def admit(self, call: Call) -> AsyncIterator[Lease]:
        call.trail.admitted("single_gpu", shrunk=False)
        yield Lease(call.jobs, "single_gpu", NO_TRIGGER_REASON)


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
        journal: Journal | None = None,
    ) -> None:
        """`clock` is monotonic seconds; `on_decision` must not block. `journal` is told of every
        decision and of what became of it."""
        self.ledger = RoutingLedger()
        self.latencies = RecentValues()
        self.lengths = RecentValues()
        self.sessions = sessions
        self.fleet = fleet
        self.routing = routing
        self._engine = engine
        self._policy = policy
        self._admission = admission
        self._clock = clock
        self._on_decision = on_decision
        self._journal = journal if journal is not None else Journal()
        self._notices = NoticeLimit()
        self._outputs = OutputLengths(admission.output_quantile)
        self._serving: _Serving | None = None
        self._gate: AdmissionGate | None = None
        self._restarts = 0
        self._load_tokens = 0

    @asynccontextmanager
    async def admit(self, call: Call) -> AsyncIterator[Lease]:
        """Decide, wait for a place, and hold it while the block runs.

        Raises:
            NotReady: no engine was up yet, or none came back in time.
            Overloaded: full (429 with Retry-After).
            ContextTooLong: it can never fit.
        """
        began_s = self._clock()
        serving, gate = self._current()
        decision = self._decide(call, serving, gate)
        route: Route = decision.executed or "single_gpu"
        request = self._request(call, decision, serving)
        with self._loaded(decision.input_tokens):
            async with self._place(call, decision, request, gate) as held:
                plan, sequences = held.admission.plan, held.admission.request.sequences
                tracked = self._begin_session(call)
                jobs = _granted(call.jobs, plan.max_tokens, tracked)
                # Admitted is not run: it may be cancelled, or the engine die, in its prefill.
                watch = _Watch(held, gate, len(jobs), lambda: self.ledger.record_executed(route))
                predicted = decision.predicted_kv_bytes
                lease = Lease(jobs, route, _reason(decision), watch, sequences, predicted)
                restarts = self._restarts
                try:
                    with self._loaded(plan.expected_tokens * sequences):
                        yield lease
                    elapsed_s = self._clock() - began_s
                    self.ledger.record_latency(route, 1e3 * elapsed_s)
                    self.latencies.add(elapsed_s)
                    output = -(-held.output_tokens // len(jobs))
                    self.lengths.add(max(len(job.prompt) for job in jobs) + output)
                finally:
                    if tracked is not None:
                        prefix = len(call.jobs[0].prompt) + held.output_tokens // len(jobs)
                        # What a worker had in its cache died with it.
                        same = self._pools() is not None and self._restarts == restarts
                        self._end_session(tracked, prefix if same else 0)

    @asynccontextmanager
    async def _place(
        self, call: Call, decision: Decision, request: AdmissionRequest, gate: AdmissionGate
    ) -> AsyncIterator[Held]:
        """A place while the block runs; the journal is told of it, or of why there was none."""
        waiting = self._journal.meter.waiting
        began_s = self._clock()
        waiting[call.priority] += 1
        held: Held | None = None
        try:
            async with gate.lease(request) as held:
                waiting[call.priority] -= 1
                self._tell_admitted(call, decision, held)
                yield held
        except BaseException as error:
            if held is None:
                waiting[call.priority] -= 1
                self._tell_turned_away(call, decision, error, self._clock() - began_s)
            raise

    def _tell_admitted(self, call: Call, decision: Decision, held: Held) -> None:
        executed: Route = decision.executed or "single_gpu"
        shrunk = held.admission.plan.shrunk
        call.trail.admitted(executed, shrunk=shrunk)
        self._journal.emit(
            Admitted(
                request_id=call.request_id,
                priority=call.priority,
                waited_s=held.admission.waited_s,
                decided=decision.route,
                executed=executed,
                shrunk=shrunk,
            )
        )

    def _tell_turned_away(
        self, call: Call, decision: Decision, error: BaseException, waited_s: float
    ) -> None:
        reason: TurnedAwayReason
        retry_after_s = None
        if isinstance(error, Overloaded | NotReady):  # the latter: while the engine is down
            reason, retry_after_s = error.reason, error.retry_after_s
        elif isinstance(error, ContextTooLong):
            reason = "never_fits"
        elif isinstance(error, asyncio.CancelledError):
            reason = "cancelled"
        else:
            return
        self._journal.emit(
            TurnedAway(
                request_id=call.request_id,
                reason=reason,
                priority=call.priority,
                decided=decision.route,
                waited_s=waited_s,
                retry_after_s=retry_after_s,
            )
        )

    def admission_snapshot(self) -> AdmissionSnapshot | None:
        """Admission's counts since this desk began, and the blocks of the pools that there are
        now; None before the first engine was up."""
        try:
            _, gate = self._current()
        except NotReady:
            return None
        return gate.snapshot()

    def _current(self) -> tuple[_Serving, AdmissionGate]:
        """The engine that there is, or was last, and the gate before it. Raises NotReady before
        the first was up."""
        info = self._engine.info()
        serving = self._serving
        # The same object nearly always: only another one is worth comparing.
        if serving is None or (serving.info is not info and serving.info != info):
            serving = self._serving = _Serving(info, capacity_of(info), estimator_for(info))
        if self._gate is None:
            core = AdmissionCore(serving.capacity, self._admission, self._outputs)
            self._gate = AdmissionGate(core, self._clock, self._pools)
        return serving, self._gate

    def _pools(self) -> Capacity | None:
        """What the engine has now to admit to; None while it is down."""
        state = self._engine.state()
        if state.restarts != self._restarts:
            self._restarts = state.restarts
            self.sessions.lost()
        if not state.ready:
            return None
        serving, _ = self._current()
        return serving.capacity

    def _decide(self, call: Call, serving: _Serving, gate: AdmissionGate) -> Decision:
        began_s = self._clock()
        facts = self._facts(call, serving)
        reserved = gate.blocks_used()
        view = self.fleet.view(load_tokens=self._load_tokens, reserved_blocks=reserved)
        decision = self._policy.decide(facts, view)
        decide_s = self._clock() - began_s
        call.trail.decided(decision, view.gpu_mode, decide_s)
        self.ledger.record(decision)
        self._on_decision(
            DecisionRecord(facts=facts, fleet=view, config=self.routing, decision=decision)
        )
        self._journal.emit(
            DecisionTaken(facts, decision, view.gpu_mode, decide_s, self._journal.unix_clock())
        )
        self._say(decision, call)
        return decision

    def _facts(self, call: Call, serving: _Serving) -> RequestFacts:
        jobs = call.jobs
        least = None
        if not jobs[0].max_tokens_explicit:
            bound = self._admission.min_open_output_tokens
            least = predicted_kv_bytes(serving.estimator, jobs, at_most_tokens=bound)
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

    def _request(self, call: Call, decision: Decision, serving: _Serving) -> AdmissionRequest:
        jobs = call.jobs
        prompt_tokens = max(len(job.prompt) for job in jobs)
        max_tokens = max(job.sampling.max_tokens for job in jobs)
        return AdmissionRequest(
            id=call.request_id,
            prompt_tokens=prompt_tokens,
            # Counted whole, though the last token is never fed: at most a block too much.
            max_tokens=max_tokens,
            explicit=jobs[0].max_tokens_explicit,
            sequences=at_once(serving.capacity, len(jobs), prompt_tokens + max_tokens),
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

    def _end_session(self, key: str, prefix: int) -> None:
        """A request of the session is over, and left a prefix of so many tokens in the cache."""
        serving, _ = self._current()
        size = 0
        if prefix:
            size = kv_bytes(serving.info, serving.estimator.footprint(prefix, 1).blocks)
        session = self.sessions.end(key, self._clock(), prefix, size)
        if session.prefix_tokens < prefix:  # over its limit: what is beyond is let go
            self._engine.forget(key, session.prefix_tokens)
        # Together they cannot keep more than the pool holds.
        beyond = self.sessions.totals().kv_bytes - kv_capacity_bytes(serving.info)
        for eviction in self.sessions.evict_for(beyond):
            self._engine.forget(eviction.session.key)

    @contextmanager
    def _loaded(self, tokens: int) -> Iterator[None]:
        self._load_tokens += tokens
        try:
            yield
        finally:
            self._load_tokens -= tokens


def _reason(decision: Decision) -> str:
    if decision.unmet_recommendation:
        return f"{decision.reason}; no multi-GPU replica"
    return decision.reason


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
