"""One plan of pools for all ranks, and a step's layout as it travels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.engine.ranks.messages import Step
from gpt_oss_server.engine.ranks.packing import pack, unpack
from gpt_oss_server.engine.ranks.pools import Share, common_plan, overdrawn
from gpt_oss_server.engine.step import HostLayout, StepLayout
from gpt_oss_server.memory.architecture import LayerAttention, ModelShape
from gpt_oss_server.memory.kv import PoolPlan, plan_pools

FULL = LayerAttention("full", None, kv_heads=2, k_dim=16, v_dim=16)
SLIDING = LayerAttention("sliding", 16, kv_heads=2, k_dim=16, v_dim=16)
SIZE, ITEM = 16, 4
# One layer's block: 16 tokens of 2 heads with keys and values of 16 float32.
LAYER_BLOCK = 16 * 2 * 32 * 4


def shape(*layers: LayerAttention) -> ModelShape:
    return ModelShape("gpt_oss", layers, 64, 4, 256, 2048)


def plan(of: ModelShape, budget: int) -> PoolPlan:
    return plan_pools(of, budget, SIZE, 8, 64, ITEM)


def planned(*shares: Share, total: int | None = None):  # type: ignore[no-untyped-def]
    return common_plan(shares, shape(*shares[0].layers), SIZE, ITEM, plan, total)


def test_the_poorest_rank_bounds_all() -> None:
    """Two stages of the same layers, one with half the memory: both get its blocks."""
    rich = Share(0, 0, (SLIDING, FULL), 100 * LAYER_BLOCK)
    poor = Share(1, 2, (SLIDING, FULL), 40 * LAYER_BLOCK)
    common = planned(rich, poor)
    alone = plan(shape(SLIDING, FULL), 40 * LAYER_BLOCK)
    assert common.blocks == [group.num_blocks for group in alone.groups] == [20, 20]
    assert common.whole.token_capacity == alone.token_capacity == 320
    assert [(g.name, g.layer_indices) for g in common.whole.groups] == [
        ("full", (1, 3)),
        ("sliding", (0, 2)),
    ]
    assert [g.block_bytes for g in common.whole.groups] == [2 * LAYER_BLOCK] * 2
    assert [local.total_bytes for local in common.local] == [40 * LAYER_BLOCK] * 2
    assert (common.members(0), common.members(1)) == ([[1], [0]], [[1], [0]])


def test_pools_that_were_asked_for_may_be_more_than_a_rank_has_left() -> None:
    """Only the rank that lacks it is named, with the bytes; pools that follow from the budgets lack
    nothing."""
    rich = Share(0, 0, (SLIDING, FULL), 100 * LAYER_BLOCK)
    poor = Share(1, 2, (SLIDING, FULL), 40 * LAYER_BLOCK)
    asked = planned(rich, poor, total=120 * LAYER_BLOCK)
    assert [local.total_bytes for local in asked.local] == [60 * LAYER_BLOCK] * 2
    assert overdrawn(asked, [rich, poor]) == {1: 20 * LAYER_BLOCK}
    assert overdrawn(planned(rich, poor), [rich, poor]) == {}


def test_stages_may_lack_a_group() -> None:
    """A stage of sliding layers alone bounds nothing that it does not have, and allocates no full
    pool; tables are the same on both."""
    common = planned(
        Share(0, 0, (SLIDING,), 30 * LAYER_BLOCK), Share(1, 1, (FULL,), 50 * LAYER_BLOCK)
    )
    assert [(g.name, g.num_blocks) for g in common.whole.groups] == [
        ("full", 50),
        ("sliding", 30),
    ]
    assert (common.members(0), common.members(1)) == ([[], [0]], [[0], []])
    assert [local.total_bytes for local in common.local] == [30 * LAYER_BLOCK, 50 * LAYER_BLOCK]
    assert common.whole.total_bytes == 80 * LAYER_BLOCK


def test_tensor_ranks_all_have_every_layer() -> None:
    """Blocks count once, bytes on every rank."""
    half = LayerAttention("full", None, kv_heads=1, k_dim=16, v_dim=16)
    common = planned(
        Share(0, 0, (half, half), 10 * LAYER_BLOCK), Share(1, 0, (half, half), 8 * LAYER_BLOCK)
    )
    assert common.blocks == [8]
    assert common.whole.groups[0].layer_indices == (0, 1)
    assert common.whole.groups[0].block_bytes == 2 * LAYER_BLOCK
    assert [local.groups[0].block_bytes for local in common.local] == [LAYER_BLOCK] * 2


@pytest.mark.parametrize("tensor", [False, True])
def test_a_total_is_shared_whatever_budgets_say(tensor: bool) -> None:
    """Bytes that the operator gives are for all ranks together."""
    if tensor:
        half = LayerAttention("full", None, kv_heads=1, k_dim=16, v_dim=16)
        shares = [Share(rank, 0, (half, half), 1) for rank in range(2)]
    else:
        shares = [Share(rank, rank, (FULL,), 1) for rank in range(2)]
    common = planned(*shares, total=21 * LAYER_BLOCK)
    assert common.blocks == [10]
    assert common.whole.total_bytes == 20 * LAYER_BLOCK
    assert [local.total_bytes for local in common.local] == [10 * LAYER_BLOCK] * 2


@given(st.data())
def test_a_layout_travels_unchanged(data: st.DataObject) -> None:
    """What a follower unpacks is what the leader laid out, number types included."""
    lens = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    start = np.concatenate([[0], np.cumsum(lens)]).astype(np.int64)
    groups, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    tables = tuple(
        np.arange(len(lens) * columns, dtype=np.int32).reshape(len(lens), columns) + g
        for g in range(groups)
    )
    rows = start[1:][data.draw(st.lists(st.integers(0, len(lens) - 1), unique=True))] - 1
    layout = StepLayout(
        np.arange(start[-1], dtype=np.int64),
        rows,
        HostLayout(start, np.asarray(lens, dtype=np.int64) + 7, tables),
    )
    step = pack(layout)
    assert isinstance(step, Step)
    back = unpack(step)
    for mine, theirs in [
        (layout.token_ids, back.token_ids),
        (layout.sample_rows, back.sample_rows),
        (layout.host.query_start, back.host.query_start),
        (layout.host.seq_lens, back.host.seq_lens),
        *zip(layout.host.tables, back.host.tables, strict=True),
    ]:
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.tolist() == theirs.tolist()
    assert all(table.flags.writeable for table in back.host.tables)
