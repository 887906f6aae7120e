"""Closed forms of `memory.blocks` against a simulated sequence that allocates and releases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.memory.blocks import (
    Reach,
    block_range_held,
    blocks_held,
    blocks_in_step,
    max_blocks_held,
    max_blocks_in_life,
    max_blocks_in_step,
    max_blocks_of_batch,
    span_blocks,
)

block_sizes = st.integers(1, 20)
windows = st.integers(1, 70)


def visible(position: int, reach: Reach) -> set[int]:
    """Positions that the token at `position` attends to, itself included, by transformers'
    masks: `kv > q - window` (sliding), `kv // chunk == q // chunk` (chunked)."""
    every = range(position + 1)
    if reach.window is None:
        return set(every)
    if reach.chunked:
        return {kv for kv in every if kv // reach.window == position // reach.window}
    return {kv for kv in every if kv > position - reach.window}


class Sequence:
    """Holds blocks as an engine does: allocate for a step, compute, release what no later token
    can see."""

    def __init__(self, block_size: int, reach: Reach) -> None:
        self.block_size, self.reach = block_size, reach
        self.computed = 0
        self.blocks: set[int] = set()

    def step(self, tokens: int) -> int:
        """Computes `tokens` more tokens; returns the blocks held meanwhile."""
        end = self.computed + tokens
        self.blocks |= {p // self.block_size for p in range(self.computed, end)}
        for position in range(self.computed, end):
            assert {p // self.block_size for p in visible(position, self.reach)} <= self.blocks
        during = len(self.blocks)
        self.computed = end
        first = min(visible(end, self.reach))
        self.blocks = {b for b in self.blocks if (b + 1) * self.block_size > first}
        return during


@pytest.mark.parametrize(
    ("n", "block_size", "window", "held"),
    [
        (0, 16, 128, range(0)),
        (1, 16, 128, range(1)),
        (16, 16, 128, range(1)),
        (17, 16, 128, range(2)),
        (127, 16, 128, range(8)),  # the next token, at 127, still sees position 0
        (142, 16, 128, range(9)),  # sees 15 … 142: block 0 by one position
        (143, 16, 128, range(1, 9)),  # sees 16 … 143: block 0 is gone
        (144, 16, 128, range(1, 9)),
        (1000, 16, None, range(63)),
        (16, 16, 1, range(1, 1)),  # a window of 1 needs nothing behind it
        (17, 16, 1, range(1, 2)),  # but keeps the block that is begun
        (64, 128, 128, range(1)),
        (255, 128, 128, range(1, 2)),
        (254, 128, 128, range(2)),
    ],
)
def test_blocks_held_at_the_edges(n: int, block_size: int, window: int | None, held: range) -> None:
    """The indices of held blocks follow from the next token's view, to the position."""
    assert list(block_range_held(n, block_size, Reach(window))) == list(held)


def test_chunks_drop_everything_at_their_border() -> None:
    """With chunks of 8 the token at 16 sees nothing older, so nothing is held."""
    reach = Reach(8, chunked=True)
    assert [blocks_held(n, 4, reach) for n in (7, 8, 9, 15, 16)] == [2, 0, 1, 2, 0]


@given(
    block_size=block_sizes,
    window=st.none() | windows,
    chunked=st.booleans(),
    steps=st.lists(st.integers(1, 60), max_size=12),
)
def test_closed_forms_equal_a_simulated_sequence(
    block_size: int, window: int | None, chunked: bool, steps: list[int]
) -> None:
    """Blocks between steps and during them equal what a sequence really allocates."""
    reach = Reach(window, chunked and window is not None)
    sequence = Sequence(block_size, reach)
    peak = 0
    for tokens in steps:
        start = sequence.computed
        during = sequence.step(tokens)
        peak = max(peak, during)
        assert during == blocks_in_step(start, start + tokens, block_size, reach)
        assert len(sequence.blocks) == blocks_held(sequence.computed, block_size, reach)
    bound = max_blocks_in_life(sum(steps), block_size, reach, max(steps, default=1))
    assert peak <= bound


@given(block_size=block_sizes, window=windows)
def test_most_blocks_between_steps_is_reached(block_size: int, window: int) -> None:
    """The maximum over a long life equals the closed form, so it is tight."""
    reach = Reach(window)
    life = range(window + 3 * block_size)
    assert max(blocks_held(n, block_size, reach) for n in life) == max_blocks_held(
        block_size, window
    )


@given(block_size=block_sizes, window=windows, step_tokens=st.integers(1, 50))
def test_most_blocks_in_a_step_is_reached(block_size: int, window: int, step_tokens: int) -> None:
    """Over all starts of a step the maximum equals ⌈(w+c−2)/bs⌉ + 1."""
    reach = Reach(window)
    starts = range(window + 2 * block_size)
    assert max(
        blocks_in_step(start, start + step_tokens, block_size, reach) for start in starts
    ) == max_blocks_in_step(block_size, window, step_tokens)


@given(
    block_size=st.integers(1, 9),
    window=st.integers(1, 25),
    step_tokens=st.integers(1, 12),
    total=st.integers(1, 60),
)
def test_worst_life_equals_the_worst_schedule(
    block_size: int, window: int, step_tokens: int, total: int
) -> None:
    """Over every step [a, b) that some schedule can contain, the worst equals the closed form."""
    reach = Reach(window)
    worst = max(
        blocks_in_step(a, b, block_size, reach)
        for b in range(1, total + 1)
        for a in range(max(0, b - step_tokens), b)
    )
    assert max_blocks_in_life(total, block_size, reach, step_tokens) == worst


@given(
    block_size=st.integers(1, 8),
    window=st.integers(1, 20),
    seqs=st.integers(1, 5),
    tokens=st.integers(0, 30),
)
def test_worst_batch_equals_the_best_division_of_its_tokens(
    block_size: int, window: int, seqs: int, tokens: int
) -> None:
    """Dynamic programming over all divisions of a step's tokens finds the same maximum."""
    idle = max_blocks_held(block_size, window)
    best = [0] * (tokens + 1)
    for _ in range(seqs):
        best = [
            max(
                best[used - c] + (max_blocks_in_step(block_size, window, c) if c else idle)
                for c in range(used + 1)
            )
            for used in range(tokens + 1)
        ]
    assert max_blocks_of_batch(block_size, window, seqs, tokens) == best[tokens]


@given(positions=st.integers(0, 60), block_size=block_sizes)
def test_span_is_the_worst_offset(positions: int, block_size: int) -> None:
    """`span_blocks` equals the maximum over all offsets of a run of positions."""
    worst = max(
        len({p // block_size for p in range(offset, offset + positions)})
        for offset in range(block_size)
    )
    assert span_blocks(positions, block_size) == worst
