"""The KV pools as sequences see them: what fits, growing, sliding, sharing a prefix, letting go.

Knows: block pools by attention group, windows, block tables. Does not know: tensors' contents,
who is scheduled when. Blocks are counted as `memory/` predicts them: after n computed tokens a
group of window w holds exactly the blocks that overlap positions `max(0, n-w+1) .. n-1`, a full
group those of `0 .. n-1`; so prediction and reality can be compared block for block.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpt_oss_server.engine.blocks import BlockPool
from gpt_oss_server.engine.sequence import Sequence


class GroupSpec(NamedTuple):
    """One pool. `window` None is full attention; otherwise a token at p sees p-window+1 .. p."""

    name: str
    window: int | None
    num_blocks: int


class KvSpace:
    """All pools of one engine and the block table of every running sequence.

    `tables[g]` has shape [max_num_seqs, blocks of the longest sequence], int32, rows by
    `Sequence.slot`, columns by logical block. Entries that a sequence does not hold (not yet
    allocated, or slid out of the window) are stale: no kernel may read them.
    """

    def __init__(
        self,
        groups: Seq[GroupSpec],
        *,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        prefix_caching: bool,
    ) -> None:
        self.groups = tuple(groups)
        self.block_size = block_size
        self.pools = [BlockPool(g.num_blocks) for g in groups]
        self.prefix_caching = prefix_caching
        columns = -(-max_model_len // block_size)
        self.tables: list[npt.NDArray[np.int32]] = [
            np.zeros((max_num_seqs, columns), dtype=np.int32) for _ in groups
        ]
        self._slots = list(range(max_num_seqs - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    @property
    def token_capacity(self) -> int:
        """Tokens of the longest sequence that can run alone."""
        full = [g.num_blocks for g in self.groups if g.window is None]
        if full:
            return min(full) * self.block_size
        return int(self.tables[0].shape[1]) * self.block_size

    def lookup(self, seq: Sequence) -> int:
        """Blocks of the longest usable cached prefix: its full-attention blocks all present,
        and in each sliding group those that the next token's window reaches. At least one token
        is always left to compute, since its logits are wanted."""
        if not self.prefix_caching:
            return 0
        seq.hasher.extend(seq.tokens)
        hashes = seq.hasher.hashes
        hit = min(len(hashes), (seq.length - 1) // self.block_size)
        for group, pool in zip(self.groups, self.pools, strict=True):
            if group.window is None:
                hit = next((i for i in range(hit) if not pool.contains(hashes[i])), hit)
        # Where the sliding pools cannot follow, this prompt parts here from one seen before:
        # others may part here too, so its windows are worth keeping.
        seq.parting_block = hit
        changed = True
        while changed and hit:
            changed = False
            for group, pool in zip(self.groups, self.pools, strict=True):
                shorter = self._window_hit(pool, group.window, hashes, hit)
                changed |= shorter != hit
                hit = shorter
        return hit

    def _window_hit(
        self, pool: BlockPool, window: int | None, hashes: list[bytes], hit: int
    ) -> int:
        """The longest prefix of at most `hit` blocks whose window in this pool is present."""
        if window is None:
            return hit
        block = hit - 1
        while hit and block >= self._first_block(window, hit * self.block_size):
            if not pool.contains(hashes[block]):
                hit = block
            block -= 1
        return hit

    def _first_block(self, window: int | None, computed: int) -> int:
        """The first logical block that a token at position `computed` still sees."""
        return 0 if window is None else max(0, computed - window + 1) // self.block_size

    def shortfall(self, seq: Sequence, hit: int, promised: int, spare: int) -> bool:
        """Whether a sequence with `hit` cached blocks should not be admitted now: its whole
        prompt must fit beside `promised` blocks that other prefills will still take, leaving
        `spare` for those that decode."""
        total = -(-(seq.length + 1) // self.block_size)
        for group, pool in zip(self.groups, self.pools, strict=True):
            first = self._first_block(group.window, hit * self.block_size)
            idle = pool.idle(seq.hasher.hashes[first:hit]) if hit else 0
            if group.window is None:
                wanted = total - hit + idle + promised + spare
            else:
                span = -(-group.window // self.block_size) + 1
                wanted = min(total - hit, span) + idle
            if wanted > pool.available:
                return True
        return False

    def admit(self, seq: Sequence, hit: int) -> None:
        """Give the sequence a slot and its `hit` cached blocks; `computed` follows."""
        seq.slot = self._slots.pop()
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            first = self._first_block(group.window, hit * self.block_size)
            seq.first_block[g] = first
            seq.blocks[g] = (
                pool.acquire(seq.hasher.hashes[first:hit], seq.job.session) if hit else []
            )
            self.tables[g][seq.slot, first:hit] = seq.blocks[g]
        seq.computed = seq.launched = hit * self.block_size
        seq.registered_blocks = hit

    def fit_tokens(self, seq: Sequence) -> int:
        """How many more tokens can be launched with what the pools have left."""
        ends = [
            seq.first_block[g] + len(seq.blocks[g]) + pool.available
            for g, pool in enumerate(self.pools)
        ]
        return min(ends) * self.block_size - seq.launched

    def grow(self, seq: Sequence, tokens: int) -> None:
        """Hold the blocks to compute the next `tokens` tokens; they must fit (`fit_tokens`)."""
        end = -(-(seq.launched + tokens) // self.block_size)
        for g, pool in enumerate(self.pools):
            held_end = seq.first_block[g] + len(seq.blocks[g])
            if end > held_end:
                new = pool.allocate(end - held_end)
                seq.blocks[g] += new
                self.tables[g][seq.slot, held_end:end] = new

    def take_back(self, seq: Sequence, tokens: int = 1) -> None:
        """The last tokens launched were not the ones, or were never computed: let go of what was
        held for them alone. The step in flight may still write there; all later ones come behind
        it."""
        seq.launched -= tokens
        end = -(-seq.launched // self.block_size)
        for g, pool in enumerate(self.pools):
            kept = max(0, end - seq.first_block[g])
            pool.release(reversed(seq.blocks[g][kept:]), cold=True)
            del seq.blocks[g][kept:]

    def advance(self, seq: Sequence, tokens: int) -> None:
        """`tokens` more of those launched are computed: publish completed blocks, let slide what
        is out of the window. The order matters: a block is published before it may be let go."""
        seq.computed += tokens
        if self.prefix_caching:
            self._publish(seq)
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            gone = self._first_block(group.window, seq.computed) - seq.first_block[g]
            if gone > 0:
                self._let_slide(seq, g, group, pool, gone)

    def _let_slide(
        self, seq: Sequence, g: int, group: GroupSpec, pool: BlockPool, gone: int
    ) -> None:
        """Release the first `gone` blocks. The windows before the prompt's end (where the next
        turn of a chat goes on) and before the place where this prompt parted from an earlier
        one (the end of a shared system prompt) stay warm; all else is of use only to a repeat of
        this very prompt up to there, and would push out what is worth more."""
        first = seq.first_block[g]
        # A repeat of the prompt computes its last token again, the next turn goes on behind it.
        last, behind = seq.prompt_len - 1, seq.prompt_len
        ends = (last // self.block_size, behind // self.block_size, seq.parting_block)
        for offset, block in enumerate(seq.blocks[g][:gone]):
            index = first + offset
            warm = any(
                self._first_block(group.window, end * self.block_size) <= index < end
                for end in ends
            )
            pool.release((block,), cold=not warm)
        del seq.blocks[g][:gone]
        seq.first_block[g] += gone

    def _publish(self, seq: Sequence) -> None:
        complete = seq.computed // self.block_size
        if complete <= seq.registered_blocks:
            return
        seq.hasher.extend(seq.tokens[: complete * self.block_size])
        for g, pool in enumerate(self.pools):
            first = seq.first_block[g]
            for index in range(max(seq.registered_blocks, first), complete):
                pool.register(
                    seq.blocks[g][index - first], seq.hasher.hashes[index], seq.job.session
                )
        seq.registered_blocks = complete

    def free(self, seq: Sequence) -> None:
        """Let go of everything; cached contents stay findable until evicted. Steps in flight may
        still write where the sequence had nothing published: all later ones come behind them."""
        for g, pool in enumerate(self.pools):
            pool.release(reversed(seq.blocks[g]))
            seq.blocks[g] = []
            seq.first_block[g] = 0
        self._slots.append(seq.slot)
        seq.slot = -1
        seq.computed = seq.launched = 0
        seq.registered_blocks = 0

    def forget(self, session: str, keep_tokens: int) -> int:
        """Drop what is cached of a session beyond its first `keep_tokens`; returns the blocks."""
        keep = keep_tokens // self.block_size
        return sum(pool.forget_owner(session, keep) for pool in self.pools)

    def predicted_blocks(self, seq: Sequence) -> list[int]:
        """What the sequence should hold by arithmetic alone, per group (for the invariant that
        prediction equals reality between steps)."""
        end = -(-seq.launched // self.block_size)
        return [max(0, end - self._first_block(g.window, seq.computed)) for g in self.groups]
