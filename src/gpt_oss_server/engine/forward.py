"""One forward pass over a step, whoever computes it.

Knows: the seam between a step and a whole model on one device, and transformers' modules behind
it. Does not know: how a fused pass works (`fused/`), graphs, sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from gpt_oss_server.engine.attention.interface import ATTENTION_NAME, StepContext
from gpt_oss_server.engine.layout import register_attention
from gpt_oss_server.engine.step import StepInput


class Forward(Protocol):
    """A whole model. `capturable`: its work for a step whose sequences have one token each can be
    recorded as a CUDA graph and done again with other numbers in the step's tensors."""

    name: str
    capturable: bool

    def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        """Logits [S, vocab] of `step.sample_rows`. Keys and values are written to the pools."""
        ...


class TransformersForward:
    """The architecture's own modules, with our attention in them."""

    name = "transformers"
    capturable = False

    def __init__(self, model: Any) -> None:
        register_attention()
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model

    def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        output = self._model(
            input_ids=step.token_ids.unsqueeze(0),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=step.sample_rows,
            step_context=context,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def make_forward(
    model: Any, backend: str, max_positions: int, progress: Callable[[str], None]
) -> Forward:
    """The fastest there is for a loaded model and an attention backend (by name): a fused pass
    where there is one for the architecture and Triton runs, else transformers' modules. A fused
    pass takes the model's parameters over; the modules go on working."""
    if backend == "triton" and model.config.model_type == "gpt_oss":
        from gpt_oss_server.engine.fused.gpt_oss import FusedGptOss, why_not_fused

        trouble = why_not_fused(model)
        if trouble is None:
            return FusedGptOss(model, max_positions)
        progress(f"running transformers' modules, which are slower than a fused pass: {trouble}")
    return TransformersForward(model)
