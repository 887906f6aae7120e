"""Runs steps: the model's forward pass over the paged cache, then sampling.

Knows: a model, its KV tensors, an attention backend. Does not know: queues or processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
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
from gpt_oss_server.engine.step import IntArray, StepInput, StepLayout, to_device
from gpt_oss_server.errors import StartupError


class Runner(Protocol):
    """Steps in, sampled tokens out, in order. Called from one thread.

    `depth` is how many steps may be in flight at once: launched and not collected. Whatever a
    step writes, later ones may read or overwrite: every stage of it takes steps in order.
    """

    depth: int
    sampler: Sampler

    def launch(self, layout: StepLayout) -> None:
        """Begin a step, behind those that are in flight."""
        ...

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        """The oldest step's outcome. `sampling` has one entry for each of its `sample_rows`: the
        sequence, as it was when the step was launched, whose next token is sampled from that row;
        None for one that has ended since.

        Returns what was sampled, for the entries that are not None, and which sequences of the
        batch (by index) wrote keys or values that are not finite: their KV is useless.
        """
        ...


def make_backend(name: str, block_size: int) -> AttentionBackend:
    """The backend by its setting's name. Raises StartupError for an unknown one."""
    if name in ("auto", "tiled"):
        return TiledBackend(block_size)
    if name == "reference":
        return ReferenceBackend()
    raise StartupError(f"unknown attention backend {name!r}: use auto, tiled or reference")


class ModelRunner:
    """A whole model in one process: a step is computed when it is collected."""

    depth = 1

    def __init__(
        self,
        model: Any,
        layers: Seq[LayerKv],
        backend: AttentionBackend,
        sampler: Sampler,
        block_size: int,
    ) -> None:
        register_attention()
        model.set_attn_implementation(ATTENTION_NAME)
        self._model = model
        self._device: torch.device = model.device
        self._layers = layers
        self._backend = backend
        self._block_size = block_size
        self._launched: deque[StepLayout] = deque()
        self.sampler = sampler

    def launch(self, layout: StepLayout) -> None:
        self._launched.append(layout)

    def collect(self, sampling: Seq[Sequence | None]) -> tuple[Sampled, frozenset[int]]:
        step = to_device(self._launched.popleft(), self._block_size, self._device)
        with torch.inference_mode():
            written = torch.zeros(len(step.token_ids), device=self._device)
            logits = self._forward(step, written)
            return sample_live(self.sampler, logits, sampling), spoiled(step, written)

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


def sample_live(sampler: Sampler, logits: torch.Tensor, sampling: Seq[Sequence | None]) -> Sampled:
    """Sample from the rows [S, vocab] of those that have not ended."""
    live = [seq for seq in sampling if seq is not None]
    if not live:
        return Sampled([], [], [])
    if len(live) < len(sampling):
        logits = logits[[row for row, seq in enumerate(sampling) if seq is not None]]
    return sampler.sample(logits, live)


def spoiled(step: StepInput, written: torch.Tensor) -> frozenset[int]:
    """The sequences of a step that wrote what is not finite, by `StepContext.written`."""
    finite: npt.NDArray[np.bool_] = torch.isfinite(written).cpu().numpy()
    if finite.all():
        return frozenset()
    tokens: IntArray = np.flatnonzero(~finite)
    return frozenset((np.searchsorted(step.host.query_start, tokens, side="right") - 1).tolist())
