"""The simulated scheduler takes the decisions of the real one, step for step, and counts blocks
as they would be counted one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_oss_server.engine.batcher import Batcher
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.order import prefill_order
from gpt_oss_server.engine.sequence import Sequence as RealSequence
from gpt_oss_server.engine.step_cost import StepCost
from gpt_oss_server.simulate.cost.layout import EngineSettings
from gpt_oss_server.simulate.replica.decoders import Decoders
from gpt_oss_server.simulate.replica.kv_pool import KvPool
from gpt_oss_server.simulate.replica.scheduler import Scheduler
from gpt_oss_server.simulate.replica.sequence import DECODING, GONE, Sequence
from gpt_oss_server.types import Job, SamplingParams

Step = dict[int, int]
"""Arrival → tokens computed in one step."""


@dataclass
class Case:
    """An engine and who comes before which step: (step, prompt, answer)."""

    blocks: int
    block_size: int
    max_num_seqs: int
    max_batch_tokens: int
    order: str
    share: float
    even: float
    jobs: list[tuple[int, int, int]] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    """Of each job, where prompts share beginnings and what was computed is cached."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pools small enough to run dry, budgets small enough to chunk."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(3, 16))
    slots = draw(st.integers(1, 6))
    case = Case(
        blocks,
        block_size,
        slots,
        draw(st.integers(slots, slots + 40)),
        draw(st.sampled_from(["shortest", "fcfs"])),
        draw(st.sampled_from([0.0, 0.25, 1.0])),
        draw(st.sampled_from([float("inf"), 30.0])),
    )
    longest = blocks * block_size
    step = 0
    for _ in range(draw(st.integers(1, 10))):
        step += draw(st.integers(0, 4))
        total = draw(st.integers(2, longest))
        prompt = draw(st.integers(1, total - 1))
        case.jobs.append((step, prompt, total - prompt))
    return case


@st.composite
def sharing_cases(draw: st.DrawFn) -> Case:
    """Prompts that share beginnings of some length and come in bursts; memory for all of them, so
    that nothing cached is lost (which goes first differs: blocks there, units here), but few slots
    and small budgets."""
    block_size = draw(st.sampled_from([2, 4]))
    slots = draw(st.integers(2, 6))
    case = Case(
        0,
        block_size,
        slots,
        draw(st.integers(slots + 4, slots + 40)),
        draw(st.sampled_from(["shortest", "shortest", "fcfs"])),
        draw(st.sampled_from([0.25, 0.25, 0.0])),
        draw(st.sampled_from([float("inf"), 30.0])),
    )
    step = 0
    for number in range(draw(st.integers(3, 14))):
        step += draw(st.sampled_from([0, 0, 0, 1, 2]))
        head, tail = draw(st.integers(0, 6)), draw(st.integers(1, 8 * block_size))
        shared = [token for token in range(head) for _ in range(block_size)]
        case.prompts.append(shared + [100 + number] * tail)
        case.jobs.append((step, len(case.prompts[-1]), draw(st.sampled_from([1, 2, 12]))))
    case.blocks = sum(prompt + answer for _, prompt, answer in case.jobs)
    return case


def real_steps(case: Case) -> list[Step]:
    """What `engine.batcher` computes, with a stand-in for the model."""
    kv = KvSpace(
        [GroupSpec("full", None, case.blocks)],
        block_size=case.block_size,
        max_num_seqs=case.max_num_seqs,
        max_model_len=case.blocks * case.block_size + 1,
        prefix_caching=bool(case.prompts),
    )
    order = prefill_order(case.order, case.share)
    batcher = Batcher(kv, order, case.max_batch_tokens, StepCost(case.even))
    coming = list(enumerate(case.jobs))
    steps: list[Step] = []
    while coming or batcher.running or batcher.waiting:
        while coming and coming[0][1][0] <= len(steps):
            arrival, (_, prompt, answer) = coming.pop(0)
            tokens_in = case.prompts[arrival] if case.prompts else [0] * prompt
            job = Job(id="", prompt=tokens_in, sampling=SamplingParams(max_tokens=answer))
            batcher.add(
                RealSequence.create(
                    arrival,
                    job,
                    arrival=arrival,
                    max_tokens=answer,
                    groups=1,
                    block_size=case.block_size,
                    stop_ids=frozenset(),
                )
            )
        batch = batcher.schedule()
        steps.append({s.arrival: n for s, n in zip(batch.seqs, batch.tokens, strict=True)})
        sampling = set(batch.samples)
        for place, (seq, tokens) in enumerate(zip(batch.seqs, batch.tokens, strict=True)):
            kv.advance(seq, tokens)
            if place in sampling:
                seq.append(9)
                if seq.output_len == seq.max_tokens:
                    batcher.remove(seq)
    return steps


def simulated_steps(case: Case) -> list[Step]:
    """The same by `simulate.scheduler`, checking its sums against a count of everybody."""
    limits = EngineSettings(
        max_num_seqs=case.max_num_seqs,
        max_batch_tokens=case.max_batch_tokens,
        block_size=case.block_size,
        prefill_order=case.order,
        oldest_share=case.share,
        prefix_caching=bool(case.prompts),
    )
    unit = case.block_size if case.prompts else 0
    pool = KvPool(case.blocks, 1 if unit else 0)
    scheduler = Scheduler(limits, pool, unit, case.even)
    coming = list(case.jobs)
    live: list[Sequence] = []
    steps: list[Step] = []
    while coming or scheduler.running or len(scheduler.waiting):
        while coming and coming[0][0] <= len(steps):
            _, prompt, answer = coming.pop(0)
            units = units_of(case, len(live)) if unit else ()
            seq = Sequence(0, 0.0, prompt, answer, units)
            scheduler.add(seq)
            live.append(seq)
        grants = scheduler.plan()
        decoders = scheduler.decoders
        if not grants:
            pool.take(decoders.new_blocks(1))
        step = {seq.arrival: 1 for seq in decoders.members()}
        step |= {seq.arrival: tokens for seq, tokens in grants.items()}
        steps.append(step)
        decoders.advance(1)
        for seq in decoders.pop_done():
            decoders.leave(seq)
            scheduler.forget(seq)
        for seq in scheduler.complete(grants):
            seq.generated += seq.computed == seq.length
            if seq.generated == seq.output_tokens:
                scheduler.forget(seq)
            else:
                decoders.join(seq, 0.0)
        check_counts(case, scheduler, live)
    assert pool.referenced == 0
    return steps


def units_of(case: Case, job: int) -> tuple[int, ...]:
    """Names of the complete blocks of a prompt, by all tokens up to their ends."""
    prompt = case.prompts[job]
    ends = range(case.block_size, len(prompt) + 1, case.block_size)
    return tuple(hash(tuple(prompt[:end])) for end in ends)


def check_counts(case: Case, scheduler: Scheduler, live: list[Sequence]) -> None:
    """Sums kept in closed form equal the count of every sequence; the pool holds them all."""
    decoders = scheduler.decoders
    decoding = [s for s in live if s.state == DECODING]
    lengths = [s.phase + decoders.steps for s in decoding]
    assert decoders.count == len(decoding)
    assert decoders.context_tokens == sum(lengths)
    held = sum(-(-n // case.block_size) for n in lengths)
    held += sum(s.held for s in scheduler.prefilling)
    shares = [unit for s in live for unit in s.shares]
    held -= len(shares) - len(set(shares))
    assert scheduler.pool.referenced == held <= case.blocks


@settings(max_examples=300)
@given(cases())
def test_the_same_decisions_as_the_real_batcher(case: Case) -> None:
    """Whoever computes, and how many tokens, is the same in every step: chunks, order, admission,
    preemption, whatever runs dry."""
    real = [sorted(step.items()) for step in real_steps(case)]
    simulated = [sorted(step.items()) for step in simulated_steps(case)]
    assert simulated == real


@settings(max_examples=300)
@given(sharing_cases())
def test_the_same_decisions_where_prompts_share_beginnings(case: Case) -> None:
    """The same where what was computed once is found cached, or is being computed."""
    real = [sorted(step.items()) for step in real_steps(case)]
    simulated = [sorted(step.items()) for step in simulated_steps(case)]
    assert simulated == real


@given(
    members=st.lists(st.tuples(st.integers(1, 60), st.integers(2, 40)), min_size=1, max_size=8),
    block_size=st.sampled_from([1, 3, 16]),
    steps=st.integers(1, 90),
)
def test_decoders_in_closed_form(
    members: list[tuple[int, int]], block_size: int, steps: int
) -> None:
    """Blocks that k steps take, and who is done when, as counted token by token."""
    decoders = Decoders(block_size)
    for arrival, (prompt, answer) in enumerate(members):
        seq = Sequence(arrival, 0.0, prompt, answer)
        seq.arrival, seq.computed, seq.generated = arrival, prompt, 1
        decoders.join(seq, 0.0)
    blocks = sum(
        -(-(prompt + steps) // block_size) - -(-prompt // block_size) for prompt, _ in members
    )
    assert decoders.new_blocks(steps) == blocks
    assert decoders.steps_with(blocks, steps) == steps
    if blocks:
        fewer = decoders.steps_with(blocks - 1, steps)
        assert decoders.new_blocks(fewer) <= blocks - 1 < decoders.new_blocks(fewer + 1)
    first = decoders.until_next_done()
    assert first == min(answer for _, answer in members) - 1
    decoders.advance(first)
    done = decoders.pop_done()
    assert [s.index for s in done] == [
        i for i, (_, answer) in enumerate(members) if answer - 1 == first
    ]
    for seq in done:
        decoders.leave(seq)
        assert (seq.generated, seq.computed) == (first + 1, seq.input_tokens + first)


class Cache:
    """A pool of ten blocks, two a unit, and who holds which units."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.pool = KvPool(10, 2, self.holders, index=3)

    def compute(self, *units: int) -> None:
        self.pool.take(2 * len(units))
        for unit in units:
            assert self.pool.publish(unit)


def test_cached_units_are_found_shared_and_lost() -> None:
    """What was computed once is found again, counted once however many hold it, and lost oldest
    and deepest first when room is needed."""
    cache = Cache()
    pool = cache.pool
    cache.compute(1, 2, 3)
    assert (pool.referenced, pool.hit([1, 2, 3, 4], 9), pool.hit([1, 2, 3], 2)) == (6, 3, 2)
    pool.acquire([1, 2])
    assert pool.referenced == 6
    pool.release(0, [1, 2, 3])
    assert (pool.referenced, pool.cached_blocks, pool.available) == (4, 2, 6)
    pool.release(0, [1, 2])
    assert (pool.referenced, pool.cached_blocks) == (0, 6)
    assert pool.idle_among([1, 2, 9]) == 4
    assert cache.holders == {1: 8, 2: 8, 3: 8}
    pool.take(6)
    assert (pool.hit([1, 2, 3], 9), cache.holders) == (2, {1: 8, 2: 8})
    pool.take(2)
    assert pool.hit([1, 2], 9) == 1  # of a prefix the end goes first


def test_a_unit_computed_twice_is_cached_once() -> None:
    """The second copy stays its holder's own."""
    cache = Cache()
    cache.compute(1)
    cache.pool.take(2)
    assert not cache.pool.publish(1)
    cache.pool.release(2, [])
    cache.pool.release(0, [1])
    assert (cache.pool.referenced, cache.pool.cached_blocks) == (0, 2)


def test_what_an_answer_leaves_behind_and_a_death_takes() -> None:
    """Units that an answer completed are cached as far as there is room; a dead replica has
    none."""
    cache = Cache()
    cache.compute(1)
    cache.pool.leave_behind([7, 8])
    assert (cache.pool.hit([7, 8], 9), cache.pool.cached_blocks) == (2, 4)
    cache.pool.leave_behind([9, 10, 11])
    assert cache.pool.referenced + cache.pool.cached_blocks == 10
    cache.pool.clear()
    assert (cache.pool.referenced, cache.pool.cached_blocks, cache.holders) == (0, 0, {})


def test_the_same_prefix_at_once_is_computed_once() -> None:
    """One that waits for a unit which another computes in this very step shares it in the next."""
    limits = EngineSettings(max_num_seqs=4, max_batch_tokens=64, block_size=4, oldest_share=0.0)
    scheduler = Scheduler(limits, KvPool(100, 2), 8, float("inf"))
    first, second = (Sequence(i, 0.0, 20, 2, units=(5, 6)) for i in range(2))
    scheduler.add(first)
    scheduler.add(second)
    grants = scheduler.plan()
    assert grants == {first: 20}
    for seq in scheduler.complete(grants):
        seq.generated = 1
        scheduler.decoders.join(seq, 0.0)
    assert scheduler.plan() == {second: 4}
    assert (first.cached_tokens, second.cached_tokens) == (0, 16)


def test_everything_is_lost_with_a_replica() -> None:
    """Running, half done and waiting: all are given back, by arrival, and nothing is held."""
    limits = EngineSettings(max_num_seqs=2, max_batch_tokens=16, block_size=4)
    scheduler = Scheduler(limits, KvPool(100, 0), 0, float("inf"))
    seqs = [Sequence(i, 0.0, 10 + i, 5) for i in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    for seq in scheduler.complete(scheduler.plan()):
        seq.generated = 1
        scheduler.decoders.join(seq, 0.0)
    assert scheduler.clear() == seqs
    assert all(seq.state == GONE and seq.held == 0 for seq in seqs)
    assert (scheduler.running, len(scheduler.waiting), scheduler.pool.referenced) == (0, 0, 0)
