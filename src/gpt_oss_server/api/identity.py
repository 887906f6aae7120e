"""Who a request comes from, as fairness and sessions see it: client, priority, session.

Knows: headers, keys, the conversation's first turn. Does not know: what is done with the answers.
Nothing here is a secret or a prompt: a key becomes its number, a conversation a hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpt_oss_server.admission.config import DEFAULT_PRIORITY, parse_priority
from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Services
from gpt_oss_server.dispatch.desk import Call
from gpt_oss_server.errors import BadRequest
from gpt_oss_server.types import Job

_SANE_SESSION = re.compile(rb"[A-Za-z0-9._:@-]{1,128}")


def call_of(
    exchange: Exchange, services: Services, jobs: list[Job], session_id: str | None
) -> Call:
    """The request as the desk wants it. Raises BadRequest for a priority that is none."""
    trail = exchange.trail
    trail.client_class = "key" if services.api_keys else "address"
    trail.session_known = session_id is not None
    trail.priority = priority = priority_of(exchange, services.api_keys, services.key_priorities)
    return Call(
        request_id=exchange.request_id,
        jobs=jobs,
        client_id=client_of(exchange, services.api_keys),
        session_id=session_id,
        trace_id=trail.trace.trace_id,
        priority=priority,
        trail=trail,
    )


def client_of(exchange: Exchange, keys: KeyRing) -> str:
    """The unit of fairness: the API key's number where keys are set, else the address."""
    if keys:
        return f"key-{_key_of(exchange, keys)}"
    return exchange.client_host or "local"


def priority_of(exchange: Exchange, keys: KeyRing, of_keys: Sequence[int] = ()) -> int:
    """`X-Priority`, 0 (lowest) to 9; without it the key's own, out of `of_keys`, or the default.

    Raises BadRequest for anything else, and for more than the key's own.
    """
    index = _key_of(exchange, keys) if of_keys else None
    own = None if index is None else of_keys[index]
    text = exchange.header(b"x-priority")
    if text is None:
        return DEFAULT_PRIORITY if own is None else own
    try:
        wanted = parse_priority(text.decode("latin-1").strip())
    except ValueError as error:
        raise BadRequest(f"{error}.", param="X-Priority") from None
    if own is not None and wanted > own:
        raise BadRequest(f"priority must be at most {own} with this key.", param="X-Priority")
    return wanted


def _key_of(exchange: Exchange, keys: KeyRing) -> int | None:
    token = (exchange.header(b"authorization") or b"").partition(b" ")[2].strip()
    return keys.index_of(token)


def named_session(exchange: Exchange, user: str | None) -> str | None:
    """The conversation that the client says this belongs to: `X-Session-Id`, else `user`, else
    None. Raises BadRequest for a header that is no id."""
    header = exchange.header(b"x-session-id")
    if header is not None:
        if not _SANE_SESSION.fullmatch(header):
            raise BadRequest(
                "X-Session-Id must be 1 to 128 letters, digits or any of . _ : @ -",
                param="X-Session-Id",
            )
        return f"id:{header.decode()}"
    return f"user:{_digest(user.encode())}" if user else None


def opening_session(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation by its beginning, up to its first user message, which every later turn
    repeats. May take long where that is long."""
    opening = []
    for message in messages:
        opening.append(message)
        if message.get("role") == "user":
            break
    return f"prefix:{_digest(msgspec.json.encode(opening))}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
