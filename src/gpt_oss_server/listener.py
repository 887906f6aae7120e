"""The listening socket: bound before anything else, so that a busy port fails at once.

Knows: addresses, and what each way of failing to bind means to an operator. Does not know: HTTP.
"""

from __future__ import annotations

import errno
import socket

from gpt_oss_server.errors import StartupError

_BACKLOG = 2048
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on the address; port 0 takes a free one.

    It listens at once, and not only binds, because two sockets may be *bound* to one address
    with SO_REUSEADDR: the second server would find out minutes later.

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


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop the other process or choose --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs privileges: choose --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine: choose --host 127.0.0.1 or 0.0.0.0"
    return f"cannot listen on port {port} of {host}: {error.strerror}"
