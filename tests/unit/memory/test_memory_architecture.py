"""From config dicts to shapes: what is exact, what is a stated bound, what is an error."""

from __future__ import annotations

from typing import Any

import pytest
from memory_tiny_models import TINY

from gpt_oss_server.memory.architecture import (
    LayerAttention,
    heads_per_rank,
    resolve,
    shape_from_config,
)
from gpt_oss_server.memory.errors import ImpossibleSplit, ShapeUnknown

GPT_OSS_20B = {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32}
FULL = LayerAttention("full", None, 8, 64, 64)
SLIDING = LayerAttention("sliding", 128, 8, 64, 64)


def kinds(config: dict[str, Any]) -> str:
    """One letter per layer: full, sliding, chunked, latent, unknown."""
    return "".join(layer.kind[0] for layer in shape_from_config(config).layers)


def test_gpt_oss_alternates_from_a_sliding_layer() -> None:
    """gpt-oss-20b: 12 windows of 128 and 12 full layers, 8 KV heads of 64."""
    shape = shape_from_config(GPT_OSS_20B)
    assert shape.layers == (SLIDING, FULL) * 12
    assert (shape.hidden_size, shape.num_heads, shape.vocab_size) == (2880, 64, 201088)
    assert shape.max_positions == 131072
    assert shape.exact
    assert shape.warnings == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt_oss layer_types", "fffs"),
        ("llama", "ffff"),
        ("qwen2 sliding", "fsss"),  # from max_window_layers on
        ("qwen3", "ffff"),  # use_sliding_window is false
        ("qwen3_moe sliding sparse step", "ssss"),
        ("mistral", "ssss"),
        ("mistral no window", "ffff"),
        ("gemma2", "sfsf"),
        ("gemma3_text", "sssssfs"),
        ("gemma3_text pattern", "ssfs"),
        ("llama4_text", "cccf"),
        ("deepseek_v3", "llll"),
        ("gpt2", "fff"),
    ],
)
def test_layer_kinds(name: str, expected: str) -> None:
    """Each architecture's layers have the kinds that its config implies."""
    assert kinds(TINY[name]) == expected


def test_latent_layers_have_both_forms() -> None:
    """DeepSeek-V3: 128 heads of 192 and 128 expanded, one row of 576 as transformers caches it."""
    layer = shape_from_config({"model_type": "deepseek_v3"}).layers[0]
    assert layer == LayerAttention("latent", None, 128, 192, 128, latent_dim=576)
    assert layer.elements_per_token() == 40960
    assert layer.elements_per_token(tp=4) == 10240
    assert layer.elements_per_token(tp=4, compressed=True) == 576


@pytest.mark.parametrize("outer", ["gemma3", "llama4", "some_new_multimodal"])
def test_nested_text_config_is_the_decoder(outer: str) -> None:
    """A multimodal config's text part decides, under its own or its parent's type."""
    text = dict(TINY["gemma3_text"])
    if outer != "some_new_multimodal":
        text.pop("model_type")
    shape = shape_from_config({"model_type": outer, "text_config": text, "vision_config": {}})
    assert shape.model_type == {"gemma3": "gemma3_text", "llama4": "llama4_text"}.get(
        outer, "gemma3_text"
    )
    assert shape.exact
    assert len(shape.layers) == 7


def test_unknown_model_type_is_a_stated_bound() -> None:
    """An architecture not known counts every layer as full, with the stated heads, and says so."""
    shape = shape_from_config(
        {
            "model_type": "brand_new",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    )
    assert shape.layers == (LayerAttention("unknown", None, 2, 8, 8),) * 2
    assert not shape.exact
    assert not shape.splits_heads
    assert "'brand_new' is not known" in shape.warnings[0]


def test_unknown_model_without_kv_heads_or_heads_is_bounded_by_multi_head() -> None:
    """No KV heads: as many as heads; no heads at all: one as wide as the hidden state."""
    without_kv = shape_from_config({"n_embd": 64, "n_layer": 1, "n_head": 8})
    assert without_kv.layers == (LayerAttention("unknown", None, 8, 8, 8),)
    bare = shape_from_config({"d_model": 64, "n_layers": 3})
    assert bare.layers == (LayerAttention("unknown", None, 1, 64, 64),) * 3
    assert len(bare.warnings) == 3


def test_unknown_latent_model_is_counted_expanded() -> None:
    """Latent fields in an unknown model: every head, nope and rotary parts together."""
    fields = {k: v for k, v in TINY["deepseek_v3"].items() if k != "model_type"}
    shape = shape_from_config(fields | {"num_key_value_heads": 1})
    assert shape.layers[0] == LayerAttention("unknown", None, 4, 20, 12)
    assert not shape.exact


@pytest.mark.parametrize(
    ("change", "assumed"),
    [
        ({"layer_types": ["lightning"] * 4}, "layer type 'lightning' is not known"),
        (
            {"layer_types": ["sliding_attention"] * 4, "sliding_window": None},
            "without 'sliding_window'",
        ),
    ],
)
def test_a_known_model_with_odd_layers_becomes_a_bound(
    change: dict[str, Any], assumed: str
) -> None:
    """What a layer type leaves open is taken as full attention, with a warning."""
    shape = shape_from_config(TINY["mistral"] | change)
    assert not shape.exact
    assert {layer.window for layer in shape.layers} == {None}
    assert len(shape.warnings) == 1
    assert assumed in shape.warnings[0]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "hidden_size"),
        ({"hidden_size": 64}, "num_hidden_layers"),
        ({"model_type": "llama", "hidden_size": "64"}, "hidden_size"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers"),
        ({"model_type": "llama", "num_key_value_heads": True}, "num_key_value_heads"),
        ({"model_type": "llama", "num_attention_heads": -4}, "num_attention_heads"),
        ({"model_type": "mistral", "sliding_window": 2.5}, "sliding_window"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "gpt_oss", "layer_types": "full_attention"}, "layer_types"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"text_config": {}, "decoder": {}}, "several text configs"),
        ({"model_type": "llama", "per_layer_config": {"0": {}}}, "per_layer_config"),
        (
            {"model_type": "llama", "num_hidden_layers": 1, "layer_types": ["linear_attention"]},
            "recurrent state",
        ),
    ],
)
def test_no_bound_is_a_typed_error_naming_the_field(config: dict[str, Any], named: str) -> None:
    """A config that cannot be bounded is an error that says what is missing."""
    with pytest.raises(ShapeUnknown, match=named):
        shape_from_config(config)


@pytest.mark.parametrize(
    ("kv_heads", "tp", "held"),
    [(8, 1, 8), (8, 2, 4), (8, 8, 1), (8, 16, 1), (1, 4, 1), (6, 3, 2)],
)
def test_heads_per_rank(kv_heads: int, tp: int, held: int) -> None:
    """Heads are shared evenly, or one is replicated when there are more ranks."""
    assert heads_per_rank(kv_heads, tp) == held


@pytest.mark.parametrize(("kv_heads", "tp"), [(8, 3), (8, 12), (6, 4), (8, 0), (8, -1)])
def test_heads_that_do_not_divide_are_impossible(kv_heads: int, tp: int) -> None:
    """Ranks that cannot share the heads are an error that says what would do."""
    with pytest.raises(ImpossibleSplit, match=f"{kv_heads} KV heads"):
        heads_per_rank(kv_heads, tp)


def test_a_part_has_some_of_the_layers() -> None:
    """A stage sees its own layers, and the model's sizes."""
    shape = shape_from_config({"model_type": "gpt_oss", "num_hidden_layers": 10})
    part = shape.part(range(3, 8))
    assert part.layers == shape.layers[3:8]
    assert (part.hidden_size, part.num_heads) == (shape.hidden_size, shape.num_heads)


@pytest.mark.parametrize(("tp", "heads", "kv_heads"), [(1, 64, 8), (4, 16, 2), (16, 4, 1)])
def test_a_tensor_rank_has_some_of_the_heads(tp: int, heads: int, kv_heads: int) -> None:
    """Query heads are shared; key heads too, down to one."""
    shape = shape_from_config({"model_type": "gpt_oss"}).sharded(tp)
    assert (shape.num_heads, {layer.kv_heads for layer in shape.layers}) == (heads, {kv_heads})


def test_heads_that_are_not_shared_stay() -> None:
    """Latent attention is whole on every rank; 64 heads cannot be shared by 3."""
    latent = shape_from_config({"model_type": "deepseek_v3"})
    assert latent.sharded(2) == latent
    with pytest.raises(ImpossibleSplit, match="64 attention heads"):
        shape_from_config({"model_type": "gpt_oss"}).sharded(3)


def test_a_canonical_name_wins_over_another_spelling() -> None:
    """`hidden_size` beside `n_embd` is what transformers itself writes and reads."""
    resolved = resolve({"model_type": "gpt2", "n_embd": 32, "hidden_size": 48})
    assert resolved.count("hidden_size") == 48


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "rwkv"])
def test_a_recurrent_model_has_no_kv_cache(model_type: str) -> None:
    """A recurrent state is no KV cache: an error, whatever else the config names."""
    config = {"model_type": model_type, "hidden_size": 64, "num_hidden_layers": 2}
    with pytest.raises(ShapeUnknown, match="recurrent"):
        shape_from_config(config)
