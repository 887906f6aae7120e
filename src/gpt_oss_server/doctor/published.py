"""The published configurations of gpt-oss, so that its memory can be planned without a network.

Source: `config.json` of https://huggingface.co/openai/gpt-oss-20b and …/openai/gpt-oss-120b
(August 2025). Only fields that decide memory are kept. The files state no dtype: what is not
MXFP4 is stored as bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _gpt_oss(layers: int, experts: int) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "num_hidden_layers": layers,
            "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "attention_bias": True,
            "sliding_window": 128,
            "num_local_experts": experts,
            "num_experts_per_tok": 4,
            "vocab_size": 201088,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            "quantization_config": {
                "quant_method": "mxfp4",
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
            },
        }
    )


PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "openai/gpt-oss-20b": _gpt_oss(layers=24, experts=32),
        "openai/gpt-oss-120b": _gpt_oss(layers=36, experts=128),
    }
)
