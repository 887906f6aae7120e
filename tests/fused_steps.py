"""Steps of a few sequences through two forward passes side by side, each over pools of its own.

Knows: how steps and pools are laid out. Does not know: what computes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import AttentionBackend, LayerKv, StepContext
from gpt_oss_server.engine.forward import Forward
from gpt_oss_server.engine.layout import allocate_layers
from gpt_oss_server.engine.step import HostLayout, StepLayout, to_device
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.memory.kv import plan_pools

BLOCK = 4
SEQUENCES = 4
COLUMNS = 10


class Part(NamedTuple):
    """One sequence's part of a step: `tokens` new ones, sampled from at their end or not."""

    sequence: int
    tokens: int
    sampled: bool = True


def pools(model: Any) -> list[LayerKv]:
    """Room for `SEQUENCES` sequences of `COLUMNS` blocks each in every group."""
    shape = shape_from_config(model.config.to_dict())
    dtype, device = model.dtype, model.device
    plan = plan_pools(shape, 8 << 20, BLOCK, SEQUENCES, 64, dtype.itemsize)
    # A window's pool is planned for what the window reaches: here nothing is ever let go.
    wide = tuple(replace(group, num_blocks=SEQUENCES * COLUMNS) for group in plan.groups)
    plan = replace(plan, groups=wide)
    return allocate_layers(plan, shape, BLOCK, dtype, device)


class Course:
    """Sequences that grow step by step; their tokens and blocks are drawn from one seed."""

    def __init__(self, vocab: int, groups: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._ids = rng.integers(2, vocab, size=(SEQUENCES, BLOCK * COLUMNS))
        self._tables = [
            rng.permutation(SEQUENCES * COLUMNS).reshape(SEQUENCES, COLUMNS).astype(np.int32)
            for _ in range(groups)
        ]
        self._computed = [0] * SEQUENCES

    def step(self, parts: Iterable[Part]) -> StepLayout:
        """The next step's layout."""
        parts = list(parts)
        ids = []
        for part in parts:
            start = self._computed[part.sequence]
            ids.append(self._ids[part.sequence, start : start + part.tokens])
            self._computed[part.sequence] = start + part.tokens
        start = np.concatenate([[0], np.cumsum([part.tokens for part in parts])])
        lens = np.array([self._computed[part.sequence] for part in parts], dtype=np.int64)
        columns = -(-int(lens.max()) // BLOCK)
        rows = [part.sequence for part in parts]
        sampled = [n for n, part in enumerate(parts) if part.sampled]
        return StepLayout(
            token_ids=np.concatenate(ids).astype(np.int64),
            sample_rows=start[1:][sampled] - 1,
            host=HostLayout(start, lens, tuple(table[rows, :columns] for table in self._tables)),
        )


class Pass(NamedTuple):
    """A forward pass with its attention and its pools."""

    forward: Forward
    backend: AttentionBackend
    layers: list[LayerKv]

    def run(self, layout: StepLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and which tokens wrote finite keys and values."""
        step = to_device(layout, BLOCK, self.layers[0].keys.device)
        written = torch.zeros(len(step.token_ids), device=step.token_ids.device)
        with torch.inference_mode():
            plan = self.backend.plan(step)
            logits = self.forward.forward(step, StepContext(self.layers, step, plan, written))
        return logits, torch.isfinite(written)
