"""What a KV pool holds and what a sequence takes from it, in whole blocks per group.

Knows: block rounding and per-sequence maxima. Does not know: models, bytes, devices. Whoever
builds a `Capacity` has turned layers and windows into groups already. A contiguous cache is a
group with one token per block; the engine's limit on sequences is a group of slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.limits import check_int

Blocks = tuple[int, ...]


class BlockGroup(msgspec.Struct, frozen=True, kw_only=True):
    """One pool of blocks: all layers of one attention type.

    `max_blocks_per_sequence` bounds a sliding group: beyond its window (and the chunk being
    prefilled) a sequence takes no more. Raises ConfigError.
    """

    name: str
    blocks: int
    block_tokens: int
    max_blocks_per_sequence: int | None = None

    def __post_init__(self) -> None:
        check_int(f"blocks of group {self.name}", self.blocks, low=1)
        check_int(f"block_tokens of group {self.name}", self.block_tokens, low=1)
        if self.max_blocks_per_sequence is not None:
            name = f"max_blocks_per_sequence of group {self.name}"
            check_int(name, self.max_blocks_per_sequence, low=1)

    def need(self, tokens: int) -> int:
        """Blocks of one sequence with `tokens` tokens in the cache."""
        blocks = -(-tokens // self.block_tokens)
        most = self.max_blocks_per_sequence
        return blocks if most is None or blocks < most else most


def slots(count: int) -> BlockGroup:
    """A group of which every sequence takes exactly one, whatever its length."""
    return BlockGroup(name="slots", blocks=count, block_tokens=1, max_blocks_per_sequence=1)


class Capacity(msgspec.Struct, frozen=True):
    """The groups of one replica's pool. `Blocks` tuples follow their order."""

    groups: tuple[BlockGroup, ...]

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"capacity needs groups with different names, not {names}")

    @property
    def total(self) -> Blocks:
        return tuple([group.blocks for group in self.groups])

    @property
    def empty(self) -> Blocks:
        return (0,) * len(self.groups)

    def need(self, tokens: int, sequences: int = 1) -> Blocks:
        """Blocks that `sequences` sequences of `tokens` tokens each take; nothing is shared."""
        return tuple([group.need(tokens) * sequences for group in self.groups])

    def longest_tokens(self, free: Sequence[int], sequences: int = 1) -> int | None:
        """Tokens each of `sequences` equal sequences may have within `free`; None: no limit."""
        longest: int | None = None
        for group, blocks in zip(self.groups, free, strict=True):
            each = max(blocks, 0) // sequences
            most = group.max_blocks_per_sequence
            if most is not None and each >= most:
                continue
            tokens = each * group.block_tokens
            if longest is None or tokens < longest:
                longest = tokens
        return longest

    def share(self, blocks: Sequence[int]) -> float:
        """The fullest group's part of the pool (dominant share), 1.0 the whole."""
        return max(taken / group.blocks for group, taken in zip(self.groups, blocks, strict=True))


def fits(need: Sequence[int], free: Sequence[int]) -> bool:
    """Whether every group has room."""
    for wanted, left in zip(need, free, strict=True):  # noqa: SIM110 - twice as fast as all()
        if wanted > left:
            return False
    return True
