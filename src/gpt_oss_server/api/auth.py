"""Who may call what: bearer keys compared in constant time, and loopback for administration.

Knows: the `Authorization` header and client addresses. Does not know: which paths need which key.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field

from gpt_oss_server.errors import Forbidden, Unauthorized


@dataclass(frozen=True)
class KeyRing:
    """The keys that open one part of the API; empty means that the part needs no key."""

    keys: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def holds(self, presented: bytes) -> bool:
        """Whether `presented` is one of the keys. Every key is compared, each in constant time,
        so that the duration says nothing about which one came close."""
        return self.index_of(presented) is not None

    def index_of(self, presented: bytes) -> int | None:
        """Which of the keys `presented` is, from 0; None for none. As constant in time."""
        found = None
        for index, key in enumerate(self.keys):
            if hmac.compare_digest(key.encode(), presented):
                found = index
        return found


def require_api_key(ring: KeyRing, authorization: bytes | None) -> None:
    """Pass if the ring is empty or the header carries one of its keys; else Unauthorized."""
    if not ring:
        return
    if authorization is None:
        raise Unauthorized(
            "You didn't provide an API key. Provide it in an Authorization header, "
            "as in `Authorization: Bearer YOUR_KEY`."
        )
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.lower() != b"bearer" or not ring.holds(token.strip()):
        raise Unauthorized("Incorrect API key provided.")


def require_admin(ring: KeyRing, authorization: bytes | None, client_host: str | None) -> None:
    """Pass with an admin key, or, where none is configured, from a loopback address.

    Raises Unauthorized for a missing or wrong key, Forbidden for a client that is not local.
    """
    if ring:
        require_api_key(ring, authorization)
        return
    if not _is_loopback(client_host):
        raise Forbidden("Without an admin key, administration is open to loopback clients only.")


def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
