"""What each rank and each device of an engine holds, in bytes, by what the engine says of itself.

Knows: how blocks become bytes on one rank, which ranks share a device. Does not know: probes, who
asks. Block tables are the same on every rank: what differs is what a block takes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpt_oss_server.types import EngineInfo, KvGroupInfo, RankInfo


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What the ranks on one device hold together. `block_bytes` is by group name."""

    device: str
    weights_bytes: int
    activations_peak_bytes: int
    kv_pool_bytes: int
    block_bytes: Mapping[str, int]

    def kv_bytes(self, blocks: Mapping[str, int]) -> int:
        """Bytes of these blocks here; a group that is not named counts as 0."""
        return sum(size * blocks.get(name, 0) for name, size in self.block_bytes.items())


def ranks_of(info: EngineInfo) -> tuple[RankInfo, ...]:
    """The ranks; one that has everything where the engine names none."""
    if info.ranks:
        return info.ranks
    whole = RankInfo(
        rank=0,
        device=info.device,
        layers=sum(group.layers for group in info.kv_groups),
        weights_bytes=info.weights_bytes,
        kv_bytes=sum(group.num_blocks * group.block_bytes for group in info.kv_groups),
    )
    return (whole,)


def rank_groups(info: EngineInfo, rank: RankInfo) -> tuple[KvGroupInfo, ...]:
    """The pools as they are on one rank: the same blocks, with what a block takes there."""
    sizes = _block_bytes(info, rank)
    return tuple(
        KvGroupInfo(group.name, group.layers, group.window, group.num_blocks, size)
        for group, size in zip(info.kv_groups, sizes, strict=True)
    )


def rank_kv_bytes(info: EngineInfo, rank: RankInfo, blocks: Mapping[str, int]) -> int:
    """Bytes of these blocks, by group name, on one rank."""
    sizes = _block_bytes(info, rank)
    return sum(
        size * blocks.get(group.name, 0) for group, size in zip(info.kv_groups, sizes, strict=True)
    )


def devices_of(info: EngineInfo) -> tuple[DeviceShare, ...]:
    """The devices that the engine computes on, each once, in the order of their first rank. What
    it left in the memory of the host beside GPUs, or on disk, is not among them."""
    shares: list[DeviceShare] = []
    names = [group.name for group in info.kv_groups]
    members: dict[str, list[RankInfo]] = {}
    for rank in ranks_of(info):
        if same_kind(rank.device, info.device):
            members.setdefault(rank.device, []).append(rank)
    for device, ranks in members.items():
        sizes = zip(*(_block_bytes(info, rank) for rank in ranks), strict=True)
        shares.append(
            DeviceShare(
                device=device,
                weights_bytes=sum(rank.weights_bytes for rank in ranks),
                activations_peak_bytes=info.activations_peak_bytes * len(ranks),
                kv_pool_bytes=sum(rank.kv_bytes for rank in ranks),
                block_bytes=dict(zip(names, map(sum, sizes), strict=True)),
            )
        )
    return tuple(shares)


def same_kind(device: str, other: str) -> bool:
    """Whether both are CPUs, or both GPUs."""
    return device.partition(":")[0] == other.partition(":")[0]


def replica_gpus(info: EngineInfo) -> int:
    """Over how many GPUs the replica is spread; ranks on a CPU stand for one each."""
    return sum(same_kind(rank.device, info.device) for rank in ranks_of(info))


def _block_bytes(info: EngineInfo, rank: RankInfo) -> tuple[int, ...]:
    return rank.block_bytes or tuple(group.block_bytes for group in info.kv_groups)
