"""One rank at work: its part of the model over its KV tensors, step by step, with the others.

Knows: which tensors a step takes in and hands on in each mode. Does not know: who decides what is
in a step, processes, sockets.

From stage to stage the hidden states travel with one column more: whether what a token wrote so
far was finite. Tensor ranks each see their own heads: there the sums are added up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import overload

import torch

from gpt_oss_server.engine.attention.interface import (
    ATTENTION_NAME,
    AttentionBackend,
    LayerKv,
    StepContext,
)
from gpt_oss_server.engine.layout import register_attention
from gpt_oss_server.engine.loader import tensor_bytes
from gpt_oss_server.engine.ranks.comms import Comms, Transfer
from gpt_oss_server.engine.ranks.liveness import Activity
from gpt_oss_server.engine.ranks.part import ModelPart
from gpt_oss_server.engine.spec import EngineSpec
from gpt_oss_server.engine.step import StepInput, StepLayout, to_device


class CountedLayers(Sequence[LayerKv]):
    """KV tensors by layer. Each look at one is counted: a model that computes asks for the next
    layer's now and then."""

    def __init__(self, layers: Sequence[LayerKv], activity: Activity) -> None:
        self._layers = layers
        self._activity = activity

    @overload
    def __getitem__(self, index: int) -> LayerKv: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerKv]: ...

    def __getitem__(self, index: int | slice) -> LayerKv | Sequence[LayerKv]:
        self._activity.layers += 1
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerKv]:
        return iter(self._layers)


class Expected:
    """A step on its way to this rank: its layout, and its hidden states as they come."""

    def __init__(self, layout: StepLayout, hidden: Transfer | None) -> None:
        self.layout = layout
        self.hidden = hidden


class Rank:
    """Computes steps in the order of `expect`. Used by one thread. `kv_bytes` is what its pools
    take."""

    def __init__(
        self,
        part: ModelPart,
        layers: Sequence[LayerKv],
        backend: AttentionBackend,
        comms: Comms,
        activity: Activity,
        spec: EngineSpec,
    ) -> None:
        register_attention()
        part.loaded.model.set_attn_implementation(ATTENTION_NAME)
        self._part = part
        self._layers = CountedLayers(layers, activity)
        self.kv_bytes = tensor_bytes([t for layer in layers for t in (layer.keys, layer.values)])
        self._backend = backend
        self._comms = comms
        self._place = comms.place
        self._block_size = spec.block_size
        self._depth = spec.depth
        self._width = part.shape.hidden_size + 1
        self._sends: deque[Transfer] = deque()

    def expect(self, layout: StepLayout) -> Expected:
        """Take a step in. What the stage before hands on may come from now on."""
        hidden = None
        if not self._place.is_first_stage:
            shape = (len(layout.token_ids), self._width)
            dtype = self._part.loaded.dtype
            hidden = self._comms.expect(shape, dtype, self._place.rank - 1)
        return Expected(layout, hidden)

    def compute(self, expected: Expected) -> tuple[StepInput, torch.Tensor | None, torch.Tensor]:
        """Run this rank's layers and hand on what comes of it. Returns the step, on the leader
        the logits of its sample rows, and what was written (as `StepContext.written`, of all
        ranks on the leader)."""
        device = self._part.loaded.device
        with torch.inference_mode():
            step = to_device(expected.layout, self._block_size, device)
            plan = self._backend.plan(step)
            hidden, written = self._take(expected)
            context = StepContext(self._layers, step, plan, written)
            output = self._part.forward(step, context, hidden)
            if self._place.tp > 1:
                self._comms.all_reduce(written)
            elif not self._place.is_last_stage and output is not None:
                self._hand_on(output, written)
                output = None
        return step, output, written

    def settle(self) -> None:
        """Wait until all that was handed on has been received."""
        while self._sends:
            self._sends.popleft().wait()

    def _take(self, expected: Expected) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The hidden states [T, D] of the stage before, and what is known of what it wrote."""
        if expected.hidden is None:
            tokens = len(expected.layout.token_ids)
            return None, torch.zeros(tokens, device=self._part.loaded.device)
        both = expected.hidden.wait()
        return both[:, :-1].contiguous(), both[:, -1].float()

    def _hand_on(self, hidden: torch.Tensor, written: torch.Tensor) -> None:
        # Not the sum itself: what is finite in float32 may not be in a half type.
        finite = torch.where(torch.isfinite(written), 0.0, torch.nan).to(hidden.dtype)
        both = torch.cat((hidden, finite[:, None]), dim=1)
        if len(self._sends) == self._depth:
            # Received long ago: its step was collected before the present one was launched.
            self._sends.popleft().wait()
        self._sends.append(self._comms.send(both, self._place.rank + 1))
