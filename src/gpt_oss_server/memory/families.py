"""What each architecture means when its config.json leaves a field out.

Knows: for the model types listed here, the defaults of transformers' own config classes (as of
5.23), the older spellings of a field (`n_embd`), and how the types of the layers follow from the
fields. Does not know: bytes.

Only defaults that change a memory figure are listed; a test compares each with the installed
transformers. A model type that is not listed here is *unknown*: see `architecture.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from gpt_oss_server.memory.families_plain import PLAIN, PlainRow

LayerTypeRule = Literal["stated", "periodic", "qwen", "llama4"]
KvRule = Literal["grouped", "falcon", "multi_query", "multi_head", "latent"]


@dataclass(frozen=True)
class Family:
    """One model type: defaults, spellings and the rules that its layers follow.

    `layer_types` says how the list of layer types comes about when the config has none;
    `kv` which heads the cache holds; `gated_window` that `use_sliding_window` must be true for
    the window to count; `period` that of so many layers the last is full and the others slide,
    `period_field` that `sliding_window_pattern` in the config can change that. `splits_heads`
    says whether tensor-parallel ranks each hold a share of the KV heads; without it
    transformers' plan leaves every head on every rank (gpt-oss has no plan of its own: this
    server's splits).
    """

    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    layer_types: LayerTypeRule = "stated"
    kv: KvRule = "grouped"
    gated_window: bool = False
    period: int = 2
    period_field: bool = False
    splits_heads: bool = True


_GPT2_NAMES = MappingProxyType(
    {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
    }
)


def _fields(
    vocab: int,
    hidden: int,
    intermediate: int | None,
    layers: int,
    heads: int,
    kv_heads: int | None,
    positions: int,
    **more: Any,
) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": positions,
            "tie_word_embeddings": False,
            **more,
        }
    )


def _plain(row: PlainRow) -> Family:
    """A row of the table of architectures without rules."""
    head_dim, window, tied, splits_heads = row[7:]
    named = {"head_dim": head_dim, "sliding_window": window, "tie_word_embeddings": tied}
    vocab, hidden, intermediate, layers, heads, kv_heads, positions = row[:7]
    return Family(
        _fields(vocab, hidden, intermediate, layers, heads, kv_heads, positions, **named),
        splits_heads=splits_heads,
    )


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}
_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64}
_LATENT |= {"v_head_dim": 128, "qk_nope_head_dim": 128}

_GEMMA3 = Family(
    _fields(262208, 2304, 9216, 26, 8, 4, 131072, **_GEMMA, sliding_window=4096),
    layer_types="periodic",
    period=6,
    period_field=True,
)
_LLAMA4 = Family(
    _fields(
        202048,
        5120,
        8192,
        48,
        40,
        8,
        131072,
        head_dim=128,
        attention_chunk_size=8192,
        no_rope_layer_interval=4,
        intermediate_size_mlp=16384,
        num_local_experts=16,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
    ),
    layer_types="llama4",
)

# A composite config whose text part does not name its own type.
TEXT_PART: Mapping[str, str] = MappingProxyType({"gemma3": "gemma3_text", "llama4": "llama4_text"})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **{model_type: _plain(row) for model_type, row in PLAIN.items()},
        "gpt_oss": Family(
            _fields(
                201088,
                2880,
                2880,
                36,
                64,
                8,
                131072,
                head_dim=64,
                sliding_window=128,
                num_local_experts=128,
                num_experts_per_tok=4,
                attention_bias=True,
            ),
            aliases=MappingProxyType({"num_experts": "num_local_experts"}),
            layer_types="periodic",
        ),
        "llama": Family(_fields(32000, 4096, 11008, 32, 32, None, 2048, mlp_bias=False)),
        "qwen2": Family(
            _fields(
                151936, 4096, 22016, 32, 32, 32, 32768, sliding_window=4096, max_window_layers=28
            ),
            layer_types="qwen",
            gated_window=True,
        ),
        "qwen3": Family(
            _fields(
                151936,
                4096,
                22016,
                32,
                32,
                32,
                32768,
                head_dim=128,
                sliding_window=4096,
                max_window_layers=28,
            ),
            layer_types="qwen",
            gated_window=True,
        ),
        "qwen3_moe": Family(
            _fields(
                151936,
                2048,
                6144,
                24,
                32,
                4,
                32768,
                sliding_window=4096,
                num_local_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
                decoder_sparse_step=1,
            ),
            aliases=MappingProxyType({"num_experts": "num_local_experts"}),
            gated_window=True,
        ),
        "mistral": Family(_fields(32000, 4096, 14336, 32, 32, 8, 131072, sliding_window=4096)),
        "mixtral": Family(
            _fields(
                32000, 4096, 14336, 32, 32, 8, 131072, num_local_experts=8, num_experts_per_tok=2
            ),
            aliases=MappingProxyType({"num_experts": "num_local_experts"}),
        ),
        "gemma": Family(_fields(256000, 3072, 24576, 28, 16, 16, 8192, **_GEMMA)),
        "gemma2": Family(
            _fields(256000, 2304, 9216, 26, 8, 4, 8192, **_GEMMA, sliding_window=4096),
            layer_types="periodic",
        ),
        "gemma3_text": _GEMMA3,
        "cohere2": Family(
            _fields(
                256000,
                8192,
                22528,
                40,
                64,
                None,
                8192,
                sliding_window=4096,
                tie_word_embeddings=True,
            ),
            layer_types="periodic",
            period=4,
            period_field=True,
        ),
        "olmo3": Family(
            _fields(50304, 4096, 11008, 32, 32, None, 2048, sliding_window=4096),
            layer_types="periodic",
            period=4,
            splits_heads=False,
        ),
        "phi3": Family(_fields(32064, 3072, 8192, 32, 32, None, 4096), splits_heads=False),
        "llama4_text": _LLAMA4,
        "deepseek_v2": Family(
            _fields(
                102400,
                4096,
                11008,
                32,
                32,
                None,
                2048,
                mlp_bias=False,
                **_LATENT,
                first_k_dense_replace=0,
                n_routed_experts=64,
                n_shared_experts=2,
                moe_intermediate_size=1407,
                num_experts_per_tok=None,
            ),
            aliases=MappingProxyType({"num_experts": "n_routed_experts"}),
            kv="latent",
        ),
        "deepseek_v3": Family(
            _fields(
                129280,
                7168,
                18432,
                61,
                128,
                128,
                4096,
                **_LATENT,
                first_k_dense_replace=3,
                n_routed_experts=256,
                n_shared_experts=1,
                moe_intermediate_size=2048,
                num_experts_per_tok=8,
            ),
            aliases=MappingProxyType({"num_local_experts": "n_routed_experts"}),
            kv="latent",
            splits_heads=False,
        ),
        "gpt2": Family(
            _fields(50257, 768, None, 12, 12, None, 1024, tie_word_embeddings=True),
            aliases=_GPT2_NAMES,
            kv="multi_head",
            splits_heads=False,
        ),
        "gptj": Family(
            _fields(50400, 4096, None, 28, 16, None, 2048),
            aliases=_GPT2_NAMES,
            kv="multi_head",
            splits_heads=False,
        ),
        "gpt_neox": Family(
            _fields(50432, 6144, 24576, 44, 64, None, 2048, attention_bias=True), kv="multi_head"
        ),
        "gpt_bigcode": Family(
            _fields(
                50257, 768, None, 12, 12, None, 1024, tie_word_embeddings=True, multi_query=True
            ),
            aliases=_GPT2_NAMES,
            kv="multi_query",
            splits_heads=False,
        ),
        "falcon": Family(
            _fields(
                65024,
                4544,
                None,
                32,
                71,
                None,
                2048,
                tie_word_embeddings=True,
                num_kv_heads=None,
                multi_query=True,
                new_decoder_architecture=False,
                bias=False,
            ),
            aliases=MappingProxyType(
                {"n_embed": "hidden_size", "ffn_hidden_size": "intermediate_size"}
            ),
            kv="falcon",
            splits_heads=False,
        ),
    }
)
