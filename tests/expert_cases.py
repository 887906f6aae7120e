"""Mixtures of experts as numbers, and what they should give, one pair at a time in float64.

Knows: gpt-oss's and plain SiLU gating, written out. Does not know: kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

ALPHA, LIMIT = 1.702, 7.0


@dataclass(frozen=True)
class Mixture:
    """`up` [E, H, 2 I] (gate and up alternate), `down` [E, I, H], biases [E, 2 I] and [E, H]."""

    up: torch.Tensor
    up_bias: torch.Tensor
    down: torch.Tensor
    down_bias: torch.Tensor


def mixture(experts: int, hidden: int, width: int, seed: int = 0) -> Mixture:
    """Large enough numbers that the clamps matter."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float) -> torch.Tensor:
        return torch.randn(shape, generator=random) * spread

    return Mixture(
        normal(experts, hidden, 2 * width, spread=4 * hidden**-0.5),
        normal(experts, 2 * width, spread=0.5),
        normal(experts, width, hidden, spread=width**-0.5),
        normal(experts, hidden, spread=0.5),
    )


def swiglu(outputs: torch.Tensor) -> torch.Tensor:
    gate, up = outputs[::2].clamp(max=LIMIT), outputs[1::2].clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


def silu(outputs: torch.Tensor) -> torch.Tensor:
    gate, up = outputs[::2], outputs[1::2]
    return up * gate * torch.sigmoid(gate)


def expected(
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    mix: Mixture,
    gate: Callable[[torch.Tensor], torch.Tensor] = swiglu,
) -> torch.Tensor:
    """hidden [T, H], ids and weights [T, k]; gives [T, H] in float64. Ids that no expert has are
    left out."""
    result = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, (chosen, shares) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
        row = hidden[token].double()
        for expert, share in zip(chosen, shares, strict=True):
            if 0 <= expert < len(mix.up):
                inner = gate(row @ mix.up[expert].double() + mix.up_bias[expert].double())
                outer = inner @ mix.down[expert].double() + mix.down_bias[expert].double()
                result[token] += share * outer
    return result


SKEWS = ("even", "one expert", "some have none", "random")


def choices(skew: str, tokens: int, per_token: int, experts: int, seed: int = 0) -> torch.Tensor:
    """Ids [T, k] int32, distinct within a token."""
    random = torch.Generator().manual_seed(seed)
    if skew == "even":
        first = torch.arange(tokens).unsqueeze(1) * per_token
        return ((first + torch.arange(per_token)) % experts).int()
    if skew == "one expert":
        return torch.arange(per_token).repeat(tokens, 1).int()
    among = max(per_token, experts // 2) if skew == "some have none" else experts
    rows = [torch.randperm(among, generator=random)[:per_token] for _ in range(tokens)]
    return (torch.stack(rows) + (experts - among)).int()
