"""What is known of one request so far, filled in by those who know; in the end one record.

Knows: clocks, and which moment of a request is which field of its `RequestRecord`. Does not know:
HTTP, engines, who reads the record. Written from one event loop; a call costs well under a
microsecond, since one is made per token.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol, TypeVar

from gpt_oss_server.admission.config import MAX_PRIORITY
from gpt_oss_server.events import (
    GAP_BOUNDS_S,
    Event,
    Operation,
    RequestEnded,
    RequestRecord,
    TokenGaps,
    TraceContext,
)
from gpt_oss_server.facts import Decision, GpuMode, Route
from gpt_oss_server.types import Job, TokenDelta


class Ids(NamedTuple):
    """What every log line of a request carries."""

    request_id: str
    trace_id: str


CURRENT_IDS: ContextVar[Ids | None] = ContextVar("request_ids", default=None)
"""The ids of the request that the running task serves."""


class ChoiceView(Protocol):
    """What a record wants to know of one choice when all is over."""

    @property
    def reasoning_tokens(self) -> int: ...

    @property
    def finish(self) -> str | None: ...


C = TypeVar("C", bound=ChoiceView)


class Meter:
    """Running totals over all requests, moved token by token, so that a long stream shows in
    rates while it runs. Read and written on one event loop only.

    Attributes:
        in_flight: requests that have begun and not ended.
        waiting: of these, the ones that wait for a place, by priority.
        prompt_tokens: of prompts that reached their first token; `cached_tokens` of these.
        output_tokens: produced so far.
        gap_counts, gap_total_s: as in `TokenGaps`.
    """

    __slots__ = (
        "cached_tokens",
        "gap_counts",
        "gap_total_s",
        "in_flight",
        "output_tokens",
        "prompt_tokens",
        "waiting",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = [0] * (MAX_PRIORITY + 1)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.gap_counts = [0] * (len(GAP_BOUNDS_S) + 1)
        self.gap_total_s = 0.0


class Trail:
    """One request on its way. Each method notes one step; `end` makes the record."""

    __slots__ = (
        "_clock",
        "_first",
        "_gap_counts",
        "_gap_total_s",
        "_last_s",
        "_meter",
        "_received_unix_s",
        "admitted_s",
        "cached_tokens",
        "choices",
        "client_class",
        "decide_s",
        "decided_s",
        "decision",
        "endpoint",
        "executed",
        "first_token_s",
        "input_tokens",
        "jobs",
        "last_token_s",
        "mode",
        "model",
        "operation",
        "output_tokens",
        "priority",
        "received_s",
        "rendered_s",
        "request_id",
        "response_id",
        "session_known",
        "shrunk",
        "stream",
        "trace",
    )

    def __init__(
        self,
        *,
        request_id: str = "",
        trace: TraceContext | None = None,
        endpoint: str = "",
        operation: Operation = "chat",
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._meter = meter if meter is not None else Meter()
        self._meter.in_flight += 1
        self._received_unix_s = unix_clock()
        self._last_s: dict[int, float] = {}
        self._gap_counts: list[int] | None = None
        self._gap_total_s = 0.0
        self.request_id = request_id
        self.trace = trace if trace is not None else TraceContext("0" * 32, "0" * 16)
        self.endpoint = endpoint
        self.operation: Operation = operation
        self.received_s = clock()
        self.response_id: str | None = None
        self.model: str | None = None
        self.stream = False
        self.client_class: Literal["key", "address"] = "address"
        self.priority: int | None = None
        self.session_known = False
        self.jobs: Sequence[Job] = ()
        self.input_tokens: int | None = None
        self.rendered_s: float | None = None
        self.mode: GpuMode | None = None
        self.decision: Decision | None = None
        self.decide_s: float | None = None
        self.decided_s: float | None = None
        self.executed: Route | None = None
        self.shrunk = False
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.cached_tokens: int | None = None
        self.output_tokens = 0
        self.choices: Sequence[ChoiceView] = ()

    def named(self, response_id: str, model: str, *, stream: bool) -> None:
        """The request is read: how its answer will be called."""
        self.response_id = response_id
        self.model = model
        self.stream = stream

    def planned(self, jobs: Sequence[Job]) -> None:
        """The prompt is tokenised and the sequences are known."""
        self.rendered_s = self._clock()
        self.jobs = jobs
        # The samples of one prompt share the list object.
        self.input_tokens = sum({id(job.prompt): len(job.prompt) for job in jobs}.values())

    def decided(self, decision: Decision, mode: GpuMode, decide_s: float) -> None:
        """Routing has decided, just now, in `decide_s`."""
        self.decided_s = self._clock()
        self.decision = decision
        self.decide_s = decide_s
        self.mode = mode

    def admitted(self, executed: Route, *, shrunk: bool) -> None:
        """It may run from now on."""
        self.admitted_s = self._clock()
        self.executed = executed
        self.shrunk = shrunk

    def follow(self, choices: list[C]) -> list[C]:
        """Whom to ask for reasoning tokens and finish reasons in the end."""
        self.choices = choices
        return choices

    def saw(self, index: int, delta: TokenDelta) -> None:
        """Tokens of one choice have come from the engine."""
        tokens = len(delta.token_ids)
        if delta.cached_tokens is not None and self._leads(index):
            self.cached_tokens = (self.cached_tokens or 0) + delta.cached_tokens
        if not tokens:
            return
        now_s = self._clock()
        meter = self._meter
        last_s = self._last_s.get(index)
        self._last_s[index] = self.last_token_s = now_s
        self.output_tokens += tokens
        meter.output_tokens += tokens
        if last_s is None:
            if self.first_token_s is None:
                self.first_token_s = now_s
            self._prompt_read(index, delta.cached_tokens or 0)
            return
        waited_s = now_s - last_s
        counts = self._gap_counts
        if counts is None:
            counts = self._gap_counts = [0] * (len(GAP_BOUNDS_S) + 1)
        bucket = bisect_left(GAP_BOUNDS_S, waited_s / tokens)
        counts[bucket] += tokens
        meter.gap_counts[bucket] += tokens
        self._gap_total_s += waited_s
        meter.gap_total_s += waited_s

    def end(self, outcome: str, status: int | None) -> RequestRecord:
        """It is over, just now. To be called once."""
        self._meter.in_flight -= 1
        jobs, choices = self.jobs, self.choices
        gaps = None
        if self._gap_counts is not None:
            gaps = TokenGaps(tuple(self._gap_counts), self._gap_total_s)
        return RequestRecord(
            request_id=self.request_id,
            trace=self.trace,
            endpoint=self.endpoint,
            operation=self.operation,
            received_s=self.received_s,
            received_unix_s=self._received_unix_s,
            ended_s=self._clock(),
            outcome=outcome,
            status=status,
            response_id=self.response_id,
            model=self.model,
            stream=self.stream,
            client_class=self.client_class,
            priority=self.priority,
            session_known=self.session_known,
            n=len(jobs) or None,
            sampling=jobs[0].sampling if jobs else None,
            max_tokens_explicit=jobs[0].max_tokens_explicit if jobs else None,
            mode=self.mode,
            decision=self.decision,
            executed=self.executed,
            shrunk=self.shrunk,
            input_tokens=self.input_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            reasoning_tokens=sum([choice.reasoning_tokens for choice in choices]),
            decide_s=self.decide_s,
            rendered_s=self.rendered_s,
            decided_s=self.decided_s,
            admitted_s=self.admitted_s,
            first_token_s=self.first_token_s,
            last_token_s=self.last_token_s,
            gaps=gaps,
            finish_reasons=tuple([c.finish for c in choices if c.finish is not None]),
        )

    def _prompt_read(self, index: int, cached_tokens: int) -> None:
        """The first token of a choice is here. Its prompt and what of it was cached count at one
        moment: told apart, the rest (a counter) would go down where a later prompt of the same
        request was cached, and Prometheus takes that for a new start."""
        if index < len(self.jobs) and self._leads(index):
            self._meter.prompt_tokens += len(self.jobs[index].prompt)
            self._meter.cached_tokens += cached_tokens

    def _leads(self, index: int) -> bool:
        """Whether a choice is the first of its prompt: samples of one prompt count it once."""
        jobs = self.jobs
        return index == 0 or all(job.prompt is not jobs[index].prompt for job in jobs[:index])


class Journal:
    """Where the core writes what happens: opens trails, passes events on to `emit`."""

    def __init__(
        self,
        emit: Callable[[Event], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        sampled: Callable[[TraceContext], bool] = lambda _: False,
    ) -> None:
        """`clock` is monotonic seconds; `unix_clock` anchors it. `emit` never raises and never
        blocks. `sampled` says, before a request has run, whether its trace will be recorded."""
        self.emit = emit
        self.sampled = sampled
        self.clock = clock
        self.unix_clock = unix_clock
        self.meter = Meter()

    def open(
        self, request_id: str, trace: TraceContext, endpoint: str, operation: Operation
    ) -> Trail:
        """A request to a generating endpoint begins."""
        return Trail(
            request_id=request_id,
            trace=trace,
            endpoint=endpoint,
            operation=operation,
            meter=self.meter,
            clock=self.clock,
            unix_clock=self.unix_clock,
        )

    def close(self, trail: Trail, outcome: str, status: int | None) -> None:
        """It is over, one way or the other."""
        self.emit(RequestEnded(trail.end(outcome, status)))
