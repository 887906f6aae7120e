"""A pipeline step by step: the real batcher with several steps in flight, every stage and token on
its own. What the simulator's rounds are compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

from gpt_oss_server.engine.batcher import Batch, Batcher
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.order import prefill_order
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.step_cost import StepCost
from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.types import Job, SamplingParams

Row = tuple[float, int, int]
"""Arrival, prompt tokens, answer tokens."""


class Staged:
    """One replica with `micro_batches` steps in flight through stages of the given shares."""

    def __init__(self, machine: Replica, shares: Seq[float], micro_batches: int) -> None:
        limits = machine.settings
        self.machine = machine
        self.shares = shares
        self.depth = micro_batches
        self.free_s = [0.0] * len(shares)
        self.kv = KvSpace(
            [GroupSpec("full", None, machine.kv_blocks)],
            block_size=limits.block_size,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=machine.longest_tokens,
            prefix_caching=False,
        )
        self.batcher = Batcher(
            self.kv,
            prefill_order(limits.prefill_order, limits.oldest_share),
            limits.max_batch_tokens,
            StepCost(machine.time.even_tokens),
            micro_batches,
        )

    def play(self, rows: Seq[Row]) -> list[tuple[float, float]]:
        """When each request's first and last token came out."""
        coming = deque(enumerate(rows))
        flights: deque[tuple[Batch, float]] = deque()
        out: list[list[float]] = [[] for _ in rows]
        now_s = 0.0
        while coming or flights or self.batcher.running or self.batcher.waiting:
            while coming and coming[0][1][0] <= now_s:
                self.batcher.add(self.sequence(*coming.popleft()))
            while len(flights) < self.depth and (batch := self.batcher.schedule()).seqs:
                flights.append((batch, self.launched(batch, now_s)))
            if not flights:
                now_s = coming[0][1][0]
                continue
            batch, came_s = flights.popleft()
            now_s = max(now_s, came_s)
            self.collect(batch, now_s, out)
        return [(tokens[0], tokens[-1]) for tokens in out]

    def sequence(self, arrival: int, row: Row) -> Sequence:
        _, prompt, answer = row
        return Sequence.create(
            arrival,
            Job(id="", prompt=[0] * prompt, sampling=SamplingParams(max_tokens=answer)),
            arrival=arrival,
            max_tokens=answer,
            groups=1,
            block_size=self.machine.settings.block_size,
            stop_ids=frozenset(),
        )

    def launched(self, batch: Batch, now_s: float) -> float:
        """When a step that starts now leaves the last stage."""
        time = self.machine.time
        through_s = time.base_s(sum(batch.tokens)) + time.sequence_s * len(batch.seqs)
        for seq, tokens, start in zip(batch.seqs, batch.tokens, batch.starts, strict=True):
            through_s += start * time.kv_s
            if seq.generating:
                through_s += time.window_s(seq.prompt_len)
            else:
                through_s += time.prefill_s(tokens, start)
        for stage, share in enumerate(self.shares):
            now_s = max(now_s, self.free_s[stage]) + share * through_s
            self.free_s[stage] = now_s
        return now_s

    def collect(self, batch: Batch, now_s: float, out: list[list[float]]) -> None:
        for seq, tokens in zip(batch.seqs, batch.tokens, strict=True):
            self.kv.advance(seq, tokens)
        for place in batch.samples:
            seq = batch.seqs[place]
            seq.append(0)
            out[seq.arrival].append(now_s)
            if seq.output_len == seq.max_tokens:
                self.batcher.remove(seq)
