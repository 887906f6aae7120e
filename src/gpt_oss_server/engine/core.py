"""The engine without a process around it: jobs in, token deltas out, one step at a time.

Knows: how a step is scheduled, run and recorded. Does not know: sockets, asyncio, text, nor how a
model is loaded or where it computes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpt_oss_server.engine.batcher import Batch, Batcher
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.order import prefill_order
from gpt_oss_server.engine.outfit import Outfit, equip
from gpt_oss_server.engine.sampler import Sampled
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.shortage import Shortage
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import lay_out
from gpt_oss_server.engine.tallies import StepTallies
from gpt_oss_server.errors import (
    BadRequest,
    ContextTooLong,
    EngineFailed,
    Overloaded,
    ServerError,
)
from gpt_oss_server.types import (
    EngineInfo,
    EngineStats,
    FinishReason,
    Job,
    TokenDelta,
    TokenLogprob,
)

TOO_LARGE = (
    "the device ran out of memory for this request, even computed alone and a token at a time"
)
NOT_FINITE = "the model produced numbers that are not finite for this request"
# With nothing to run but grammars to compile, the step loop sleeps this long at a time.
COMPILE_WAIT_S = 0.002


@dataclass(slots=True)
class StepEvents:
    """What one step says to the outside, by job key."""

    deltas: list[tuple[int, TokenDelta]] = field(default_factory=list)
    failures: list[tuple[int, ServerError]] = field(default_factory=list)


@dataclass(slots=True)
class _Flight:
    """A step that is launched. `void` entries (indices into the batch) are to be ignored; `rows`
    and `alive`, once it is to be `drawn` from: who gets a token, and who is still wanted."""

    batch: Batch
    void: set[int] = field(default_factory=set)
    rows: list[int] | None = None
    alive: list[bool] = field(default_factory=list)
    drawn: bool = False


class EngineCore:
    """Built once, stepped by one thread. `submit` and `cancel` are called between steps."""

    def __init__(
        self,
        spec: EngineSpec,
        progress: Callable[[str], None] = lambda _: None,
        outfit: Outfit | None = None,
    ) -> None:
        """Load the model and allocate the pools, unless that is done. Raises StartupError.
        `progress` hears what the start does, and of every shortage of memory afterwards."""
        if outfit is None:
            outfit = equip(spec, progress)
        info = outfit.info
        self._spec = spec
        self._tell = progress
        self.kv = KvSpace(
            [GroupSpec(g.name, g.window, g.num_blocks) for g in info.kv_groups],
            block_size=spec.block_size,
            max_num_seqs=spec.max_num_seqs,
            max_model_len=info.max_model_len,
            prefix_caching=spec.prefix_caching,
        )
        self._guides = Guides(
            Path(spec.folder), info.vocab_size, info.eos_token_ids, spec.max_num_seqs
        )
        self._runner = outfit.make_runner(self._guides)
        self._info = outfit.started(info)
        order = prefill_order(spec.prefill_order, spec.prefill_oldest_share)
        self.batcher = Batcher(
            self.kv,
            order,
            info.max_batch_tokens,
            outfit.cost,
            self._runner.depth,
            lookahead=self._runner.lookahead,
        )
        self._flights: deque[_Flight] = deque()
        self._jobs: dict[int, Sequence] = {}
        self._arrivals = 0
        self._tallies = StepTallies()
        self._counts = dict.fromkeys(
            (
                *("steps", "prefill_tokens", "decode_tokens", "finished", "failed", "cancelled"),
                *("shortages", "too_large"),
            ),
            0,
        )

    def info(self) -> EngineInfo:
        return self._info

    @property
    def has_work(self) -> bool:
        """Whether there are jobs, or steps in flight of such as ended."""
        return bool(self._jobs) or bool(self._flights)

    def submit(self, key: int, job: Job) -> None:
        """Queue a job under a key that is unique among live jobs.

        Raises:
            BadRequest: a token id outside the vocabulary, an empty prompt, an empty bound, a
                guide that cannot be; one whose grammar does not compile fails in a later step.
            ContextTooLong: prompt and output can never fit the context or the KV pool.
            Overloaded: the queue is full.
        """
        if len(self.batcher.waiting) + self._guides.compiling >= self._spec.max_waiting:
            raise Overloaded("the engine's queue is full", retry_after_s=1.0)
        _check_ids(job, self._info.vocab_size)
        sampling = job.sampling
        stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= frozenset(self._info.eos_token_ids)
        seq = Sequence.create(
            key,
            job,
            arrival=self._arrivals,
            max_tokens=self._output_bound(job),
            groups=len(self.kv.groups),
            block_size=self.kv.block_size,
            stop_ids=stop_ids,
        )
        if sampling.guided is None:
            self.batcher.add(seq)
        else:
            self._guides.begin(seq, sampling.guided)
        self._arrivals += 1
        self._jobs[key] = seq

    def cancel(self, key: int) -> None:
        """Drop a job and free all it holds, at once. An unknown key (it just ended) is fine."""
        seq = self._jobs.pop(key, None)
        if seq is not None:
            self._drop(seq)
            self._counts["cancelled"] += 1

    def forget(self, session: str, keep_tokens: int = 0) -> None:
        """Drop what is cached of a session beyond its first `keep_tokens` tokens."""
        self.kv.forget(session, keep_tokens)

    def step(self) -> StepEvents:
        """Launch what there is room for, collect the oldest step, record. A step for which the
        device has no memory is computed again in smaller ones. Any exception here is the engine's
        own fault and fatal."""
        began_s = time.perf_counter()
        events = StepEvents()
        self._add_compiled(events)
        self._launch(events)
        if self._flights:
            self._collect(self._flights.popleft(), events, began_s)
        elif not events.failures:
            self._guides.wait(COMPILE_WAIT_S)
        return events

    def _launch(self, events: StepEvents) -> None:
        """Launch what there is room and work for. With lookahead one step more, once the oldest
        is drawn from: its tokens are on the device then, for the new one to go on with."""
        runner = self._runner
        while len(self._flights) < runner.depth + runner.lookahead:
            if len(self._flights) == runner.depth:
                oldest = self._flights[0]
                if not self._draw(oldest):
                    self._flights.clear()
                    self._shrink(oldest, events)
                    continue
                self._go_ahead(oldest)
            batch = self.batcher.schedule()
            if not batch.seqs:
                break
            flight = _Flight(batch)
            try:
                runner.launch(lay_out(batch, self.kv))
            except Shortage as shortage:
                self._note(shortage, batch)
                self._shrink(flight, events)
                if self._flights or events.failures:
                    break  # there is more memory when what is in flight, or failed, is gone
            else:
                self._flights.append(flight)

    def _draw(self, flight: _Flight) -> bool:
        """Begin to sample from a step, if that has not begun. Returns whether there was memory: if
        not, the step is gone."""
        if flight.drawn:
            return True
        rows = self._prepare(flight)
        try:
            self._runner.sample(self._sampling(flight, rows))
        except Shortage as shortage:
            self._note(shortage, flight.batch)
            for i in rows:  # what is kept of them may not have reached the device
                self._runner.sampler.drop(flight.batch.seqs[i])
            return False
        flight.drawn = True
        return True

    def _go_ahead(self, flight: _Flight) -> None:
        """Whoever gets a token of a step that is drawn from may go on with it unseen."""
        for n, i in enumerate(self._prepare(flight)):
            flight.batch.seqs[i].ahead = 1
            flight.batch.seqs[i].ahead_row = n

    def _shrink(self, flight: _Flight, events: StepEvents) -> None:
        """There was no memory for a step, the last one launched: its tokens are to be computed in
        smaller steps. One that has a single token, and the device for itself, can never be."""
        batch, void, jobs = flight.batch, flight.void, self._jobs
        wanted = [i for i, s in enumerate(batch.seqs) if i not in void and jobs.get(s.key) is s]
        for i in wanted:
            self.kv.take_back(batch.seqs[i], batch.tokens[i])
        prefill_tokens = sum(batch.tokens) - batch.decode_tokens
        smaller = self.batcher.budget.shrink(batch.decode_tokens, prefill_tokens)
        if not smaller and not self._flights:
            for i in wanted:
                self._counts["too_large"] += 1
                self._fail(batch.seqs[i], EngineFailed(TOO_LARGE, retry_after_s=1.0), events)

    def _note(self, shortage: Shortage, batch: Batch) -> None:
        self._counts["shortages"] += 1
        self._tell(
            f"out of memory in a step of {sum(batch.tokens)} tokens of {len(batch.seqs)} sequences "
            f"({batch.decode_tokens} decoding): smaller steps for a while; {shortage}"
        )

    def _prepare(self, flight: _Flight) -> list[int]:
        """Which entries get a token: of those that sample, the ones that are still wanted. A
        sequence that ended while it was in flight has freed its blocks, and one that took a step
        with a token that was not the one computes it again: nothing of either is looked at."""
        if flight.rows is None:
            batch = flight.batch
            flight.alive = [
                self._jobs.get(seq.key) is seq and i not in flight.void
                for i, seq in enumerate(batch.seqs)
            ]
            flight.rows = [i for i in batch.samples if flight.alive[i]]
            self._guides.prepare([batch.seqs[i] for i in flight.rows])
        return flight.rows

    def _sampling(self, flight: _Flight, rows: list[int]) -> list[Sequence | None]:
        wanted = set(rows)
        return [flight.batch.seqs[i] if i in wanted else None for i in flight.batch.samples]

    def _collect(self, flight: _Flight, events: StepEvents, began_s: float) -> None:
        """Take the results of the oldest step."""
        if not self._draw(flight):
            self._shrink(flight, events)
            return
        batch = flight.batch
        rows = self._prepare(flight)
        sampled, spoiled = self._runner.collect(self._sampling(flight, rows))
        for i, (seq, tokens) in enumerate(zip(batch.seqs, batch.tokens, strict=True)):
            if not flight.alive[i]:
                continue
            if i in spoiled:  # not advanced: its blocks must never be found by their hash
                self._fail(seq, EngineFailed(NOT_FINITE), events)
            else:
                self.kv.advance(seq, tokens)
        for n, i in enumerate(rows):
            seq = batch.seqs[i]
            seq.ahead = 0
            if n in sampled.settled:
                self._take_back(seq)
            if i not in spoiled:
                self._record(seq, sampled, n, events)
        prefill_tokens = sum(batch.tokens) - batch.decode_tokens
        self.batcher.budget.passed()
        self._count(batch.decode_tokens, prefill_tokens, time.perf_counter() - began_s)

    def _take_back(self, seq: Sequence) -> None:
        """The step ahead, if this sequence is in it, goes on with a token that it does not have."""
        for flight in self._flights:
            for i, other in enumerate(flight.batch.seqs):
                if other is seq:
                    flight.void.add(i)
                    self.kv.take_back(seq)

    def stats(self) -> EngineStats:
        groups = [g.name for g in self.kv.groups]
        pools = self.kv.pools
        counts = self._counts
        return EngineStats(
            running=len(self.batcher.running),
            waiting=len(self.batcher.waiting) + self._guides.compiling,
            blocks_in_use={n: p.in_use for n, p in zip(groups, pools, strict=True)},
            blocks_predicted=self.predicted_blocks(),
            blocks_cached={n: p.cached for n, p in zip(groups, pools, strict=True)},
            blocks_total={n: p.num_blocks for n, p in zip(groups, pools, strict=True)},
            steps=counts["steps"],
            prefill_tokens=counts["prefill_tokens"],
            decode_tokens=counts["decode_tokens"],
            preemptions=self.batcher.preemptions,
            prefix_queries_tokens=self.batcher.prefix_queries_tokens,
            prefix_hit_tokens=self.batcher.prefix_hit_tokens,
            jobs_finished=counts["finished"],
            jobs_failed=counts["failed"],
            jobs_cancelled=counts["cancelled"],
            shortages=counts["shortages"],
            jobs_too_large=counts["too_large"],
            step_budget_tokens=self.batcher.budget.tokens,
            step_seconds=self._tallies.seconds(),
            step_tokens=self._tallies.tokens(),
        )

    def predicted_blocks(self) -> dict[str, int]:
        """Blocks in use by arithmetic, per group, were nothing shared: an upper bound that is
        met exactly when no prefix is shared. For the invariant that prediction is real."""
        totals = [0] * len(self.kv.groups)
        for seq in self.batcher.running.values():
            for g, blocks in enumerate(self.kv.predicted_blocks(seq)):
                totals[g] += blocks
        return {g.name: n for g, n in zip(self.kv.groups, totals, strict=True)}

    def _output_bound(self, job: Job) -> int:
        """How many tokens the job may produce. The last one is never fed back, so a job needs
        the KV of `prompt + output - 1` tokens."""
        prompt = len(job.prompt)
        context = self._info.max_model_len
        room = context - prompt
        if room < 1:
            raise ContextTooLong(
                f"This model's maximum context length is {context} tokens, but the prompt "
                f"has {prompt} tokens and at least one must be left for the answer.",
                param="messages",
            )
        wanted = job.sampling.max_tokens
        if job.max_tokens_explicit and wanted > room:
            raise ContextTooLong(
                f"This model's maximum context length is {context} tokens, but {prompt} "
                f"prompt tokens and {wanted} output tokens were requested.",
                param="max_tokens",
            )
        pool_room = self.kv.token_capacity - prompt + 1
        if pool_room < 1 or (job.max_tokens_explicit and wanted > pool_room):
            raise ContextTooLong(
                f"The KV cache of this server holds {self.kv.token_capacity} tokens, but the "
                f"request may need {prompt + min(wanted, room) - 1}.",
                param="max_tokens" if pool_room >= 1 else "messages",
            )
        return min(wanted, room, pool_room)

    def _count(self, decode_tokens: int, prefill_tokens: int, seconds: float) -> None:
        self._counts["steps"] += 1
        self._counts["decode_tokens"] += decode_tokens
        self._counts["prefill_tokens"] += prefill_tokens
        self._tallies.add(prefill_tokens, decode_tokens, seconds)

    def _add_compiled(self, events: StepEvents) -> None:
        """Queue the jobs whose grammars are ready; fail those whose grammars are wrong."""
        for seq, error in self._guides.compiled():
            if error is None:
                self.batcher.add(seq)
            else:
                self._jobs.pop(seq.key)
                self._counts["failed"] += 1
                events.failures.append((seq.key, error))

    def _fail(self, seq: Sequence, error: ServerError, events: StepEvents) -> None:
        self._jobs.pop(seq.key)
        self._drop(seq)
        self._counts["failed"] += 1
        events.failures.append((seq.key, error))

    def _record(self, seq: Sequence, sampled: Sampled, n: int, events: StepEvents) -> None:
        walk = self._guides.walk(seq)
        if not sampled.finite[n]:
            self._fail(seq, EngineFailed(NOT_FINITE), events)
            return
        if walk is not None and walk.failure is not None:
            reason = f"the output cannot go on as asked: {walk.failure}"
            self._fail(seq, BadRequest(reason, param=walk.param), events)
            return
        token = sampled.tokens[n]
        first = seq.output_len == 0
        seq.append(token)
        finish: FinishReason | None = None
        if token in seq.stop_ids or (walk is not None and walk.ended):
            finish = "length" if walk is not None and walk.shortened else "stop"
        elif seq.output_len >= seq.max_tokens:
            finish = "length"
        logprob = sampled.logprobs[n]
        delta = TokenDelta(
            token_ids=(token,),
            logprobs=None if logprob is None else (TokenLogprob(token, *logprob),),
            finish=finish,
            cached_tokens=seq.cached_tokens if first else None,
            preemptions=seq.untold_preemptions,
        )
        seq.untold_preemptions = 0
        events.deltas.append((seq.key, delta))
        if finish is not None:
            self._jobs.pop(seq.key)
            self._drop(seq)
            self._counts["finished"] += 1

    def _drop(self, seq: Sequence) -> None:
        if not self._guides.drop(seq):
            self.batcher.remove(seq)
        self._runner.sampler.drop(seq)


def _check_ids(job: Job, vocab_size: int) -> None:
    if not job.prompt:
        raise BadRequest("the prompt has no tokens", param="prompt")
    if min(job.prompt) < 0 or max(job.prompt) >= vocab_size:
        raise BadRequest(
            f"a prompt token id is outside the vocabulary (0 to {vocab_size - 1})", param="prompt"
        )
    for name, ids in (
        ("logit_bias", job.sampling.logit_bias),
        ("stop_token_ids", job.sampling.stop_token_ids),
    ):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise BadRequest(
                    f"token id {token} is outside the vocabulary (0 to {vocab_size - 1})",
                    param=name,
                )
    if job.sampling.max_tokens < 1:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
