"""KV bytes, footprints and pool plans: exact figures and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_tiny_models import TINY

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.architecture import ModelShape, shape_from_config
from gpt_oss_server.memory.blocks import (
    Reach,
    blocks_held,
    max_blocks_in_life,
    max_blocks_in_step,
    max_blocks_of_batch,
)
from gpt_oss_server.memory.errors import ImpossibleSplit, PoolTooSmall
from gpt_oss_server.memory.kv import (
    BlockPool,
    Contiguous,
    cache_groups,
    estimator_of_pools,
    kv_bytes,
    kv_bytes_per_token,
    kv_tokens,
    plan_pools,
    request_footprint,
    sliding_cap_bytes,
    tokens_that_fit,
)
from gpt_oss_server.types import KvGroupInfo

MIB = 2**20
OSS_20B = shape_from_config({"model_type": "gpt_oss", "num_hidden_layers": 24})
OSS_120B = shape_from_config({"model_type": "gpt_oss", "num_hidden_layers": 36})
shapes = st.sampled_from([shape_from_config(config) for config in TINY.values()])


@pytest.mark.parametrize(
    ("shape", "per_token", "cap_mib", "request_mib"),
    [(OSS_20B, 24576, 3.0, 3075.0), (OSS_120B, 36864, 4.5, 4612.5)],
)
def test_gpt_oss_figures(
    shape: ModelShape, per_token: int, cap_mib: float, request_mib: float
) -> None:
    """The published arithmetic of gpt-oss in bf16, to the byte; far below the 6000 MB trigger."""
    assert kv_bytes_per_token(shape) == per_token
    assert sliding_cap_bytes(shape) == cap_mib * MIB
    assert kv_bytes(shape, 131072, Contiguous()) == request_mib * MIB
    assert request_footprint(shape, 131072, 1, Contiguous()).bytes == request_mib * MIB


@pytest.mark.parametrize(
    ("tokens", "full_blocks", "sliding_blocks"),
    [(0, 0, 0), (1, 1, 1), (16, 1, 1), (17, 2, 2), (143, 9, 8), (144, 9, 8), (131072, 8192, 8)],
)
def test_block_pool_bytes_of_gpt_oss_20b(
    tokens: int, full_blocks: int, sliding_blocks: int
) -> None:
    """Blocks of 16 tokens in 12 layers each are 393,216 bytes in either pool."""
    block_bytes = 12 * 16 * 2048
    held = (full_blocks + sliding_blocks) * block_bytes
    assert kv_bytes(OSS_20B, tokens, BlockPool(16)) == held


@pytest.mark.parametrize(
    ("dtype_bytes", "tp", "per_token"),
    [(4, 1, 49152), (2, 1, 24576), (1, 1, 12288), (2, 2, 12288), (2, 8, 3072), (2, 64, 3072)],
)
def test_dtype_and_tensor_parallel_scale_a_rank(dtype_bytes: int, tp: int, per_token: int) -> None:
    """fp8 halves bf16; ranks share 8 heads, and beyond 8 each holds one."""
    assert kv_bytes_per_token(OSS_20B, dtype_bytes, tp) == per_token


def test_impossible_tensor_parallel_is_an_error() -> None:
    """Three ranks cannot share eight KV heads."""
    with pytest.raises(ImpossibleSplit):
        kv_bytes(OSS_20B, 1, BlockPool(16), tp=3)


def test_ranks_that_each_cache_every_head() -> None:
    """Phi-3's fused projection is gathered, so its KV does not shrink with ranks."""
    shape = shape_from_config({"model_type": "phi3"})
    assert kv_bytes_per_token(shape, tp=4) == kv_bytes_per_token(shape) == 32 * 2 * 3072 * 2


def test_latent_cache_in_both_forms() -> None:
    """DeepSeek-V3: 68.6 KiB a token as transformers caches it, 4.8 MiB expanded for attention."""
    shape = shape_from_config({"model_type": "deepseek_v3"})
    assert kv_bytes(shape, 100, Contiguous()) == 100 * 61 * 576 * 2
    assert kv_bytes(shape, 100, Contiguous(compressed=False)) == 100 * 61 * 40960 * 2
    assert kv_bytes(shape, 100, BlockPool(16, compressed=True)) == 112 * 61 * 576 * 2
    assert kv_bytes(shape, 100, BlockPool(16)) == 112 * 61 * 40960 * 2


def test_groups_share_a_reach_and_a_geometry() -> None:
    """gpt-oss has two pools: the full layers (odd) and the sliding ones (even), full first."""
    full, sliding = cache_groups(OSS_20B, dtype_bytes=2)
    assert (full.name, full.window, full.layer_indices) == ("full", None, tuple(range(1, 24, 2)))
    assert (sliding.name, sliding.window, sliding.layers) == ("sliding", 128, 12)
    assert sliding.layer_indices == tuple(range(0, 24, 2))
    assert full.row_bytes == sliding.row_bytes == 24576


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows"), [(10, 0, 10), (10, 1, 10), (10, 5, 14), (0, 1, 0)]
)
def test_the_last_output_token_is_never_cached(inputs: int, outputs: int, rows: int) -> None:
    """It is sampled and returned, but no later token attends to it."""
    assert kv_tokens(inputs, outputs) == rows


def test_footprint_of_a_request() -> None:
    """1000 tokens in, 25 out: 64 blocks of 16 full; a window of 128 in chunks of 512: 41."""
    footprint = request_footprint(OSS_20B, 1000, 25, BlockPool(16, step_tokens=512))
    assert footprint.tokens == 1024
    assert dict(footprint.blocks) == {"full": 64, "sliding": 41}
    assert footprint.bytes == (64 + 41) * 393216
    assert footprint.exact
    decode_only = request_footprint(OSS_20B, 1000, 25, BlockPool(16))
    assert dict(decode_only.blocks) == {"full": 64, "sliding": 9}


def test_footprint_of_an_unknown_model_says_so() -> None:
    """A bound is marked as one, with what was assumed."""
    shape = shape_from_config({"model_type": "new", "n_embd": 8, "n_layer": 1, "n_head": 2})
    footprint = request_footprint(shape, 10, 1, Contiguous())
    assert footprint.bytes == 10 * 8 * 2 * 2
    assert not footprint.exact
    assert footprint.warnings == shape.warnings


@given(
    shape=shapes,
    tokens=st.integers(0, 300),
    more=st.integers(0, 40),
    block_size=st.integers(1, 40),
    step=st.integers(1, 50),
)
def test_footprints_grow_with_tokens_and_cover_what_is_held(
    shape: ModelShape, tokens: int, more: int, block_size: int, step: int
) -> None:
    """More tokens never need less, and a footprint covers every moment of a shorter life."""
    for layout in (BlockPool(block_size, step), Contiguous(step), Contiguous(view=True)):
        small = request_footprint(shape, tokens, 0, layout).bytes
        large = request_footprint(shape, tokens + more, 0, layout).bytes
        assert small <= large
        assert kv_bytes(shape, tokens, layout) <= large


@given(shape=shapes, tokens=st.integers(0, 300), block_size=st.integers(1, 40))
def test_block_rounding_costs_less_than_a_block_a_layer_group(
    shape: ModelShape, tokens: int, block_size: int
) -> None:
    """A pool holds at least the rows that are needed, and wastes under two blocks per pool."""
    for group in cache_groups(shape, 2):
        held = blocks_held(tokens, block_size, group.reach) * block_size
        needed = tokens - min(tokens, group.reach.first_needed(tokens))
        assert needed <= held < needed + 2 * block_size


@given(shape=shapes, tokens=st.integers(0, 200), tp=st.sampled_from([1, 2, 4]))
def test_ranks_hold_the_whole_between_them(shape: ModelShape, tokens: int, tp: int) -> None:
    """Ranks times their share is the whole where heads divide, and more where they replicate."""
    layout = Contiguous(compressed=False)
    whole = kv_bytes(shape, tokens, layout)
    share = kv_bytes(shape, tokens, layout, tp=tp)
    divides = shape.splits_heads and all(layer.kv_heads % tp == 0 for layer in shape.layers)
    assert share * tp == whole if divides else share * tp >= whole


@given(shape=shapes, budget=st.integers(0, 2**20), block_size=st.integers(1, 32))
def test_tokens_that_fit_is_the_inverse(shape: ModelShape, budget: int, block_size: int) -> None:
    """The answer fits the budget, one more token does not; None only where any length fits."""
    for layout in (BlockPool(block_size, step_tokens=7), Contiguous(last_forward_tokens=5)):
        longest = tokens_that_fit(shape, budget, layout)
        if longest is None:
            assert request_footprint(shape, 10**6, 0, layout).bytes <= budget
        else:
            assert request_footprint(shape, longest, 0, layout).bytes <= budget
            assert request_footprint(shape, longest + 1, 0, layout).bytes > budget


def test_tokens_that_fit_gpt_oss() -> None:
    """3,075 MiB is exactly one full-context request of gpt-oss-20b."""
    assert tokens_that_fit(OSS_20B, 3075 * MIB, Contiguous()) == 131072
    assert tokens_that_fit(OSS_20B, 3075 * MIB - 1, Contiguous()) == 131071
    assert tokens_that_fit(OSS_20B, -1, Contiguous()) == 0


def test_plan_with_plenty_gives_windows_their_worst_case_and_a_quarter() -> None:
    """20 GiB for gpt-oss-20b, 256 sequences, 8192-token steps: 1.25 × 3,024 sliding blocks."""
    plan = plan_pools(OSS_20B, 20 * 2**30, 16, 256, 8192)
    full, sliding = plan.groups
    assert max_blocks_of_batch(16, 128, 256, 8192) == 3024
    assert (sliding.name, sliding.num_blocks, sliding.block_bytes) == ("sliding", 3780, 393216)
    assert (full.name, full.num_blocks, full.block_bytes) == ("full", 50833, 393216)
    assert plan.token_capacity == 50833 * 16
    assert 20 * 2**30 - plan.total_bytes == 131072  # less than a block


def test_plan_with_little_keeps_the_pools_equal() -> None:
    """Below its worst case a windowed pool needs no more blocks than the full one has."""
    plan = plan_pools(OSS_20B, 10 * MIB, 16, 256, 8192)
    assert [group.num_blocks for group in plan.groups] == [13, 13]
    assert plan.token_capacity == 208


def test_plan_of_one_block_and_of_none() -> None:
    """The least that is planned is one block in each pool; below that the error says how much."""
    least = 2 * 393216
    assert [group.num_blocks for group in plan_pools(OSS_20B, least, 16, 4, 64).groups] == [1, 1]
    for budget in (least - 1, 0, -5):
        with pytest.raises(PoolTooSmall, match="at least 786432 bytes") as caught:
            plan_pools(OSS_20B, budget, 16, 4, 64)
        assert caught.value.needed_bytes == least


def test_plan_where_every_layer_has_a_window() -> None:
    """Mistral with a window: the pool stops growing at its worst case and a quarter."""
    shape = shape_from_config(TINY["mistral"])
    worst = max_blocks_of_batch(16, 9, 4, 64)
    plan = plan_pools(shape, 2**30, 16, 4, 64)
    assert [group.num_blocks for group in plan.groups] == [-(-worst * 5 // 4)]
    assert plan.token_capacity == plan.groups[0].num_blocks * 16


def least_bytes(shape: ModelShape, block_size: int) -> int:
    """One block in each pool, or one decoding window where nothing keeps every token."""
    groups = cache_groups(shape, 2)
    windows = [group.window for group in groups if group.window is not None]
    blocks = 1
    if len(windows) == len(groups):
        blocks = max(max_blocks_in_step(block_size, window, 1) for window in windows)
    return sum(group.row_bytes for group in groups) * block_size * blocks


@settings(max_examples=150)
@given(
    shape=shapes,
    budget=st.integers(1, 2**24),
    block_size=st.integers(1, 32),
    seqs=st.integers(1, 40),
    batch=st.integers(1, 500),
)
def test_plans_fit_fill_and_never_starve_a_window(
    shape: ModelShape, budget: int, block_size: int, seqs: int, batch: int
) -> None:
    """A plan is within its budget, cannot grow, and its windowed pools are never what runs dry."""
    least = least_bytes(shape, block_size)
    if budget < least:
        with pytest.raises(PoolTooSmall) as small:
            plan_pools(shape, budget, block_size, seqs, batch)
        assert small.value.needed_bytes == least
        return
    plan = plan_pools(shape, budget, block_size, seqs, batch)
    assert plan.total_bytes <= budget
    whole = [group for group in plan.groups if group.window is None]
    windowed = [group for group in plan.groups if group.window is not None]
    grown = sum(group.block_bytes for group in plan.groups)
    assert plan.total_bytes + grown > budget or not whole
    for group in windowed:
        worst = max_blocks_of_batch(block_size, group.window or 0, seqs, batch)
        if whole:
            assert group.num_blocks >= min(whole[0].num_blocks, worst)
            longest = whole[0].num_blocks * block_size
            need = max_blocks_in_life(longest, block_size, Reach(group.window), batch)
            assert need <= group.num_blocks
        assert group.num_blocks <= -(-worst * 5 // 4)
    for group in plan.groups:
        assert group.num_blocks >= 1


@pytest.mark.parametrize("budget", [10**6, 10**7, 10**8])
def test_more_memory_never_means_fewer_blocks(budget: int) -> None:
    """Pools grow with the budget, each of them."""

    def sizes(amount: int) -> list[int]:
        return [g.num_blocks for g in plan_pools(OSS_20B, amount, 16, 2, 64).groups]

    assert all(a <= b for a, b in zip(sizes(budget), sizes(budget * 2), strict=True))


def test_a_plan_carries_the_layers_it_is_for() -> None:
    """Pools name the layer indices that share them, and add up to the model."""
    config: dict[str, Any] = {"model_type": "gpt_oss", "num_hidden_layers": 6}
    plan = plan_pools(shape_from_config(config), 2**24, 16, 4, 64)
    assert sorted(i for group in plan.groups for i in group.layer_indices) == list(range(6))


@pytest.mark.parametrize(("block_size", "seqs", "named"), [(0, 1, "block_size"), (16, 0, "seqs")])
def test_a_plan_of_nothing_is_a_config_error(block_size: int, seqs: int, named: str) -> None:
    """Blocks of no tokens and batches of no sequences are named."""
    with pytest.raises(ConfigError, match=named):
        plan_pools(OSS_20B, 2**30, block_size, seqs, 64)


@given(
    tokens=st.integers(0, 5000),
    outputs=st.integers(0, 500),
    block_size=st.sampled_from([1, 16, 128]),
    step=st.sampled_from([1, 300, 8192]),
)
def test_a_running_engines_pools_cost_what_its_config_does(
    tokens: int, outputs: int, block_size: int, step: int
) -> None:
    """An estimator made from the engine's own report agrees with one made from the config."""
    plan = plan_pools(OSS_20B, 2**32, block_size, 4, 64)
    reported = [
        KvGroupInfo(pool.name, pool.layers, pool.window, pool.num_blocks, pool.block_bytes)
        for pool in plan.groups
    ]
    live = estimator_of_pools(reported, block_size, step).footprint(tokens, outputs)
    layout = BlockPool(block_size, step)
    assert live == request_footprint(OSS_20B, tokens, outputs, layout)
