"""How many blocks of a pool one sequence holds, as whole-number arithmetic.

Knows: block size, window, positions. Does not know: bytes, layers, or which block is which.

A token at position p with window w attends to positions p-w+1 … p; with chunks of w, to
⌊p/w⌋·w … p; without a window to 0 … p. `first_needed(p)` is the first of these. After n tokens
have been computed and every block wholly before `first_needed(n)` has been released, a sequence
holds the blocks that overlap [first_needed(n), n). A step that computes positions [a, b) needs
the blocks that overlap [first_needed(a), b) all at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """How far back a layer looks: no `window`, a sliding one, or (with `chunked`) chunks."""

    window: int | None = None
    chunked: bool = False

    def first_needed(self, position: int) -> int:
        """The first position that the token at `position` attends to."""
        if self.window is None:
            return 0
        if self.chunked:
            return position // self.window * self.window
        return max(0, position - self.window + 1)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def block_range_held(n_computed: int, block_size: int, reach: Reach) -> range:
    """Indices of the blocks a sequence holds between steps, after `n_computed` tokens."""
    first = reach.first_needed(n_computed) // block_size
    return range(first, max(first, ceil_div(n_computed, block_size)))


def blocks_held(n_computed: int, block_size: int, reach: Reach) -> int:
    """Blocks held between steps: ⌈n/bs⌉ − ⌊first_needed(n)/bs⌋, never negative."""
    return len(block_range_held(n_computed, block_size, reach))


def block_range_in_step(start: int, end: int, block_size: int, reach: Reach) -> range:
    """Indices of the blocks needed while positions [start, end) are computed."""
    if end <= start:
        return block_range_held(start, block_size, reach)
    return range(reach.first_needed(start) // block_size, ceil_div(end, block_size))


def blocks_in_step(start: int, end: int, block_size: int, reach: Reach) -> int:
    """Blocks needed while positions [start, end) are computed."""
    return len(block_range_in_step(start, end, block_size, reach))


def span_blocks(positions: int, block_size: int) -> int:
    """The most blocks that `positions` consecutive positions can overlap, whatever the offset:
    ⌈(positions − 1)/bs⌉ + 1, and 0 for none."""
    return ceil_div(positions - 1, block_size) + 1 if positions > 0 else 0


def max_blocks_held(block_size: int, window: int) -> int:
    """The most blocks a sequence holds between steps in a pool with a window: w−1 positions, or
    for w = 1 the block that the next token falls in, if it is begun."""
    if window == 1:
        return 1 if block_size > 1 else 0
    return span_blocks(window - 1, block_size)


def max_blocks_in_step(block_size: int, window: int, step_tokens: int) -> int:
    """The most blocks a sequence needs in a step of up to `step_tokens` of its tokens:
    ⌈(w + c − 2)/bs⌉ + 1. Exact for sliding windows over all offsets, a bound for chunks."""
    return span_blocks(window - 1 + step_tokens, block_size)


def max_blocks_in_life(total_tokens: int, block_size: int, reach: Reach, step_tokens: int) -> int:
    """The most blocks a sequence of `total_tokens` ever needs, computed in steps of at most
    `step_tokens`, however they fall: min(⌈N/bs⌉, ⌈(w + c − 2)/bs⌉ + 1)."""
    whole = ceil_div(total_tokens, block_size)
    if reach.window is None:
        return whole
    return min(whole, max_blocks_in_step(block_size, reach.window, max(1, step_tokens)))


def max_blocks_of_batch(
    block_size: int, window: int, max_num_seqs: int, max_batch_tokens: int
) -> int:
    """The most blocks a window's pool needs at once: `max_num_seqs` sequences that together
    compute at most `max_batch_tokens` tokens in the step, at the worst offsets.

    An idle sequence holds span(w−1) blocks; its first extra block costs r + 1 tokens of the step
    (r = what its last block still takes), each further one `block_size`. The worst step
    therefore spends r + 1 tokens on as many sequences as it can, the rest in whole blocks.
    """
    idle = max_blocks_held(block_size, window)
    # Window 1: positions held are none, but a begun block is kept; a step token may open the next.
    first_cost = 1 if window == 1 and block_size == 1 else (2 - window) % block_size + 1
    if max_num_seqs * first_cost >= max_batch_tokens:
        return max_num_seqs * idle + max_batch_tokens // first_cost
    rest = max_batch_tokens - max_num_seqs * first_cost
    return max_num_seqs * (idle + 1) + rest // block_size
