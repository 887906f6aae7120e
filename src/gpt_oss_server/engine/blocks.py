"""A pool of KV blocks: who holds which, and which hold a prefix that may be used again.

Knows: block ids, reference counts, content hashes, least-recently-used order. Does not know:
tensors, sequences, or what a block's bytes are. Pure Python, no torch.

Every block is in exactly one of three states: *held* (reference count > 0), *cached* (count 0,
content still addressable by hash, evictable) or *free* (count 0, no content).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16


class OutOfBlocks(Exception):
    """The pool cannot give that many blocks, even after evicting all that is cached."""


class BlockPool:
    """Reference-counted blocks `0 .. num_blocks-1` with hash-addressed reuse.

    `allocate` prefers free blocks and then evicts the least recently released cached one, so a
    hot prefix (a system prompt) outlives cold ones.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError("a pool needs at least one block")
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._owner: dict[int, str] = {}
        self._owned: dict[str, dict[int, None]] = {}

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free plus cached."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def in_use(self) -> int:
        return self.num_blocks - self.available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with reference count 1. Raises OutOfBlocks and takes none if
        fewer are available."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks wanted, {self.available} available")
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def release(self, blocks: Iterable[int], *, cold: bool = False) -> None:
        """Drop one reference from each. Pass a sequence's blocks last-first, so that the tail
        of a prefix is evicted before its head (a head without its tail is still useful). With
        `cold`, what becomes cached is the first to be evicted instead of the last."""
        for block in blocks:
            refs = self._refs[block] - 1
            if refs < 0:
                raise RuntimeError(f"block {block} released more often than taken")
            self._refs[block] = refs
            if refs == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None
                    if cold:
                        self._cached.move_to_end(block, last=False)

    def register(self, block: int, content: bytes, owner: str | None = None) -> None:
        """Make a held, completely written block addressable by its content hash. The first
        block of a content wins; a second one with the same content stays anonymous. `owner` is
        the session that `forget_owner` may later be called for."""
        if content not in self._by_hash and self._hash_of[block] is None:
            self._by_hash[content] = block
            self._hash_of[block] = content
            if owner is not None:
                self._owner[block] = owner
                self._owned.setdefault(owner, {})[block] = None

    def contains(self, content: bytes) -> bool:
        return content in self._by_hash

    def acquire(self, contents: Sequence[bytes], owner: str | None = None) -> list[int]:
        """Take a reference on the blocks with these contents; all must be present. What another
        owner than the first uses (a shared system prompt) belongs to nobody from then on."""
        blocks = [self._by_hash[content] for content in contents]
        for block in blocks:
            if self._owner.get(block) != owner:
                self._disown(block)
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1
        return blocks

    def idle(self, contents: Sequence[bytes]) -> int:
        """How many of these cached contents nobody holds: acquiring them lowers `available`."""
        return sum(self._refs[self._by_hash[content]] == 0 for content in contents)

    def forget(self) -> None:
        """Drop all cached content; held blocks keep theirs."""
        while self._cached:
            self._free.append(self._evict())

    def forget_owner(self, owner: str, keep: int = 0) -> int:
        """Drop the cached content of one owner but for its first `keep` blocks, in the order in
        which they were registered. Held blocks stay. Returns how many were dropped."""
        dropped = 0
        for block in list(self._owned.get(owner, {}))[keep:]:
            if self._refs[block] == 0:
                del self._cached[block]
                self._clear(block)
                self._free.append(block)
                dropped += 1
        return dropped

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._clear(block)
        return block

    def _clear(self, block: int) -> None:
        """Take a block's content and owner from it."""
        content = self._hash_of[block]
        if content is not None:
            del self._by_hash[content]
            self._hash_of[block] = None
        self._disown(block)

    def _disown(self, block: int) -> None:
        owner = self._owner.pop(block, None)
        if owner is not None:
            owned = self._owned[owner]
            del owned[block]
            if not owned:
                del self._owned[owner]


class PrefixHasher:
    """Chained hashes of a growing token sequence, one per complete block.

    `hashes[i]` identifies tokens `0 .. (i+1)*block_size-1`, not only block i's own: equal hash
    means equal prefix. BLAKE2b with 128 bits: a collision between tenants' prompts is not a
    practical event, which a 64-bit Python hash could not promise.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.hashes: list[bytes] = []

    def extend(self, tokens: npt.NDArray[np.int32]) -> None:
        """Hash the blocks that `tokens` (the whole sequence so far) completes."""
        size = self._block_size
        last = self.hashes[-1] if self.hashes else b""
        for index in range(len(self.hashes), len(tokens) // size):
            chunk = tokens[index * size : (index + 1) * size].tobytes()
            last = blake2b(last + chunk, digest_size=HASH_BYTES).digest()
            self.hashes.append(last)
