"""Muon for the matrices, AdamW for everything else, and one learning-rate schedule for both.

Knows: optimisation. Does not know: the model's meaning, data.

Source of Muon: https://kellerjordan.github.io/posts/muon/. torch's own takes matrices only; the
experts' weights are stacks of matrices, each of which is orthogonalised by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are applied."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update. Parameters are [out, in], or [experts, in, out]."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for param in group["params"]:
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                momentum: Tensor = state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                wanted = param.grad.lerp(momentum, group["momentum"])
                alike.setdefault(param.shape, []).append((param, wanted))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([wanted for _, wanted in pairs]))
                tall = max(1.0, shape[-2] / shape[-1]) ** 0.5
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.add_(update, alpha=-group["lr"] * tall)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix, by Newton and Schulz's iteration; in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.bfloat16()
    flipped = x.shape[-2] > x.shape[-1]
    if flipped:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if flipped else x).to(matrix.dtype)


def optimisers(model: Any, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """One optimiser for weight matrices inside the layers, one for all the rest."""
    inside = {
        name: p
        for name, p in model.named_parameters()
        if p.dim() >= 2 and ".layers." in name and "bias" not in name and "router" not in name
    }
    rest = [p for name, p in model.named_parameters() if name not in inside]
    return [
        Muon(inside.values(), lr=muon_lr),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def rate(step: int, steps: int, decay: int, warmup: int = 40) -> float:
    """The share of the learning rate: up, level, then down to 2 % along a line that takes the last
    `decay` steps."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.02, min(1.0, (steps - step) / decay))
