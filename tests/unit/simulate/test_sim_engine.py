"""A simulated replica in time: by hand, against a token-by-token reference, and its invariants."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_builders import replica

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.replica.engine import Engine
from gpt_oss_server.simulate.replica.sequence import Sequence

PLAIN = replica(prefill_order="fcfs", max_num_seqs=8, max_batch_tokens=4096)


def play(engine: Engine, seqs: list[Sequence]) -> list[float]:
    """Enqueue each at its arrival and run to the end; returns the moments of all events."""
    moments = []
    for seq in sorted(seqs, key=lambda s: s.arrived_s):
        while engine.next_s < seq.arrived_s:
            moments.append(engine.next_s)
            engine.step()
        assert engine.enqueue(seq, seq.arrived_s)
    while engine.next_s < math.inf:
        moments.append(engine.next_s)
        engine.step()
    return moments


def test_one_request_by_hand() -> None:
    """A prompt in two chunks, then decode steps whose caches grow by a token each."""
    seq = Sequence(0, 1.0, 5000, 4)
    play(Engine(PLAIN), [seq])
    time = PLAIN.time
    share = 4096
    # Deep tokens cost more of the budget: what 4096 buys from the start of a prompt.
    even = time.even_tokens
    first = int(2 * even * share / (even + math.sqrt(even * even + 2 * even * share)))
    ttft_s = time.base_s(first) + time.sequence_s + time.prefill_s(first, 0)
    rest = 5000 - first
    ttft_s += time.base_s(rest) + time.sequence_s + time.prefill_s(rest, first) + first * time.kv_s
    assert seq.first_token_s == pytest.approx(1.0 + ttft_s + time.first_token_s, rel=1e-12)
    cache_s = 5000 * time.kv_s + time.window_s(5000)
    steps_s = sum(time.base_s(1) + time.sequence_s + cache_s + k * time.kv_s for k in range(3))
    assert seq.finish_s == pytest.approx(seq.first_token_s + steps_s, rel=1e-12)


def test_a_short_prompt_joins_a_long_answer() -> None:
    """An arrival waits for the step under way, no longer; the decoder beside it is slowed by
    exactly its prefill step."""
    time = PLAIN.time
    decoder, late = Sequence(0, 0.0, 100, 400), Sequence(1, 0.5, 50, 1)
    play(Engine(PLAIN), [decoder, late])
    alone = Sequence(0, 0.0, 100, 400)
    play(Engine(PLAIN), [alone])
    base_s = time.base_s(51) - time.base_s(1)
    extra_s = base_s + time.sequence_s + time.prefill_s(50, 0)
    assert decoder.finish_s == pytest.approx(alone.finish_s + extra_s, rel=1e-9)
    step_s = time.decode_run_s(1, 1, 500 * time.kv_s + time.window_s(100))
    waited_s = late.first_token_s - 0.5 - time.first_token_s
    assert 0 < waited_s < 2 * step_s + extra_s


def reference(machine: Replica, rows: list[tuple[float, int, int]]) -> list[tuple[float, float]]:
    """First come, first served, all at once in memory: every step and token on its own."""
    time, limits = machine.time, machine.settings
    waiting = [[i, *row] for i, row in enumerate(rows)]
    state: dict[int, list[int]] = {}
    out: dict[int, list[float]] = {}
    now_s = 0.0
    while waiting or state:
        if not state and waiting[0][1] > now_s:
            now_s = waiting[0][1]
        for row in waiting:
            if row[1] <= now_s:
                state[row[0]] = [0, row[2], row[3]]
        waiting = [row for row in waiting if row[1] > now_s]
        decoding = [i for i, (done, prompt, _) in state.items() if done >= prompt]
        budget = limits.max_batch_tokens - len(decoding)
        chunks = {}
        for i, (done, prompt, _) in state.items():
            if done < prompt and budget > 0:
                even = time.even_tokens
                depth, twice = even + done, 2 * even * budget
                buys = int(twice / (depth + math.sqrt(depth * depth + twice)))
                if buys < 32 and chunks:
                    continue
                chunks[i] = min(max(buys, min(32, budget)), prompt - done)
                cost = chunks[i] + chunks[i] * (done + chunks[i] / 2) / even
                budget -= min(budget, math.ceil(cost))
        tokens = len(decoding) + sum(chunks.values())
        now_s += time.base_s(tokens) + time.sequence_s * (len(decoding) + len(chunks))
        for i in decoding:
            now_s += state[i][0] * time.kv_s + time.window_s(state[i][1])
        for i, chunk in chunks.items():
            now_s += time.prefill_s(chunk, state[i][0]) + state[i][0] * time.kv_s
        for i in [*decoding, *chunks]:
            state[i][0] += chunks.get(i, 1)
            done, prompt, answer = state[i]
            if done == prompt:
                out[i] = [now_s]
            if done == prompt + answer - 1:
                out[i].append(now_s)
                del state[i]
    first_s = time.first_token_s
    return [(out[i][0] + first_s, out[i][-1] + first_s) for i in range(len(rows))]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 9000), st.integers(1, 120)),
        min_size=1,
        max_size=6,
    )
)
def test_closed_form_equals_token_by_token(rows: list[tuple[float, int, int]]) -> None:
    """Moments of the first and the last token are those of a simulation without any closed
    form."""
    rows.sort(key=lambda row: row[0])
    seqs = [Sequence(i, *row) for i, row in enumerate(rows)]
    play(Engine(PLAIN), seqs)
    for seq, (first_s, finish_s) in zip(seqs, reference(PLAIN, rows), strict=True):
        assert seq.first_token_s == pytest.approx(first_s, rel=1e-6)
        assert seq.finish_s == pytest.approx(finish_s, rel=1e-6)


UNITS = st.lists(st.integers(0, 2), max_size=4)


@settings(max_examples=150)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 2), st.integers(1, 500), st.integers(1, 300), UNITS),
        min_size=1,
        max_size=12,
    ),
    blocks=st.integers(60, 90),
    order=st.sampled_from(["shortest", "fcfs"]),
)
def test_invariants(rows: list[tuple[float, int, int, list[int]]], blocks: int, order: str) -> None:
    """In a pool that runs dry: time never goes back, what is held never exceeds the pool, every
    token is computed once but for preemptions, nothing is left behind, work is never idle."""
    machine = replica(blocks, prefill_order=order, max_num_seqs=6, max_batch_tokens=256)
    engine = Engine(machine, unit_tokens=64)
    seqs = []
    for i, (arrived_s, prompt, answer, path) in enumerate(rows):
        # Hashes name whole prefixes: two prompts that part once stay apart.
        units = tuple(hash(tuple(path[: n + 1])) for n in range(min(len(path), prompt // 64)))
        seqs.append(Sequence(i, arrived_s, prompt, answer, units))
    moments = play(engine, seqs)
    assert all(before <= after for before, after in pairwise(moments))
    pool = engine.scheduler.pool
    assert pool.referenced == 0
    assert pool.cached_blocks <= pool.blocks
    assert sorted(seq.index for seq in engine.finished) == list(range(len(rows)))
    assert engine.waiting_tokens == 0
    assert max(map(abs, engine.waiting_work_s)) < 1e-9
    for seq in seqs:
        assert seq.arrived_s < seq.first_token_s <= seq.finish_s
    cached = sum(seq.cached_tokens for seq in seqs)
    prompts = sum(seq.input_tokens for seq in seqs)
    if not engine.scheduler.preemptions:
        assert engine.prefill_tokens == prompts - cached
        assert engine.decode_tokens == sum(seq.output_tokens - 1 for seq in seqs)
    else:
        assert engine.prefill_tokens + cached >= prompts
    # Work conservation: from the first arrival on it is only idle while nobody is there.
    busy, last_s = 0.0, -1.0
    for start_s, end_s in sorted(
        (s.arrived_s, s.finish_s - PLAIN.time.first_token_s) for s in seqs
    ):
        busy += max(0.0, end_s - max(start_s, last_s))
        last_s = max(last_s, end_s)
    assert engine.busy_s == pytest.approx(busy, rel=1e-6)


def test_what_a_dispatcher_sees() -> None:
    """Waiting work by size, decoding sequences and what they hold, grown in proportion."""
    engine = Engine(PLAIN)
    seq = Sequence(0, 0.0, 1000, 401)
    engine.enqueue(seq, 0.0)
    decoding, context, waiting, tokens, work, free, share = engine.look(0.0)
    assert (decoding, context, waiting, tokens, share) == (0, 0, 1, 1000, 0.0)
    assert work[10] == pytest.approx(PLAIN.time.prefill_s(1000, 0))
    assert free == PLAIN.kv_tokens
    engine.step()
    engine.step()
    start_s = seq.first_token_s - PLAIN.time.first_token_s
    middle_s = (start_s + engine.next_s) / 2 + 1e-9
    decoding, context, waiting, tokens, work, free, share = engine.look(middle_s)
    assert (decoding, context, waiting, tokens) == (1, 1200, 0, 0)
    assert max(work) == 0.0
    assert PLAIN.kv_tokens - free == 1008 + 200
    assert 0 < share < 0.1
    assert engine.busy_until(middle_s) == pytest.approx(middle_s)
    assert abs(engine.elapsed_steps(middle_s) - 200) < 5


def test_a_full_queue_and_one_who_waited_too_long() -> None:
    """The queue's bounds: a place refused, a wait given up."""
    machine = replica(max_num_seqs=1, max_batch_tokens=512)
    engine = Engine(machine, max_waiting=2, max_wait_s=0.5)
    assert engine.enqueue(Sequence(0, 0.0, 100, 500), 0.0)
    engine.step()
    assert engine.enqueue(Sequence(1, 0.1, 100, 5), 0.1)
    assert engine.enqueue(Sequence(2, 0.2, 100, 5), 0.2)
    assert not engine.enqueue(Sequence(3, 0.3, 100, 5), 0.3)
    while engine.next_s < math.inf:
        engine.step()
    assert [seq.index for seq in engine.expired] == [1, 2]
    assert [seq.index for seq in engine.finished] == [0]


def test_death() -> None:
    """Everybody is given back, and the replica starts empty."""
    engine = Engine(PLAIN)
    seqs = [Sequence(i, 0.0, 100, 50) for i in range(3)]
    for seq in seqs:
        engine.enqueue(seq, 0.0)
    engine.step()
    assert engine.fail() == seqs
    assert engine.next_s == math.inf
    assert engine.waiting_tokens == 0
    again = Sequence(9, 5.0, 100, 1)
    play(engine, [again])
    assert again.finish_s > 5.0
