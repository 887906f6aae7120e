"""What happens in the server, as frozen facts: the core emits them, telemetry tells them on.

Knows: the shape of each event. Does not know: metrics, logs, traces, or who listens. An event
never holds text of a prompt or an answer, nor a key.

Moments (`_s` fields named after something that happened) are readings of one monotonic clock, in
seconds; only their differences mean anything. `RequestRecord.unix_s` turns them into wall-clock
time. A value that is not known, or a moment that never came, is None, never 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpt_oss_server.facts import Decision, GpuMode, RequestFacts, Route
from gpt_oss_server.types import SamplingParams

Operation = Literal["chat", "text_completion", "responses"]
"""What a generating endpoint does; the first two are OpenTelemetry's names."""

CacheHit = Literal["none", "partial", "most"]
TurnedAwayReason = Literal["full", "shed", "deadline", "never_fits", "cancelled"]

OK = "ok"
CANCELLED = "cancelled"
MOST_CACHED = 0.5

# Upper bounds of the buckets in which gaps between tokens are counted; the last is open.
GAP_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """Where a request stands in a trace (W3C Trace Context), in lower-case hex.

    `trace_id` (32 digits) is the caller's, or drawn here; `span_id` (16) is drawn here for the
    request itself. `parent_span_id` is the caller's span, None where it sent no `traceparent`.
    `sampled` is the caller's flag, None where it sent none. `state` is its `tracestate`, verbatim.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None = None
    sampled: bool | None = None
    state: str | None = None


class TokenGaps(msgspec.Struct, frozen=True, gc=False):
    """The times between successive tokens of a request's choices.

    `counts[i]` is how many were at most `GAP_BOUNDS_S[i]` and above the bound before; the last
    entry counts those above all. Tokens that arrived together share their gap evenly.
    """

    counts: tuple[int, ...]
    total_s: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a generating endpoint, from its first byte to its last, however it ended.

    Identity:
        request_id: as in `X-Request-Id`.
        trace: its place in a trace.
        endpoint: the path as the server knows it (`/v1/chat/completions`).
        response_id: `chatcmpl-…`; None before one was drawn.
        model: the id that answers carry; None where the request named a model not served here.
    Who and what:
        client_class: `key` for a client with an API key, else `address`.
        priority: 0 to 9; None before it was read.
        session_known: whether it belongs to a conversation that can be told from others.
        n: sequences asked for; None before they were planned.
        sampling: of the first sequence, as asked for.
        max_tokens_explicit: whether the client bounded the output itself.
    Where it ran:
        mode: how the model is laid over GPUs.
        decision: None where it ended before one was taken.
        executed: the route on which it ran; None where it never ran.
        shrunk: its open output bound was lowered.
    Tokens (of all sequences; produced by the engine, whether or not the client saw them):
        input_tokens: each prompt once; None before it was tokenised.
        cached_tokens: of these, found in the prefix cache; None before the first token.
    Moments on the monotonic clock:
        received_s, rendered_s (tokenised), decided_s, admitted_s, first_token_s, last_token_s,
        ended_s. `decide_s` is how long the decision took and ends at `decided_s`.
    How it ended:
        outcome: `ok`, `cancelled`, or an error's label (`errors.SPECS`).
        status: of the HTTP answer; None where none was begun.
        finish_reasons: one per sequence that came to its own end.
    """

    request_id: str
    trace: TraceContext
    endpoint: str
    operation: Operation
    received_s: float
    received_unix_s: float
    ended_s: float
    outcome: str
    status: int | None
    response_id: str | None = None
    model: str | None = None
    stream: bool = False
    client_class: Literal["key", "address"] = "address"
    priority: int | None = None
    session_known: bool = False
    n: int | None = None
    sampling: SamplingParams | None = None
    max_tokens_explicit: bool | None = None
    mode: GpuMode | None = None
    decision: Decision | None = None
    executed: Route | None = None
    shrunk: bool = False
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    reasoning_tokens: int = 0
    decide_s: float | None = None
    rendered_s: float | None = None
    decided_s: float | None = None
    admitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    gaps: TokenGaps | None = None
    finish_reasons: tuple[str, ...] = ()

    def unix_s(self, moment_s: float) -> float:
        """A moment of this record as Unix time."""
        return self.received_unix_s + (moment_s - self.received_s)

    @property
    def e2e_s(self) -> float:
        """From the first byte received to the end of the answer."""
        return self.ended_s - self.received_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from the first byte received."""
        return None if self.first_token_s is None else self.first_token_s - self.received_s

    @property
    def queue_s(self) -> float | None:
        """From the decision to admission; None for one that was never admitted."""
        if self.admitted_s is None or self.decided_s is None:
            return None
        return self.admitted_s - self.decided_s

    @property
    def prefill_s(self) -> float | None:
        """From admission to the first token."""
        if self.first_token_s is None or self.admitted_s is None:
            return None
        return self.first_token_s - self.admitted_s

    @property
    def decode_s(self) -> float | None:
        """From the first token to the last."""
        if self.first_token_s is None or self.last_token_s is None:
            return None
        return self.last_token_s - self.first_token_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first, per sequence; None with fewer than two."""
        if self.gaps is None or not self.gaps.count:
            return None
        return self.gaps.total_s / self.gaps.count

    @property
    def cached_share(self) -> float | None:
        """Of the prompt's tokens, the share found in the prefix cache, 0 to 1."""
        if self.cached_tokens is None or not self.input_tokens:
            return None
        return self.cached_tokens / self.input_tokens

    @property
    def cache_hit(self) -> CacheHit | None:
        """How much of the prompt was found in the prefix cache: none, some, or at least half."""
        share = self.cached_share
        if share is None:
            return None
        if share == 0.0:
            return "none"
        return "most" if share >= MOST_CACHED else "partial"


class DecisionTaken(msgspec.Struct, frozen=True):
    """Routing decided where a request belongs. `decide_s` is how long that took; it includes
    reading the fleet, not tokenising. `at_unix_s` is when."""

    facts: RequestFacts
    decision: Decision
    mode: GpuMode
    decide_s: float
    at_unix_s: float


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request may run, after `waited_s` in the queue (0.0: at once). `decided` is where it
    belongs, `executed` where it goes; they differ where nothing of the decided kind exists."""

    request_id: str
    priority: int
    waited_s: float
    decided: Route
    executed: Route
    shrunk: bool = False


class TurnedAway(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was decided upon and never ran.

    - `full`: no place in the queue; `shed`: its place went to another; `deadline`: waited too
      long. Answered 429, or 503 while the engine is being restarted; with `retry_after_s`.
    - `never_fits`: larger than the whole pool, or, of one that waited, than what a restarted
      engine has left (400).
    - `cancelled`: its client left while it waited.
    """

    request_id: str
    reason: TurnedAwayReason
    priority: int
    decided: Route
    waited_s: float
    retry_after_s: float | None = None


class RequestEnded(msgspec.Struct, frozen=True):
    """A request to a generating endpoint is over; emitted exactly once for each."""

    record: RequestRecord


class HttpAnswered(msgspec.Struct, frozen=True):
    """Any HTTP exchange is over. `endpoint` is a path the server knows, or `unknown`; `status`
    is None where the client left before an answer was begun."""

    endpoint: str
    status: int | None
    seconds: float


class WorkerRestarted(msgspec.Struct, frozen=True):
    """The engine worker ended on its own and a new one is started. `restarts` counts them."""

    reason: str
    restarts: int


Event = DecisionTaken | Admitted | TurnedAway | RequestEnded | HttpAnswered | WorkerRestarted
