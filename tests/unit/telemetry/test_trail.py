"""A request's trail: moments, tokens and gaps as they were, and running totals beside them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_records import DECISION, TRACE

from gpt_oss_server.events import GAP_BOUNDS_S, Event, RequestEnded
from gpt_oss_server.trail import Journal, Trail
from gpt_oss_server.types import Job, SamplingParams, TokenDelta


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class _Choice:
    reasoning_tokens: int
    finish: str | None


def job(prompt: list[int], **sampling: object) -> Job:
    return Job(id="j", prompt=prompt, sampling=SamplingParams(max_tokens=9, **sampling))


def begin(clock: Clock, events: list[Event] | None = None) -> tuple[Journal, Trail]:
    emit = (lambda _: None) if events is None else events.append
    journal = Journal(emit, clock=clock, unix_clock=lambda: 1000.0 + clock.now_s)
    return journal, journal.open("req_1", TRACE, "/v1/chat/completions", "chat")


def tokens(count: int, cached_tokens: int | None = None) -> TokenDelta:
    return TokenDelta(token_ids=(7,) * count, cached_tokens=cached_tokens)


def test_a_whole_request() -> None:
    """Each step is stamped with the moment it was told; the end makes one record of them all."""
    clock, events = Clock(), list[Event]()
    journal, trail = begin(clock, events)
    clock.now_s = 101.0
    trail.named("chatcmpl-1", "tiny", stream=True)
    trail.planned([job([1, 2, 3], temperature=0.5)])
    clock.now_s = 102.0
    trail.decided(DECISION, "single", 0.25)
    clock.now_s = 103.0
    trail.admitted("single_gpu", shrunk=True)
    trail.follow([_Choice(1, "stop")])
    clock.now_s = 104.0
    trail.saw(0, tokens(1, cached_tokens=2))
    clock.now_s = 105.5
    trail.saw(0, tokens(1))
    clock.now_s = 106.0
    journal.close(trail, "ok", 200)
    (event,) = events
    assert isinstance(event, RequestEnded)
    record = event.record
    assert (record.request_id, record.response_id, record.model) == ("req_1", "chatcmpl-1", "tiny")
    assert (record.received_s, record.rendered_s, record.decided_s) == (100.0, 101.0, 102.0)
    assert (record.admitted_s, record.first_token_s, record.last_token_s) == (103.0, 104.0, 105.5)
    assert record.unix_s(record.ended_s) == 1106.0
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (3, 2, 2)
    assert (record.reasoning_tokens, record.finish_reasons, record.n) == (1, ("stop",), 1)
    assert (record.executed, record.shrunk, record.decide_s) == ("single_gpu", True, 0.25)
    assert (record.decision, record.mode) == (DECISION, "single")
    assert record.sampling is not None
    assert record.sampling.temperature == 0.5
    assert (record.ttft_s, record.queue_s, record.prefill_s) == (4.0, 1.0, 1.0)
    assert (record.decode_s, record.tpot_s, record.e2e_s) == (1.5, 1.5, 6.0)
    assert (record.cached_share, record.cache_hit) == (pytest.approx(2 / 3), "most")


def test_a_request_that_came_to_nothing() -> None:
    """What never happened is None, not 0."""
    _, trail = begin(Clock())
    record = trail.end("unauthorized", 401)
    assert (record.outcome, record.status) == ("unauthorized", 401)
    for name in ("n", "sampling", "input_tokens", "cached_tokens", "ttft_s", "queue_s", "tpot_s"):
        assert getattr(record, name) is None, name
    assert (record.prefill_s, record.decode_s, record.cache_hit, record.gaps) == (None,) * 4


def test_tokens_that_come_together_share_their_gap() -> None:
    """Four tokens after 0.02 s are four gaps of 5 ms; those of the first delta have none."""
    clock = Clock()
    _, trail = begin(clock)
    trail.planned([job([1])])
    trail.saw(0, tokens(3))
    clock.now_s += 0.02
    trail.saw(0, tokens(4))
    record = trail.end("ok", 200)
    assert record.gaps is not None
    assert record.gaps.counts[GAP_BOUNDS_S.index(0.005)] == 4
    assert (record.gaps.count, record.gaps.total_s) == (4, pytest.approx(0.02))
    assert record.tpot_s == pytest.approx(0.005)
    assert record.output_tokens == 7


def test_choices_have_gaps_of_their_own() -> None:
    """Two choices that take turns: the gap is between tokens of the same one."""
    clock = Clock()
    _, trail = begin(clock)
    prompt = [1, 2]
    trail.planned([job(prompt), job(prompt)])
    for index in (0, 1, 0, 1):
        clock.now_s += 1.0
        trail.saw(index, tokens(1))
    record = trail.end("ok", 200)
    assert record.gaps is not None
    assert (record.gaps.count, record.gaps.total_s) == (2, 4.0)
    assert (record.n, record.ttft_s) == (2, 1.0)


def test_samples_of_one_prompt_count_it_once() -> None:
    """Prompt and cached tokens: once per prompt, whatever `n`; another prompt adds its own."""
    clock = Clock()
    journal, trail = begin(clock)
    one, other = [1, 2, 3], [4, 5]
    trail.planned([job(one), job(one), job(other)])
    trail.saw(1, tokens(1, cached_tokens=3))
    trail.saw(0, tokens(1, cached_tokens=2))
    trail.saw(2, tokens(1, cached_tokens=1))
    record = trail.end("ok", 200)
    assert (record.input_tokens, record.cached_tokens) == (5, 3)
    assert (journal.meter.prompt_tokens, journal.meter.cached_tokens) == (5, 3)


def test_what_was_not_cached_never_shrinks() -> None:
    """Several prompts, each found in the cache and each begun when it is: the prompt tokens that
    had to be computed are a counter, and at no moment fewer than before."""
    journal, trail = begin(Clock())
    meter = journal.meter
    one, other = [1, 2, 3], [4, 5, 6, 7, 8]
    trail.planned([job(one), job(one), job(other), job(other)])
    computed = [0]
    for index, cached_tokens in ((1, 3), (0, 2), (3, 5), (2, 4)):
        trail.saw(index, tokens(1, cached_tokens=cached_tokens))
        computed.append(meter.prompt_tokens - meter.cached_tokens)
    assert computed == [0, 0, 1, 1, 2]
    assert (meter.prompt_tokens, meter.cached_tokens) == (8, 6)
    record = trail.end("ok", 200)
    assert (record.input_tokens, record.cached_tokens) == (8, 6)


def test_totals_move_while_requests_run() -> None:
    """A stream shows in the totals with every token, long before it ends."""
    clock = Clock()
    journal, trail = begin(clock)
    trail.planned([job([1, 2, 3])])
    meter = journal.meter
    assert (meter.in_flight, meter.prompt_tokens, meter.output_tokens) == (1, 0, 0)
    trail.saw(0, tokens(1))
    assert (meter.prompt_tokens, meter.output_tokens) == (3, 1)
    clock.now_s += 0.5
    trail.saw(0, tokens(2))
    assert (meter.output_tokens, sum(meter.gap_counts), meter.gap_total_s) == (3, 2, 0.5)
    trail.end("cancelled", None)
    assert meter.in_flight == 0


def test_a_delta_without_tokens_is_no_token() -> None:
    """A finishing delta with nothing in it moves no time."""
    clock = Clock()
    _, trail = begin(clock)
    trail.planned([job([1])])
    trail.saw(0, TokenDelta(finish="length"))
    record = trail.end("ok", 200)
    assert (record.first_token_s, record.output_tokens) == (None, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.floats(0.0, 20.0)), max_size=60))
def test_gaps_and_tokens_always_add_up(deltas: list[tuple[int, int, float]]) -> None:
    """Whatever comes when: every token but those of a choice's first delta has one gap, and the
    totals are the sum of what the records say."""
    clock = Clock()
    journal, trail = begin(clock)
    prompt = [1]
    trail.planned([job(prompt)] * 3)
    first = dict[int, int]()
    for index, count, passed_s in deltas:
        clock.now_s += passed_s
        trail.saw(index, tokens(count))
        if count:
            first.setdefault(index, count)
    record = trail.end("ok", 200)
    total = sum(count for _, count, _ in deltas)
    gaps = record.gaps.count if record.gaps is not None else 0
    assert record.output_tokens == journal.meter.output_tokens == total
    assert gaps == sum(journal.meter.gap_counts) == total - sum(first.values())
    if record.gaps is not None:
        assert record.gaps.total_s <= 3 * sum(passed_s for _, _, passed_s in deltas) + 1e-9
