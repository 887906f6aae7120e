"""A bundle of what can be found out beside a server that does not answer.

Knows: settings and log as files, processes by port, the doctor. Does not know: HTTP. Nothing here
talks to the server: it may be stopped, wedged or gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_oss_server.bundle.health import checked, versions
from gpt_oss_server.bundle.processes import describe_processes, family_of, listening_on
from gpt_oss_server.bundle.redact import shown_line, shown_settings
from gpt_oss_server.bundle.sections import Absent, InThread, Section
from gpt_oss_server.config import Settings
from gpt_oss_server.doctor.machine import ask_torch

LOG_TAIL_BYTES = 1 << 20
LOG_TAIL_LINES = 500
_DOCTOR_LIMIT_S = 60.0
_TORCH_LIMIT_S = 45.0


@dataclass(frozen=True)
class Beside:
    """What is known of a server from outside. `settings` raises StartupError where they cannot be
    read; `log_file` wins over the one that they name."""

    settings: Callable[[], Settings]
    environ: Mapping[str, str]
    port: int
    pid: int | None = None
    log_file: Path | None = None

    def sections(self) -> tuple[Section, ...]:
        """The sections that need no answer from the server."""
        return (
            Section("versions", InThread(versions)),
            Section("configuration", InThread(self._configuration)),
            Section("processes", InThread(self._processes), 10.0),
            Section("logs", InThread(self._logs), 10.0),
            Section("doctor", InThread(self._doctor), _DOCTOR_LIMIT_S),
        )

    def _configuration(self) -> dict[str, Any]:
        return shown_settings(self.settings(), self.environ)

    def _processes(self) -> list[dict[str, Any]]:
        pids = [self.pid] if self.pid is not None else listening_on(self.port)
        if not pids:
            raise Absent(
                f"no process that this user may see listens on port {self.port} (give --pid, or "
                "run this as the server's user)"
            )
        found = describe_processes(family_of(pids))
        if not found:
            raise Absent(f"there is no process {pids[0]}")
        return found

    def _logs(self) -> list[dict[str, Any]]:
        path = self.log_file
        if path is None:
            named = self.settings().log_file
            if named is None:
                raise Absent("the log goes to stderr: give --log-file where that is kept")
            path = Path(named)
        lines = [shown for line in tail(path) if (shown := shown_line(line)) is not None]
        if not lines:
            raise Absent("the log holds no JSON lines: only those can be shown safely")
        return lines

    def _doctor(self) -> dict[str, Any]:
        return checked(
            self.settings(), self.environ, lambda environ: ask_torch(environ, _TORCH_LIMIT_S)
        )


def tail(path: Path) -> Sequence[bytes]:
    """The last lines of a file, without the first where it was cut. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - LOG_TAIL_BYTES)
        file.seek(start)
        lines = file.read(LOG_TAIL_BYTES).split(b"\n")
    return [line for line in lines[start > 0 :] if line.strip()][-LOG_TAIL_LINES:]
