"""The scheduler over the KV pools, with a stub for the model: any load, every invariant."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from stub_engine import StubConfig, StubEngine, next_token

from gpt_oss_server.engine.kv_space import GroupSpec
from gpt_oss_server.memory.blocks import max_blocks_in_step


@st.composite
def configs(draw: st.DrawFn) -> StubConfig:
    """Engines with full, sliding or both kinds of pools, all of them small enough to run dry."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    full = draw(st.sampled_from([None, 4, 7, 12]))
    windows = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8]), max_size=2, unique=True))
    groups = [] if full is None else [GroupSpec("full", None, full)]
    for window in windows if full is not None else windows or [3]:
        # The least with which one sequence can run alone, or a little more.
        least = max_blocks_in_step(block_size, window, 1)
        blocks = min(least, full or least) + draw(st.integers(0, 4))
        groups.append(GroupSpec(f"window_{window}", window, blocks))
    return StubConfig(
        tuple(groups),
        block_size=block_size,
        max_num_seqs=draw(st.integers(1, 6)),
        max_model_len=48,
        max_batch_tokens=draw(st.integers(1, 16)),
        prefix_caching=draw(st.booleans()),
        order=draw(st.sampled_from(["shortest", "fcfs"])),
        oldest_share=draw(st.sampled_from([0.0, 0.25, 1.0])),
        vocab=2,
    )


class Scheduling(RuleBasedStateMachine):
    """Arrivals, cancels and steps in any order. `StubEngine` checks every step; at the end all
    jobs must finish, with the outputs that they have alone, and hold nothing."""

    @initialize(config=configs())
    def start(self, config: StubConfig) -> None:
        self.engine = StubEngine(config)
        self.prompts: dict[int, list[int]] = {}

    @rule(data=st.data(), copies=st.integers(1, 6))
    def submit(self, data: st.DataObject, copies: int) -> None:
        total = data.draw(st.integers(2, self.engine.longest), label="tokens in all")
        prompt_len = data.draw(st.integers(1, total - 1), label="prompt")
        seed = data.draw(st.integers(0, 3), label="which text")
        text = [(index >> seed) & 1 for index in range(prompt_len)]
        for _ in range(copies):
            arrival = self.engine.submit(text, total - prompt_len)
            self.prompts[arrival] = text

    @precondition(lambda self: self.engine.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(sorted(self.engine.live))))

    @rule(count=st.integers(1, 5))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.drain()
        for arrival, output in self.engine.done.items():
            text = tuple(self.prompts[arrival])
            for token in output:
                assert token == next_token(text, self.engine.config.vocab)
                text += (token,)


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)


def engine(*groups: GroupSpec, **settings: object) -> StubEngine:
    return StubEngine(StubConfig(groups, **settings))  # type: ignore[arg-type]


def granted(stub: StubEngine) -> dict[int, int]:
    """One step's tokens by arrival."""
    batch = stub.step()
    return {seq.arrival: n for seq, n in zip(batch.seqs, batch.tokens, strict=True)}


def test_decoding_goes_on_beside_a_long_prefill() -> None:
    """A decoding job gets its token in every step of another's chunked prefill."""
    stub = engine(GroupSpec("full", None, 40), max_batch_tokens=4)
    stub.submit([0, 1], 20)
    assert granted(stub) == {0: 2}
    stub.submit([1] * 10, 2)
    assert [granted(stub) for _ in range(5)] == [
        {0: 1, 1: 3},
        {0: 1, 1: 3},
        {0: 1, 1: 3},
        {0: 1, 1: 1},
        {0: 1, 1: 1},
    ]


def test_the_youngest_yields_and_is_recomputed() -> None:
    """When the pool runs dry the youngest loses its blocks and not its tokens."""
    stub = engine(GroupSpec("full", None, 6), block_size=2, max_batch_tokens=8)
    stub.submit([0, 1, 0, 1], 8)
    stub.submit([1, 1, 1], 8)
    outputs = {}
    while not stub.batcher.preemptions:
        outputs = {key: seq.output_len for key, seq in stub.live.items()}
        stub.step()
    assert list(stub.batcher.waiting) == [1]
    waiting = stub.batcher.waiting[1]
    assert (waiting.computed, waiting.output_len) == (0, outputs[1])
    stub.drain()
    assert {key: len(output) for key, output in stub.done.items()} == {0: 8, 1: 8}


def test_sliding_groups_hold_what_the_window_needs() -> None:
    """However long the sequence, a sliding pool of one step's worth of blocks is enough."""
    window, size = 5, 2
    blocks = max_blocks_in_step(size, window, 1)
    stub = engine(
        GroupSpec("full", None, 20),
        GroupSpec("sliding", window, blocks),
        block_size=size,
        max_batch_tokens=16,
    )
    stub.submit([0, 1] * 10, 20)
    most = 0
    while stub.live:
        stub.step()
        most = max([most, *(len(seq.blocks[1]) for seq in stub.batcher.running.values())])
    assert blocks == 3
    assert most == 3
    assert stub.batcher.preemptions == 0


def test_a_burst_behind_one_prompt_computes_it_once() -> None:
    """Copies of a prompt that arrive together wait for the first's blocks and share them."""
    stub = engine(GroupSpec("full", None, 40), block_size=2, max_batch_tokens=64, max_num_seqs=8)
    for _ in range(4):
        stub.submit([0, 1, 1, 0, 1, 0, 0, 1, 1], 3)
    assert granted(stub) == {0: 9}
    assert granted(stub) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert stub.batcher.prefix_hit_tokens == 3 * 8
    assert stub.batcher.prefix_queries_tokens == 4 * 9


@pytest.mark.parametrize(
    ("window", "hit"),
    [(None, 8), (1, 8), (3, 8), (100, 8)],
    ids=["full", "sees itself", "two blocks", "wider than the prompt"],
)
def test_a_finished_prompt_is_found_again(window: int | None, hit: int) -> None:
    """All complete blocks but the last token's are reused, whatever the attention."""
    stub = engine(GroupSpec("one", window, 20), block_size=2, max_batch_tokens=64)
    stub.submit([0, 1, 1, 0, 1, 0, 0, 1, 1], 1)
    stub.drain()
    stub.submit([0, 1, 1, 0, 1, 0, 0, 1, 1], 1)
    assert granted(stub) == {1: 9 - hit}


def test_one_token_is_always_left_to_compute() -> None:
    """A prompt that is cached whole recomputes its last block: its logits are wanted."""
    stub = engine(GroupSpec("full", None, 20), block_size=2, max_batch_tokens=64)
    stub.submit([0, 1, 1, 0], 2)
    stub.drain()
    stub.submit([0, 1, 1, 0], 1)
    assert granted(stub) == {1: 2}


def test_a_sliding_prefix_needs_its_last_window_only() -> None:
    """A hit needs, in a sliding pool, only the blocks that the next token sees: eviction of
    earlier ones costs nothing, that of a needed one costs all."""
    full, sliding = GroupSpec("full", None, 12), GroupSpec("sliding", 4, 12)
    stub = engine(full, sliding, block_size=2, max_batch_tokens=64)
    text = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    stub.submit(text, 1)
    stub.drain()
    probe = stub.submit(text, 1)
    hashes = stub.live[probe].hasher.hashes
    pool = stub.kv.pools[1]
    pool.release(pool.acquire(hashes[2:4]))  # the last window becomes the most recent
    pool.release(pool.allocate(pool.available - 2))
    assert [pool.contains(content) for content in hashes] == [False, False, True, True]
    assert stub.kv.lookup(stub.live[probe]) == 4
    pool.release(pool.allocate(pool.available))
    assert stub.kv.lookup(stub.live[probe]) == 0


def test_no_prefix_is_shared_unless_asked() -> None:
    """With prefix caching off every prompt is computed whole and nothing stays behind."""
    stub = engine(GroupSpec("full", None, 20), prefix_caching=False, max_batch_tokens=64)
    for arrival in range(2):
        stub.submit([0, 1, 1, 0, 1], 1)
        assert granted(stub) == {arrival: 5}
    assert stub.kv.pools[0].cached == 0


def test_waiting_ones_never_lock_each_other_out() -> None:
    """A job that memory turned away is tried even behind more refusals than a step allows: once
    the pool has drained for it, it runs."""
    stub = engine(
        GroupSpec("full", None, 10),
        block_size=1,
        max_batch_tokens=10,
        max_num_seqs=5,
        prefix_caching=False,
        oldest_share=0.0,
    )
    stub.submit([0] * 4, 6)
    stub.step()
    blocked = stub.submit([1] * 9, 1)
    stub.step()
    for _ in range(30):
        stub.submit([0, 1], 1)
    stub.drain()
    assert len(stub.done) == 32
    assert blocked in stub.done


def test_a_blocked_prompt_is_overtaken_for_a_bounded_time() -> None:
    """Short jobs pass one that memory turned away only until they took as many tokens as it
    needs; then the pool drains for it, however many of them keep coming."""
    stub = engine(
        GroupSpec("full", None, 12),
        block_size=1,
        max_batch_tokens=16,
        max_num_seqs=4,
        prefix_caching=False,
    )
    stub.submit([0] * 3, 6)
    stub.step()
    blocked = stub.submit([1] * 10, 1)
    passed = 0
    while blocked not in stub.done:
        stub.submit([0], 2)
        stub.step()
        passed = len([a for a in stub.done if a > blocked])
        assert stub.steps < 100
    assert passed <= 10


def test_a_cancelled_blocked_job_blocks_nobody() -> None:
    """When the job for which others stand back is cancelled, they run at once."""
    stub = engine(
        GroupSpec("full", None, 16),
        block_size=1,
        max_batch_tokens=16,
        max_num_seqs=4,
        prefix_caching=False,
    )
    stub.submit([0], 16)
    stub.step()
    blocked = stub.submit([1] * 15, 1)
    for _ in range(5):
        stub.submit([0] * 5, 1)
        stub.step()
    waiting = set(stub.batcher.waiting)
    assert blocked in waiting
    assert len(waiting) > 1
    stub.cancel(blocked)
    assert granted(stub).keys() & waiting


def test_slots_bound_the_running() -> None:
    """Never more sequences run than there are slots; the others wait their turn."""
    stub = engine(GroupSpec("full", None, 40), max_num_seqs=2, max_batch_tokens=40)
    for _ in range(5):
        stub.submit([0, 1], 2)
    most = 0
    while stub.live:
        stub.step()
        most = max(most, len(stub.batcher.running))
    assert most <= 2
    assert sorted(stub.done) == [0, 1, 2, 3, 4]
