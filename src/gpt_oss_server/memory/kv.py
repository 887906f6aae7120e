"""KV cache bytes: what a sequence holds, what a request will need, how to split a budget.

Knows: a `ModelShape`, cache layouts, block arithmetic. Does not know: tensors, devices, or which
requests exist. All figures are bytes on one tensor-parallel rank, exact for `shape.exact` and an
upper bound otherwise.

Two layouts exist. `BlockPool` is this server's own: layers with the same reach and geometry share
a pool (a *group*); a block of a group holds `block_size` tokens for all its layers. `Contiguous`
is transformers' `DynamicCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.memory.architecture import LayerAttention, ModelShape
from gpt_oss_server.memory.blocks import (
    Reach,
    blocks_held,
    ceil_div,
    max_blocks_in_life,
    max_blocks_in_step,
    max_blocks_of_batch,
)
from gpt_oss_server.memory.errors import PoolTooSmall
from gpt_oss_server.types import KvGroupInfo

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
)
SLIDING_SPARE = (5, 4)
_NO_BLOCKS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class BlockPool:
    """Our paged cache. `step_tokens` is the most tokens of one sequence that a step computes;
    `compressed` stores latent rows instead of expanded heads."""

    block_size: int = 16
    step_tokens: int = 1
    compressed: bool = False


@dataclass(frozen=True)
class Contiguous:
    """transformers' `DynamicCache`: a full or latent layer keeps every token, a layer with a
    window the last w−1 (`view=True`), in storage that also has the rows of the last forward:
    min(n − q, w − 1) + q rows for q = `last_forward_tokens`. With q = 1 that is min(n, w), the
    most a window costs while decoding. Latent layers are held compressed. Chunks count as
    windows; a window of 1 drops nothing (its slice `[-1 + 1:]` is everything).
    """

    last_forward_tokens: int = 1
    view: bool = False
    compressed: bool = True

    def rows(self, tokens: int, window: int | None) -> int:
        """Rows that one layer keeps after `tokens` tokens."""
        if window is None or window == 1:
            return tokens
        if self.view:
            return min(tokens, window - 1)
        fresh = min(tokens, max(1, self.last_forward_tokens))
        return min(tokens - fresh, window - 1) + fresh


CacheLayout = BlockPool | Contiguous


@dataclass(frozen=True)
class CacheGroup:
    """Layers that can share a pool: same reach, same geometry. `layer_indices` count from the
    shape's first layer; `row_bytes` is one token in all of them on one rank."""

    name: str
    reach: Reach
    layer_indices: tuple[int, ...]
    row_bytes: int

    @property
    def window(self) -> int | None:
        return self.reach.window

    @property
    def layers(self) -> int:
        return len(self.layer_indices)


@dataclass(frozen=True)
class PoolGroup:
    """One pool of a plan: `num_blocks` blocks of `block_bytes` each, on one rank."""

    name: str
    window: int | None
    layer_indices: tuple[int, ...]
    num_blocks: int
    block_bytes: int

    @property
    def layers(self) -> int:
        return len(self.layer_indices)

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


@dataclass(frozen=True)
class PoolPlan:
    """Pools that fit a budget. `token_capacity` is the tokens they hold at once: those of the
    pools without a window, or of the smallest pool where every layer has one."""

    groups: tuple[PoolGroup, ...]
    token_capacity: int

    @property
    def total_bytes(self) -> int:
        return sum(group.total_bytes for group in self.groups)


@dataclass(frozen=True)
class Footprint:
    """What one request costs at its worst moment, on one rank. `tokens` is the KV rows that it
    computes; `blocks` maps group names to blocks (empty for a contiguous cache)."""

    bytes: int
    tokens: int
    blocks: Mapping[str, int]
    exact: bool
    warnings: tuple[str, ...]


def cache_groups(
    shape: ModelShape, dtype_bytes: int, tp: int = 1, *, compressed: bool = False
) -> tuple[CacheGroup, ...]:
    """The pools that `shape` needs: those without a window first, then by their first layer.

    Named after their kind (`full`, `sliding` …), numbered from the second of a kind on.
    Ranks hold a share of the heads where `shape.splits_heads`, else all of them. Raises
    `ImpossibleSplit`.
    """
    sharing = tp if shape.splits_heads else 1
    members: dict[LayerAttention, list[int]] = {}
    for index, layer in enumerate(shape.layers):
        members.setdefault(layer, []).append(index)
    groups: list[CacheGroup] = []
    seen: dict[str, int] = {}
    for layer, indices in sorted(members.items(), key=lambda item: item[0].window is not None):
        seen[layer.kind] = seen.get(layer.kind, 0) + 1
        number = seen[layer.kind]
        groups.append(
            CacheGroup(
                name=layer.kind if number == 1 else f"{layer.kind}_{number}",
                reach=Reach(layer.window, layer.kind == "chunked"),
                layer_indices=tuple(indices),
                row_bytes=len(indices)
                * layer.elements_per_token(sharing, compressed=compressed)
                * dtype_bytes,
            )
        )
    return tuple(groups)


def kv_bytes(
    shape: ModelShape, tokens: int, layout: CacheLayout, dtype_bytes: int = 2, tp: int = 1
) -> int:
    """Bytes that a sequence holds between steps, after `tokens` tokens, on one rank.

    Raises `ImpossibleSplit`.
    """
    groups = cache_groups(shape, dtype_bytes, tp, compressed=layout.compressed)
    if isinstance(layout, Contiguous):
        return sum(group.row_bytes * layout.rows(tokens, group.window) for group in groups)
    return sum(
        group.row_bytes * layout.block_size * blocks_held(tokens, layout.block_size, group.reach)
        for group in groups
    )


def kv_bytes_per_token(
    shape: ModelShape, dtype_bytes: int = 2, tp: int = 1, *, compressed: bool = False
) -> int:
    """Bytes that each further token costs for ever: those of the layers without a window."""
    groups = cache_groups(shape, dtype_bytes, tp, compressed=compressed)
    return sum(group.row_bytes for group in groups if group.window is None)


def sliding_cap_bytes(shape: ModelShape, dtype_bytes: int = 2, tp: int = 1) -> int:
    """The most bytes that the layers with a window cost per sequence while decoding, contiguous:
    w rows each."""
    groups = cache_groups(shape, dtype_bytes, tp)
    return sum(group.row_bytes * (group.window or 0) for group in groups)


def kv_tokens(input_tokens: int, max_output_tokens: int) -> int:
    """KV rows that a request computes at most: the last output token is sampled, never fed."""
    return input_tokens + max(0, max_output_tokens - 1)


@dataclass(frozen=True)
class KvEstimator:
    """What requests cost in one cache, worked out once so that each answer takes microseconds.

    Made by `estimator` from a config's shape, or by `estimator_of_pools` from the pools of a
    running engine.
    """

    groups: tuple[CacheGroup, ...]
    layout: CacheLayout
    exact: bool = True
    warnings: tuple[str, ...] = ()

    def footprint(self, input_tokens: int, max_output_tokens: int) -> Footprint:
        """What a request needs if it uses its whole output bound, at its worst moment, on one
        rank.

        Blocks of a pool are the exact maximum over all ways to cut the work into steps of at most
        `layout.step_tokens`; nothing is assumed shared with other requests.
        """
        tokens = kv_tokens(input_tokens, max_output_tokens)
        layout = self.layout
        if isinstance(layout, Contiguous):
            size = sum(group.row_bytes * layout.rows(tokens, group.window) for group in self.groups)
            return Footprint(size, tokens, _NO_BLOCKS, self.exact, self.warnings)
        blocks: dict[str, int] = {}
        size = 0
        for group in self.groups:
            count = max_blocks_in_life(tokens, layout.block_size, group.reach, layout.step_tokens)
            blocks[group.name] = count
            size += group.row_bytes * layout.block_size * count
        return Footprint(size, tokens, MappingProxyType(blocks), self.exact, self.warnings)


def estimator(
    shape: ModelShape, layout: CacheLayout, dtype_bytes: int = 2, tp: int = 1
) -> KvEstimator:
    """The estimator of a model in a cache of this layout, per rank. Raises `ImpossibleSplit`."""
    groups = cache_groups(shape, dtype_bytes, tp, compressed=layout.compressed)
    return KvEstimator(groups, layout, shape.exact, shape.warnings)


def estimator_of_pools(
    pools: Iterable[KvGroupInfo], block_size: int, step_tokens: int = 1
) -> KvEstimator:
    """The estimator of a running engine's pools, exact by what the engine itself says of them."""
    groups = tuple(
        CacheGroup(
            pool.name, Reach(pool.window), tuple(range(pool.layers)), pool.block_bytes // block_size
        )
        for pool in pools
    )
    return KvEstimator(groups, BlockPool(block_size, step_tokens))


def request_footprint(
    shape: ModelShape,
    input_tokens: int,
    max_output_tokens: int,
    layout: CacheLayout,
    dtype_bytes: int = 2,
    tp: int = 1,
) -> Footprint:
    """`KvEstimator.footprint` of a single request. Raises `ImpossibleSplit`."""
    return estimator(shape, layout, dtype_bytes, tp).footprint(input_tokens, max_output_tokens)


def tokens_that_fit(
    shape: ModelShape, budget_bytes: int, layout: CacheLayout, dtype_bytes: int = 2, tp: int = 1
) -> int | None:
    """The longest single sequence (in KV rows) whose worst moment fits the budget; None when
    every layer has a window and any length fits."""

    estimate = estimator(shape, layout, dtype_bytes, tp)

    def cost(tokens: int) -> int:
        return estimate.footprint(tokens, 0).bytes

    # Past this length only the per-token part can still grow, so a cost that fits fits for ever.
    settled = sum(layer.window or 0 for layer in shape.layers) + 1
    if isinstance(layout, BlockPool):
        settled += 2 * layout.block_size + layout.step_tokens
    else:
        settled += layout.last_forward_tokens
    per_token = kv_bytes_per_token(shape, dtype_bytes, tp, compressed=layout.compressed)
    if per_token == 0 and cost(settled) <= budget_bytes:
        return None
    high = settled if per_token == 0 else max(0, budget_bytes) // per_token
    return _largest(0, high, lambda tokens: cost(tokens) <= budget_bytes)


def plan_pools(
    shape: ModelShape,
    kv_bytes_budget: int,
    block_size: int,
    max_num_seqs: int,
    max_batch_tokens: int,
    dtype_bytes: int = 2,
    tp: int = 1,
    *,
    compressed: bool = False,
) -> PoolPlan:
    """Split a budget of bytes (one rank's) between the pools so that the full pool is as large
    as can be without the windowed ones ever being what runs dry.

    A windowed pool never needs more blocks than the full one has, nor more than `max_num_seqs`
    sequences can hold in the worst step of `max_batch_tokens` tokens; a quarter more lets its
    released blocks serve the prefix cache. So with n blocks in the full pools it gets
    min(n, ⌈1.25 · worst⌉), and n is the largest that fits. Where every layer has a window, the
    pools grow with n up to ⌈1.25 · worst⌉ and no further. Any sequence that fits the full pool
    fits the others.

    Raises `PoolTooSmall` when not even one block of each pool fits (or, where every layer has a
    window, one window), `ImpossibleSplit`, `ConfigError` for a block size or a number of
    sequences below one.
    """
    for name, value in (("block_size", block_size), ("max_num_seqs", max_num_seqs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    groups = cache_groups(shape, dtype_bytes, tp, compressed=compressed)
    caps = _window_caps(groups, block_size, max_num_seqs, max_batch_tokens)

    def size(n: int) -> int:
        return sum(pool.total_bytes for pool in _pools(groups, caps, block_size, n))

    unbounded = [group for group in groups if group.window is None]
    windows = [group.window for group in groups if group.window is not None]
    # Without a pool that keeps every token any length is admitted, so a window must fit whole.
    least = 1 if unbounded else max(max_blocks_in_step(block_size, w, 1) for w in windows)
    if size(least) > kv_bytes_budget:
        raise PoolTooSmall(
            f"the KV cache needs at least {size(least)} bytes ({least} blocks of {block_size} "
            f"tokens in each of {len(groups)} pools) but has {max(0, kv_bytes_budget)}",
            needed_bytes=size(least),
        )
    if unbounded:
        most = kv_bytes_budget // (sum(group.row_bytes for group in unbounded) * block_size)
    else:
        most = max(caps.values())
    blocks = _largest(least, most, lambda n: size(n) <= kv_bytes_budget)
    planned = _pools(groups, caps, block_size, blocks)
    holding = [pool for pool in planned if pool.window is None] or list(planned)
    return PoolPlan(planned, min(pool.num_blocks for pool in holding) * block_size)


def _window_caps(
    groups: tuple[CacheGroup, ...], block_size: int, max_num_seqs: int, max_batch_tokens: int
) -> Mapping[str, int]:
    """The most blocks worth giving to each pool with a window: its worst case and a quarter."""
    spare, base = SLIDING_SPARE
    return {
        group.name: ceil_div(
            max_blocks_of_batch(block_size, group.window, max_num_seqs, max_batch_tokens) * spare,
            base,
        )
        for group in groups
        if group.window is not None
    }


def _pools(
    groups: tuple[CacheGroup, ...], caps: Mapping[str, int], block_size: int, blocks: int
) -> tuple[PoolGroup, ...]:
    """Pools of `blocks` blocks, those with a window at most their cap."""
    return tuple(
        PoolGroup(
            group.name,
            group.window,
            group.layer_indices,
            num_blocks=min(blocks, caps.get(group.name, blocks)),
            block_bytes=group.row_bytes * block_size,
        )
        for group in groups
    )


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in low … high that fits, given that `low` does and that what fits
    stays fitting below."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
