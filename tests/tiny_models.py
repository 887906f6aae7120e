"""Tiny random transformers models, saved as folders that an engine loads.

Knows: configs that build in milliseconds and weights that give varied output. Does not know:
engines. Importing this imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 256
EOS = 255
WEIGHT_SPREAD = 8
GROUPED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
GEMMA = {
    "head_dim": 16,
    "sliding_window": 24,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": False,  # tied, random weights only repeat the last token
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        **GROUPED,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
    "llama": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "qwen3_moe": {
        **GROUPED,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "mistral": {**GROUPED, "sliding_window": 24},
    "gemma2": {**GROUPED, **GEMMA},
    "gemma3_text": {**GROUPED, **GEMMA},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 1024,
        "eos_token_id": EOS,
        "bos_token_id": 1,
    },
    "deepseek_v3": {
        **GROUPED,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 24,
        "qk_nope_head_dim": 16,
    },
    # As little work per token as a model with two kinds of attention can do.
    "smallest": {
        **GROUPED,
        "vocab_size": 32,
        "eos_token_id": 31,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "model_type": "qwen3",
        "use_sliding_window": True,
    },
}


def build(name: str, **changes: Any) -> Any:
    """A random float32 model on the CPU. Weights are eight times their usual spread, and sinks
    and biases are not zero: greedy output then varies, and every term of the model matters."""
    fields = {**CONFIGS[name], **changes}
    config = AutoConfig.for_model(fields.pop("model_type", name), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "sinks" in parameter_name:
                parameter.normal_(std=0.5)
            elif "bias" in parameter_name:
                parameter.normal_(std=0.1)
            elif parameter.dim() > 1:
                parameter.mul_(WEIGHT_SPREAD)
    return model


def saved(model: Any, folder: Path) -> str:
    """Write config and weights; returns the folder as an `EngineSpec` wants it."""
    model.save_pretrained(folder)
    return str(folder)


def generated(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What transformers itself says, greedily: the yardstick."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = output[0][len(prompt) :].tolist()
    return tokens
