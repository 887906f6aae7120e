"""One simulated replica: iteration-level batching in time, without an event per token.

Knows: a replica's step times and scheduler, the step or run of steps under way. Does not know:
other replicas, routing, arrivals to come. While nobody waits for prefill, decode steps differ only
by the tokens they add, so a whole run up to the next finish is one event; an arrival cuts it at
the end of the step under way, as it would find the real engine. In a pipeline a step is a round of
the steps in flight (`pipeline`).
"""

from __future__ import annotations

import math

from gpt_oss_server.simulate.cost.layout import Replica
from gpt_oss_server.simulate.cost.pipeline import Pipe, Round, StageTime
from gpt_oss_server.simulate.cost.step_time import StepTime
from gpt_oss_server.simulate.replica.kv_pool import KvPool
from gpt_oss_server.simulate.replica.queueing import SIZE_CLASSES
from gpt_oss_server.simulate.replica.scheduler import Grants, Scheduler
from gpt_oss_server.simulate.replica.sequence import GONE, Sequence

RECENT_S = 10.0
"""Prefill counts as recent with weights that fall to 1/e in this time."""


class Engine:
    """`next_s` is when something happens here next (infinite while idle); `step` makes it happen.

    Finished sequences gather in `finished`, those that waited too long in `expired`, those whose
    prompt is through and whose answer goes on in `joined`, until the caller takes them. Moments
    never go back: `enqueue` and `step` are called in order of time. The queue has no bounds but
    those given.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        unit_tokens: int = 0,
        holders: dict[int, int] | None = None,
        index: int = 0,
        max_waiting: int | None = None,
        max_wait_s: float | None = None,
    ) -> None:
        self.replica = replica
        self.index = index
        settings = replica.settings
        pool = KvPool(replica.kv_blocks, unit_tokens // settings.block_size, holders, index)
        self.scheduler = Scheduler(settings, pool, unit_tokens, replica.time.even_tokens)
        self.next_s = math.inf
        self.finished: list[Sequence] = []
        self.expired: list[Sequence] = []
        self.joined: list[Sequence] = []
        self.waiting_work_s = [0.0] * SIZE_CLASSES
        self.waiting_tokens = 0
        self.busy_s = 0.0
        self.steps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self._grants: Grants = {}
        self._run_steps = 0
        self._run_from_s = 0.0
        self._first_s = replica.time.first_token_s
        self._began_s = 0.0
        self._runs: StepTime | StageTime = replica.stages or replica.time
        self._pipe = Pipe()
        self._round: Round | None = None
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._recent_prefill_s = 0.0
        self._recent_at_s = 0.0

    def enqueue(self, seq: Sequence, now_s: float) -> bool:
        """Take a sequence in; False where the queue is full. It must fit the empty pool."""
        if self._max_waiting is not None and len(self.scheduler.waiting) >= self._max_waiting:
            return False
        self.forgo(seq)
        self._count_work(seq, self.scheduler.add(seq))
        seq.queued_s = now_s
        if self._run_steps:
            self._cut_run(now_s)
        elif not self._grants and self.next_s > now_s:
            self.next_s = now_s
        return True

    def foresee(self, seq: Sequence) -> None:
        """Count the prefill of one that will be enqueued: it waits elsewhere, for this engine."""
        self._count_work(seq, self.scheduler.left(seq))

    def forgo(self, seq: Sequence) -> None:
        """It will not, or is enqueued now: what was counted of it counts no more."""
        if seq.waits_tokens:
            self._discount_work(seq, seq.waits_work_s, seq.waits_tokens)

    def step(self) -> None:
        """End the step or run that ends at `next_s` and begin the next one."""
        now_s = self.next_s
        if self._grants:
            self._end_mixed(now_s)
        elif self._run_steps:
            self._end_run(now_s)
        self._begin(now_s)

    def fail(self) -> list[Sequence]:
        """The replica dies: all that was here is lost, cached prefixes too. Returns whom it hit."""
        lost = self.scheduler.clear()
        for seq in lost:
            seq.waits_tokens, seq.waits_work_s = 0, 0.0
        self.joined.clear()
        self._grants, self._run_steps = {}, 0
        self.next_s = math.inf
        self.waiting_work_s = [0.0] * SIZE_CLASSES
        self.waiting_tokens = 0
        return lost

    def elapsed_steps(self, now_s: float) -> int:
        """Decode steps of the run under way that ended by now."""
        if not self._run_steps:
            return 0
        count = self.scheduler.decoders.count
        passed_s = now_s - self._run_from_s
        steps = self._runs.decode_steps_within(passed_s, count, self._kv_s())
        return min(steps, self._run_steps)

    def look(self, now_s: float) -> tuple[int, int, int, int, list[float], int, float]:
        """As a dispatcher sees it: sequences decoding and the tokens they hold, requests waiting
        or in prefill, their prompt tokens left and seconds of work by size, free KV tokens, the
        share of recent time that prefill added to the steps. A run under way counts in proportion
        to its time."""
        scheduler = self.scheduler
        decoders, pool = scheduler.decoders, scheduler.pool
        count = decoders.count
        grown = 0
        if self._run_steps and self.next_s > self._run_from_s:
            part = max(0.0, now_s - self._run_from_s) / (self.next_s - self._run_from_s)
            grown = int(part * self._run_steps) * count
        free = (pool.blocks - pool.referenced) * decoders.block_size - grown
        return (
            count,
            decoders.context_tokens + grown,
            len(scheduler.waiting) + len(scheduler.prefilling),
            self.waiting_tokens,
            self.waiting_work_s,
            free if free > 0 else 0,
            self._recent_prefill_s * math.exp((self._recent_at_s - now_s) / RECENT_S) / RECENT_S,
        )

    def busy_until(self, now_s: float) -> float:
        """Time spent in steps so far, the one under way included."""
        under_way = self._grants or self._run_steps
        return self.busy_s + (now_s - self._began_s if under_way else 0.0)

    def _count_work(self, seq: Sequence, left: int) -> None:
        seq.size_class = min(left.bit_length(), SIZE_CLASSES - 1)
        seq.waits_work_s = self.replica.time.prefill_s(left, seq.length - left)
        seq.waits_tokens = left
        self.waiting_work_s[seq.size_class] += seq.waits_work_s
        self.waiting_tokens += left

    def _discount_work(self, seq: Sequence, work_s: float, tokens: int) -> None:
        """Part of a sequence's prefill is planned. Never more than was counted: a prefix may have
        been lost, or found, since it was."""
        work_s, tokens = min(work_s, seq.waits_work_s), min(tokens, seq.waits_tokens)
        seq.waits_work_s -= work_s
        seq.waits_tokens -= tokens
        self.waiting_work_s[seq.size_class] -= work_s
        self.waiting_tokens -= tokens

    def _kv_s(self) -> float:
        """Reading what the decoding sequences hold, once."""
        decoders = self.scheduler.decoders
        return decoders.context_tokens * self.replica.time.kv_s + decoders.window_s

    def _cut_run(self, now_s: float) -> None:
        """The run ends with the step that is under way."""
        steps = min(self._run_steps, self.elapsed_steps(now_s) + 1)
        if steps < self._run_steps:
            self._run_steps = steps
            count = self.scheduler.decoders.count
            lasts_s = self._runs.decode_run_s(steps, count, self._kv_s())
            self.next_s = max(now_s, self._run_from_s + lasts_s)

    def _begin(self, now_s: float) -> None:
        if self._max_wait_s is not None:
            self._expire(now_s)
        grants = self.scheduler.plan()
        if self.scheduler.requeued:
            self._recount_requeued()
        count = self.scheduler.decoders.count
        if grants:
            self._grants = grants
            self._begin_mixed(now_s, grants)
        elif count:
            decoders, pool = self.scheduler.decoders, self.scheduler.pool
            most = decoders.until_next_done()
            steps = max(1, decoders.steps_with(pool.available, most))
            self._run_steps, self._began_s, self._run_from_s = steps, now_s, now_s
            stages = self.replica.stages
            if stages is not None:
                first = stages.decode_round(count, self._kv_s())
                self._run_from_s += self._pipe.delay_s(now_s, first)
            lasts_s = self._runs.decode_run_s(steps, count, self._kv_s())
            self.next_s = self._run_from_s + lasts_s
        else:
            self.next_s = math.inf

    def _begin_mixed(self, now_s: float, grants: Grants) -> None:
        time = self.replica.time
        decoding = self.scheduler.decoders.count
        cached_s = self._kv_s()
        tokens, prefill_s = 0, 0.0
        for seq, chunk in grants.items():
            work_s = time.prefill_s(chunk, seq.computed)
            prefill_s += work_s + seq.computed * time.kv_s
            tokens += chunk
            self._discount_work(seq, work_s, chunk)
        stages = self.replica.stages
        if stages is not None:
            planned = stages.mixed_round(decoding, cached_s, len(grants), tokens, prefill_s)
            self._place(now_s, planned, grants)
            seconds = planned.seconds + self._pipe.delay_s(now_s, planned)
            self._round = planned
        else:
            seconds = time.base_s(decoding + tokens) + time.sequence_s * (decoding + len(grants))
            seconds += cached_s + prefill_s
        self.next_s = now_s + seconds
        self._began_s = now_s
        if decoding:
            seconds -= self._runs.decode_run_s(1, decoding, cached_s)
        faded = math.exp((self._recent_at_s - now_s) / RECENT_S)
        self._recent_prefill_s = self._recent_prefill_s * faded + seconds
        self._recent_at_s = now_s

    def _place(self, now_s: float, planned: Round, grants: Grants) -> None:
        """By how much each prompt's step comes after the round's first, or before: in order, as
        far as the budgets of steps go."""
        total, before = sum(grants.values()), 0
        for seq, chunk in grants.items():
            whole = chunk == seq.length - seq.computed and not seq.preemptions
            before += chunk
            place = -(-before * planned.filled // total) - 1
            seq.lag_s = place * planned.step_s
            if whole and place == 0:
                seq.lag_s = -self._pipe.lead_s(seq.queued_s, now_s)

    def _end_mixed(self, now_s: float) -> None:
        scheduler, grants = self.scheduler, self._grants
        decoders = scheduler.decoders
        self._grants = {}
        self.busy_s += now_s - self._began_s
        if self._round is not None:
            self._pipe.end(now_s, self._round)
        self.steps += 1
        self.prefill_tokens += sum(grants.values())
        self.decode_tokens += decoders.count
        decoders.advance(1)
        self._finish_done(now_s)
        for seq in scheduler.complete(grants):
            self._prompt_through(seq, now_s)

    def _prompt_through(self, seq: Sequence, now_s: float) -> None:
        """A prompt is computed and its next token there (or will be with the next decode step)."""
        self._discount_work(seq, seq.waits_work_s, seq.waits_tokens)
        if seq.computed == seq.length:
            seq.generated += 1
            if seq.first_token_s < 0:
                seq.first_token_s = now_s + self._first_s + seq.lag_s
        if seq.generated >= seq.output_tokens:
            self._finish(seq, now_s)
        else:
            self.scheduler.decoders.join(seq, self.replica.time.window_s(seq.computed))
            self.joined.append(seq)

    def _end_run(self, now_s: float) -> None:
        decoders, steps = self.scheduler.decoders, self._run_steps
        self._run_steps = 0
        self.busy_s += now_s - self._began_s
        if self.replica.stages is not None:
            self._pipe.end(now_s, self.replica.stages.decode_round(decoders.count, self._kv_s()))
        self.steps += steps
        self.decode_tokens += steps * decoders.count
        self.scheduler.pool.take(decoders.new_blocks(steps))
        decoders.advance(steps)
        self._finish_done(now_s)

    def _finish_done(self, now_s: float) -> None:
        for seq in self.scheduler.decoders.pop_done():
            self.scheduler.decoders.leave(seq)
            self._finish(seq, now_s)

    def _finish(self, seq: Sequence, now_s: float) -> None:
        seq.finish_s = now_s + self._first_s + seq.lag_s
        self.scheduler.forget(seq)
        self.finished.append(seq)

    def _expire(self, now_s: float) -> None:
        """Turn away those that never ran and have waited too long, oldest first."""
        waiting = self.scheduler.waiting
        limit_s = self._max_wait_s if self._max_wait_s is not None else math.inf
        while (seq := waiting.oldest()) is not None and now_s - seq.arrived_s > limit_s:
            if seq.preemptions:
                break
            waiting.remove(seq)
            seq.state = GONE
            self._discount_work(seq, seq.waits_work_s, seq.waits_tokens)
            self.expired.append(seq)

    def _recount_requeued(self) -> None:
        """Those put back have their work to do again."""
        for seq, left in self.scheduler.requeued:
            self._discount_work(seq, seq.waits_work_s, seq.waits_tokens)
            self._count_work(seq, left)
        self.scheduler.requeued.clear()
