"""Which sequences compute how many tokens in the next step: this server's own batching, counted.

Knows: waiting, prefilling and decoding sequences, the token budget, blocks, who yields when memory
runs dry. Does not know: time. It takes the decisions of `engine/batcher.py` (a differential test
holds the two together): every decoding sequence its token, the rest of the budget to prefills in
order, a token deep in a long prompt charged more, admission only where the whole prompt fits
beside what running prefills will still take, the youngest preempted when the pool runs dry.
"""

from __future__ import annotations

import heapq
import math

from gpt_oss_server.simulate.cost.layout import EngineSettings
from gpt_oss_server.simulate.replica.decoders import Decoders
from gpt_oss_server.simulate.replica.kv_pool import KvPool
from gpt_oss_server.simulate.replica.queueing import WaitingLine
from gpt_oss_server.simulate.replica.sequence import (
    DECODING,
    GONE,
    PREFILLING,
    WAITING,
    Sequence,
)

# As in the engine: admission attempts that may fail in one step, and the least chunk.
MAX_REFUSALS = 8
MIN_CHUNK_TOKENS = 32

Grants = dict[Sequence, int]


class Scheduler:
    """`add`, `plan` and `complete` are its surface; between them the caller moves time.

    `plan` returns the step's prefill grants (sequence → tokens); every decoding sequence computes
    one token beside them. It may preempt; whom it put back in the queue, with the tokens that are
    to be computed again, gathers in `requeued` until the caller takes it.
    """

    def __init__(
        self, settings: EngineSettings, pool: KvPool, unit_tokens: int, even_tokens: float
    ) -> None:
        self.pool = pool
        self.decoders = Decoders(settings.block_size)
        self.waiting = WaitingLine(shortest=settings.prefill_order == "shortest")
        self.prefilling: list[Sequence] = []
        self.preemptions = 0
        self._settings = settings
        self._size = settings.block_size
        self._unit_tokens = unit_tokens if settings.prefix_caching else 0
        self._even = even_tokens
        self._share = settings.oldest_share if settings.prefill_order == "shortest" else 0.0
        self._arrivals = 0
        self._by_youth: list[tuple[int, int, Sequence]] = []
        self._blocked: Sequence | None = None
        self._overtaken = 0
        self._coming: set[int] = set()
        self._refused: set[Sequence] = set()
        self._admitted: list[Sequence] = []
        self._put_back: list[Sequence] = []
        self._looked_at: list[tuple[Sequence, int]] = []
        self.requeued: list[tuple[Sequence, int]] = []

    @property
    def running(self) -> int:
        return self.decoders.count + len(self.prefilling)

    def add(self, seq: Sequence) -> int:
        """Queue a new sequence; returns the tokens it has to compute as things stand."""
        seq.arrival = self._arrivals
        self._arrivals += 1
        return self._queue(seq)

    def plan(self) -> Grants:
        """The next step's prefills; the blocks that the step needs are taken."""
        pool, decoders = self.pool, self.decoders
        grants: Grants = {}
        if decoders.count:
            need = decoders.new_blocks(1)
            if need > pool.available:
                need = self._preempt_for_decoders()
            if not self.prefilling and not len(self.waiting):
                return grants  # the caller takes the blocks of a whole run
            pool.take(need)
        else:
            need = 0
        if self.prefilling or len(self.waiting):
            self._plan_prefills(self._settings.max_batch_tokens - decoders.count, grants)
        if not grants and decoders.count:
            pool.referenced -= decoders.new_blocks(1)
        return grants

    def complete(self, grants: Grants) -> list[Sequence]:
        """The planned step's prefills are computed: publish units; returns those that no longer
        belong to `prefilling`. They sample a token, or, where a preempted one has just its last
        token left to compute (`computed < length`), decode like the others."""
        through = []
        for seq, tokens in grants.items():
            seq.computed += tokens
            if seq.units and self._unit_tokens:
                self._publish(seq)
            if seq.computed >= seq.length - (seq.generated > 0):
                through.append(seq)
        if through:
            self.prefilling = [s for s in self.prefilling if s not in through]
        return through

    def leave(self, seq: Sequence) -> None:
        """A running sequence is over: free what it holds."""
        if seq.state == DECODING:
            self.decoders.leave(seq)
        self.forget(seq)

    def forget(self, seq: Sequence) -> None:
        """Free what a sequence holds that is in no list any more. What its answer completes of
        its conversation's units stays cached."""
        seq.state = GONE
        self._free(seq)
        if seq.tail_units and self._unit_tokens:
            first = seq.input_tokens // self._unit_tokens
            complete = seq.computed // self._unit_tokens
            self.pool.leave_behind(seq.tail_units[: max(0, complete - first)])

    def clear(self) -> list[Sequence]:
        """Everything is lost; returns everybody who was here, by arrival."""
        everybody = [*self.decoders.members(), *self.prefilling, *self.waiting.clear()]
        for seq in everybody:
            if seq.state == DECODING:
                self.decoders.leave(seq)
            seq.state, seq.held, seq.published, seq.cached_tokens = GONE, 0, 0, -1
            seq.shares.clear()
        self.pool.clear()
        self.prefilling = []
        self._by_youth.clear()
        self._blocked = None
        return sorted(everybody, key=lambda seq: seq.arrival)

    def left(self, seq: Sequence) -> int:
        """Tokens that a sequence has to compute as things stand."""
        return seq.length - self._hit_units(seq) * self._unit_tokens

    def _queue(self, seq: Sequence) -> int:
        left = self.left(seq)
        self.waiting.add(seq, left)
        return left

    def _hit_units(self, seq: Sequence) -> int:
        """Cached leading units; at least one token is always left to compute."""
        if not seq.units or not self._unit_tokens:
            return 0
        return self.pool.hit(seq.units, (seq.length - 1) // self._unit_tokens)

    def _plan_prefills(self, budget: int, grants: Grants) -> None:
        self._coming.clear()
        self._refused.clear()
        if self._share and budget > 0:
            oldest = self._oldest()
            if oldest is not None:
                cap = min(budget, math.ceil(self._share * budget))
                budget -= self._offer(oldest, cap, grants)
        budget = self._offer_in_order(budget, grants)
        for seq in self._admitted:
            self.waiting.remove(seq)
        self._admitted.clear()
        for seq, left in self._looked_at:
            if seq.state == WAITING and seq not in self._put_back:
                self.waiting.move(seq, left)
        self._looked_at.clear()
        for seq in self._put_back:
            if seq.state == WAITING:
                self.requeued.append((seq, self._queue(seq)))
        self._put_back.clear()

    def _offer_in_order(self, budget: int, grants: Grants) -> int:
        """Walk prefilling and waiting sequences, merged by their keys, while tokens are left."""
        waiting = self.waiting
        # Whom the share for the oldest admitted keeps its turn: what was found cached only then
        # does not bring it forward.
        early = list(self._admitted)
        mine = sorted(
            (s.key if s in early else waiting.key(s, s.length - s.computed), s.arrival, s)
            for s in self.prefilling
        )
        # Those admitted meanwhile stay listed, and in place, until the walk is over.
        entries = waiting.entries()
        i = j = 0
        while budget > 0 and (i < len(mine) or j < len(entries)):
            if j == len(entries) or (i < len(mine) and mine[i] < entries[j]):
                seq = mine[i][2]
                i += 1
            else:
                seq = entries[j][2]
                j += 1
                if seq in early:
                    continue
                if seq.state == WAITING and self._gives_up():
                    j = len(entries)
                    if self._blocked is not None and self._blocked.state == WAITING:
                        budget -= self._offer(self._blocked, budget, grants)
                    continue
            budget -= self._offer(seq, budget, grants)
        return budget

    def _gives_up(self) -> bool:
        """Whether no further waiting sequence can be admitted in this step, but for the one that
        others stand back for."""
        full = self.running >= self._settings.max_num_seqs
        return full or len(self._refused) >= MAX_REFUSALS

    def _oldest(self) -> Sequence | None:
        oldest = self.waiting.oldest()
        for seq in self.prefilling:
            if oldest is None or seq.arrival < oldest.arrival:
                oldest = seq
        return oldest

    def _offer(self, seq: Sequence, cap: int, grants: Grants) -> int:
        """Give a sequence what `cap` of the budget buys, if it runs or can; returns the cost."""
        if seq.state == WAITING:
            if seq in self._refused:
                return 0
            if not self._admit(seq):
                self._refused.add(seq)
                return 0
        already = grants.get(seq, 0)
        context = seq.computed + already
        want = min(self._chunk(cap, context, first=not grants), seq.length - context)
        if want <= 0 or (not already and not self._make_room(seq, grants)):
            return 0
        pool, size = self.pool, self._size
        fit = (seq.held + pool.available) * size - seq.computed
        total = min(already + want, fit)
        if total <= already:
            return 0
        end = -(-(seq.computed + total) // size)
        if end > seq.held:
            pool.take(end - seq.held)
            seq.held = end
        grants[seq] = total
        unit = self._unit_tokens
        if unit and seq.units:
            self._coming.update(seq.units[seq.computed // unit : (seq.computed + total) // unit])
        return min(cap, self._cost(total - already, context))

    def _cost(self, tokens: int, context: int) -> int:
        return math.ceil(tokens + tokens * (context + tokens / 2) / self._even)

    def _chunk(self, cap: int, context: int, *, first: bool) -> int:
        """How many tokens `cap` buys after `context`; the first prefill of a step gets at least a
        small chunk."""
        if math.isinf(self._even):
            affordable = cap
        else:
            depth, twice = self._even + context, 2 * self._even * cap
            affordable = int(twice / (depth + math.sqrt(depth * depth + twice)))
        least = min(MIN_CHUNK_TOKENS, cap)
        if affordable >= least:
            return affordable
        return least if first else 0

    def _admit(self, seq: Sequence) -> bool:
        running = self.running
        if running >= self._settings.max_num_seqs or self._yields(seq):
            return False
        hit = self._hit_units(seq)
        if seq.units:
            # The order of the next step follows what was found cached now.
            self._looked_at.append((seq, seq.length - hit * self._unit_tokens))
        if self._coming and hit < len(seq.units) and seq.units[hit] in self._coming:
            return False
        if running and self._shortfall(seq, hit, running):
            if self._blocked is None or self._blocked.state != WAITING:
                self._blocked, self._overtaken = seq, 0
            return False
        if seq not in self._put_back:
            self._admitted.append(seq)
        self._start(seq, hit)
        return True

    def _start(self, seq: Sequence, hit: int) -> None:
        seq.state = PREFILLING
        if hit:
            seq.shares = list(seq.units[:hit])
            self.pool.acquire(seq.shares)
        seq.published = hit
        seq.computed = hit * self._unit_tokens
        seq.held = seq.computed // self._size
        self.prefilling.append(seq)
        heapq.heappush(self._by_youth, (-seq.arrival, seq.preemptions, seq))
        if seq is self._blocked:
            self._blocked = None
        elif self._blocked is not None:
            self._overtaken += seq.length
        if seq.cached_tokens < 0:
            seq.cached_tokens = min(seq.computed, seq.input_tokens)

    def _yields(self, seq: Sequence) -> bool:
        """Others may pass the one that memory turned away until they took as many tokens as it
        needs itself; then the pool drains for it."""
        blocked = self._blocked
        if blocked is None or blocked is seq or blocked.state != WAITING:
            return False
        return self._overtaken >= blocked.length

    def _shortfall(self, seq: Sequence, hit: int, running: int) -> bool:
        """Whether the whole prompt does not fit beside what running prefills will still take and a
        block for each that runs."""
        size = self._size
        promised = sum(-(-(s.length + 1) // size) - s.computed // size for s in self.prefilling)
        held = hit * self.pool.unit_blocks
        idle = self.pool.idle_among(seq.units[:hit]) if hit else 0
        wanted = -(-(seq.length + 1) // size) - held + idle + promised + running
        return wanted > self.pool.available

    def _publish(self, seq: Sequence) -> None:
        complete = (
            min(seq.computed // self._unit_tokens, len(seq.units)) if self._unit_tokens else 0
        )
        for number in range(seq.published, complete):
            if self.pool.publish(seq.units[number]):
                seq.shares.append(seq.units[number])
        seq.published = max(seq.published, complete)

    def _free(self, seq: Sequence) -> None:
        shared = len(seq.shares) * self.pool.unit_blocks
        self.pool.release(seq.held - shared, seq.shares)
        seq.shares = []
        seq.held = 0
        seq.published = 0

    def _make_room(self, seq: Sequence, grants: Grants) -> bool:
        """Preempt younger sequences until the prefill can compute a token. One that is itself the
        youngest keeps its work and waits."""
        while (seq.held + self.pool.available) * self._size <= seq.computed:
            victim = self._youngest()
            if victim is seq and self.running > 1:
                return False
            if victim.state == DECODING and self._on_boundary(victim):
                self.pool.referenced -= 1  # the block taken for its token of this step
            grants.pop(victim, None)
            self._preempt(victim)
            self._put_back.append(victim)
            if victim is seq:
                return False
        return True

    def _preempt_for_decoders(self) -> int:
        """Preempt the youngest until every decoding sequence that is left can compute its token;
        returns the blocks that takes. (The engine asks them one by one, oldest first, which
        preempts the same: it never preempts while those asked so far fit.)"""
        while (need := self.decoders.new_blocks(1)) > self.pool.available:
            victim = self._youngest()
            self._preempt(victim)
            self.requeued.append((victim, self._queue(victim)))
        return need

    def _on_boundary(self, seq: Sequence) -> bool:
        """Whether a decoding sequence's last block is full."""
        return (seq.phase + self.decoders.steps) % self._size == 0

    def _youngest(self) -> Sequence:
        """The running sequence that came last; entries of those that left are dropped."""
        heap = self._by_youth
        while True:
            _, preemptions, seq = heap[0]
            if seq.state in (PREFILLING, DECODING) and seq.preemptions == preemptions:
                return seq
            heapq.heappop(heap)

    def _preempt(self, seq: Sequence) -> None:
        if seq.state == DECODING:
            self.decoders.leave(seq)
        else:
            self.prefilling.remove(seq)
        self._free(seq)
        seq.state = WAITING
        seq.computed = 0
        seq.preemptions += 1
        self.preemptions += 1
