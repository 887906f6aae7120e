"""An upper bound on what one step of the model holds besides weights and KV.

Knows: the tensors that are alive at the same time in one decoder layer of a batch of T tokens.
Does not know: allocators, captured graphs, or any kernel's own workspace (`workspace_bytes` of
`fit` is for those).

Derivation, with H hidden size, b bytes of the model's dtype, 4 bytes of float32. Layers run one
after another, so the peak is what stands through the whole step, the residual stream T·H·b and
the rotary tables with the index tensors of a step, T·(4·k_dim·b + 4·8) (sine and cosine, of
sliding and full layers), plus the greediest phase of one layer, or the head:

- norm: T·H·(2b + 3·4): input and output, and the float32 copy, its square and its product.
- attention: normed input and output projection, 2·T·H·b; queries, keys and values of q, k, v
  numbers as projected, once more where they were projected together, (q + k + v)·2b; queries and
  keys normed in float32 or rotated, (q + k)·(b + 3·4); the attention's result o·b. No score
  matrix: paged attention keeps none.
- dense MLP of width I: normed input and result 2·T·H·b; gate, up, the activated gate and the
  product 4·T·I·b.
- experts, k of E per token, width I: normed input and result 2·H·b; E·(4 + b) router scores and
  logits; for each of the T·k routed rows the gathered input, result and weighted result, 3·H·b,
  gate and up together and apart, their clamped copies, the activated gate and the product, 8·I·b,
  and its share of index arrays, 4·8; shared experts as a dense MLP. (Llama 4 sends every token
  through every expert: k = E.)
- head: the normed states T·H·b, S sampled rows of V logits in the model's dtype and, for
  sampling, four float32 copies (as they are, biased, scaled, filtered), the probabilities and
  their sums in float64, and two masks. Left out are the counts that penalties keep of each
  sequence's tokens and, on a device that finds top_p by sorting (no GPU with our kernels does),
  the sorted logits with their masses, some 10 bytes more a logit.

Tensor parallelism divides q, k, v, o and dense widths; routed rows may all meet on one rank and
logits are gathered, so these stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_oss_server.memory.architecture import (
    ResolvedConfig,
    geometry_of,
    heads_per_rank,
    resolve,
)
from gpt_oss_server.memory.blocks import ceil_div
from gpt_oss_server.memory.weight_rules import (
    dense_size,
    expert_size,
    experts_of,
    shared_experts_of,
)

FLOAT32_BYTES = 4
FLOAT64_BYTES = 8
INDEX_BYTES = 8
MASK_BYTES = 1


@dataclass(frozen=True)
class Activations:
    """Bytes of each phase on one rank, as the module docstring derives them; `peak_bytes` is what
    stands plus the greediest."""

    standing_bytes: int
    norm_bytes: int
    attention_bytes: int
    mlp_bytes: int
    experts_bytes: int
    head_bytes: int

    @property
    def peak_bytes(self) -> int:
        phases = (self.norm_bytes, self.attention_bytes, self.mlp_bytes)
        return self.standing_bytes + max(*phases, self.experts_bytes, self.head_bytes)


def activations_of(
    config: Mapping[str, Any],
    step_tokens: int,
    sampled_rows: int,
    dtype_bytes: int = 2,
    tp: int = 1,
) -> Activations:
    """Upper bound for a step of `step_tokens` tokens that samples `sampled_rows` of them.

    Raises `ShapeUnknown` for a config without the sizes, `ImpossibleSplit`.
    """
    resolved = resolve(config)
    row = step_tokens * resolved.count("hidden_size") * dtype_bytes
    tables = 4 * geometry_of(resolved).k_dim * dtype_bytes + 4 * INDEX_BYTES
    per_logit = dtype_bytes + 4 * FLOAT32_BYTES + 2 * FLOAT64_BYTES + 2 * MASK_BYTES
    return Activations(
        standing_bytes=row + step_tokens * tables,
        norm_bytes=2 * row + 3 * row * FLOAT32_BYTES // dtype_bytes,
        attention_bytes=2 * row + step_tokens * _attention_bytes(resolved, dtype_bytes, tp),
        mlp_bytes=2 * row + 4 * step_tokens * ceil_div(dense_size(resolved), tp) * dtype_bytes,
        experts_bytes=step_tokens * _expert_bytes(resolved, dtype_bytes, tp),
        head_bytes=row + sampled_rows * resolved.count("vocab_size") * per_logit,
    )


def _attention_bytes(resolved: ResolvedConfig, dtype_bytes: int, tp: int) -> int:
    """Bytes per token of queries, keys, values and the attention's result on one rank."""
    geometry = geometry_of(resolved)
    family = resolved.family
    sharing = tp if family is not None and family.splits_heads else 1
    heads = ceil_div(resolved.count("num_attention_heads", 1), sharing)
    kv_heads = heads_per_rank(geometry.kv_heads, sharing)
    queries, keys = heads * geometry.k_dim, kv_heads * geometry.k_dim
    values = kv_heads * geometry.v_dim
    projected = 2 * dtype_bytes * (queries + keys + values)
    turned = (dtype_bytes + 3 * FLOAT32_BYTES) * (queries + keys)
    return projected + turned + heads * geometry.v_dim * dtype_bytes


def _expert_bytes(resolved: ResolvedConfig, dtype_bytes: int, tp: int) -> int:
    """Bytes per token of a layer with experts, or 0."""
    total, used = experts_of(resolved)
    if total == 0:
        return 0
    used = total if resolved.model_type == "llama4_text" else used
    hidden, width = resolved.count("hidden_size"), expert_size(resolved)
    router = total * (FLOAT32_BYTES + dtype_bytes)
    routed = used * ((3 * hidden + 8 * width) * dtype_bytes + 4 * INDEX_BYTES)
    shared = 4 * ceil_div(shared_experts_of(resolved) * width, tp) * dtype_bytes
    return 2 * hidden * dtype_bytes + router + routed + shared
