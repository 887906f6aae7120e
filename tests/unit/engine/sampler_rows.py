"""Sequences as a sampler sees them: a prompt, an output so far, parameters."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import torch

from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.staging import send_named
from gpt_oss_server.types import Job, SamplingParams


def row(
    prompt: Seq[int] = (1,),
    output: Seq[int] = (),
    *,
    key: int = 0,
    stop_ids: Seq[int] = (),
    **sampling: Any,
) -> Sequence:
    """A sequence about to get its next token; greedy unless told otherwise."""
    params = SamplingParams(**{"max_tokens": 1000, "temperature": 0.0, **sampling})
    seq = Sequence.create(
        key,
        Job(id=str(key), prompt=list(prompt), sampling=params),
        arrival=key,
        max_tokens=params.max_tokens,
        groups=1,
        block_size=16,
        stop_ids=frozenset(stop_ids),
    )
    for token in output:
        seq.append(token)
    return seq


def sample(logits: Seq[Seq[float]] | torch.Tensor, *rows: Sequence) -> Sampled:
    """One call of a fresh sampler."""
    tensor = torch.as_tensor(logits)
    return Sampler(tensor.shape[1], torch.device("cpu")).sample(tensor, rows)


def drawn(logits: Seq[float], count: int, **sampling: Any) -> list[int]:
    """`count` independent draws from one distribution: seeds 0, 1, 2, …"""
    rows = [row(key=seed, seed=seed, **{"temperature": 1.0, **sampling}) for seed in range(count)]
    return sample(torch.tensor([logits] * count), *rows).tokens


def adjusted(logits: torch.Tensor, *rows: Sequence, sampler: Sampler | None = None) -> torch.Tensor:
    """The logits after bias, penalties and minimum length, which no output shows exactly."""
    sampler = sampler or Sampler(logits.shape[1], torch.device("cpu"))
    return sampler._adjust(logits, send_named(sampler._asked(rows, None), torch.device("cpu")))
