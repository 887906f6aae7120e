"""What attention over blocks is asked: queries, pools, a table and the softmax's terms.

Knows: shapes, and what a kernel needs them padded to. Does not know: kernels or plans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# The fewest rows and columns of a product in the matrix units.
LEAST_SIDE = 16


@dataclass(frozen=True, slots=True)
class PagedQuery:
    """`query` [T, heads, k_dim]; `keys` and `values` [num_blocks, block_size, kv_heads, dim];
    `table` [R, blocks] int32. The last dimension of each is contiguous; the others may have any
    stride, so that pools in another order of memory are only other strides. `sinks` [heads] are
    logits that join the softmax and carry no value. `window` None: every earlier key is seen."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    scale: float
    sinks: torch.Tensor | None
    softcap: float | None
    window: int | None

    @property
    def scales(self) -> tuple[float, float]:
        """What the kernels multiply scores with, and their softcap: see `online_softmax.scores`."""
        if self.softcap is None:
            return self.scale * math.log2(math.e), 0.0
        return self.scale / self.softcap, self.softcap


def padded_dim(dim: int) -> int:
    """A head's size as a power of two that the matrix units take."""
    return max(LEAST_SIDE, 1 << (dim - 1).bit_length())


def least_rows(group: int) -> int:
    """Rows of a product that hold one query token's heads of one group."""
    return max(LEAST_SIDE, 1 << (group - 1).bit_length())
