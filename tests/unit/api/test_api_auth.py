"""Keys and loopback."""

from __future__ import annotations

import pytest

from gpt_oss_server.api.auth import KeyRing, require_admin, require_api_key
from gpt_oss_server.errors import Forbidden, Unauthorized

RING = KeyRing(("alpha", "bétà"))


@pytest.mark.parametrize(
    "header", [b"Bearer alpha", b"bearer alpha", b" Bearer  alpha ", "Bearer bétà".encode()]
)
def test_right_keys(header: bytes) -> None:
    """Every key of the ring opens, whatever the scheme's case."""
    require_api_key(RING, header)
    assert RING.holds(header.split()[-1])


@pytest.mark.parametrize(
    "header",
    [None, b"", b"alpha", b"Bearer", b"Bearer ", b"Bearer alph", b"Bearer alphaa", b"Basic alpha"],
)
def test_wrong_keys(header: bytes | None) -> None:
    """A missing, malformed or wrong header is refused."""
    with pytest.raises(Unauthorized):
        require_api_key(RING, header)


def test_no_keys_no_question() -> None:
    """An empty ring asks for nothing and holds nothing."""
    require_api_key(KeyRing(), None)
    assert not KeyRing().holds(b"")


def test_keys_are_not_printed() -> None:
    """A ring's repr, which may reach a log, does not show its keys."""
    assert "alpha" not in repr(RING)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_admin_from_loopback(host: str) -> None:
    """Without an admin key, loopback may, with one it needs the key like anyone."""
    require_admin(KeyRing(), None, host)
    with pytest.raises(Unauthorized):
        require_admin(RING, None, host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::2", "::ffff:10.0.0.1", "localhost", "", None])
def test_admin_from_elsewhere(host: str | None) -> None:
    """Without an admin key nobody else may; with the right one anybody may."""
    with pytest.raises(Forbidden):
        require_admin(KeyRing(), None, host)
    require_admin(RING, b"Bearer alpha", host)
