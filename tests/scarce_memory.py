"""A device with little memory: steps and draws of more than so many rows find none.

Knows: where a runner computes and samples. Does not know: who tries again.
"""

from __future__ import annotations

from typing import Any

import torch

from gpt_oss_server.engine.attention.interface import StepContext
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.step import StepInput

SECRET = "of the prompt"


class Scarcity:
    """What fits: `tokens` in a forward pass, `rows` in a draw; `raised` counts what did not."""

    def __init__(self, tokens: int = 10**9, rows: int = 10**9) -> None:
        self.tokens = tokens
        self.rows = rows
        self.raised = 0

    def refuse(self) -> None:
        self.raised += 1
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {SECRET}")

    def beset(self, core: EngineCore) -> EngineCore:
        """Have the core's runner compute on such a device."""
        runner: Any = core._runner
        runner._model = _Forward(runner._model, self)
        if runner._graphs is not None:
            # A replay allocates nothing; what is sent to it does.
            load = runner._graphs._load

            def scarce_load(size: int, layout: Any) -> None:
                load(size, layout)
                if len(layout.token_ids) > self.tokens:
                    self.refuse()

            runner._graphs._load = scarce_load
        adjust = runner.sampler._adjust

        def scarce_adjust(raw: torch.Tensor, sent: Any) -> torch.Tensor:
            if len(raw) > self.rows:
                self.refuse()
            adjusted: torch.Tensor = adjust(raw, sent)
            return adjusted

        runner.sampler._adjust = scarce_adjust
        return core


class _Forward:
    """Writes keys and values before it fails, as a pass that fails on the way does."""

    def __init__(self, forward: Any, scarcity: Scarcity) -> None:
        self._forward = forward
        self._scarcity = scarcity
        self.name = forward.name
        self.capturable = forward.capturable

    def forward(self, step: StepInput, context: StepContext) -> torch.Tensor:
        logits: torch.Tensor = self._forward.forward(step, context)
        if len(step.token_ids) > self._scarcity.tokens:
            self._scarcity.refuse()
        return logits
