"""The activation bound against the peak that a real forward pass allocates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_tiny_models import TINY, build
from transformers import AttentionInterface

from gpt_oss_server.memory.activations import activations_of
from storage_meter import PeakBytes

OWN_ATTENTION = {"gpt2", "gptj", "gpt_bigcode", "falcon"}
GPT_OSS_20B = {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32}


def paged_attention(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
    """Stands for a kernel that keeps no scores: only its result is allocated."""
    return torch.zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


@pytest.mark.parametrize("name", [n for n in TINY if n.split()[0] not in OWN_ATTENTION])
def test_bound_covers_a_real_forward(name: str) -> None:
    """The bound is above what a float32 forward pass really holds, and within three times it."""
    AttentionInterface.register("memory_test_paged", paged_attention)
    model = build(name)
    model.set_attn_implementation("memory_test_paged")
    ids = torch.arange(256).remainder(90).unsqueeze(0)
    standing = [*model.parameters(), *model.buffers()]
    no_masks = dict.fromkeys(("full_attention", "sliding_attention", "chunked_attention"))
    with torch.no_grad(), PeakBytes(standing) as measured:
        model(input_ids=ids, use_cache=False, attention_mask=no_masks, logits_to_keep=3)
    bound = activations_of(TINY[name], 256, 3, dtype_bytes=4).peak_bytes
    assert measured.peak <= bound <= 3 * measured.peak


def test_gpt_oss_step_of_8192_tokens() -> None:
    """gpt-oss-20b in bf16: the routed experts are the peak, 2.2 GiB."""
    activations = activations_of(GPT_OSS_20B, 8192, 256)
    # 8192 · (2·2880·2 + 32·6 + 4·((3·2880 + 8·2880)·2 + 32))
    assert activations.experts_bytes == 8192 * (11520 + 192 + 4 * (63360 + 32))
    assert activations.standing_bytes == 8192 * (5760 + 4 * 64 * 2 + 32)
    assert activations.peak_bytes == activations.standing_bytes + activations.experts_bytes
    assert activations.head_bytes == 8192 * 5760 + 256 * 201088 * 36


def test_head_is_the_peak_of_a_wide_decode_step() -> None:
    """256 decoding sequences: the logits with their float32 copies outweigh any layer."""
    activations = activations_of(GPT_OSS_20B, 256, 256)
    assert activations.peak_bytes == activations.standing_bytes + activations.head_bytes


def test_tensor_parallel_shares_attention_and_dense_mlp_only() -> None:
    """Widths divide; routed rows and gathered logits may be whole on one rank."""
    one, four = (activations_of(GPT_OSS_20B, 100, 10, tp=tp) for tp in (1, 4))
    assert four.experts_bytes == one.experts_bytes
    assert four.head_bytes == one.head_bytes
    fixed = 2 * 100 * 2880 * 2
    assert 4 * (four.attention_bytes - fixed) == one.attention_bytes - fixed
    assert 4 * (four.mlp_bytes - fixed) == one.mlp_bytes - fixed


@given(
    name=st.sampled_from(sorted(TINY)),
    tokens=st.integers(1, 4096),
    more=st.integers(0, 512),
    rows=st.integers(0, 64),
)
def test_bound_grows_with_tokens_and_rows(name: str, tokens: int, more: int, rows: int) -> None:
    """A larger step never has a smaller bound."""
    small = activations_of(TINY[name], tokens, rows).peak_bytes
    assert small <= activations_of(TINY[name], tokens + more, rows).peak_bytes
    assert small <= activations_of(TINY[name], tokens, rows + more).peak_bytes
