"""One plan of KV pools that fits every rank.

Knows: each rank's layers and budget; that all ranks use one set of block tables. Does not know:
processes, tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpt_oss_server.memory.architecture import LayerAttention, ModelShape
from gpt_oss_server.memory.kv import PoolGroup, PoolPlan, cache_groups


@dataclass(frozen=True)
class Share:
    """What one rank brings: its layers from `first_layer` on, and bytes for their KV."""

    rank: int
    first_layer: int
    layers: tuple[LayerAttention, ...]
    budget_bytes: int

    def shape(self, like: ModelShape) -> ModelShape:
        return replace(like, layers=self.layers)


@dataclass(frozen=True)
class CommonPlan:
    """`whole` counts every rank's bytes, in `whole.groups` the layers of the entire model.
    `members[r][g]` are the layers of rank r, counted from its first, in group g."""

    whole: PoolPlan
    local: tuple[PoolPlan, ...]

    @property
    def blocks(self) -> list[int]:
        return [group.num_blocks for group in self.whole.groups]

    def members(self, rank: int) -> list[list[int]]:
        return [list(group.layer_indices) for group in self.local[rank].groups]


def common_plan(
    shares: Sequence[Share],
    like: ModelShape,
    block_size: int,
    dtype_bytes: int,
    plan: Callable[[ModelShape, int], PoolPlan],
    total_bytes: int | None = None,
) -> CommonPlan:
    """Pools with as many blocks as the rank that has least room for each can hold.

    Args:
        shares: by rank; stages in order, or tensor ranks that all have every layer.
        like: any of the ranks' shapes: what they have in common.
        plan: pools for a shape within a budget.
        total_bytes: what all ranks' pools may take together, whatever their budgets say.
    """
    whole = replace(like, layers=_all_layers(shares))
    groups = cache_groups(whole, dtype_bytes)
    group_of = {index: g for g, group in enumerate(groups) for index in group.layer_indices}
    blocks: dict[int, int] = {}
    if total_bytes is not None:
        copies = sum(share.first_layer == 0 for share in shares)
        for g, pool in enumerate(plan(whole, total_bytes // copies).groups):
            blocks[g] = pool.num_blocks
    for share in shares if total_bytes is None else ():
        for own in plan(share.shape(like), share.budget_bytes).groups:
            g = group_of[share.first_layer + own.layer_indices[0]]
            blocks[g] = min(own.num_blocks, blocks.get(g, own.num_blocks))
    local = []
    for share in shares:
        members: list[list[int]] = [[] for _ in groups]
        for index in range(len(share.layers)):
            members[group_of[share.first_layer + index]].append(index)
        rows = [
            sum(share.layers[i].elements_per_token() for i in indices) * dtype_bytes
            for indices in members
        ]
        pools = tuple(
            PoolGroup(group.name, group.window, tuple(indices), blocks[g], row * block_size)
            for g, (group, indices, row) in enumerate(zip(groups, members, rows, strict=True))
        )
        local.append(PoolPlan(pools, 0))
    pools = tuple(
        PoolGroup(
            group.name,
            group.window,
            group.layer_indices,
            blocks[g],
            sum(one.groups[g].block_bytes for one in local),
        )
        for g, group in enumerate(groups)
    )
    holding = [pool for pool in pools if pool.window is None] or list(pools)
    capacity = min(pool.num_blocks for pool in holding) * block_size
    return CommonPlan(
        PoolPlan(pools, capacity), tuple(replace(one, token_capacity=capacity) for one in local)
    )


def overdrawn(plan: CommonPlan, shares: Sequence[Share]) -> dict[int, int]:
    """By rank, bytes of its pools beyond its budget, where there are any: pools of a size that was
    asked for may be larger than what a rank has left."""
    missing = {
        share.rank: local.total_bytes - share.budget_bytes
        for share, local in zip(shares, plan.local, strict=True)
    }
    return {rank: bytes_ for rank, bytes_ in missing.items() if bytes_ > 0}


def _all_layers(shares: Sequence[Share]) -> tuple[LayerAttention, ...]:
    """The entire model's layers, with one rank's heads where all ranks have every layer."""
    layers: list[LayerAttention] = []
    for share in shares:
        if share.first_layer == len(layers):
            layers += share.layers
    return tuple(layers)
