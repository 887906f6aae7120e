"""Whether a file that is written later can be: asked before anything else is started.

Knows: files. Does not know: what goes into them.
"""

from __future__ import annotations

import errno
import os

from gpt_oss_server.errors import ConfigError


def check_appendable(setting: str, path: str | None) -> None:
    """Raises ConfigError, naming the setting, for a file that cannot be opened for appending. A
    file that is not there yet is made, as it will be anyway. None is no file."""
    if path is None:
        return
    if os.path.isdir(path):
        raise ConfigError(f"{setting}: {path} is a folder")
    try:
        # Without O_NONBLOCK a pipe that nobody reads would hold the start for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        os.close(os.open(path, flags, 0o666))
    except OSError as error:
        if error.errno == errno.ENXIO:
            reason = "it is a pipe that nobody reads"
        else:
            reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{setting}: cannot write to {path}: {reason}") from None
