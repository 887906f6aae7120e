"""The engine without a process around it: jobs in, token deltas out, one step at a time.

Knows: how a step is scheduled, run and recorded. Does not know: sockets, asyncio, text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpt_oss_server.engine.batcher import Batcher
from gpt_oss_server.engine.guided import Guides
from gpt_oss_server.engine.host_memory import check_room, free_bytes
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.layout import allocate_layers, observe_layers, reconcile
from gpt_oss_server.engine.loader import LoadedModel, load_model
from gpt_oss_server.engine.order import prefill_order
from gpt_oss_server.engine.runner import ModelRunner, make_backend
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import build_step
from gpt_oss_server.engine.step_cost import step_cost
from gpt_oss_server.engine.tallies import StepTallies
from gpt_oss_server.errors import (
    BadRequest,
    ConfigError,
    ContextTooLong,
    EngineFailed,
    Overloaded,
    ServerError,
    StartupError,
)
from gpt_oss_server.memory.activations import activations_of
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.errors import PoolTooSmall, ShapeUnknown
from gpt_oss_server.memory.kv import PoolPlan, plan_pools
from gpt_oss_server.types import (
    EngineInfo,
    EngineStats,
    FinishReason,
    Job,
    KvGroupInfo,
    TokenDelta,
    TokenLogprob,
)

CPU_BATCH_TOKENS = 256
CUDA_BATCH_TOKENS = 2048
NOT_FINITE = "the model produced numbers that are not finite for this request"
# On a CPU the pool may take this share of the free memory, up to a bound that fits a laptop.
CPU_KV_SHARE = 0.4
CPU_KV_MAX_BYTES = 2 << 30
# With nothing to run but grammars to compile, the step loop sleeps this long at a time.
COMPILE_WAIT_S = 0.002


@dataclass(slots=True)
class StepEvents:
    """What one step says to the outside, by job key."""

    deltas: list[tuple[int, TokenDelta]] = field(default_factory=list)
    failures: list[tuple[int, ServerError]] = field(default_factory=list)


class EngineCore:
    """Built once, stepped by one thread. `submit` and `cancel` are called between steps."""

    def __init__(self, spec: EngineSpec, progress: Callable[[str], None] = lambda _: None) -> None:
        """Load the model and allocate the pools. Raises StartupError."""
        loaded = load_model(spec, progress)
        self._loaded = loaded
        config = msgspec.json.decode((Path(spec.folder) / "config.json").read_bytes())
        shape, warnings = _shape_of(config, loaded)
        for line in warnings:
            progress(f"warning: {line}")
        self._max_len = _context(spec, loaded)
        self._batch_tokens = _batch_tokens(spec, loaded)
        progress("allocating the KV pools")
        self._activations_bytes = _activations(spec, config, loaded, self._batch_tokens)
        budget = spec.kv_cache_bytes or _kv_budget(spec, loaded, self._activations_bytes)
        plan = _plan(spec, loaded, shape, self._batch_tokens, budget)
        if loaded.device.type == "cpu":
            check_room(plan.total_bytes, free_bytes())
        self.kv = KvSpace(
            [GroupSpec(g.name, g.window, g.num_blocks) for g in plan.groups],
            block_size=spec.block_size,
            max_num_seqs=spec.max_num_seqs,
            max_model_len=self._max_len,
            prefix_caching=spec.prefix_caching,
        )
        order = prefill_order(spec.prefill_order, spec.prefill_oldest_share)
        cost = step_cost(loaded.active_parameters, shape)
        self.batcher = Batcher(self.kv, order, self._batch_tokens, cost)
        backend = make_backend(spec.attention_backend, spec.block_size)
        layers = allocate_layers(plan, shape, spec.block_size, loaded.dtype, loaded.device)
        self._guides = Guides(
            Path(spec.folder), loaded.vocab_size, loaded.eos_token_ids, spec.max_num_seqs
        )
        sampler = Sampler(loaded.vocab_size, loaded.device, self._guides)
        self._runner = ModelRunner(loaded.model, layers, backend, sampler)
        self._spec = spec
        self._plan = plan
        self._backend_name = backend.name
        self._jobs: dict[int, Sequence] = {}
        self._arrivals = 0
        self._tallies = StepTallies()
        self._counts = dict.fromkeys(
            ("steps", "prefill_tokens", "decode_tokens", "finished", "failed", "cancelled"), 0
        )

    def info(self) -> EngineInfo:
        loaded = self._loaded
        return EngineInfo(
            vocab_size=loaded.vocab_size,
            max_model_len=self._max_len,
            eos_token_ids=loaded.eos_token_ids,
            block_size=self._spec.block_size,
            kv_groups=tuple(
                KvGroupInfo(g.name, g.layers, g.window, g.num_blocks, g.block_bytes)
                for g in self._plan.groups
            ),
            kv_token_capacity=self._plan.token_capacity,
            max_num_seqs=self._spec.max_num_seqs,
            max_batch_tokens=self._batch_tokens,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            weights_bytes=loaded.weights_bytes,
            activations_peak_bytes=self._activations_bytes,
            attention_backend=self._backend_name,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

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
        _check_ids(job, self._loaded.vocab_size)
        sampling = job.sampling
        stop_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= frozenset(self._loaded.eos_token_ids)
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
        """Schedule, run, record. Any exception here is the engine's own fault and fatal."""
        began_s = time.perf_counter()
        events = StepEvents()
        self._add_compiled(events)
        batch = self.batcher.schedule()
        if not batch.seqs:
            if not events.failures:
                self._guides.wait(COMPILE_WAIT_S)
            return events
        sampling = batch.samples
        sampled_seqs = [batch.seqs[i] for i in sampling]
        self._guides.prepare(sampled_seqs)
        step = build_step(batch, self.kv, self._loaded.device)
        sampled, spoiled = self._runner.run(step, sampled_seqs)
        decoding = sum(seq.decoding for seq in batch.seqs)
        for i, (seq, tokens) in enumerate(zip(batch.seqs, batch.tokens, strict=True)):
            if i in spoiled:  # not advanced: its blocks must never be found by their hash
                self._fail(seq, EngineFailed(NOT_FINITE), events)
            else:
                self.kv.advance(seq, tokens)
        for n, i in enumerate(sampling):
            if i not in spoiled:
                self._record(batch.seqs[i], sampled, n, events)
        self._count(decoding, sum(batch.tokens) - decoding, time.perf_counter() - began_s)
        return events

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
        room = self._max_len - prompt
        if room < 1:
            raise ContextTooLong(
                f"This model's maximum context length is {self._max_len} tokens, but the prompt "
                f"has {prompt} tokens and at least one must be left for the answer.",
                param="messages",
            )
        wanted = job.sampling.max_tokens
        if job.max_tokens_explicit and wanted > room:
            raise ContextTooLong(
                f"This model's maximum context length is {self._max_len} tokens, but {prompt} "
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


def _context(spec: EngineSpec, loaded: LoadedModel) -> int:
    """The longest sequence. Raises ConfigError for one that the model was not made for."""
    if spec.max_model_len is None:
        return loaded.context_len
    if spec.max_model_len > loaded.context_len:
        raise ConfigError(
            f"max_model_len {spec.max_model_len} exceeds the model's own context of "
            f"{loaded.context_len} tokens"
        )
    return spec.max_model_len


def _batch_tokens(spec: EngineSpec, loaded: LoadedModel) -> int:
    """Tokens per step. At least one for each sequence: every stream goes on in every step.
    Raises ConfigError for fewer."""
    if spec.max_batch_tokens is None:
        usual = CPU_BATCH_TOKENS if loaded.device.type == "cpu" else CUDA_BATCH_TOKENS
        return max(usual, spec.max_num_seqs)
    if spec.max_batch_tokens < spec.max_num_seqs:
        raise ConfigError(
            f"max_batch_tokens {spec.max_batch_tokens} is less than max_num_seqs "
            f"{spec.max_num_seqs}: each running sequence needs a token per step"
        )
    return spec.max_batch_tokens


def _activations(
    spec: EngineSpec, config: Mapping[str, Any], loaded: LoadedModel, batch_tokens: int
) -> int:
    """The most bytes a step holds besides weights and KV; 0 where the config does not tell."""
    try:
        return activations_of(
            config, batch_tokens, spec.max_num_seqs, loaded.dtype.itemsize
        ).peak_bytes
    except ShapeUnknown:
        return 0


def _shape_of(config: Mapping[str, Any], loaded: LoadedModel) -> tuple[ModelShape, list[str]]:
    """The config's shape, checked against one forward pass of the model."""
    observed = observe_layers(loaded.model)
    try:
        predicted = shape_from_config(config)
    except ShapeUnknown as error:
        text = loaded.model.config.get_text_config()
        shape = ModelShape(
            model_type=str(text.model_type),
            layers=observed,
            hidden_size=int(text.hidden_size),
            num_heads=int(text.num_attention_heads),
            vocab_size=loaded.vocab_size,
            max_positions=loaded.context_len,
            exact=False,
        )
        return shape, [f"no prediction from the config, using what was observed: {error}"]
    return reconcile(predicted, observed)


def _plan(
    spec: EngineSpec, loaded: LoadedModel, shape: ModelShape, batch_tokens: int, budget: int
) -> PoolPlan:
    """Pools within the budget. Raises StartupError where it holds not even one block each."""
    try:
        return plan_pools(
            shape,
            budget,
            spec.block_size,
            spec.max_num_seqs,
            batch_tokens,
            loaded.dtype.itemsize,
        )
    except PoolTooSmall as error:
        cure = "--kv-cache-memory" if spec.kv_cache_bytes else "--memory-budget"
        if loaded.device.type == "cuda" and not spec.kv_cache_bytes:
            cure = "--gpu-memory-utilization"
        raise StartupError(
            f"too little memory for a KV cache: {error}; raise {cure} or use a smaller model"
        ) from error


def _kv_budget(spec: EngineSpec, loaded: LoadedModel, activations_bytes: int) -> int:
    """Bytes for the KV pools: what the device has left beside weights and activations."""
    if loaded.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(loaded.device)
        return int(free - (1.0 - spec.gpu_memory_utilization) * total) - activations_bytes
    if spec.memory_budget_bytes is not None:
        return spec.memory_budget_bytes - loaded.weights_bytes - activations_bytes
    return min(int(free_bytes() * CPU_KV_SHARE), CPU_KV_MAX_BYTES)
