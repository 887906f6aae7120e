"""What one rank holds of a model, and how it takes part in a step.

Knows: the seam between a rank's share of a model and whoever runs steps, and the forward passes
of tensor ranks and stages. Does not know: how weights are cut or layers split; KV tensors;
sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from gpt_oss_server.engine.attention.interface import StepContext
from gpt_oss_server.engine.loader import LoadedModel
from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.engine.step import StepInput
from gpt_oss_server.memory.architecture import ModelShape


class ModelPart(Protocol):
    """One rank's share. `StepContext.layers` has one entry per layer of `layers`, in order: the
    attention of its first layer reads entry 0.

    `loaded` is local: `weights_bytes` and `active_parameters` are this rank's. `layers` are the
    global indices of its decoder layers. `shape` is the geometry of those layers as observed here
    (heads per rank), for pools and their tensors. `whole` is the shape of the entire model as
    its config predicts it. `warnings` says what the prediction got wrong.
    """

    @property
    def loaded(self) -> LoadedModel: ...

    @property
    def layers(self) -> range: ...

    @property
    def shape(self) -> ModelShape: ...

    @property
    def whole(self) -> ModelShape: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def forward(
        self, step: StepInput, context: StepContext, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        """One forward pass. `hidden` [T, D] is what the stage before returned, None on the first.

        Returns the hidden states [T, D] for the next stage; on the leader the logits [S, vocab]
        of `step.sample_rows`; None on tensor ranks that follow.
        """
        ...


@dataclass(frozen=True)
class WholePart:
    """A model that one rank has alone, or that one process has on several devices."""

    loaded: LoadedModel
    layers: range
    shape: ModelShape
    whole: ModelShape
    warnings: tuple[str, ...] = ()

    def forward(
        self, step: StepInput, context: StepContext, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        return _logits(self.loaded, step, context)


@dataclass(frozen=True)
class TensorPart(WholePart):
    """A share of every layer: ranks meet inside the model's modules."""

    place: Place = field(default_factory=Place)

    def forward(
        self, step: StepInput, context: StepContext, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        logits = _logits(self.loaded, step, context)
        return logits if self.place.is_leader else None


@dataclass(frozen=True)
class StagePart(WholePart):
    """A run of layers; embedding on the first stage, norm and head on the last."""

    place: Place = field(default_factory=Place)

    def forward(
        self, step: StepInput, context: StepContext, hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        if self.place.is_first_stage != (hidden is None):
            raise ValueError("every stage but the first needs the hidden states before its layers")
        if self.place.is_last_stage:
            return _logits(self.loaded, step, context, hidden)
        output = self.loaded.model.get_decoder()(
            **_inputs(step, hidden), use_cache=False, step_context=context
        )
        states: torch.Tensor = output.last_hidden_state[0]
        return states


def _logits(
    loaded: LoadedModel, step: StepInput, context: StepContext, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    output = loaded.model(
        **_inputs(step, hidden),
        use_cache=False,
        logits_to_keep=step.sample_rows,
        step_context=context,
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def _inputs(step: StepInput, hidden: torch.Tensor | None) -> dict[str, torch.Tensor]:
    positions = step.positions.unsqueeze(0)
    if hidden is None:
        return {"input_ids": step.token_ids.unsqueeze(0), "position_ids": positions}
    return {"inputs_embeds": hidden.unsqueeze(0), "position_ids": positions}
