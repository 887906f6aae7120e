"""Runs one step: the model's forward pass over the paged cache, then sampling.

Knows: a model, its KV tensors, an attention backend. Does not know: queues or processes.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch

from gpt_oss_server.engine.attention.interface import (
    ATTENTION_NAME,
    AttentionBackend,
    LayerKv,
    StepContext,
)
from gpt_oss_server.engine.attention.reference import ReferenceBackend
from gpt_oss_server.engine.attention.tiled import TiledBackend
from gpt_oss_server.engine.layout import register_attention
from gpt_oss_server.engine.sampler import Sampled, Sampler
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.step import StepInput
from gpt_oss_server.errors import StartupError


def make_backend(name: str, block_size: int) -> AttentionBackend:
    """The backend by its setting's name. Raises StartupError for an unknown one."""
    if name in ("auto", "tiled"):
        return TiledBackend(block_size)
    if name == "reference":
        return ReferenceBackend()
    raise StartupError(f"unknown attention backend {name!r}: use auto, tiled or reference")


class ModelRunner:
    """One model on one device. `run` is called from one thread only."""

    def __init__(
        self,
        model: Any,
        layers: Seq[LayerKv],
        backend: AttentionBackend,
        sampler: Sampler,
    ) -> None:
        register_attention()
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model
        self._layers = layers
        self._backend = backend
        self.sampler = sampler

    def run(self, step: StepInput, sampling: Seq[Sequence]) -> tuple[Sampled, frozenset[int]]:
        """Compute the step's tokens, write their KV, and sample one token for each sequence of
        `sampling` (those of `step.sample_rows`, in order). Also returns which sequences of the
        batch (by index) wrote keys or values that are not finite: their KV is useless."""
        with torch.inference_mode():
            written = torch.zeros(len(step.token_ids), device=step.token_ids.device)
            logits = self._forward(step, written)
            sampled = self.sampler.sample(logits, sampling) if sampling else Sampled([], [], [])
            return sampled, _spoiled(step, written)

    def _forward(self, step: StepInput, written: torch.Tensor) -> torch.Tensor:
        context = StepContext(self._layers, step, self._backend.plan(step), written)
        output = self._model(
            input_ids=step.token_ids.unsqueeze(0),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=step.sample_rows,
            step_context=context,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _spoiled(step: StepInput, written: torch.Tensor) -> frozenset[int]:
    finite = torch.isfinite(written).cpu().numpy()
    if finite.all():
        return frozenset()
    tokens = np.flatnonzero(~finite)
    return frozenset((np.searchsorted(step.host.query_start, tokens, side="right") - 1).tolist())
