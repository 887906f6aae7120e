"""What is kept of one response, within which bounds, and what can go wrong.

Knows: nouns. Does not know: databases or threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

MAX_HISTORY_BYTES = 32 * 2**20
"""The most of one conversation that is read at a time; no context holds as much text."""


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One response.

    Attributes:
        id: unguessable; unique.
        owner: who may see it, as an opaque text.
        previous: the response that it continues.
        created_s: Unix time in seconds.
        body: the response object, JSON.
        input: the items of its own request (not those of earlier ones), a JSON array.
        item_ids: the ids of the items of `input` and of the output.
    """

    id: str
    owner: str
    previous: str | None = None
    created_s: float
    body: bytes
    input: bytes
    item_ids: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What it counts for: its texts and ids."""
        ids = sum(map(len, self.item_ids)) + len(self.id) + len(self.previous or "")
        return len(self.body) + len(self.input) + len(self.owner) + ids


@dataclass(frozen=True)
class History:
    """A response and those it continues, oldest first; without the oldest ones (`complete` is
    False then) if together they are larger than was asked for."""

    turns: tuple[StoredResponse, ...]
    complete: bool


@dataclass(frozen=True)
class StoreBounds:
    """What may be kept: at most so many responses, so many bytes, each for so many seconds from
    its creation. Beyond count and bytes the ones that were not used for longest go first."""

    max_count: int
    max_bytes: int
    max_age_s: float


class StoreUnavailable(Exception):
    """The store cannot do its work now; the message says why, in one line without content."""


class NotStored(Exception):
    """There is no response `id` for this owner, or no longer."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id
