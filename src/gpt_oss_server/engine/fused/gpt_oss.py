"""gpt-oss in few launches: some twelve a layer, where transformers' modules take about ninety.

Knows: the architecture, and which kernels make it. Does not know: how kernels work, graphs,
sampling, where weights came from. Imports Triton.

A layer is: addition and norm (1 launch), queries, keys and values as one product (1), rotation and
KV write (1), attention (1, and 1 to merge where keys may be split), output product (1), addition
and norm (1), router (2), experts (3). Beside the layers: embedding, rotary table, the attention's
plan (2), final norm, head. The last layer computes keys and values for all tokens, the rest of it
for those only whose logits are wanted.

Numbers are rounded where transformers rounds them, except that rotation and gates are float32
inside a kernel. The residual stream is in the model's type.

Nothing here waits for the device or makes a tensor from host numbers, and shapes follow from the
step's alone: a step of one token per sequence can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gpt_oss_server.engine.attention.interface import LayerKv, StepContext
from gpt_oss_server.engine.experts.modules import KernelMixture
from gpt_oss_server.engine.kernels.norm import add_rms_norm, rms_norm
from gpt_oss_server.engine.kernels.rotary import rotate_and_write
from gpt_oss_server.engine.step import StepInput

# Rotary embeddings whose frequencies do not change with the sequence.
_FIXED_ROPE = ("default", "linear", "yarn", "llama3")
_PARTS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's parameters. `qkv` [(heads + 2 kv_heads) dim, hidden]; biases may be None."""

    before: _Norm
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    sinks: torch.Tensor
    scale: float
    output: torch.Tensor
    output_bias: torch.Tensor | None
    after: _Norm
    mixture: Any


def why_not_fused(model: Any) -> str | None:
    """Why a loaded model cannot run fused; None where it can."""
    if type(model).__name__ != "GptOssForCausalLM":
        return f"it is a {type(model).__name__}"
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if rope not in _FIXED_ROPE:
        return f"its rotary embedding ({rope}) changes with the sequence"
    for layer in model.model.layers:
        attention = layer.self_attn
        for name in (*_PARTS, "o_proj"):
            if type(getattr(attention, name)) is not nn.Linear:
                return f"its {name} is no plain linear layer"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        return "its parameters are on several devices"
    return None


class FusedGptOss:
    """See the module. Built from a loaded `GptOssForCausalLM`, whose parameters it shares: the
    projections of queries, keys and values become views into one matrix, layer by layer, so that
    no more than one layer's are held twice on the way."""

    name = "fused"

    def __init__(self, model: Any, max_positions: int) -> None:
        decoder = model.model
        first = decoder.layers[0].self_attn
        self._dim = int(first.head_dim)
        self._heads = first.q_proj.out_features // self._dim
        self._kv_heads = first.k_proj.out_features // self._dim
        self._embedding = decoder.embed_tokens.weight
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._norm = _norm(decoder.norm)
        self._head = model.lm_head.weight
        self._rotary = _rotary_table(decoder.rotary_emb, max_positions, self._embedding)
        self.capturable = all(isinstance(layer.mixture, KernelMixture) for layer in self._layers)
        if self._embedding.device.type == "cuda":
            torch.cuda.empty_cache()  # of the parts that became one

    def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        """See `Forward`."""
        with torch.cuda.device_of(self._embedding):  # type: ignore[no-untyped-call]
            return self._forward(step, context)

    def _forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        # Where every token's logits are wanted, there is nothing to pick.
        picked = None if len(step.sample_rows) == len(step.token_ids) else step.sample_rows
        cos, sin = self._rotary.index_select(1, step.positions).unbind()
        residual = functional.embedding(step.token_ids, self._embedding)
        last = len(self._layers) - 1
        mixed: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            normed, residual = _normed(mixed, residual, layer.before)
            query = self._write(layer, context, context.layers[index], normed, cos, sin)
            if index == last and picked is not None and not len(picked):
                nothing: torch.Tensor = self._head.new_empty(0, self._head.shape[0])
                return nothing
            attended = self._attend(layer, context, context.layers[index], query)
            if index == last and picked is not None:
                attended = attended.index_select(0, picked)
                residual = residual.index_select(0, picked)
            attended = functional.linear(attended, layer.output, layer.output_bias)
            normed, residual = _normed(attended, residual, layer.after)
            mixed = _mixed(layer.mixture, normed, step.live)
        normed, _ = _normed(mixed, residual, self._norm)
        return functional.linear(normed, self._head)

    def _write(
        self,
        layer: _Layer,
        context: StepContext,
        kv: LayerKv,
        normed: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Keys and values into the pools; the rotated queries [T, heads, dim]."""
        together = functional.linear(normed, layer.qkv, layer.qkv_bias)
        by_head = together.view(len(normed), self._heads + 2 * self._kv_heads, self._dim)
        sizes = [self._heads, self._kv_heads, self._kv_heads]
        query, key, value = torch.split(by_head, sizes, dim=1)
        slots = context.step.slots[kv.group]
        return rotate_and_write(
            query, key, value, cos, sin, slots, kv.keys, kv.values, context.written
        )

    def _attend(
        self, layer: _Layer, context: StepContext, kv: LayerKv, query: torch.Tensor
    ) -> torch.Tensor:
        """[T, heads dim]."""
        out = context.plan.attend(kv, query, scale=layer.scale, sinks=layer.sinks, softcap=None)
        return out.view(len(query), -1)


def _normed(
    x: torch.Tensor | None, residual: torch.Tensor, norm: _Norm
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of x + residual, x + residual); of the residual alone without an x."""
    if x is None:
        return rms_norm(residual, norm.weight, norm.eps), residual
    return add_rms_norm(x, residual, norm.weight, norm.eps)


def _mixed(mixture: Any, normed: torch.Tensor, live: torch.Tensor | None) -> torch.Tensor:
    """The mixture's result [T, hidden], by kernels or by whatever the model has."""
    result: torch.Tensor
    if isinstance(mixture, KernelMixture):
        result, _ = mixture.mixed(normed, live)
    else:
        result = mixture(normed.unsqueeze(0))[0].view(normed.shape)
    return result


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight, float(module.variance_epsilon))


def _layer(layer: Any) -> _Layer:
    attention = layer.self_attn
    weight, bias = _joined(attention, "weight"), _joined(attention, "bias")
    if weight is None:
        raise ValueError("a projection without a weight")
    return _Layer(
        before=_norm(layer.input_layernorm),
        qkv=weight,
        qkv_bias=bias,
        sinks=attention.sinks,
        scale=float(attention.scaling),
        output=attention.o_proj.weight,
        output_bias=attention.o_proj.bias,
        after=_norm(layer.post_attention_layernorm),
        mixture=layer.mlp,
    )


def _joined(attention: Any, name: str) -> torch.Tensor | None:
    """The three projections' weights or biases one below the other; the modules' own become views
    into that."""
    parts = [getattr(attention, part) for part in _PARTS]
    tensors = [getattr(part, name) for part in parts]
    if any(tensor is None for tensor in tensors):
        return None
    joined = torch.cat([tensor.detach() for tensor in tensors])
    sizes = [len(tensor) for tensor in tensors]
    for part, view in zip(parts, torch.split(joined, sizes), strict=True):
        setattr(part, name, nn.Parameter(view, requires_grad=False))
    return joined


def _rotary_table(rotary: Any, positions: int, like: torch.Tensor) -> torch.Tensor:
    """Cosines and sines [2, positions, half] of the model's type, as transformers rounds them."""
    at = torch.arange(positions, device=like.device, dtype=torch.float32)
    angles = at[:, None] * rotary.inv_freq.to(like.device, torch.float32)
    both = torch.stack((angles.cos(), angles.sin())) * float(rotary.attention_scaling)
    return both.to(like.dtype)
