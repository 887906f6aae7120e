"""What is measured: the model's shape, and how much work each section does.

Knows: numbers. Does not know: engines, files, devices. The full shape is `config.json` of
https://huggingface.co/openai/gpt-oss-20b (August 2025), without end tokens: random models would
stop by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMS = ("bf16", "mxfp4")
"""How the experts' weights are stored."""

SEED = 0


@dataclass(frozen=True)
class Work:
    """How much each section does. Lengths and counts of tokens; a batch is (sequences, context)."""

    one: tuple[int, int]
    many: tuple[int, int]
    steps: int
    prefill: int
    repeats: int
    requests: int
    request_input: int
    request_output: int
    chats: int
    chat_context: int
    quiet_steps: int
    long_prompt: int
    checked: tuple[int, ...]
    checked_output: int
    generated: int
    max_num_seqs: int
    max_model_len: int
    kv_cache_bytes: int | None


FULL_WORK = Work(
    one=(1, 1024),
    many=(64, 2048),
    steps=64,
    prefill=8192,
    repeats=5,
    requests=256,
    request_input=512,
    request_output=256,
    chats=32,
    chat_context=512,
    quiet_steps=200,
    long_prompt=65_536,
    checked=(5, 64, 130, 257, 700, 1000, 1500, 3000),
    checked_output=32,
    generated=64,
    max_num_seqs=256,
    max_model_len=67_584,
    kv_cache_bytes=None,
)
TINY_WORK = Work(
    one=(1, 24),
    many=(3, 40),
    steps=4,
    prefill=96,
    repeats=2,
    requests=4,
    request_input=12,
    request_output=6,
    chats=2,
    chat_context=12,
    quiet_steps=6,
    long_prompt=300,
    checked=(5, 40),
    checked_output=4,
    generated=4,
    max_num_seqs=4,
    max_model_len=512,
    kv_cache_bytes=4 << 20,
)

_FULL = {
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "vocab_size": 201_088,
}
_TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "vocab_size": 512,
}
SHAPES = {"20b": (_FULL, FULL_WORK), "tiny": (_TINY, TINY_WORK)}


def work_of(shape: str) -> Work:
    return SHAPES[shape][1]


def config_of(shape: str, layers: int | None, form: str, dtype: str) -> dict[str, Any]:
    """A `config.json`. `dtype` is what is not MXFP4."""
    sizes = dict(SHAPES[shape][0])
    if layers is not None:
        sizes["num_hidden_layers"] = layers
    count = sizes["num_hidden_layers"]
    config: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "dtype": dtype,
        **sizes,
        "layer_types": (["sliding_attention", "full_attention"] * count)[:count],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150_000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if form == "mxfp4":
        plain = ("model.layers.*.self_attn", "model.layers.*.mlp.router")
        config["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [*plain, "model.embed_tokens", "lm_head"],
        }
    return config
