"""The loss of a `GptOssForCausalLM`, computed in a way that is quick on a CPU.

Knows: the model's arithmetic. Does not know: data, optimisers.

The same function as transformers' forward (a test compares them), but: matrix products in
bfloat16; all experts as two dense products, with weight 0 for those not picked, since gathering
rows costs more than multiplying them at this size; logits only where a target is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tools.train_tiny.batches import IGNORED, Batch
from torch import Tensor

BALANCE_WEIGHT = 0.01


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy in nats per learned token, its share guessed right, and how unevenly
    experts are used (1 is even)."""

    cross_entropy: Tensor
    correct: Tensor
    balance: Tensor

    @property
    def total(self) -> Tensor:
        return self.cross_entropy + BALANCE_WEIGHT * self.balance


def masks(batch: Batch, window: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Additive masks [rows, 1, tokens, tokens] by layer type."""
    segments, positions = torch.from_numpy(batch.segments), torch.from_numpy(batch.positions)
    length = segments.shape[1]
    key, query = segments[:, None, :], segments[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    full = causal & ((key == 0) | (key == query))
    near = positions[:, None, :] > positions[:, :, None] - window
    found = {"full_attention": full, "sliding_attention": full & near}
    closed = torch.finfo(dtype).min
    return {
        name: torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, closed)[:, None]
        for name, mask in found.items()
    }


def losses(model: Any, batch: Batch, dtype: torch.dtype = torch.bfloat16) -> Losses:
    """The losses of one batch, differentiable in the model's parameters."""
    config, inner = model.config, model.model
    x = F.embedding(torch.from_numpy(batch.tokens), inner.embed_tokens.weight)
    cos, sin = inner.rotary_emb(x, torch.from_numpy(batch.positions))
    rope = (cos[:, None].to(dtype), sin[:, None].to(dtype))
    by_type = masks(batch, config.sliding_window, dtype)
    real = torch.from_numpy(batch.segments >= 0).flatten()
    balance = x.new_zeros(())
    for kind, layer in zip(config.layer_types, inner.layers, strict=True):
        hidden = _norm(x, layer.input_layernorm).to(dtype)
        x = x + _attention(layer.self_attn, hidden, rope, by_type[kind])
        mlp, uneven = _experts(layer.mlp, _norm(x, layer.post_attention_layernorm), real, dtype)
        x = x + mlp
        balance = balance + uneven / config.num_hidden_layers
    targets = torch.from_numpy(batch.targets)
    learned = targets != IGNORED
    hidden = _norm(x[learned], inner.norm).to(dtype)
    logits = F.linear(hidden, model.lm_head.weight.to(dtype)).float()
    wanted = targets[learned]
    correct = (logits.detach().argmax(-1) == wanted).float().mean()
    return Losses(F.cross_entropy(logits, wanted), correct, balance)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _linear(x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attention(attention: Any, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    rows, length, _ = x.shape
    size, groups = attention.head_dim, attention.num_key_value_groups

    def heads(layer: Any) -> Tensor:
        return _linear(x, layer).view(rows, length, -1, size).transpose(1, 2)

    query = _rotated(heads(attention.q_proj), rope) * attention.scaling
    key = _rotated(heads(attention.k_proj), rope)
    value = heads(attention.v_proj)
    kv_heads = key.shape[1]
    # The query heads of one key head side by side: one product for all of them.
    query = query.reshape(rows, kv_heads, groups * length, size)
    scores = query @ key.transpose(2, 3)
    scores = scores.view(rows, kv_heads, groups, length, length) + mask[:, :, None]
    sinks = attention.sinks.to(scores.dtype).view(1, kv_heads, groups, 1, 1)
    sinks = sinks.expand(rows, -1, -1, length, 1)
    shares = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
    shares = shares.reshape(rows, kv_heads, groups * length, length)
    out = (shares @ value).view(rows, kv_heads * groups, length, size)
    return _linear(out.transpose(1, 2).reshape(rows, length, -1), attention.o_proj).float()


def _experts(mlp: Any, x: Tensor, real: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, length, width = x.shape
    x = x.reshape(-1, width)
    router, experts = mlp.router, mlp.experts
    scores = F.linear(x, router.weight, router.bias)
    top, picked = scores.topk(router.top_k, dim=-1)
    weights = torch.zeros_like(scores).scatter(1, picked, top.softmax(-1))
    hidden = x.to(dtype)

    def up(part: int) -> Tensor:
        kernel = experts.gate_up_proj[..., part::2].to(dtype)
        bias = experts.gate_up_proj_bias[..., part::2].to(dtype)
        flat = kernel.transpose(0, 1).reshape(width, -1)
        return torch.addmm(bias.reshape(-1), hidden, flat)

    gate = up(0).clamp(max=experts.limit)
    linear = up(1).clamp(min=-experts.limit, max=experts.limit)
    inner = (linear + 1) * (gate * torch.sigmoid(gate * experts.alpha))
    count = experts.num_experts
    inner = inner.view(-1, count, experts.intermediate_size) * weights.to(dtype)[..., None]
    down = experts.down_proj.to(dtype).reshape(-1, width)
    out = (inner.flatten(1) @ down).float() + weights @ experts.down_proj_bias
    share = (weights.detach() > 0)[real].float().mean(0) / router.top_k
    balance = count * (share * scores.softmax(-1)[real].mean(0)).sum()
    return out.view(rows, length, width), balance
