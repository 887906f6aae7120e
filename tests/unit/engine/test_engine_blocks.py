"""The block pool against a model of it: states, reference counts, hashes, eviction order."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpt_oss_server.engine.blocks import BlockPool, OutOfBlocks, PrefixHasher

OWNERS = st.sampled_from([None, "s", "t"])


def counts(pool: BlockPool) -> tuple[int, int, int]:
    """(held, cached, available)."""
    return pool.in_use, pool.cached, pool.available


def test_a_pool_without_blocks_is_refused() -> None:
    """A pool has at least one block."""
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_allocation_is_all_or_nothing() -> None:
    """Asking for more than there is takes nothing."""
    pool = BlockPool(3)
    taken = pool.allocate(2)
    assert len(set(taken)) == 2
    with pytest.raises(OutOfBlocks, match="2 blocks wanted, 1 available"):
        pool.allocate(2)
    assert counts(pool) == (2, 0, 1)
    assert set(taken) | set(pool.allocate(1)) == {0, 1, 2}


def test_releasing_twice_is_our_own_mistake() -> None:
    """A block that nobody holds cannot be released."""
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.release([block])
    with pytest.raises(RuntimeError, match="released more often than taken"):
        pool.release([block])
    assert counts(pool) == (0, 0, 2)


def test_content_outlives_its_holder_until_evicted() -> None:
    """A registered block can be taken again by its content, and only until its place is needed."""
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.release([second, first])
    assert counts(pool) == (0, 1, 2)
    assert pool.acquire([b"a"]) == [first]
    assert counts(pool) == (1, 0, 1)
    pool.release([first])
    assert set(pool.allocate(2)) == {first, second}
    assert not pool.contains(b"a")


def test_sharing_counts_every_holder() -> None:
    """A shared block is free only when the last holder has let go."""
    pool = BlockPool(2)
    [block] = pool.allocate(1)
    pool.register(block, b"a")
    assert pool.acquire([b"a"]) == [block]
    pool.release([block])
    assert counts(pool) == (1, 0, 1)
    pool.release([block])
    assert counts(pool) == (0, 1, 2)


def test_free_blocks_go_first_then_the_least_recently_released() -> None:
    """Eviction follows the order of release; taking a block again makes it recent."""
    pool = BlockPool(4)
    a, b, c, free = pool.allocate(4)
    for block, content in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.register(block, content)
    pool.release([a, b, c, free])
    pool.release(pool.acquire([b"a"]))
    assert pool.allocate(1) == [free]
    assert pool.allocate(2) == [b, c]
    assert [pool.contains(content) for content in (b"a", b"b", b"c")] == [True, False, False]


def test_the_first_block_of_a_content_wins() -> None:
    """A second block with the same content stays anonymous, and a block keeps its first name."""
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.register(a, b"x")
    pool.register(b, b"x")
    pool.register(a, b"y")
    assert not pool.contains(b"y")
    pool.release([a, b])
    assert counts(pool) == (0, 1, 3)
    assert pool.acquire([b"x"]) == [a]


def test_idle_counts_what_nobody_holds() -> None:
    """`idle` tells by how much acquiring lowers what is available."""
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.register(a, b"a")
    pool.register(b, b"b")
    pool.release([b])
    assert pool.idle([b"a", b"b"]) == 1
    before = pool.available
    pool.acquire([b"a", b"b"])
    assert before - pool.available == 1


def test_forgetting_drops_only_the_cached() -> None:
    """`forget` empties the cache; held content stays addressable."""
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.register(a, b"a")
    pool.register(b, b"b")
    pool.release([b])
    pool.forget()
    assert counts(pool) == (1, 0, 2)
    assert pool.contains(b"a")
    assert not pool.contains(b"b")


def test_an_owner_forgets_its_own_tail() -> None:
    """`forget_owner` drops what only that owner left behind, its first blocks excepted."""
    pool = BlockPool(6)
    blocks = pool.allocate(5)
    for block, content in zip(blocks, (b"a", b"b", b"c", b"d"), strict=False):
        pool.register(block, content, "s")
    pool.register(blocks[4], b"e", "t")
    pool.release(reversed(blocks))
    assert pool.forget_owner("s", keep=1) == 3
    assert [pool.contains(c) for c in (b"a", b"b", b"c", b"d", b"e")] == [True] + [False] * 3 + [
        True
    ]
    assert counts(pool) == (0, 2, 6)
    assert pool.forget_owner("nobody") == 0


def test_what_is_held_or_shared_is_not_forgotten() -> None:
    """A held block stays; one that a second owner, or nobody in particular, used belongs to
    nobody."""
    pool = BlockPool(4)
    held, shared, common, own = pool.allocate(4)
    for block, content in ((held, b"h"), (shared, b"x"), (common, b"c"), (own, b"o")):
        pool.register(block, content, "s")
    pool.release([shared, common, own])
    pool.release(pool.acquire([b"x"], "t"))
    pool.release(pool.acquire([b"c"]))
    pool.release(pool.acquire([b"o"], "s"))
    assert pool.forget_owner("s") == 1
    assert [pool.contains(c) for c in (b"h", b"x", b"c", b"o")] == [True, True, True, False]
    assert pool.forget_owner("t") == 0
    pool.release([held])
    assert pool.forget_owner("s") == 1


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of calls leaves every block in exactly one state, as in a plain model."""

    @initialize(size=st.integers(1, 6))
    def start(self, size: int) -> None:
        self.pool = BlockPool(size)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.owned: dict[int, str] = {}  # in the order of registration

    def refs(self) -> Counter[int]:
        return Counter(block for held in self.holders for block in held)

    def free_blocks(self) -> set[int]:
        return set(range(self.pool.num_blocks)) - set(self.refs()) - set(self.cached)

    def drop(self, block: int) -> None:
        del self.cached[block]
        del self.content[block]
        self.owned.pop(block, None)

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        free = self.free_blocks()
        if count > len(free) + len(self.cached):
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        evicted = list(self.cached)[: max(0, count - len(free))]
        for block in evicted:
            self.drop(block)
        assert len(set(blocks)) == count
        assert set(blocks) <= free | set(evicted)
        assert set(evicted) <= set(blocks)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(held)
        left = self.refs()
        for block in held:
            if not left[block] and block in self.content:
                self.cached[block] = None

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), content=st.sampled_from([b"a", b"b", b"c", b"d"]), owner=OWNERS)
    def register(self, data: st.DataObject, content: bytes, owner: str | None) -> None:
        block = data.draw(st.sampled_from(sorted(self.refs())))
        self.pool.register(block, content, owner)
        if content not in self.content.values() and block not in self.content:
            self.content[block] = content
            if owner is not None:
                self.owned[block] = owner

    @precondition(lambda self: self.content)
    @rule(data=st.data(), owner=OWNERS)
    def acquire(self, data: st.DataObject, owner: str | None) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.content.values())), unique=True))
        by_name = {content: block for block, content in self.content.items()}
        blocks = self.pool.acquire(names, owner)
        assert blocks == [by_name[name] for name in names]
        for block in blocks:
            self.cached.pop(block, None)
            if self.owned.get(block) != owner:
                self.owned.pop(block, None)
        self.holders.append(blocks)

    @rule()
    def forget(self) -> None:
        self.pool.forget()
        for block in list(self.cached):
            self.drop(block)

    @rule(owner=st.sampled_from(["s", "t"]), keep=st.integers(0, 2))
    def forget_owner(self, owner: str, keep: int) -> None:
        own = [block for block, name in self.owned.items() if name == owner][keep:]
        dropped = [block for block in own if block in self.cached]
        assert self.pool.forget_owner(owner, keep) == len(dropped)
        for block in dropped:
            self.drop(block)

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        if not hasattr(self, "pool"):
            return
        refs = self.refs()
        assert counts(self.pool) == (
            len(refs),
            len(self.cached),
            self.pool.num_blocks - len(refs),
        )
        for content in (b"a", b"b", b"c", b"d"):
            assert self.pool.contains(content) == (content in self.content.values())
        idle = [content for block, content in self.content.items() if not refs[block]]
        assert self.pool.idle(sorted(self.content.values())) == len(idle)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def tokens(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(ids, dtype=np.int32)


@given(
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
    st.integers(1, 4),
)
def test_equal_hash_means_equal_prefix(one: list[int], two: list[int], size: int) -> None:
    """Two sequences agree on hash i exactly when they agree on everything up to that block."""
    a, b = PrefixHasher(size), PrefixHasher(size)
    a.extend(tokens(*one))
    b.extend(tokens(*two))
    assert len(a.hashes) == len(one) // size
    for index in range(min(len(a.hashes), len(b.hashes))):
        end = (index + 1) * size
        assert (a.hashes[index] == b.hashes[index]) == (one[:end] == two[:end])


@given(st.lists(st.integers(0, 999), max_size=20), st.integers(0, 20), st.integers(1, 4))
def test_hashing_does_not_depend_on_how_it_was_cut(ids: list[int], cut: int, size: int) -> None:
    """Extending token by token or at once gives the same hashes."""
    whole, parts = PrefixHasher(size), PrefixHasher(size)
    whole.extend(tokens(*ids))
    parts.extend(tokens(*ids[:cut]))
    parts.extend(tokens(*ids))
    assert parts.hashes == whole.hashes
