"""Experts in MXFP4 as gpt-oss checkpoints store them, computed with PyTorch alone.

Knows: the published layout, one expert at a time made wide. Does not know: kernels, files.
Slower than wide weights by the widening, which is done in every step for each expert that has
tokens; a quarter of their memory. Any device.
"""

from __future__ import annotations

import torch
from torch import nn

from gpt_oss_server.engine.kernels.gates import Gate

GROUP = 32
"""Numbers that share a scale (OCP Microscaling formats 1.0)."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127


class Mxfp4Experts(nn.Module):
    """Takes the place of transformers' `GptOssExperts`, with the checkpoint's own tensors:

    `gate_up_proj_blocks` [E, 2 I, H / 32, 16] and `gate_up_proj_scales` [E, 2 I, H / 32] uint8,
    `gate_up_proj_bias` [E, 2 I]; `down_proj_…` with H outputs and I inputs.
    """

    gate_up_proj_bias: nn.Parameter
    down_proj_bias: nn.Parameter

    def __init__(self, experts: int, hidden: int, width: int, gate: Gate, dtype: torch.dtype):
        """Parameters on the meta device, to be filled. Raises ValueError for sizes that are no
        whole groups."""
        super().__init__()
        if hidden % GROUP or width % GROUP:
            raise ValueError(f"sizes {hidden} and {width} are no multiples of {GROUP}")
        self.gate = gate
        self.num_experts = experts
        for name, outputs, inputs in (
            ("gate_up_proj", 2 * width, hidden),
            ("down_proj", hidden, width),
        ):
            groups = inputs // GROUP
            for key, tensor in (
                (f"{name}_blocks", _blank((experts, outputs, groups, GROUP // 2), torch.uint8)),
                (f"{name}_scales", _blank((experts, outputs, groups), torch.uint8)),
                (f"{name}_bias", _blank((experts, outputs), dtype)),
            ):
                self.register_parameter(key, tensor)

    def forward(
        self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, H], expert_ids and weights [T, k]; gives [T, H]."""
        tokens, per_token = expert_ids.shape
        flat = expert_ids.reshape(-1)
        by_expert = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.num_experts).tolist()
        parts = torch.split(hidden.index_select(0, by_expert // per_token), counts)
        rows = torch.cat(
            [self._expert(expert, part) for expert, part in enumerate(parts) if len(part)]
        )
        rows = rows * weights.reshape(-1, 1).index_select(0, by_expert)
        # Back in the order of tokens: a token's experts are summed in the order of its ranking.
        ordered = torch.empty_like(rows).index_copy_(0, by_expert, rows)
        return ordered.view(tokens, per_token, -1).sum(1)

    def _expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        rows = self.gate.apply(self._product("gate_up_proj", expert, rows))
        return self._product("down_proj", expert, rows)

    def _product(self, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
        blocks, scales = getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales")
        weight = widened(blocks[expert], scales[expert], rows.dtype)
        return nn.functional.linear(rows, weight, getattr(self, f"{name}_bias")[expert])


def widened(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """blocks [out, groups, 16] of two numbers a byte, low half first, times two to the power of
    scales [out, groups] less 127: [out, 32 groups] of `dtype`."""
    numbers = torch.tensor(_FP4, dtype=dtype, device=blocks.device)
    pairs = torch.stack((numbers.repeat(16), numbers.repeat_interleave(16)), -1)  # by byte
    wide = pairs[blocks.int()].flatten(2)
    exponents = scales.to(torch.int32) - _EXPONENT_BIAS
    return torch.ldexp(wide, exponents.unsqueeze(-1)).flatten(1).to(dtype)


def _blank(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
