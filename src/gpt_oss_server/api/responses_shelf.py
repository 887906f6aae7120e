"""One client's view of the stored responses, and what is said where something is not there.

Knows: whose responses are whose, what a failing store means for a request. Does not know: how
responses are stored, how they are made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.responses_items import Item
from gpt_oss_server.errors import BadRequest, NotFound, NotReady
from gpt_oss_server.responses_store.records import (
    MAX_HISTORY_BYTES,
    History,
    NotStored,
    StoredResponse,
    StoreUnavailable,
)
from gpt_oss_server.responses_store.sqlite import SqliteResponses
from gpt_oss_server.responses_store.thread import ResponseStore

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_REFERENCES = 1024


def owner_of(exchange: Exchange, keys: KeyRing) -> str:
    """Whose responses a request may see: those made with the same key, or, where no keys are set,
    all that were made without one. A digest: the store holds no keys, and their order may
    change."""
    if not keys:
        return ""
    token = (exchange.header(b"authorization") or b"").partition(b" ")[2].strip()
    return hashlib.blake2b(token, digest_size=16, person=b"gors responses").hexdigest()


@dataclass(frozen=True)
class Shelf:
    """The responses of one owner. `store` is None on a server that keeps none."""

    store: ResponseStore | None
    owner: str

    async def will_keep(self, wanted: bool | None) -> bool:
        """Whether a response is to be kept. Raises BadRequest or NotReady where that was insisted
        on and cannot be."""
        if wanted and self.store is None:
            raise BadRequest(
                "This server stores no responses: send store: false, or leave it out.",
                param="store",
            )
        if wanted:
            await self._ask(SqliteResponses.totals)
        return self.store is not None and wanted is not False

    async def keep(
        self, response: wire.Response, items: bytes, item_ids: Sequence[str], *, insisted: bool
    ) -> bool:
        """Store a response with the items of its input (JSON); whether it is stored. Raises
        NotReady if not although that was insisted on."""
        stored = StoredResponse(
            id=response.id,
            owner=self.owner,
            previous=response.previous_response_id,
            created_s=float(response.created_at),
            body=msgspec.json.encode(response),
            input=items,
            item_ids=(*item_ids, *(item.id for item in response.output)),
        )
        try:
            await self._ask(lambda table: table.put(stored))
        except NotReady:
            if insisted:
                raise
            return False
        return True

    async def history(self, id: str) -> History:
        """A response and those before it. Raises BadRequest if any of them is gone."""
        try:
            return await self._ask(lambda table: table.history(self.owner, id))
        except NotStored as gone:
            missing = gone.id or id
            what = "Previous response" if missing == id else "An earlier response of this chain"
            raise BadRequest(
                f"{what} with id '{missing}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from None

    async def with_references(self, items: list[Item]) -> list[Item]:
        """The items, each reference replaced by what it refers to. Raises BadRequest, naming it,
        for one that refers to nothing."""
        places = [index for index, item in enumerate(items) if item["type"] == "item_reference"]
        if not places:
            return items
        if len(places) > MAX_REFERENCES:
            raise BadRequest(f"At most {MAX_REFERENCES} references are allowed.", param="input")
        wanted = frozenset(items[index]["id"] for index in places)
        known: dict[str, Item] = {}
        left_bytes = MAX_HISTORY_BYTES
        found = list(items)
        for index in places:
            id = items[index]["id"]
            if id not in known:
                size_bytes, beside = await self._items_beside(id, wanted, index)
                left_bytes -= size_bytes
                if left_bytes < 0:
                    raise BadRequest(
                        "The responses referred to are larger than can be read at once.",
                        param=f"input[{index}].id",
                    )
                known = beside | known
            found[index] = known[id]
        return found

    async def get(self, id: str) -> StoredResponse:
        """Raises NotFound."""
        return await self._existing(id, lambda table: table.get(self.owner, id))

    async def delete(self, id: str) -> None:
        """Raises NotFound."""
        await self._existing(id, lambda table: table.delete(self.owner, id))

    async def _existing(self, id: str, work: Callable[[SqliteResponses], T]) -> T:
        try:
            return await self._ask(work)
        except NotStored:
            raise NotFound(f"Response with id '{id[:256]}' not found.") from None

    async def _items_beside(
        self, id: str, wanted: Collection[str], index: int
    ) -> tuple[int, dict[str, Item]]:
        """Out of one response that has the item: its size in bytes, and all of its items that are
        wanted, so that nothing is read once for each of them. Decoded in the store's thread."""

        def read(table: SqliteResponses) -> tuple[int, dict[str, Item]]:
            stored = table.holding(self.owner, id)
            return stored.size_bytes, items_in(stored, wanted)

        try:
            return await self._ask(read)
        except NotStored:
            raise BadRequest(
                f"Item with id '{id}' not found.", param=f"input[{index}].id"
            ) from None

    async def _ask(self, work: Callable[[SqliteResponses], T]) -> T:
        if self.store is None:
            raise NotStored("")  # whatever it is
        try:
            return await self.store.ask(work)
        except StoreUnavailable:
            raise NotReady(
                "The store of responses is not available at the moment.",
                code="store_unavailable",
                retry_after_s=5.0,
            ) from None


def items_of_turn(stored: StoredResponse) -> list[Item]:
    """What a stored response adds to a conversation: its input and its output."""
    output = msgspec.json.decode(stored.body)["output"]
    return [*msgspec.json.decode(stored.input), *output]


def items_in(stored: StoredResponse, ids: Collection[str]) -> dict[str, Item]:
    """The items with these ids, out of input and output; the first of those that share one."""
    return {item["id"]: item for item in reversed(items_of_turn(stored)) if item["id"] in ids}
