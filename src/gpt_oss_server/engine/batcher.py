"""Continuous batching: which sequences compute how many tokens in the next step.

Knows: waiting and running sequences, the token budget, steps in flight, who yields when memory
runs dry. Does not know: tensors, sampling, processes. Deterministic: no clock, no randomness.

A step first gives every decoding sequence its one token, oldest first, then spends the rest of
the budget on prefills in the order of a `PrefillOrder`, a token deep in a long prompt counting
for more (`StepCost`), so that steps take about the same time. When the pool runs dry the youngest
running sequence is preempted: it lets go of its blocks, keeps its tokens and is recomputed
later. The oldest is never preempted, so every admitted job ends.

Where several steps may be in flight (*micro-batches*), each takes its share: of those that
decode, the ones that have waited longest, and of the budget. A decoding sequence is in one step
at a time, since its next token follows from the last; a prompt may have chunks in several. Nothing
in flight is preempted: who finds no room waits for it to come back.

After a step for which the device had no memory the budget is smaller for a while (`StepBudget`).
Where it does not reach for all that decode, they take turns as well.

With *lookahead*, one step is scheduled while the tokens that the one before it sampled are not
known yet: a decoding sequence then takes part with the token to come (`Sequence.ahead`). If that
token ends it, what the later step computes for it is for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_oss_server.engine.kv_space import KvSpace
from gpt_oss_server.engine.order import PrefillItem, PrefillOrder
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.step_budget import StepBudget
from gpt_oss_server.engine.step_cost import MIN_CHUNK_TOKENS, StepCost

# Admission attempts that may fail in one step: bounds the host time of a step behind a long queue.
MAX_REFUSALS = 8


@dataclass(slots=True)
class Batch:
    """One step's work: `seqs[i]` computes `tokens[i]` tokens from position `starts[i]` on; those in
    `samples` (indices into `seqs`) then have no token left to compute and sample their next one.
    `decode_tokens` of all tokens are of sequences that decode."""

    seqs: list[Sequence] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    decode_tokens: int = 0

    def take(self, seq: Sequence, tokens: int) -> None:
        """Launch the next `tokens` tokens of a sequence in this step."""
        if seq.remaining == tokens:
            self.samples.append(len(self.seqs))
        self.decode_tokens += seq.decoding
        self.seqs.append(seq)
        self.tokens.append(tokens)
        self.starts.append(seq.launched)
        seq.launched += tokens


class Batcher:
    """Owns the queue of an engine. `add`, `remove` and `schedule` are its whole surface; the
    caller reports what was computed through `kv.advance` (or `kv.take_back`), step by step in the
    order of `schedule`, and how it went through `budget`. It has at most `micro_batches` of them in
    flight, one more with `lookahead`."""

    def __init__(
        self,
        kv: KvSpace,
        order: PrefillOrder,
        max_batch_tokens: int,
        cost: StepCost | None = None,
        micro_batches: int = 1,
        *,
        lookahead: bool = False,
    ) -> None:
        self.kv = kv
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.preemptions = 0
        self.prefix_queries_tokens = 0
        self.prefix_hit_tokens = 0
        self._order = order
        self._micro_batches = micro_batches
        self._overlapping = lookahead or micro_batches > 1
        self.budget = StepBudget(-(-max_batch_tokens // micro_batches))
        self._cost = cost if cost is not None else StepCost()
        self._hit: dict[int, int] = {}
        self._turns = 0
        self._overtaken = 0
        self._blocked: int | None = None

    def add(self, seq: Sequence) -> None:
        self.waiting[seq.arrival] = seq
        self._hit[seq.arrival] = self.kv.lookup(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence, wherever it is, and free what it holds."""
        if self.running.pop(seq.arrival, None) is not None:
            self.kv.free(seq)
        else:
            self.waiting.pop(seq.arrival)
            self._hit.pop(seq.arrival)

    def schedule(self) -> Batch:
        """The next step's batch; empty when there is nothing to do, or nothing before a step in
        flight comes back. May preempt."""
        grants: dict[int, int] = {}
        budget = self.budget.tokens
        share = min(budget, self._decode_share())
        for arrival in self._decoding():
            # A preemption may have taken a later one meanwhile.
            seq = self.running.get(arrival)
            if seq is not None and len(grants) < share and self._make_room(seq, grants):
                self.kv.grow(seq, 1)
                grants[arrival] = 1
        self._schedule_prefills(grants, budget - len(grants))
        self._turns += 1
        batch = Batch()
        for arrival, tokens in grants.items():
            seq = self.running[arrival]
            seq.turn = self._turns
            batch.take(seq, tokens)
        return batch

    def _decode_share(self) -> int:
        """How many decoding sequences one step takes, so that all steps in flight have as many."""
        if self._micro_batches == 1:
            return len(self.running)
        return -(-sum(s.generating for s in self.running.values()) // self._micro_batches)

    def _decoding(self) -> list[int]:
        """Arrivals of those that can decode: oldest first, or, where a step takes only some of
        them, those first that have waited longest."""
        ready = sorted(a for a, s in self.running.items() if s.decoding and not s.exhausted)
        if self._micro_batches > 1 or len(ready) > self.budget.tokens:
            ready.sort(key=lambda arrival: self.running[arrival].turn)
        return ready

    def _make_room(self, seq: Sequence, grants: dict[int, int]) -> bool:
        """Preempt younger sequences, last the sequence itself, until it can compute a token.
        Returns whether it can."""
        while self.kv.fit_tokens(seq) < 1:
            victim = self._victim(seq)
            if victim is None:
                return False
            grants.pop(victim.arrival, None)
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _victim(self, seq: Sequence) -> Sequence | None:
        """Who yields to `seq`: the youngest that is not in flight, at last `seq` itself. None
        where it keeps its work and waits."""
        if not self._overlapping:
            victim = self.running[max(self.running)]
        else:
            idle = (a for a, s in self.running.items() if a >= seq.arrival and not s.in_flight)
            youngest = max(idle, default=None)
            if youngest is None:
                return None
            victim = self.running[youngest]
            if victim is seq and any(s.in_flight for s in self.running.values()):
                return None  # those that come back may end, or be younger
        if victim is seq and not seq.decoding and len(self.running) > 1:
            return None
        return victim

    def _preempt(self, seq: Sequence) -> None:
        del self.running[seq.arrival]
        self.kv.free(seq)
        seq.untold_preemptions += 1
        self.preemptions += 1
        self.add(seq)

    def _schedule_prefills(self, grants: dict[int, int], budget: int) -> None:
        if budget <= 0:
            return
        candidates = {a: s for a, s in self.running.items() if s.remaining and not s.decoding}
        items = [PrefillItem(a, s.remaining) for a, s in candidates.items()]
        size = self.kv.block_size
        items += [PrefillItem(a, s.length - self._hit[a] * size) for a, s in self.waiting.items()]
        coming = self._coming() if self.waiting else set()
        refused: set[int] = set()
        decoding = len(grants)
        for arrival, cap in self._order.rank(items, budget):
            if budget == 0:
                break
            if arrival in refused:
                continue
            if arrival in self.waiting:
                # The one for which others stand back is always tried, or nobody would ever run.
                if len(refused) >= MAX_REFUSALS and arrival != self._blocked:
                    continue
                if not self._admit(self.waiting[arrival], coming):
                    refused.add(arrival)
                    continue
            seq = self.running.get(arrival)
            if seq is None:
                continue
            first = len(grants) <= decoding
            budget -= self._grant(seq, min(cap, budget), grants, coming, first=first)

    def _coming(self) -> set[bytes]:
        """Hashes of the blocks that steps in flight complete."""
        size = self.kv.block_size
        return {
            content
            for seq in self.running.values()
            if seq.in_flight
            for content in seq.hasher.hashes[seq.computed // size : seq.launched // size]
        }

    def _chunk(self, cap: int, context: int, *, first: bool) -> int:
        """How many tokens `cap` of the budget buys after `context`. Where that is little, the
        first prefill of a step still gets a chunk, and others none: each would read its whole
        cache again for a crumb."""
        least = min(MIN_CHUNK_TOKENS, cap)
        affordable = self._cost.affordable(cap, context)
        if affordable >= least:
            return affordable
        return least if first else 0

    def _grant(
        self,
        seq: Sequence,
        cap: int,
        grants: dict[int, int],
        coming: set[bytes],
        *,
        first: bool,
    ) -> int:
        """Give a prefill what `cap` of this step's budget buys it; returns what it took of it."""
        already = grants.get(seq.arrival, 0)
        context = seq.launched + already
        want = min(self._chunk(cap, context, first=first), seq.remaining - already)
        if want <= 0 or (not already and not self._make_room(seq, grants)):
            return 0
        total = min(already + want, self.kv.fit_tokens(seq))
        if total <= already:
            return 0
        self.kv.grow(seq, total)
        grants[seq.arrival] = total
        size = self.kv.block_size
        coming.update(seq.hasher.hashes[seq.launched // size : (seq.launched + total) // size])
        # Never more than was offered: others have their part of the budget, whatever this costs.
        return min(cap, self._cost.of(total - already, context))

    def _admit(self, seq: Sequence, coming: set[bytes]) -> bool:
        """Move a waiting sequence to the running ones if a slot and its prompt's blocks are
        there. One whose next block another sequence computes in this very step, or in one in
        flight, waits for it and then shares it (parallel samples of one prompt, a burst behind
        one system prompt)."""
        if not self.kv.free_slots or self._yields_to_blocked(seq):
            return False
        hit = self._hit[seq.arrival] = self.kv.lookup(seq)
        hashes = seq.hasher.hashes
        if coming and hit < len(hashes) and hashes[hit] in coming:
            return False
        if self.running and self.kv.shortfall(seq, hit, self._promised(), len(self.running)):
            if self._blocked is None or self._blocked not in self.waiting:
                self._blocked, self._overtaken = seq.arrival, 0
            return False
        del self.waiting[seq.arrival]
        del self._hit[seq.arrival]
        self.kv.admit(seq, hit)
        self.running[seq.arrival] = seq
        self._count_admitted(seq)
        return True

    def _yields_to_blocked(self, seq: Sequence) -> bool:
        """Whether a sequence that memory turned away must first get its turn. Others may pass
        it until they took as many tokens as it needs itself; then the pool drains for it."""
        blocked = self.waiting.get(self._blocked) if self._blocked is not None else None
        if blocked is None or blocked is seq:
            return False
        return self._overtaken >= blocked.length

    def _count_admitted(self, seq: Sequence) -> None:
        if seq.arrival == self._blocked:
            self._blocked = None
        elif self._blocked is not None:
            self._overtaken += seq.length
        if seq.cached_tokens is None:
            seq.cached_tokens = min(seq.computed, seq.prompt_len)
            self.prefix_queries_tokens += seq.prompt_len
            self.prefix_hit_tokens += seq.cached_tokens

    def _promised(self) -> int:
        """Full-attention blocks that running prefills will still take for their prompts."""
        size = self.kv.block_size
        return sum(
            -(-(s.length + 1) // size) - (s.launched // size)
            for s in self.running.values()
            if not s.generating
        )
