"""What stands in a model where tensor-parallel ranks must meet.

Knows: sums over ranks, the parts of a vocabulary and of a mixture. Does not know: how weights were
cut. Each wraps the architecture's own module, with smaller tensors, and does the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.ranks.comms import Comms


class SummedLinear(nn.Module):
    """A linear layer cut by input features: partial products summed, then the bias, once."""

    def __init__(self, inner: nn.Linear, comms: Comms) -> None:
        super().__init__()
        self.bias = inner.bias
        inner.register_parameter("bias", None)
        self.inner = inner
        self._comms = comms

    @property
    def weight(self) -> Any:
        return self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in / ranks]; gives [..., out], the same on each rank."""
        product = self._comms.all_reduce(self.inner(x))
        return product if self.bias is None else product.add_(self.bias)


class PartEmbedding(nn.Module):
    """An embedding of `count` ids from `first` on; the others' come from other ranks."""

    def __init__(self, inner: nn.Embedding, comms: Comms, first: int) -> None:
        super().__init__()
        inner.padding_idx = None  # of training only, and perhaps not in this part
        self.inner = inner
        self._first = first
        self._comms = comms

    @property
    def weight(self) -> Any:
        return self.inner.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [..., T] of the whole vocabulary; gives [..., T, D], the same on each rank."""
        local = ids - self._first
        elsewhere = (local < 0) | (local >= self.inner.num_embeddings)
        rows = self.inner(local.masked_fill(elsewhere, 0))
        return self._comms.all_reduce(rows.masked_fill_(elsewhere.unsqueeze(-1), 0.0))


class PartHead(nn.Module):
    """An output head over a part of the vocabulary, gathered on the leader. Elsewhere it returns
    its own part, of which nobody makes use."""

    def __init__(self, inner: nn.Linear, comms: Comms, vocab_size: int) -> None:
        super().__init__()
        self.inner = inner
        self._vocab_size = vocab_size
        self._comms = comms

    @property
    def weight(self) -> Any:
        return self.inner.weight

    @property
    def bias(self) -> Any:
        return self.inner.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., S, D]; gives [..., S, vocab] on the leader. A step without rows to sample
        (S of 0) needs no exchange: every rank knows."""
        logits: torch.Tensor = self.inner(x)
        if logits.numel() == 0:
            return logits.new_empty((*logits.shape[:-1], self._vocab_size))
        parts = self._comms.gather_to_leader(logits)
        if parts is None:
            return logits
        return torch.cat(parts, -1)[..., : self._vocab_size]


class SlicedExperts(nn.Module):
    """A mixture whose experts are narrower here: what each rank computes is summed."""

    def __init__(self, inner: nn.Module, comms: Comms) -> None:
        super().__init__()
        self.inner = inner
        self._comms = comms

    def forward(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, D], expert_ids and weights [T, k]; gives [T, D], the same on each rank."""
        return self._comms.all_reduce(self.inner(hidden, expert_ids, weights))


class ChosenExperts(nn.Module):
    """A mixture of which some experts, `first` to `first + count`, are here: tokens that chose
    them are computed, and all ranks' results summed."""

    def __init__(self, inner: nn.Module, comms: Comms, first: int, count: int) -> None:
        super().__init__()
        self.inner = inner
        self._first = first
        self._count = count
        self._comms = comms

    def forward(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """As `SlicedExperts.forward`."""
        local = expert_ids - self._first
        token, rank = ((local >= 0) & (local < self._count)).nonzero(as_tuple=True)
        chosen = hidden.new_zeros((*expert_ids.shape, hidden.shape[-1]))
        if len(token):
            # One row per token and expert, so that any implementation does; put back by rank
            # and summed in its order, not as they happen to be added.
            rows = self.inner(hidden[token], local[token, rank, None], weights[token, rank, None])
            chosen[token, rank] = rows.to(chosen.dtype)
        return self._comms.all_reduce(chosen.sum(1))
