"""Tiny real transformers models, one per architecture whose arithmetic claims to be exact.

Knows: configs small enough to build in milliseconds, with every dimension a different number so
that a swapped one shows. Does not know: what is expected of them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from gpt_oss_server.memory.families_plain import PLAIN

GROUPED = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = GROUPED | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "moe_intermediate_size": 16,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {key: GROUPED[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
FALCON |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}

TINY: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "model_type": "gpt_oss",
        **GROUPED,
        "head_dim": 16,
        "sliding_window": 11,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
    "gpt_oss layer_types": {
        "model_type": "gpt_oss",
        **GROUPED,
        "head_dim": 16,
        "sliding_window": 11,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention"] * 3 + ["sliding_attention"],
    },
    "llama": {"model_type": "llama", **GROUPED},
    "llama biases tied": {
        "model_type": "llama",
        **GROUPED,
        "head_dim": 14,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama multi-head": {"model_type": "llama", **GROUPED, "num_key_value_heads": None},
    "qwen2": {"model_type": "qwen2", **GROUPED},
    "qwen2 sliding": {
        "model_type": "qwen2",
        **GROUPED,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **GROUPED, "head_dim": 20},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **GROUPED,
        "head_dim": 20,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
    "qwen3_moe sliding sparse step": {
        "model_type": "qwen3_moe",
        **GROUPED,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 9,
    },
    "mistral": {"model_type": "mistral", **GROUPED, "sliding_window": 9},
    "mistral no window": {"model_type": "mistral", **GROUPED, "sliding_window": None},
    "mixtral": {
        "model_type": "mixtral",
        **GROUPED,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
    },
    "gemma": {"model_type": "gemma", **GROUPED, "head_dim": 20},
    "gemma2": {"model_type": "gemma2", **GROUPED, "head_dim": 20, "sliding_window": 9},
    "gemma3_text": {
        "model_type": "gemma3_text",
        **GROUPED,
        "num_hidden_layers": 7,
        "head_dim": 20,
        "sliding_window": 9,
    },
    "gemma3_text pattern": {
        "model_type": "gemma3_text",
        **GROUPED,
        "head_dim": 16,
        "sliding_window": 9,
        "sliding_window_pattern": 3,
    },
    "cohere2": {"model_type": "cohere2", **GROUPED, "sliding_window": 9},
    "cohere2 pattern": {
        "model_type": "cohere2",
        **GROUPED,
        "sliding_window": 9,
        "sliding_window_pattern": 2,
    },
    "olmo3": {"model_type": "olmo3", **GROUPED, "sliding_window": 9},
    "phi3": {"model_type": "phi3", **GROUPED},
    "phi3 sliding": {"model_type": "phi3", **GROUPED, "sliding_window": 6},
    "llama4_text": {
        "model_type": "llama4_text",
        **GROUPED,
        "head_dim": 16,
        "attention_chunk_size": 9,
        "num_local_experts": 6,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 36,
        "interleave_moe_layer_step": 2,
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        **LATENT,
        "topk_method": "greedy",
    },
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT, "n_group": 2, "topk_group": 1},
    "deepseek_v3 no q_lora": {
        "model_type": "deepseek_v3",
        **LATENT,
        "q_lora_rank": None,
        "attention_bias": True,
        "n_group": 2,
        "topk_group": 1,
    },
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gptj": {"model_type": "gptj", **GPT2, "rotary_dim": 8},
    "gpt_neox": {"model_type": "gpt_neox", **GROUPED},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **GPT2},
    "gpt_bigcode multi-head": {"model_type": "gpt_bigcode", **GPT2, "multi_query": False},
    "falcon": {"model_type": "falcon", **FALCON},
    "falcon multi-head": {"model_type": "falcon", **FALCON, "multi_query": False},
    "falcon new decoder": {
        "model_type": "falcon",
        **FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
}


PLAIN_EXTRAS = {
    "moe_intermediate_size": 16,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}
for _name in PLAIN:
    _known = AutoConfig.for_model(_name)
    _extras = {key: value for key, value in PLAIN_EXTRAS.items() if hasattr(_known, key)}
    _window = {"sliding_window": 9} if getattr(_known, "sliding_window", None) else {}
    TINY[_name] = {"model_type": _name, **GROUPED, **_extras, **_window}


def config_of(name: str) -> PreTrainedConfig:
    """The transformers config that a config.json with these fields gives."""
    fields = dict(TINY[name])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def build(name: str) -> PreTrainedModel:
    """A random float32 model on the CPU."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name), attn_implementation="eager")
    return model.eval()
