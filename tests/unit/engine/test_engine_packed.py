"""Packed weights compute what the model computed before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from gpt_oss_server.engine.packed import PackedExperts, PackedLinear, can_pack, pack_weights

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
ATTENTION = 2 * 4  # layers times the projections q, k, v, o

pytestmark = pytest.mark.skipif(
    not can_pack(CPU, torch.float32), reason="this build of PyTorch has no oneDNN"
)


def gpt_oss() -> PreTrainedModel:
    return GptOssForCausalLM(
        GptOssConfig(**SHAPE, num_local_experts=6, num_experts_per_tok=2, tie_word_embeddings=False)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))


def llama_tied() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))


def qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            mlp_only_layers=[],
        )
    )


@pytest.mark.parametrize(
    ("build", "replaced"),
    [
        (gpt_oss, ATTENTION + 2 + 1),  # experts of two layers, the head
        (llama, ATTENTION + 2 * 3 + 1),  # gate, up, down of two layers, the head
        (llama_tied, ATTENTION + 2 * 3),  # a tied head would be in memory twice
        (qwen3_moe, ATTENTION + 2 + 1),
    ],
)
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_logits_stay(build: Callable[[], PreTrainedModel], replaced: int, tokens: int) -> None:
    """Logits agree with the unpacked model's to float32's rounding, and what should be replaced
    is."""
    torch.manual_seed(3)
    model = build().eval().requires_grad_(False)
    # Fresh models have zero biases and norms of one: make every parameter count.
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ids = torch.randint(0, 97, (1, tokens))
    expected = model(ids).logits
    assert pack_weights(model) == replaced
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_twice() -> None:
    """After packing, the model's parameters are those that are not matrices of its products."""
    model = gpt_oss()
    pack_weights(model)
    assert {name for name, p in model.named_parameters() if p.dim() > 1} == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.router.weight",
        "model.layers.1.mlp.router.weight",
    }


def test_a_packed_weight_can_be_read() -> None:
    """A model whose code looks at a layer's weight finds it, bit for bit."""
    linear = nn.Linear(40, 24)
    packed = PackedLinear(linear)
    assert torch.equal(packed.weight, linear.weight)
    assert packed.weight.dtype == torch.float32


def test_an_idle_expert_is_passed_over() -> None:
    """When all tokens choose the same experts, the others are not run and the sum is right."""
    torch.manual_seed(5)
    experts = gpt_oss().model.layers[0].mlp.experts.requires_grad_(False)
    hidden = torch.randn(5, 48)
    ids = torch.tensor([[4, 1]]).expand(5, 2)
    weights = torch.rand(5, 2)
    expected = experts(hidden, ids, weights)
    torch.testing.assert_close(PackedExperts(experts)(hidden, ids, weights), expected)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda", torch.float32), ("meta", torch.float32), ("cpu", torch.bfloat16)]
)
def test_only_float32_on_a_cpu(device: str, dtype: torch.dtype) -> None:
    """Other devices and types keep their own kernels."""
    assert not can_pack(torch.device(device), dtype)
