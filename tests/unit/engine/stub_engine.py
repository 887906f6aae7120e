"""A stand-in for the model around the real scheduler: it stores, for every KV slot, which prefix
was computed there, and checks at every read that the right one is found.

Knows: schedule, compute, advance, append, and what must hold in between. Does not know: torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_oss_server.engine.batcher import Batch, Batcher
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.order import prefill_order
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.memory.blocks import Reach, blocks_held
from gpt_oss_server.types import Job, SamplingParams


@dataclass(frozen=True)
class StubConfig:
    """What an engine is built from, smaller than any real one."""

    groups: tuple[GroupSpec, ...]
    block_size: int = 2
    max_num_seqs: int = 4
    max_model_len: int = 64
    max_batch_tokens: int = 8
    prefix_caching: bool = True
    order: str = "shortest"
    oldest_share: float = 0.25
    vocab: int = 3


def next_token(tokens: tuple[int, ...], vocab: int) -> int:
    """The stub's model: a token that depends on the whole prefix."""
    return hash(tokens) % vocab


@dataclass
class StubEngine:
    """`KvSpace` and `Batcher` with every invariant checked at every step."""

    config: StubConfig
    live: dict[int, Sequence] = field(default_factory=dict)
    done: dict[int, tuple[int, ...]] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        config = self.config
        self.kv = KvSpace(
            config.groups,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            prefix_caching=config.prefix_caching,
        )
        order = prefill_order(config.order, config.oldest_share)
        self.batcher = Batcher(self.kv, order, config.max_batch_tokens)
        self._written: list[dict[int, tuple[int, ...]]] = [{} for _ in config.groups]
        self._arrivals = 0

    @property
    def longest(self) -> int:
        """Prompt and output tokens that one job may have: its last token is never computed."""
        return min(self.config.max_model_len, self.kv.token_capacity + 1)

    def submit(self, prompt: list[int], max_tokens: int) -> int:
        """Queue a job; returns its arrival."""
        arrival = self._arrivals
        self._arrivals += 1
        seq = Sequence.create(
            arrival,
            Job(id=str(arrival), prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens)),
            arrival=arrival,
            max_tokens=max_tokens,
            groups=len(self.config.groups),
            block_size=self.config.block_size,
            stop_ids=frozenset(),
        )
        self.live[arrival] = seq
        self.batcher.add(seq)
        return arrival

    def cancel(self, arrival: int) -> None:
        """Drop a job; its blocks and its slot come back at once."""
        seq = self.live.pop(arrival)
        slots, held = self.kv.free_slots, self._held_by_others(seq)
        running = arrival in self.batcher.running
        self.batcher.remove(seq)
        assert self.kv.free_slots == slots + running
        assert [pool.in_use for pool in self.kv.pools] == held

    def step(self) -> Batch:
        """One step, with all that must hold before, during and after."""
        before = set(self.batcher.running)
        batch = self.batcher.schedule()
        self.steps += 1
        if before:
            assert min(before) in self.batcher.running, "the oldest running was preempted"
        if self.live:
            assert batch.seqs, "a step with work did nothing"
        assert sum(batch.tokens) <= self.config.max_batch_tokens
        assert len({seq.arrival for seq in batch.seqs}) == len(batch.seqs)
        samples = set(batch.samples)
        for seq, tokens in zip(batch.seqs, batch.tokens, strict=True):
            self._compute(seq, tokens)
        for number, (seq, tokens) in enumerate(zip(batch.seqs, batch.tokens, strict=True)):
            self.kv.advance(seq, tokens)
            if number in samples:
                self._append(seq)
        self.check()
        return batch

    def drain(self) -> None:
        """Run until nothing is left; fails when that takes more steps than the work allows."""
        tokens = sum(seq.prompt_len + seq.max_tokens for seq in self.live.values())
        # Each step computes at least one token, and a preempted job begins again at most once
        # for every step that an older one takes.
        limit = self.steps + 10 + tokens * (2 + len(self.live))
        while self.live:
            self.step()
            assert self.steps < limit, "jobs do not end"
        assert [pool.in_use for pool in self.kv.pools] == [0] * len(self.kv.pools)
        assert self.kv.free_slots == self.config.max_num_seqs
        assert not self.batcher.waiting
        assert not self.batcher.running

    def check(self) -> None:
        """What must hold between steps."""
        running = self.batcher.running
        assert set(running) | set(self.batcher.waiting) == set(self.live)
        assert not set(running) & set(self.batcher.waiting)
        assert len({seq.slot for seq in running.values()}) == len(running)
        size = self.config.block_size
        for seq in running.values():
            assert 0 <= seq.computed < seq.length
            held = [len(blocks) for blocks in seq.blocks]
            assert held == self.kv.predicted_blocks(seq)
            for g, group in enumerate(self.config.groups):
                assert held[g] == blocks_held(seq.computed, size, Reach(group.window))
                row = self.kv.tables[g][seq.slot]
                first = seq.first_block[g]
                assert list(row[first : first + held[g]]) == seq.blocks[g]
        for seq in self.batcher.waiting.values():
            assert not any(seq.blocks)
        for g, pool in enumerate(self.kv.pools):
            union = {block for seq in running.values() for block in seq.blocks[g]}
            assert pool.in_use == len(union)

    def _held_by_others(self, gone: Sequence) -> list[int]:
        others = [seq for seq in self.batcher.running.values() if seq is not gone]
        return [
            len({block for seq in others for block in seq.blocks[g]})
            for g in range(len(self.config.groups))
        ]

    def _compute(self, seq: Sequence, tokens: int) -> None:
        """Write the prefix that each slot stands for, then read what each token attends to."""
        size = self.config.block_size
        prefix = tuple(seq.tokens.tolist())
        for g, group in enumerate(self.config.groups):
            table, written = self.kv.tables[g][seq.slot], self._written[g]
            for at in range(seq.computed, seq.computed + tokens):
                block = int(table[at // size])
                owners = [s for s in self.batcher.running.values() if block in s.blocks[g]]
                assert owners == [seq], "a token is written where another sequence reads"
                written[block * size + at % size] = prefix[: at + 1]
            for at in range(seq.computed, seq.computed + tokens):
                lowest = 0 if group.window is None else max(0, at - group.window + 1)
                for seen in range(lowest, at + 1):
                    slot = int(table[seen // size]) * size + seen % size
                    assert written[slot] == prefix[: seen + 1], "another prefix's KV was read"

    def _append(self, seq: Sequence) -> None:
        seq.append(next_token(tuple(seq.tokens.tolist()), self.config.vocab))
        if seq.output_len == seq.max_tokens:
            self.done[seq.arrival] = tuple(seq.tokens.tolist()[seq.prompt_len :])
            del self.live[seq.arrival]
            self.batcher.remove(seq)
