"""What can be done with a response that is stored: see it, its input, delete it, cancel it.

Knows: paths and query parameters below `/v1/responses/`. Does not know: how responses are made or
stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import parse_qsl

import msgspec

from gpt_oss_server.api import responses_wire as wire
from gpt_oss_server.api.exchange import Exchange, Header
from gpt_oss_server.api.responses_shelf import Shelf, owner_of
from gpt_oss_server.api.schema_responses import Include
from gpt_oss_server.api.services import Services
from gpt_oss_server.errors import BadRequest, NotFound

_JSON: Header = (b"content-type", b"application/json")
_MAX_FIELDS = 32
_MAX_LIMIT = 100
_DEFAULT_LIMIT = 20


async def read_response(exchange: Exchange, services: Services) -> None:
    """`GET /v1/responses/{id}` and `GET /v1/responses/{id}/input_items`."""
    id, _, what = exchange.rest.partition("/")
    shelf = _shelf(exchange, services)
    if what == "input_items":
        page = _Page.of(_query(exchange, ("after", "include", "limit", "order")))
        stored = await shelf.get(id)
        await exchange.reply(page.of_items(msgspec.json.decode(stored.input)))
        return
    if what:
        raise _unknown(exchange)
    asked = _query(exchange, ("include", "include_obfuscation", "starting_after", "stream"))
    for name in ("include_obfuscation", "stream"):
        if asked.get(name, "false") != "false":
            raise BadRequest(
                "Only responses that run in the background can be streamed again.", param=name
            )
    if "starting_after" in asked:
        raise BadRequest("Only allowed when 'stream' is true.", param="starting_after")
    await exchange.reply_bytes((await shelf.get(id)).body, (_JSON,))


async def delete_response(exchange: Exchange, services: Services) -> None:
    """`DELETE /v1/responses/{id}`. What continues it can no longer be continued."""
    id, slash, _ = exchange.rest.partition("/")
    if slash:
        raise _unknown(exchange)
    await _shelf(exchange, services).delete(id)
    await exchange.reply(wire.Deleted(id=id))


async def cancel_response(exchange: Exchange, services: Services) -> None:
    """`POST /v1/responses/{id}/cancel`: as in OpenAI's API only a response that runs in the
    background can be cancelled so. Any other is by closing its connection."""
    id, _, what = exchange.rest.partition("/")
    if what != "cancel":
        raise _unknown(exchange)
    await _shelf(exchange, services).get(id)
    raise BadRequest("Cannot cancel a synchronous response.")


def _shelf(exchange: Exchange, services: Services) -> Shelf:
    return Shelf(services.responses, owner_of(exchange, services.api_keys))


def _unknown(exchange: Exchange) -> NotFound:
    return NotFound(
        f"Unknown request URL: {exchange.method} {exchange.path[:200]}.", code="unknown_url"
    )


def _query(exchange: Exchange, known: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters; lists (`include[]`) are checked and left out. Raises BadRequest
    for one that is not known."""
    try:
        pairs = parse_qsl(
            exchange.query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise BadRequest("The query has too many parameters.") from None
    found: dict[str, str] = {}
    for key, value in pairs:
        name = key.partition("[")[0]
        if name not in known:
            raise BadRequest(
                f"Unrecognized request argument supplied: {key[:200]}",
                param=key[:200],
                code="unknown_parameter",
            )
        if name == "include":
            if value not in get_args(Include):
                supported = ", ".join(get_args(Include))
                raise BadRequest(f"Invalid value for 'include': not of {supported}.", param=name)
            continue
        found[name] = value
    return found


@dataclass(frozen=True)
class _Page:
    """Which part of a list is wanted."""

    after: str | None = None
    limit: int = _DEFAULT_LIMIT
    newest_first: bool = True

    @classmethod
    def of(cls, query: Mapping[str, str]) -> _Page:
        text = query.get("limit", str(_DEFAULT_LIMIT))
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
        if not 1 <= limit <= _MAX_LIMIT:
            raise BadRequest(f"limit must be from 1 to {_MAX_LIMIT}.", param="limit")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest("order must be asc or desc.", param="order")
        return cls(query.get("after"), limit, order == "desc")

    def of_items(self, items: list[dict[str, Any]]) -> wire.ItemList:
        """The page. Raises BadRequest if there is no item to come after."""
        if self.newest_first:
            items = items[::-1]
        if self.after is not None:
            places = [index for index, item in enumerate(items) if item["id"] == self.after]
            if not places:
                raise BadRequest("No item has this id.", param="after")
            items = items[places[0] + 1 :]
        data = items[: self.limit]
        return wire.ItemList(
            data=data,
            first_id=data[0]["id"] if data else None,
            last_id=data[-1]["id"] if data else None,
            has_more=len(items) > len(data),
        )
