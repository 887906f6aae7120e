"""Architectures whose KV cache follows their stated fields alone, as one table of defaults.

Knows: transformers' (5.23) defaults for decoders with grouped attention and no rule of their own.
Does not know: architectures with rules (`families.py`).

Each was checked like those: tiny real models, cache bytes compared. Columns: vocabulary, hidden
and intermediate size, layers, heads, KV heads, context, head size (None: hidden / heads), window,
tied embeddings, whether tensor-parallel ranks split the KV heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PlainRow = tuple[int, int, int, int, int, int | None, int, int | None, int | None, bool, bool]

# fmt: off
PLAIN: Mapping[str, PlainRow] = MappingProxyType({
    "apertus": (131072, 4096, 14336, 32, 32, 32, 65536, None, None, False, True),
    "arcee": (32000, 2560, 18432, 32, 32, 32, 4096, 80, None, False, True),
    "bitnet": (128256, 2560, 6912, 30, 20, 5, 2048, None, None, False, False),
    "cohere": (256000, 8192, 22528, 40, 64, 64, 8192, None, None, True, True),
    "ernie4_5": (103424, 1024, 3072, 18, 16, 2, 131072, 128, None, True, True),
    "ernie4_5_moe": (103424, 2560, 12288, 28, 20, 4, 131072, None, None, True, True),
    "flex_olmo": (100352, 4096, 11008, 32, 32, 32, 4096, None, None, False, False),
    "glm": (151552, 4096, 13696, 40, 32, 2, 131072, 128, None, False, True),
    "glm4": (151552, 4096, 13696, 40, 32, 2, 131072, 128, None, False, True),
    "glm4_moe": (151552, 4096, 10944, 46, 96, 8, 131072, None, None, False, True),
    "granite": (32000, 4096, 11008, 32, 32, 32, 2048, None, None, False, True),
    "granitemoe": (32000, 4096, 11008, 32, 32, 32, 2048, None, None, False, False),
    "granitemoeshared": (32000, 4096, 11008, 32, 32, 32, 2048, None, None, False, False),
    "hunyuan_v1_dense": (290943, 4096, 11008, 32, 32, 32, 2048, None, None, False, False),
    "hunyuan_v1_moe": (290943, 4096, 11008, 32, 32, 32, 2048, None, None, False, False),
    "hyperclovax": (32000, 4096, 11008, 32, 32, 32, 2048, 128, None, False, True),
    "internlm3": (128512, 4096, 10240, 48, 32, 2, 32768, 128, None, False, True),
    "minimax_m2": (200064, 3072, 1536, 62, 48, 8, 196608, 128, None, False, False),
    "ministral": (32000, 4096, 14336, 32, 32, 8, 131072, None, 4096, False, True),
    "ministral3": (131072, 4096, 14336, 34, 32, 8, 262144, 128, None, False, True),
    "nanochat": (50304, 768, 8192, 12, 6, 6, 2048, None, None, False, True),
    "nemotron": (256000, 6144, 24576, 32, 48, None, 4096, 128, None, False, True),
    "olmo": (50304, 4096, 11008, 32, 32, 32, 2048, None, None, False, True),
    "olmo2": (50304, 4096, 11008, 32, 32, 32, 2048, None, None, False, False),
    "olmoe": (50304, 2048, 2048, 16, 16, 16, 4096, None, None, False, False),
    "phi": (51200, 2048, 8192, 24, 32, 32, 2048, None, None, False, True),
    "phimoe": (32064, 4096, 6400, 32, 32, 8, 131072, None, None, False, False),
    "seed_oss": (155136, 4096, 27648, 64, 80, 8, 524288, 128, None, False, True),
    "starcoder2": (49152, 3072, 12288, 30, 24, 2, 4096, None, None, True, True),
})
# fmt: on
