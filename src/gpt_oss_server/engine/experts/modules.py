"""Mixtures whose experts are computed by Triton kernels.

Knows: which kernels make a mixture, from plain or MXFP4 weights. Does not know: how they are
written, how weights were loaded. Imports Triton.

Nothing here waits for the device, allocates by what is on it or changes shape with it: a forward
pass can be captured in a CUDA graph for each number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from gpt_oss_server.engine.experts.stored import Mxfp4Experts
from gpt_oss_server.engine.kernels.expert_tuning import (
    ExpertTuning,
    fitted,
    mxfp4_tuning,
    plain_tuning,
)
from gpt_oss_server.engine.kernels.gates import Gate
from gpt_oss_server.engine.kernels.grouped import (
    Stacked,
    combine,
    gated_product,
    product_by_pair,
)
from gpt_oss_server.engine.kernels.mxfp4 import (
    Packed,
    gated_product_mxfp4,
    product_by_pair_mxfp4,
    relay,
)
from gpt_oss_server.engine.kernels.routing import Routing, place, route

_LEAST_DEPTH = 16
_MXFP4_LEAST_DEPTH = 32
_MXFP4_BYTES = 17 / 32
# Of a device that does not say how much shared memory a program may have: that of sm_89.
_USUAL_SHARED_BYTES = 99 * 1024


class KernelExperts(nn.Module):
    """Stacked experts: `count` of them, `hidden` and `width` their sizes."""

    down_proj_bias: nn.Parameter | None
    fixed: ExpertTuning | None = None
    """Tile sizes whatever the number of pairs, for measurements."""

    def __init__(
        self,
        gate: Gate,
        sizes: tuple[int, int, int],
        table: Callable[[int, int], ExpertTuning],
        fit: Callable[[ExpertTuning], ExpertTuning],
    ) -> None:
        super().__init__()
        self.gate = gate
        self.count, self.hidden, self.width = sizes
        self._table, self._fit = table, fit
        self._tunings: dict[int, ExpertTuning] = {}

    def tuning(self, pairs: int) -> ExpertTuning:
        """Tile sizes for so many pairs of token and expert."""
        if self.fixed is not None:
            return self.fixed
        known = self._tunings.get(pairs)
        if known is None:
            known = self._tunings[pairs] = self._fit(self._table(pairs, self.count))
        return known

    def computed(self, hidden: torch.Tensor, routing: Routing) -> torch.Tensor:
        """hidden [T, H]; gives each token's experts, weighed and summed, [T, H]."""
        by_pair = self.second(self.first(hidden, routing), routing)
        return self.summed(by_pair, routing, hidden.dtype)

    def first(self, hidden: torch.Tensor, routing: Routing) -> torch.Tensor:
        """hidden [T, H]; gives gated rows [T k, I] in the routing's order."""
        raise NotImplementedError

    def second(self, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Gated rows; gives [splits, T k, H] in the order of pairs."""
        raise NotImplementedError

    def summed(self, by_pair: torch.Tensor, routing: Routing, dtype: torch.dtype) -> torch.Tensor:
        """Biased, weighed and summed by token: [T, H]."""
        return combine(by_pair, self.down_proj_bias, routing, dtype)

    def forward(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, H], expert_ids and weights [T, k]; gives [T, H]."""
        if not len(hidden):
            return hidden
        with on_device(hidden.device):
            rows = self.tuning(expert_ids.numel()).rows
            return self.computed(hidden, place(expert_ids, weights, self.count, rows))


class PlainKernelExperts(KernelExperts):
    """From a module in the form of transformers' own experts functions, whose parameters it takes
    over as they are."""

    def __init__(self, experts: Any, gate: Gate) -> None:
        up = experts.gate_up_proj if experts.is_transposed else experts.gate_up_proj.mT
        count, hidden, outputs = up.shape
        fit = partial(
            fitted,
            hidden=hidden,
            width=outputs // 2,
            least_depth=_LEAST_DEPTH,
            column_bytes=up.element_size(),
            row_bytes=up.element_size(),
            room_bytes=shared_bytes(up.device),
        )
        super().__init__(gate, (count, hidden, outputs // 2), plain_tuning, fit)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        self.gate_up_proj_bias = experts.gate_up_proj_bias if experts.has_bias else None
        self.down_proj_bias = experts.down_proj_bias if experts.has_bias else None
        self._transposed = bool(experts.is_transposed)

    def first(self, hidden: torch.Tensor, routing: Routing) -> torch.Tensor:
        tile = self.tuning(routing.order.numel()).up
        return gated_product(hidden, self._stacked("gate_up_proj"), self.gate, routing, tile)

    def second(self, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        tuning = self.tuning(routing.order.numel())
        down = self._stacked("down_proj")
        return product_by_pair(rows, down, routing, tuning.down, tuning.splits)

    def _stacked(self, name: str) -> Stacked:
        weight = getattr(self, name)
        return Stacked(weight if self._transposed else weight.mT, getattr(self, f"{name}_bias"))


class Mxfp4KernelExperts(KernelExperts):
    """From experts as they are stored, whose memory it takes over and rewrites: `experts` is of no
    use afterwards. Raises ValueError for weights that the kernels cannot take."""

    def __init__(self, experts: Mxfp4Experts) -> None:
        count, hidden = experts.down_proj_bias.shape
        width = experts.gate_up_proj_bias.shape[1] // 2
        fit = partial(
            fitted,
            hidden=hidden,
            width=width,
            least_depth=_MXFP4_LEAST_DEPTH,
            column_bytes=_MXFP4_BYTES,
            row_bytes=experts.down_proj_bias.element_size(),
            room_bytes=shared_bytes(experts.down_proj_bias.device),
        )
        super().__init__(experts.gate, (count, hidden, width), mxfp4_tuning, fit)
        for name, gated in (("gate_up_proj", True), ("down_proj", False)):
            blocks, scales = getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales")
            words, by_group = relay(blocks.data, scales.data, gated=gated)
            self.register_buffer(f"{name}_words", words)
            self.register_buffer(f"{name}_scales", by_group)
            self.register_parameter(f"{name}_bias", getattr(experts, f"{name}_bias"))

    def first(self, hidden: torch.Tensor, routing: Routing) -> torch.Tensor:
        tile = self.tuning(routing.order.numel()).up
        return gated_product_mxfp4(hidden, self._packed("gate_up_proj"), self.gate, routing, tile)

    def second(self, rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        tuning = self.tuning(routing.order.numel())
        down = self._packed("down_proj")
        return product_by_pair_mxfp4(rows, down, routing, tuning.down, tuning.splits)

    def _packed(self, name: str) -> Packed:
        return Packed(
            getattr(self, f"{name}_words"),
            getattr(self, f"{name}_scales"),
            getattr(self, f"{name}_bias"),
        )


class KernelMixture(nn.Module):
    """A gpt-oss layer's router and experts, in the place of transformers' `GptOssMLP`."""

    def __init__(self, router: Any, experts: KernelExperts) -> None:
        super().__init__()
        self.router, self.experts = router, experts
        self._per_token = int(router.top_k)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [B, S, H]; gives [B, S, H] and the weights [B S, k], as transformers does."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        if not len(rows):
            return hidden, hidden.new_empty(0, self._per_token)
        result, routing = self.mixed(rows)
        return result.view(hidden.shape), routing.weights.to(hidden.dtype)

    def mixed(
        self, rows: torch.Tensor, live: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Routing]:
        """rows [T, H], contiguous along H; gives [T, H]. Rows from `live` [1] (int32, on the
        device) on are padding: no expert's weights are read for them, and they become zeros."""
        with on_device(rows.device):
            tuning = self.experts.tuning(len(rows) * self._per_token)
            routing = route(
                rows, self.router.weight, self.router.bias, self._per_token, tuning.rows, live
            )
            return self.experts.computed(rows, routing), routing


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have."""
    if device.type != "cuda":
        return _USUAL_SHARED_BYTES
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _USUAL_SHARED_BYTES))
