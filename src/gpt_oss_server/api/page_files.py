"""`GET /` and `GET /page/{name}`: the chat page, as files of this package.

Knows: which files there are, how they are typed, cached and confined. Does not know: what is in
them. The page is open to everybody, as `/health` is: what it asks of `/v1` needs a key like any
other request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from gpt_oss_server.api.exchange import Exchange, Header
from gpt_oss_server.api.services import Access, Endpoint, Services
from gpt_oss_server.errors import NotFound

_INDEX = "index.html"
_CONTENT_TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "connect-src 'self'",
        "img-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No string can become markup or code, wherever it comes from.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_CONFINED: tuple[Header, ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


@dataclass(frozen=True)
class PageFile:
    """One file, and the validator that changes with its content."""

    content_type: bytes
    body: bytes

    @cached_property
    def etag(self) -> bytes:
        return b'"%s"' % hashlib.sha256(self.body).hexdigest()[:32].encode()


class ChatPage:
    """The page's files, by name."""

    def __init__(self, files: Mapping[str, PageFile]) -> None:
        self._files = files

    @classmethod
    def load(cls) -> ChatPage:
        """Read the files that are packaged with this module."""
        files = {}
        for file in resources.files("gpt_oss_server.api").joinpath("page").iterdir():
            content_type = _CONTENT_TYPES.get(file.name.rpartition(".")[2])
            if content_type is not None:
                files[file.name] = PageFile(content_type, file.read_bytes())
        return cls(files)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/", self._index, Access.OPEN),
            Endpoint("GET", "/page/{name}", self._named, Access.OPEN),
        )

    async def _index(self, exchange: Exchange, services: Services) -> None:
        await self._send(exchange, _INDEX)

    async def _named(self, exchange: Exchange, services: Services) -> None:
        await self._send(exchange, exchange.rest)

    async def _send(self, exchange: Exchange, name: str) -> None:
        """Raises NotFound for a name that is not one of the page's files."""
        file = self._files.get(name)
        if file is None:
            raise NotFound(f"The chat page has no file {name[:200]!r}.", code="unknown_url")
        # Asked again each time, and answered in a few bytes unless the server was upgraded.
        cached: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"etag", file.etag))
        if _matches(exchange.header(b"if-none-match"), file.etag):
            await exchange.reply_bytes(b"", (*cached, *_CONFINED), status=304)
            return
        typed: Header = (b"content-type", file.content_type)
        await exchange.reply_bytes(file.body, (typed, *cached, *_CONFINED))


def _matches(offered: bytes | None, etag: bytes) -> bool:
    """Whether `If-None-Match` names this file (RFC 9110, 13.1.2: compared weakly)."""
    if offered is None:
        return False
    tags = [tag.strip().removeprefix(b"W/") for tag in offered.split(b",")]
    return etag in tags or tags == [b"*"]
