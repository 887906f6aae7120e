"""How many files, and so connections, this process may have open.

Knows: the operating system's limit. Does not know: who opens what.
"""

from __future__ import annotations

import resource

# Enough for any number of clients that one event loop can serve; tables sized by a limit of
# millions, as some containers have, would cost memory.
_ENOUGH = 65_536
# For everything that is no connection: the model's files, logs, pipes, a worker that is restarted.
_RESERVED = 256


def raise_open_file_limit() -> int:
    """Take what the hard limit allows, and return the limit that holds from now on.

    The usual soft limit of 1024 is meant for programs that wait with `select`; nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _ENOUGH if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # forbidden by a sandbox
        return soft
    return wanted


def connection_bound(open_files: int) -> int:
    """How many connections leave enough of `open_files` for everything else."""
    return max(open_files - _RESERVED, open_files // 2, 1)
