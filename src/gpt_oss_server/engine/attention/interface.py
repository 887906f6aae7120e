"""What an attention backend is, and how a transformers model is made to call it.

Knows: the seam between `model.forward` and the KV pool. Does not know: how attention is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from gpt_oss_server.engine.step import StepInput

ATTENTION_NAME = "gpt_oss_server_paged"


@dataclass(frozen=True, slots=True)
class LayerKv:
    """One layer's part of its group's pool.

    `keys` [num_blocks, block_size, kv_heads, k_dim], `values` [..., v_dim]; zero-initialised, so
    that a masked read multiplies by a number and never by NaN.
    """

    group: int
    window: int | None
    keys: torch.Tensor
    values: torch.Tensor


class StepPlan(Protocol):
    """Work prepared once per step and used by every layer."""

    def write(
        self,
        layer: LayerKv,
        slots: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        written: torch.Tensor,
    ) -> None:
        """Store keys and values [T, kv_heads, dim] at `slots` [T], 0 for what is not finite, and
        make `written` [T] (`StepContext.written`) not finite for a token that had such."""
        ...

    def attend(
        self,
        layer: LayerKv,
        query: torch.Tensor,
        *,
        scale: float,
        sinks: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention of query [T, heads, k_dim] over the layer's pool, in which this step's keys
        and values are already written. `sinks` [heads] are logits that join the softmax and
        carry no value. Returns [T, heads, v_dim] in the query's dtype."""
        ...


class AttentionBackend(Protocol):
    """Builds plans. `windows[g]` and `block_size` are fixed for an engine's life. `capturable`: a
    plan of a step whose sequences have one token each can be made and used while a CUDA graph is
    captured, and is right for other lengths and tables when that is replayed."""

    name: str
    capturable: bool

    def plan(self, step: StepInput) -> StepPlan: ...


class TorchWrites:
    """`StepPlan.write` by PyTorch's own operators, on any device."""

    def write(
        self,
        layer: LayerKv,
        slots: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        written: torch.Tensor,
    ) -> None:
        write_kv(layer, slots, key, value)
        for new in (key, value):
            written.add_(new.sum(dim=(1, 2), dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class StepContext:
    """What reaches the attention function of every layer through `model.forward`.

    `written` [T] float32 stays finite exactly where every key and value that the layers wrote for
    the token was. Where layers are on several devices, `elsewhere` has the same
    step on the others.
    """

    layers: Sequence[LayerKv]
    step: StepInput
    plan: StepPlan
    written: torch.Tensor
    elsewhere: Mapping[torch.device, StepContext] = field(default_factory=dict)


def write_kv(layer: LayerKv, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Store keys and values [T, kv_heads, dim] at `slots`. Non-finite numbers become 0: their
    sequence fails at the end of the step (`StepContext.written`), and they must not reach one
    that later reads the same block under a mask (0 * NaN is NaN)."""
    for pool, new in ((layer.keys, key), (layer.values, value)):
        flat = pool.view(-1, *pool.shape[2:])
        flat.index_copy_(0, slots, torch.nan_to_num(new, nan=0.0, posinf=0.0, neginf=0.0))


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    step_context: StepContext | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers' `AttentionInterface`. query [1, heads, T, dim],
    key and value [1, kv_heads, T, dim], rotary embedding applied. Returns [1, T, heads, v_dim].

    Raises:
        RuntimeError: called outside the engine, or with a tensor on another device than the
            pool (checked before any kernel runs).
    """
    if step_context is None:
        raise RuntimeError("paged attention was called outside an engine step")
    index = module.layer_idx
    if not isinstance(index, int):
        raise RuntimeError("the attention module carries no layer index")
    layer = step_context.layers[index]
    if query.device != layer.keys.device:
        raise RuntimeError(
            f"layer {index}: input is on {query.device}, its KV pool on {layer.keys.device}"
        )
    step_context = step_context.elsewhere.get(query.device, step_context)
    step_context.plan.write(
        layer,
        step_context.step.slots[layer.group],
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        step_context.written,
    )
    out = step_context.plan.attend(
        layer,
        query[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        sinks=s_aux,
        softcap=softcap,
    )
    return out.unsqueeze(0), None
