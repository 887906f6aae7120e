"""Predicted KV bytes against the tensors that transformers' own cache really holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from memory_tiny_models import TINY, build, config_of
from transformers import AttentionInterface, DynamicCache

from gpt_oss_server.memory.architecture import geometry_of, resolve, shape_from_config
from gpt_oss_server.memory.families import FAMILIES
from gpt_oss_server.memory.kv import Contiguous, kv_bytes

STEPS = (5, 13, 1, 1, 1, 4)  # a prefill past every window in two chunks, decoding, a late chunk
OWN_ATTENTION = {"gpt2", "gptj", "gpt_bigcode", "falcon"}  # do not all ask the interface


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a shared machine make tiny models slower, not faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def held_bytes(cache: DynamicCache) -> tuple[int, int]:
    """(bytes of the cached views, bytes of the storage behind them)."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    views = sum(t.numel() * t.element_size() for t in tensors)
    return views, sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("name", TINY)
def test_contiguous_bytes_equal_the_dynamic_cache(name: str) -> None:
    """After every forward, views and storage of the real cache are the predicted bytes."""
    model = build(name)
    shape = shape_from_config(TINY[name])
    assert shape.exact
    cache = DynamicCache(config=model.config)
    tokens = 0
    for step in STEPS:
        with torch.no_grad():
            ids = torch.arange(3, 3 + step).unsqueeze(0)
            model(input_ids=ids, past_key_values=cache, use_cache=True)
        tokens += step
        views, storage = held_bytes(cache)
        assert kv_bytes(shape, tokens, Contiguous(view=True), 4) == views
        assert kv_bytes(shape, tokens, Contiguous(last_forward_tokens=step), 4) == storage


def test_a_window_of_one_drops_nothing() -> None:
    """transformers slices `[-1 + 1:]` for a window of 1, which keeps every row: so do we."""
    config = TINY["mistral"] | {"sliding_window": 1}
    cache = DynamicCache(config=config_of_fields(config))
    for layer in cache.layers:
        for _ in range(3):
            layer.update(torch.zeros(1, 2, 4, 12), torch.zeros(1, 2, 4, 12))
    assert held_bytes(cache)[0] == 4 * 12 * 2 * 12 * 2 * 4
    assert kv_bytes(shape_from_config(config), 12, Contiguous(view=True), 4) == held_bytes(cache)[0]


def config_of_fields(fields: dict[str, object]) -> object:
    """A transformers config from a changed dict."""
    from transformers import AutoConfig

    rest = {key: value for key, value in fields.items() if key != "model_type"}
    return AutoConfig.for_model(str(fields["model_type"]), **rest)


@pytest.mark.parametrize("name", [n for n in TINY if n.split()[0] not in OWN_ATTENTION])
def test_block_pool_rows_equal_what_attention_is_handed(name: str) -> None:
    """A paged attention function gets exactly the heads and sizes that a pool's row counts."""
    seen: list[tuple[int, int, int]] = []

    def attention(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        seen.append((key.shape[1], key.shape[3], value.shape[3]))
        return torch.zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register("memory_test_rows", attention)
    model = build(name)
    model.set_attn_implementation("memory_test_rows")
    no_masks = dict.fromkeys(("full_attention", "sliding_attention", "chunked_attention"))
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False, attention_mask=no_masks)
    layers = shape_from_config(TINY[name]).layers
    assert seen == [(layer.kv_heads, layer.k_dim, layer.v_dim) for layer in layers]


@pytest.mark.parametrize("name", TINY)
def test_shape_is_the_same_from_a_saved_config(name: str) -> None:
    """config.json as written by the user and as written back by transformers agree."""
    assert shape_from_config(config_of(name).to_dict()) == shape_from_config(TINY[name])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_means_transformers_defaults(model_type: str) -> None:
    """With every field missing, layers and geometry are those of transformers' default config."""
    config = config_of_fields({"model_type": model_type})
    bare = shape_from_config({"model_type": model_type})
    assert bare == shape_from_config(config.to_dict())  # type: ignore[attr-defined]
    assert bare.exact
    assert geometry_of(resolve({"model_type": model_type})).kv_heads == bare.layers[0].kv_heads


@pytest.mark.parametrize("model_type", FAMILIES)
def test_heads_are_split_where_transformers_plan_splits_them(model_type: str) -> None:
    """`splits_heads` follows the tensor-parallel plan; gpt-oss has none and is split by ours."""
    plan = config_of_fields({"model_type": model_type}).base_model_tp_plan or {}  # type: ignore[attr-defined]
    names = ("k_proj", "kv_b_proj", "query_key_value")
    split = any(key.rsplit(".", 1)[-1] in names and plan[key] == "colwise" for key in plan)
    assert FAMILIES[model_type].splits_heads == (split or model_type == "gpt_oss")
