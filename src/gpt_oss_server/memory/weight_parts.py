"""The nouns of weight arithmetic: matrices, and parts that are stored and shared in one way.

Knows: shapes, dtypes, how MXFP4 and FP8 store a matrix. Does not know: architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gpt_oss_server.memory.blocks import ceil_div

Split = Literal["heads", "kv_heads", "even", "vocabulary", "replicated"]
Quantization = Literal["none", "mxfp4", "fp8"]

MXFP4_GROUP = 32
MXFP4_GROUP_BYTES = 17
FP8_BLOCK = 128


@dataclass(frozen=True)
class Matrix:
    """`count` weight matrices of `rows` outputs by `columns` inputs."""

    count: int
    rows: int
    columns: int

    @property
    def params(self) -> int:
        return self.count * self.rows * self.columns

    def bytes(self, dtype_bytes: int, stored: Quantization) -> int:
        """Bytes as stored. MXFP4 (OCP MX 1.0): 32 4-bit numbers and one 8-bit scale, 4.25 bits
        each. FP8: a byte each and one float32 scale per started 128×128 block (DeepSeek-V3)."""
        if stored == "mxfp4":
            groups = ceil_div(self.columns, MXFP4_GROUP)
            return self.count * self.rows * groups * MXFP4_GROUP_BYTES
        if stored == "fp8":
            blocks = ceil_div(self.rows, FP8_BLOCK) * ceil_div(self.columns, FP8_BLOCK)
            return self.params + 4 * self.count * blocks
        return self.params * dtype_bytes


@dataclass(frozen=True)
class WeightPart:
    """Parameters that are stored, used and shared in one way.

    `vectors` counts biases, norms and sinks, never quantized. `active` is the share used for one
    token. `split` is how tensor-parallel ranks share it, `even` in `units` that cannot be cut.
    `fp8` and `mxfp4` say whether that quantization stores the matrices smaller.
    """

    name: str
    matrices: tuple[Matrix, ...] = ()
    vectors: int = 0
    split: Split = "replicated"
    units: int = 0
    active: Fraction = Fraction(1)
    fp8: bool = False
    mxfp4: bool = False

    @property
    def params(self) -> int:
        return sum(matrix.params for matrix in self.matrices) + self.vectors

    def bytes(self, dtype_bytes: int, quantization: Quantization = "none") -> int:
        """Bytes of the whole part, all ranks together."""
        small = (quantization == "fp8" and self.fp8) or (quantization == "mxfp4" and self.mxfp4)
        stored: Quantization = quantization if small else "none"
        matrices = sum(matrix.bytes(dtype_bytes, stored) for matrix in self.matrices)
        return matrices + self.vectors * dtype_bytes
