"""Asks a running server for its bundle.

Knows: HTTP, and what each way of not getting an answer means. Does not know: what is in a bundle.
"""

from __future__ import annotations

import http.client
import ipaddress
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from gpt_oss_server.errors import ConfigError

_PATH = "/admin/debug/bundle"
_MAX_BYTES = 256 << 20


class NoAnswer(Exception):
    """The server did not give its bundle; the message is one line that says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirection unfollowed: the key is for the server that the operator named, and
    the library would send it along wherever it is told to go."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def bundle_of(url: str, *, form: str, key: str | None, timeout_s: float) -> bytes:
    """The bundle of the server at `url`, as `json` or `zip`. Raises NoAnswer."""
    request = urllib.request.Request(f"{url.rstrip('/')}{_PATH}?format={form}")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    # The server is named by the operator: no proxy stands between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            body: bytes = reply.read(_MAX_BYTES)
            return body
    except urllib.error.HTTPError as error:
        raise NoAnswer(_meaning(error.code)) from None
    except TimeoutError:
        raise NoAnswer(f"it did not answer within {timeout_s:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise NoAnswer(f"it did not answer within {timeout_s:g} s") from None
        reason = getattr(error.reason, "strerror", None) or str(error.reason)
        raise NoAnswer(f"it cannot be reached: {reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"it broke off its answer ({type(error).__name__})") from None


def port_of(url: str) -> int:
    """The port of an address. Raises ConfigError for what is no http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"flag --url: must be an http:// or https:// address, got {url!r}")
    return port or (443 if parts.scheme == "https" else 80)


def is_here(url: str) -> bool:
    """Whether the address is this machine's own, so that looking around here says anything."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _meaning(status: int) -> str:
    if status == 401:
        return "it wants its admin key, or another one: set GPT_OSS_ADMIN_KEY"
    if status == 403:
        return "it gives bundles to loopback clients only, unless it has an admin key"
    if status == 404:
        return "it has no bundle (another server, or an older version)"
    if 300 <= status < 400:
        return f"it redirects (status {status}): give --url the address that it redirects to"
    return f"it answered with status {status}"
