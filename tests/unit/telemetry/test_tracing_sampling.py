"""Which requests leave a trace."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from trace_records import record

from gpt_oss_server.events import TraceContext
from gpt_oss_server.telemetry.tracing_sampling import Sampling

LOW = "0" * 31 + "1"  # below any rate but 0
HIGH = "f" * 32  # above any rate but 1


def trace(trace_id: str, sampled: bool | None = None) -> TraceContext:
    return TraceContext(trace_id, "1" * 16, None if sampled is None else "2" * 16, sampled)


@pytest.mark.parametrize(
    ("trace_id", "sampled", "changes", "kept", "why"),
    [
        (LOW, None, {}, True, "the rate picks it"),
        (HIGH, None, {}, False, "the rate does not"),
        (HIGH, True, {}, True, "the caller records it"),
        (LOW, False, {}, False, "the caller does not"),
        (HIGH, None, {"outcome": "engine_failed"}, True, "an error"),
        (HIGH, None, {"outcome": "bad_request"}, True, "the client's error"),
        (LOW, False, {"outcome": "internal"}, True, "an error that the caller does not record"),
        (HIGH, None, {"outcome": "cancelled"}, False, "a client that left is no error"),
        (HIGH, None, {"ended_s": 110.0}, False, "exactly ten seconds are not slow"),
        (HIGH, None, {"ended_s": 110.001}, True, "slow"),
        (LOW, False, {"ended_s": 111.0}, True, "slow, and the caller does not record it"),
    ],
)
def test_what_is_kept(
    trace_id: str, sampled: bool | None, changes: dict[str, Any], kept: bool, why: str
) -> None:
    """Errors and slow ones always; else the caller's word; else the rate."""
    assert Sampling(0.03, 10.0).keeps(record(trace=trace(trace_id, sampled), **changes)) is kept, (
        why
    )


def test_the_head_knows_nothing_of_the_end() -> None:
    """What an answer's head says is the caller's flag or the rate, whatever comes after."""
    sampling = Sampling(0.03, 10.0)
    assert [sampling.head(trace(LOW)), sampling.head(trace(HIGH))] == [True, False]
    assert [sampling.head(trace(HIGH, True)), sampling.head(trace(LOW, False))] == [True, False]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 2000)])
def test_none_and_all(rate: float, expected: int) -> None:
    """A rate of 0 keeps nothing, a rate of 1 everything."""
    draw = random.Random(1)
    sampling = Sampling(rate, 10.0)
    assert sum(sampling.head(trace(f"{draw.getrandbits(128):032x}")) for _ in range(2000)) == (
        expected
    )


@pytest.mark.parametrize("rate", [0.03, 0.5])
def test_it_agrees_with_opentelemetry(rate: float) -> None:
    """The same traces as OpenTelemetry's own sampler with this rate, about that many."""
    draw = random.Random(7)
    ours, theirs = Sampling(rate, 10.0), TraceIdRatioBased(rate)
    kept = 0
    for _ in range(5000):
        number = draw.getrandbits(128)
        mine = ours.head(trace(f"{number:032x}"))
        other = theirs.should_sample(None, number, "x").decision is Decision.RECORD_AND_SAMPLE
        assert mine == other
        kept += mine
    assert kept == pytest.approx(5000 * rate, rel=0.25)
