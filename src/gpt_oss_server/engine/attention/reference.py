"""Attention the obvious way: one sequence at a time, dense masks, float32.

The yardstick of the contract suite. Not for serving: its cost in Python grows with the batch.
"""

from __future__ import annotations

import torch

from gpt_oss_server.engine.attention.interface import LayerKv, TorchWrites
from gpt_oss_server.engine.step import StepInput


class ReferencePlan(TorchWrites):
    def __init__(self, step: StepInput) -> None:
        self._host = step.host

    def attend(
        self,
        layer: LayerKv,
        query: torch.Tensor,
        *,
        scale: float,
        sinks: torch.Tensor | None,
        softcap: float | None,
    ) -> torch.Tensor:
        size = layer.keys.shape[1]
        bounds = self._host.query_start
        out = query.new_empty(query.shape[0], query.shape[1], layer.values.shape[-1])
        for row, length in enumerate(self._host.seq_lens.tolist()):
            begin, end = int(bounds[row]), int(bounds[row + 1])
            first_seen = length - (end - begin)
            lowest = 0 if layer.window is None else max(0, first_seen - layer.window + 1)
            seen = torch.arange(lowest, length, device=query.device)
            table = torch.from_numpy(self._host.tables[layer.group][row]).to(query.device).long()
            slots = table[seen // size] * size + seen % size
            keys = layer.keys.flatten(0, 1)[slots].float()
            values = layer.values.flatten(0, 1)[slots].float()
            repeat = query.shape[1] // keys.shape[1]
            scores = torch.einsum(
                "qhd,khd->hqk", query[begin:end].float() * scale, keys.repeat_interleave(repeat, 1)
            )
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            at = torch.arange(first_seen, length, device=query.device)[:, None]
            hidden = seen > at
            if layer.window is not None:
                hidden |= seen <= at - layer.window
            scores = scores.masked_fill(hidden, float("-inf"))
            if sinks is not None:
                column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
                probs = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
            else:
                probs = scores.softmax(dim=-1)
            result = torch.einsum("hqk,khd->qhd", probs, values.repeat_interleave(repeat, 1))
            out[begin:end] = result.to(out.dtype)
        return out


class ReferenceBackend:
    """See the module."""

    name = "reference"
    capturable = False

    def plan(self, step: StepInput) -> ReferencePlan:
        return ReferencePlan(step)
