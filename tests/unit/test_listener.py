"""The listening socket and what an operator reads when it cannot be had."""

from __future__ import annotations

import errno
import socket

import pytest

from gpt_oss_server.errors import StartupError
from gpt_oss_server.listener import listen, url_of


def refusal(host: str, port: int) -> str:
    """The one line with which an address is refused."""
    with pytest.raises(StartupError) as caught:
        listen(host, port)
    assert caught.value.exit_status == 1
    return str(caught.value)


def test_port_0_takes_a_free_port_and_accepts_at_once() -> None:
    """The socket listens as soon as it is returned; its URL names the real port."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_a_wildcard_has_a_reachable_url() -> None:
    """0.0.0.0 is shown as it is and, where a client is told what to call, as loopback."""
    with listen("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://0.0.0.0:{port}"
        assert url_of(listener, reachable=True) == f"http://127.0.0.1:{port}"


def test_a_busy_port() -> None:
    """A port that another socket listens on is refused in one line that says what to do."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert refusal("127.0.0.1", port) == (
            f"port {port} on 127.0.0.1 is in use: stop the other process or choose --port"
        )


def test_hosts_that_are_not_here() -> None:
    """An address of another machine and a name that cannot be one are each one line."""
    assert refusal("192.0.2.1", 0) == (
        "host 192.0.2.1 is not an address of this machine: choose --host 127.0.0.1 or 0.0.0.0"
    )
    unresolvable = "cannot be resolved: choose --host 127.0.0.1, 0.0.0.0 or an address of this"
    assert refusal("a..b", 0) == f"host a..b {unresolvable} machine"
    assert refusal("x" * 300, 0) == f"host {'x' * 300} {unresolvable} machine"


def test_a_privileged_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the privilege for a low port, the line names the way out."""

    def deny(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", deny)
    assert refusal("127.0.0.1", 80) == (
        "port 80 on 127.0.0.1 needs privileges: choose --port above 1023"
    )


def test_accepted_connections_are_given_up_on_the_dead() -> None:
    """Keep-alive probes and the bound on what stays untaken reach the accepted socket."""
    with listen("127.0.0.1", 0, stall_timeout_s=2.5) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname(), timeout=5):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
                if timeout is not None:
                    assert accepted.getsockopt(socket.IPPROTO_TCP, timeout) == 2500


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no such bound")
def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """What a client neither reads nor leaves does not hold its connection for ever."""
    with listen("127.0.0.1", 0, stall_timeout_s=0.2) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname(), timeout=5):
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(60)
                with pytest.raises(TimeoutError) as caught:
                    accepted.sendall(bytes(64 * 2**20))
    assert caught.value.errno == errno.ETIMEDOUT  # the kernel's; Python's own has none
