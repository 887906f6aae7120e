"""The least logit that top_p keeps, for whoever samples.

Knows: what top_p means (Holtzman et al. 2020), and how to find its threshold by sorting. Does not
know: temperature, top_k, draws. `kernels.nucleus` finds the same without sorting or waiting.
"""

from __future__ import annotations

from typing import Protocol

import torch

from gpt_oss_server.engine.kernels.usable import why_not

# Candidates looked at before the whole vocabulary is sorted.
TOP_P_CANDIDATES = 1024


class Nucleus(Protocol):
    """`candidates`: how many of each row's largest logits `floor` wants to be given."""

    candidates: int

    def floor(
        self, scaled: torch.Tensor, largest: torch.Tensor, top_p: torch.Tensor
    ) -> torch.Tensor:
        """[S, 1]: a threshold that lets just those of `scaled` [S, vocab] pass that top_p [S, 1]
        (float64) keeps: those for which all that is larger has less than top_p of the mass, and
        the largest in any case. `largest` [S, candidates or more] are in falling order."""
        ...


class SortedNucleus:
    """By PyTorch's operators. Looks, and on a GPU waits, whether the candidates have top_p of the
    mass; sorts the vocabulary if not."""

    candidates = TOP_P_CANDIDATES

    def floor(
        self, scaled: torch.Tensor, largest: torch.Tensor, top_p: torch.Tensor
    ) -> torch.Tensor:
        mass = torch.logsumexp(scaled.double(), dim=-1, keepdim=True)
        values = largest
        if values.shape[-1] < scaled.shape[-1] and bool((_covered(values, mass) < top_p).any()):
            values = torch.sort(scaled, dim=-1, descending=True).values
        probs = torch.exp(values.double() - mass)
        # Keep a token while the mass before it is below top_p: the first is always kept.
        kept = (probs.cumsum(dim=-1) - probs < top_p).sum(dim=-1, keepdim=True).clamp_(min=1)
        return values.gather(-1, kept - 1)


def make_nucleus(device: torch.device) -> Nucleus:
    """By search on a GPU that runs our kernels, where a look would make the host wait."""
    if device.type == "cuda" and why_not(device) is None:
        from gpt_oss_server.engine.kernels.nucleus import SearchedNucleus

        return SearchedNucleus()
    return SortedNucleus()


def _covered(values: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The share of the whole distribution that the candidates have, [S, 1]."""
    return torch.exp(values.double() - mass).sum(dim=-1, keepdim=True)
