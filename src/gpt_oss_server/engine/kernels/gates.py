"""What joins the two halves of an expert's first product.

Knows: gpt-oss's clamped SwiGLU and plain SiLU gating, in PyTorch and as numbers that a kernel
takes. Does not know: any kernel; may be imported without Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True)
class Gate:
    """`swiglu`: gpt-oss's, gate at most `limit`, up within ± `limit`, then `(up + 1) * gate *
    sigmoid(alpha * gate)`. `silu`: `up * gate * sigmoid(gate)`. Gate and up alternate in the
    weights, or, with `halves`, all gates come before all ups."""

    kind: Literal["swiglu", "silu"]
    halves: bool = False
    alpha: float = 1.0
    limit: float = 0.0

    @property
    def code(self) -> int:
        """What kernels know it by."""
        return 1 if self.kind == "swiglu" else 2

    def apply(self, outputs: torch.Tensor) -> torch.Tensor:
        """[..., 2 I] to [..., I], as transformers computes it."""
        if self.halves:
            gate, up = outputs.chunk(2, -1)
        else:
            gate, up = outputs[..., ::2], outputs[..., 1::2]
        if self.kind == "silu":
            return torch.nn.functional.silu(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
