"""`GET /admin/debug/bundle`: all that helps to find out what is wrong, as JSON or as a zip.

Knows: HTTP and the two forms. Does not know: what is in a bundle.
"""

from __future__ import annotations

import time
from urllib.parse import parse_qs

from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Access, Endpoint, Services
from gpt_oss_server.bundle.pack import as_json, as_zip, file_name
from gpt_oss_server.bundle.server import ServerBundle
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.lifecycle import in_daemon_thread

_FORMATS = ("json", "zip")


class BundleEndpoint:
    """Serves one bundle per request, for administrators."""

    def __init__(self, bundle: ServerBundle) -> None:
        self._bundle = bundle

    def endpoint(self) -> Endpoint:
        return Endpoint("GET", "/admin/debug/bundle", self._answer, Access.ADMIN)

    async def _answer(self, exchange: Exchange, services: Services) -> None:
        form = _form(exchange)
        document = await self._bundle.document()
        no_store = (b"cache-control", b"no-store")
        if form == "json":
            body = await in_daemon_thread(lambda: as_json(document))
            headers = ((b"content-type", b"application/json"), no_store)
            await exchange.reply_bytes(body, headers)
            return
        body = await in_daemon_thread(lambda: as_zip(document))
        name = file_name(time.time(), "zip")
        attached = (b"content-disposition", f'attachment; filename="{name}"'.encode())
        headers = ((b"content-type", b"application/zip"), no_store)
        await exchange.reply_bytes(body, (*headers, attached))


def _form(exchange: Exchange) -> str:
    """`?format=`; raises BadRequest for one that is not known."""
    asked = parse_qs(exchange.query.decode("latin-1"), keep_blank_values=True)
    form = asked.get("format", ["json"])[-1]
    if form not in _FORMATS:
        raise BadRequest(f"format must be one of {', '.join(_FORMATS)}.", param="format")
    return form
