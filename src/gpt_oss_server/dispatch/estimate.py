"""What a request will cost, from what the running engine says of itself.

Knows: how an engine's pools become an admission capacity and an estimator. Does not know: who
asks, or what is decided with the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpt_oss_server.admission.capacity import BlockGroup, Capacity, fits, slots
from gpt_oss_server.dispatch.ranks import rank_groups
from gpt_oss_server.memory.blocks import ceil_div, max_blocks_in_step
from gpt_oss_server.memory.kv import KvEstimator, estimator_of_pools
from gpt_oss_server.types import EngineInfo, Job, RankInfo

SLOT_SHARE = 4


def estimator_for(info: EngineInfo) -> KvEstimator:
    """Exact to the block for this engine's pools and its tokens in flight. Bytes are those of all
    ranks: what a request takes of the whole replica, and what routing thresholds are about."""
    return estimator_of_pools(info.kv_groups, info.block_size, _tokens_in_flight(info))


def rank_estimator(info: EngineInfo, rank: RankInfo) -> KvEstimator:
    """The same with the bytes that one rank holds."""
    return estimator_of_pools(rank_groups(info, rank), info.block_size, _tokens_in_flight(info))


def predicted_kv_bytes(
    estimator: KvEstimator, jobs: Sequence[Job], *, at_most_tokens: int | None = None
) -> int:
    """KV bytes of a whole request at its worst moment, were nothing shared. `at_most_tokens`
    lowers the output bounds that are above it."""
    total = one = 0
    measured: tuple[int, int] | None = None
    for job in jobs:
        lengths = (len(job.prompt), job.sampling.max_tokens)
        if at_most_tokens is not None:
            lengths = (lengths[0], min(lengths[1], at_most_tokens))
        # The samples of one prompt come one after the other and all cost the same.
        if lengths != measured:
            measured, one = lengths, estimator.footprint(*lengths).bytes
        total += one
    return total


def capacity_of(info: EngineInfo) -> Capacity:
    """The engine's pools and sequence slots as admission counts them.

    A sequence in a sliding group counts with the most blocks it holds while decoding; what a
    prefill chunk takes beyond that comes, for all sequences together, out of the token budget of
    the steps in flight, which is set aside. Ranks share their block tables: a block counts once.
    """
    groups = []
    for group in info.kv_groups:
        blocks, most = group.num_blocks, None
        if group.window is not None:
            most = min(blocks, max_blocks_in_step(info.block_size, group.window, 1))
            blocks = max(most, blocks - ceil_div(_tokens_in_flight(info), info.block_size))
        groups.append(
            BlockGroup(
                name=group.name,
                blocks=blocks,
                block_tokens=info.block_size,
                max_blocks_per_sequence=most,
            )
        )
    return Capacity((*groups, slots(info.max_num_seqs)))


def at_once(capacity: Capacity, jobs: int, tokens: int) -> int:
    """How many of a request's jobs may run at once, at least one: no more than fit the empty
    pool with `tokens` tokens each, and no more than a quarter of the slots, so that one request
    never has to wait until everybody else is gone."""
    places = capacity.groups[-1].blocks
    most = min(jobs, max(1, places // SLOT_SHARE))
    while most > 1 and not fits(capacity.need(tokens, most), capacity.total):
        most -= 1
    return most


def _tokens_in_flight(info: EngineInfo) -> int:
    """The most that all steps in flight compute: each has an equal share, rounded up."""
    return info.micro_batches * ceil_div(info.max_batch_tokens, info.micro_batches)


def kv_capacity_bytes(info: EngineInfo) -> int:
    return sum(group.num_blocks * group.block_bytes for group in info.kv_groups)


def kv_bytes(info: EngineInfo, blocks: Mapping[str, int]) -> int:
    """Bytes of these blocks per group name; a group that is not named counts as 0."""
    return sum(group.block_bytes * blocks.get(group.name, 0) for group in info.kv_groups)
