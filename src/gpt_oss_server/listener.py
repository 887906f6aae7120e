"""The listening socket: bound before anything else, so that a busy port fails at once.

Knows: addresses, what each way of failing to bind means to an operator, and how the kernel is
told to give up on a client. Does not know: HTTP.
"""

from __future__ import annotations

import errno
import socket

from gpt_oss_server.errors import StartupError

_BACKLOG = 2048
# The host is gone if it does not answer to this many probes, this far apart.
_PROBE_AFTER_S = 60
_PROBES = 4
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def listen(host: str, port: int, *, stall_timeout_s: float = 60.0) -> socket.socket:
    """A TCP socket that listens on the address; port 0 takes a free one.

    It listens at once, and not only binds, because two sockets may be *bound* to one address
    with SO_REUSEADDR: the second server would find out minutes later.

    Args:
        stall_timeout_s: after which a connection is cut whose client takes nothing of what is
            written to it, or has vanished without a word.

    Raises:
        StartupError: one line that says which flag to change.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise StartupError(
            f"host {host} cannot be resolved: choose --host 127.0.0.1, 0.0.0.0 or an address of "
            "this machine"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _give_up_on_the_dead(listener, stall_timeout_s)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(_explain(error, host, port)) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, *, reachable: bool = False) -> str:
    """`http://host:port` of the socket; `reachable` turns a wildcard into the loopback address."""
    host, port = listener.getsockname()[:2]
    if reachable:
        host = _WILDCARDS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _give_up_on_the_dead(listener: socket.socket, stall_timeout_s: float) -> None:
    """Let the kernel end what no timer of an event loop sees: an answer that is complete for us
    and not taken by the client, and a peer that lost its power. Accepted sockets inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_AFTER_S),
        ("TCP_KEEPINTVL", _PROBE_AFTER_S // _PROBES),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", max(1, round(stall_timeout_s * 1000))),
    ):
        option = getattr(socket, name, None)  # not every system has them all
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop the other process or choose --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges: choose --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine: choose --host 127.0.0.1 or 0.0.0.0"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
