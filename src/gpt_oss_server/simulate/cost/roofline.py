"""How long one step of a model takes on a replica: a roofline whose terms add up.

Knows: a model's bytes and operations from its config (through `memory/`), a GPU type, tensor and
pipeline ranks, the fitted efficiencies. Does not know: requests, queues, schedules.

A step that computes T tokens (B decoding ones, the rest prefill) over S cached tokens takes

    overhead + bytes / (bandwidth · e_mem) + collectives + prefill operations / (flops · e_comp)

    overhead     host and kernel launches: a constant, a share per layer, per sequence of the step
                 (scheduling, sampling, detokenising) and per chunk of a prompt
    bytes        dense weights once; of each layer's E experts (k per token) the expected number
                 E(1 − (1 − k/E)^T) that T independent tokens choose; the KV of the S tokens
    collectives  2 per layer with tp > 1: latency · log2 tp, and a ring's 2(tp−1)/tp · T · hidden
                 · 2 bytes over the link; with pp > 1 a hop of T · hidden · 2 bytes per stage
    operations   2 per active parameter and token (the head multiplies only sampled tokens), and
                 per full layer 2 · heads · (k_dim + v_dim) for each pair of a token and one before
                 it; in a windowed layer the pairs within the window

The KV may be read, and attention computed, at shares of their own: on a CPU neither goes like the
products with weights. A decoded token's operations are not a term: where they cost time they are
the same for every sequence of a step, and in what each adds.

All per rank, from the bytes that `memory/` says one rank holds. Pipeline stages run one after
another (what this server's `auto` and `pipeline` modes do with one batch): they add room, not
speed.
Source of the form: fitted to published measurements, see `calibration` and docs/simulator.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.architecture import ModelShape, resolve, shape_from_config
from gpt_oss_server.memory.kv import cache_groups
from gpt_oss_server.memory.weight_rules import experts_of
from gpt_oss_server.memory.weights import ModelWeights, weights_of
from gpt_oss_server.simulate.cost.gpu_types import GpuType

OVERHEAD_S = 1.34e-3
OVERHEAD_PER_LAYER_S = 0.047e-3
ACTIVATION_BYTES = 2
TABLE_TOKENS = 1024
"""Up to this many tokens the expected number of experts is tabled; beyond, all are counted."""


class Terms(NamedTuple):
    """A step's (or any time's) parts at full efficiency, in seconds. `overhead_s` is the nominal
    one; `latency_hops` counts log2(tp) collectives and pipeline hops, `sequences` whom the host
    serves in the step, `chunks` those of them that compute part of a prompt. `memory_s` is reading
    weights, `cache_s` the KV; `compute_s` prompts' products with weights, `attention_s` of their
    tokens with each other."""

    overhead_s: float = 0.0
    sequences: float = 0.0
    latency_hops: float = 0.0
    memory_s: float = 0.0
    link_s: float = 0.0
    compute_s: float = 0.0
    cache_s: float = 0.0
    attention_s: float = 0.0
    chunks: float = 0.0

    def plus(self, other: Terms, times: float = 1.0) -> Terms:
        return Terms(*(a + times * b for a, b in zip(self, other, strict=True)))

    def scaled(self, by: float) -> Terms:
        return Terms(*(by * a for a in self))


@dataclass(frozen=True)
class Efficiency:
    """What of the nominal figures is attained; fitted by `calibrate`.

    `overhead` scales the nominal host time, `sequence_s` is what each sequence of a step adds,
    `chunk_s` what each prompt's chunk adds beside its operations; `hop_latency_s` is one
    collective's per doubling of ranks; `link` and `compute` are shares of the stated bandwidth and
    operations. The memory's share belongs to the GPU type; `memory` replaces it where it is given.
    `cache` and `attention` are the shares for KV and attention; None: as memory and compute.
    `first_token_s` is what a request waits at the least beside the steps (HTTP, tokenisation, the
    engine's own loop).
    """

    overhead: float = 1.0469
    sequence_s: float = 12.04e-6
    hop_latency_s: float = 0.0
    link: float = 0.3073
    compute: float = 0.2754
    first_token_s: float = 0.0177
    memory: float | None = None
    cache: float | None = None
    attention: float | None = None
    chunk_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("overhead", "sequence_s", "hop_latency_s", "first_token_s", "chunk_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"efficiency: {name} must be finite, and not negative")
        for name in ("link", "compute", "memory", "cache", "attention"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"efficiency: {name} must be above 0, and finite")

    def seconds(self, terms: Terms, gpu: GpuType) -> float:
        """What the terms take on this GPU."""
        memory = self.memory if self.memory is not None else gpu.bandwidth_efficiency
        cache = self.cache if self.cache is not None else memory
        attention = self.attention if self.attention is not None else self.compute
        return (
            self.overhead * terms.overhead_s
            + self.sequence_s * terms.sequences
            + self.chunk_s * terms.chunks
            + terms.memory_s / memory
            + terms.cache_s / cache
            + self.hop_latency_s * terms.latency_hops
            + terms.link_s / self.link
            + terms.compute_s / self.compute
            + terms.attention_s / attention
        )


@dataclass(frozen=True)
class ModelCost:
    """What a model costs, from its config. Bytes and operations of one whole copy."""

    shape: ModelShape
    weights: ModelWeights
    experts: int
    experts_per_token: int

    @property
    def name(self) -> str:
        return self.shape.model_type

    @property
    def multiplied_params(self) -> int:
        """Parameters that every prefill token is multiplied with: the active ones but the head."""
        head = self.weights.embedding if self.weights.tied else self.weights.head
        return self.weights.active_params - head.params

    def even_tokens(self) -> float:
        """The context at which attention multiplies as much as all weights do (infinite where
        every layer has a window). What the engine charges deep prefill tokens by."""
        per_context = sum(
            self.shape.num_heads * (layer.k_dim + layer.v_dim)
            for layer in self.shape.layers
            if layer.window is None
        )
        return self.weights.active_params / per_context if per_context else math.inf


def model_cost(config: Mapping[str, Any], *, dtype: str | None = None) -> ModelCost:
    """The costs of the decoder in `config` (config.json's content), weights as it says they are
    stored; `dtype` replaces the config's own, and is bfloat16 where neither names one (gpt-oss's
    published files do not). Raises `ShapeUnknown`."""
    resolved = resolve(config)
    stated = any(resolved.get(name) or config.get(name) for name in ("dtype", "torch_dtype"))
    if dtype is None and not stated:
        dtype = "bfloat16"
    experts, used = experts_of(resolved)
    return ModelCost(shape_from_config(config), weights_of(config, dtype=dtype), experts, used)


class ReplicaCost:
    """One model copy on tp · pp GPUs: the terms of any step, per rank, worked out once.

    Raises `ImpossibleSplit` where the ranks cannot share the model's heads or layers.
    """

    def __init__(
        self, model: ModelCost, gpu: GpuType, tp: int = 1, pp: int = 1, kv_dtype_bytes: int = 2
    ) -> None:
        self.model, self.gpu, self.tp, self.pp = model, gpu, tp, pp
        weights, shape = model.weights, model.shape
        weights.rank_bytes(tp, pp)  # raises where the split is impossible
        profile = weights.read_profile(tp)[0]
        expert_bytes = sum(size for share, size in profile.items() if share < 1)
        looked_up = 0 if weights.tied else weights.embedding.bytes(weights.dtype_bytes) / tp
        self.expert_s = expert_bytes / gpu.bandwidth_bytes_s
        self.dense_s = (
            weights.rank_bytes(tp)[0] - expert_bytes - looked_up
        ) / gpu.bandwidth_bytes_s
        groups = cache_groups(shape, kv_dtype_bytes, tp)
        rows = [(group.window, group.row_bytes / gpu.bandwidth_bytes_s) for group in groups]
        self.kv_s_per_token = sum(seconds for window, seconds in rows if window is None)
        self.kv_windows = tuple((window, s) for window, s in rows if window is not None)
        self.linear_s = 2 * model.multiplied_params / (tp * gpu.bf16_flops_s)
        pair_s = [
            (layer.window, 2 * shape.num_heads * (layer.k_dim + layer.v_dim))
            for layer in shape.layers
        ]
        rate = tp * gpu.bf16_flops_s
        self.pair_s = sum(ops for window, ops in pair_s if window is None) / rate
        windows: dict[int, float] = {}
        for window, ops in pair_s:
            if window is not None:
                windows[window] = windows.get(window, 0.0) + ops / rate
        self.pair_windows = tuple(sorted(windows.items()))
        layers = len(shape.layers)
        self.overhead_s = OVERHEAD_S + OVERHEAD_PER_LAYER_S * layers
        self.hops = 2 * layers * math.log2(tp) + (pp - 1)
        row = shape.hidden_size * ACTIVATION_BYTES / gpu.link_bytes_s
        self.link_s_per_token = row * (2 * layers * 2 * (tp - 1) / tp + (pp - 1))

    def share_of_experts(self, tokens: float) -> float:
        """Expected share of a layer's experts that `tokens` tokens choose, routed independently."""
        if not self.model.experts:
            return 1.0
        chosen = self.model.experts_per_token / self.model.experts
        return 1.0 if chosen >= 1 else -math.expm1(tokens * math.log1p(-chosen))

    def base(self, tokens: float, sequences: float) -> Terms:
        """A step of `tokens` tokens of `sequences` sequences, without KV and prefill operations."""
        return Terms(
            overhead_s=self.overhead_s,
            sequences=sequences,
            latency_hops=self.hops,
            memory_s=self.dense_s + self.expert_s * self.share_of_experts(tokens),
            link_s=self.link_s_per_token * tokens,
        )

    def window_s(self, context: float) -> float:
        """Reading the KV of one sequence's windowed layers once."""
        return sum(min(window, context) * seconds for window, seconds in self.kv_windows)

    def cache(self, context: float, sequences: float = 1.0) -> Terms:
        """Reading the KV of `sequences` sequences of `context` tokens each."""
        memory = sequences * (context * self.kv_s_per_token + self.window_s(context))
        return Terms(cache_s=memory)

    def attention_s(self, tokens: float, context: float) -> float:
        """Operations of `tokens` prefill tokens with the `context` before them and each other."""
        seconds = self.pair_s * tokens * (context + tokens / 2)
        for window, pair_s in self.pair_windows:
            seconds += pair_s * _windowed_pairs(tokens, context, window)
        return seconds

    def prefill_s(self, tokens: float, context: float) -> float:
        """All operations of `tokens` prefill tokens after `context` others, at full efficiency."""
        return tokens * self.linear_s + self.attention_s(tokens, context)

    def prefill(self, tokens: float, context: float = 0.0) -> Terms:
        """One chunk of a prompt."""
        attention_s = self.attention_s(tokens, context)
        return Terms(compute_s=tokens * self.linear_s, attention_s=attention_s, chunks=1.0)


def _windowed_pairs(tokens: float, context: float, window: int) -> float:
    """Pairs that `tokens` tokens after `context` others form with those within `window` before
    them: the integral of min(position, window)."""
    start, end = context, context + tokens
    low, high = min(start, window), min(end, window)
    return (high * high - low * low) / 2 + window * max(0.0, end - max(start, window))
