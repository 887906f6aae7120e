"""Weights laid out once, at load, the way oneDNN multiplies fastest on a CPU.

Knows: which modules of a transformers model multiply by a fixed matrix, and oneDNN's packed
layout. Does not know: checkpoints, batches, KV.

PyTorch hands float32 products on a CPU to MKL, which at the few rows of a decode step runs at
about half the speed of oneDNN with a weight reordered beforehand (`benchmarks/packed_linear.py`).
Both sum in float32. A weight is replaced, never kept twice: the packed copy of one module is
made and its original dropped before the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ROWS_HINT = 16
"""Rows of the typical product, which chooses the layout: a decode batch, or one expert's tokens
of a prefill chunk. Any other number of rows is right too, and hardly slower."""


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has the operators, and the weights are of a kind for them."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _pack(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [out, in] in oneDNN's layout: an opaque tensor of the same size."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().contiguous(), _ROWS_HINT
    )
    return packed


def _multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., in] times packed [out, in] transposed, plus `bias` [out]; gives [..., out]."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


class PackedLinear(nn.Module):
    """What `nn.Linear` computes, from a packed weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self._packed = _pack(linear.weight)

    @property
    def weight(self) -> torch.Tensor:
        """The weight [out, in], unpacked anew at each call: for the few models whose own code
        looks at a layer's weight. Bit for bit the one that was packed."""
        return self._packed.to_dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _multiply(x, self._packed, self.bias)


class PackedExperts(nn.Module):
    """A mixture's experts, each with packed weights: one product per expert that has tokens.

    Takes the place of any experts module in the form that transformers' own experts functions
    (`transformers.integrations.moe`) work on: `gate_up_proj` (or `up_proj`) and `down_proj` of
    three dimensions, `has_gate`, `has_bias`, `is_transposed`, `_apply_gate`.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        first = "gate_up_proj" if experts.has_gate else "up_proj"
        self._up, self._up_bias = _pack_each(experts, first)
        self._down, self._down_bias = _pack_each(experts, "down_proj")
        self._activate = experts._apply_gate if experts.has_gate else experts.act_fn

    def forward(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, D], expert_ids and weights [T, k]; gives [T, D]."""
        tokens, per_token = expert_ids.shape
        flat = expert_ids.reshape(-1)
        by_expert = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=len(self._up)).tolist()
        rows = hidden.index_select(0, by_expert // per_token)
        rows = self._activate(_by_expert(rows, counts, self._up, self._up_bias))
        rows = _by_expert(rows, counts, self._down, self._down_bias)
        rows = rows * weights.reshape(-1, 1).index_select(0, by_expert)
        # Back in the order of tokens, so that a token's experts are summed in the order of its
        # own ranking, whatever else is in the batch.
        ordered = torch.empty_like(rows).index_copy_(0, by_expert, rows)
        return ordered.view(tokens, per_token, -1).sum(1)


def _pack_each(experts: Any, name: str) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    stacked = getattr(experts, name).detach()
    if experts.is_transposed:
        stacked = stacked.transpose(1, 2)
    biases = getattr(experts, f"{name}_bias").detach().unbind() if experts.has_bias else None
    return [_pack(one) for one in stacked], list(biases or [None] * len(stacked))


def _by_expert(
    rows: torch.Tensor,
    counts: list[int],
    packed: list[torch.Tensor],
    biases: list[torch.Tensor | None],
) -> torch.Tensor:
    """Each expert's share of `rows`, which lie in the order of experts, times its weight."""
    products = [
        _multiply(share, packed[expert], biases[expert])
        for expert, share in enumerate(torch.split(rows, counts))
        if counts[expert]
    ]
    return products[0] if len(products) == 1 else torch.cat(products)


def _is_experts(module: nn.Module) -> bool:
    """Whether transformers' own experts functions could run this module."""
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed")):
        return False
    first = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
    activation = "_apply_gate" if module.has_gate else "act_fn"
    return isinstance(first, nn.Parameter) and first.dim() == 3 and hasattr(module, activation)


def pack_weights(model: nn.Module) -> int:
    """Replace every linear layer and experts module of `model` (float32, on a CPU) by its packed
    form. Layers that share their weight with another module (a tied output head) stay as they
    are: packed, it would be in memory twice. Returns how many were replaced."""
    held: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            held[id(parameter)] = held.get(id(parameter), 0) + 1
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            packed: nn.Module
            if type(child) is nn.Linear and held[id(child.weight)] == 1:
                packed = PackedLinear(child)
            elif _is_experts(child):
                packed = PackedExperts(child)
            else:
                continue
            setattr(parent, name, packed)
            replaced += 1
    return replaced
