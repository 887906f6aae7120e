"""`gpt-oss-server bundle`: save a debug bundle of the server, or of what is left of it.

Knows: its flags, whether to ask the server or to look around it, where the file goes. Does not
know: what is in a bundle.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_oss_server import config
from gpt_oss_server.config_kinds import Integer, Kind, Number
from gpt_oss_server.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from gpt_oss_server.config import Settings

SUMMARY = "Save a debug bundle: ask the server, or look around it where it does not answer."
ADMIN_KEY_ENV = "GPT_OSS_ADMIN_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT_S = 30.0
_STDOUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to ask, where to write, and where to look if nobody answers."""
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        help=f"the server (default: {DEFAULT_URL}); its admin key, if any, from {ADMIN_KEY_ENV}",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="file to write: JSON if it ends in .json, else a zip; - for JSON on stdout "
        "(default: gpt-oss-bundle-TIME.zip)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default=argparse.SUPPRESS,
        help=f"how long the server may take to answer (default: {_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the server's YAML file, for the case that it does not answer",
    )
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="its log as JSON lines, likewise (default: the one that its settings name)",
    )
    parser.add_argument(
        "--pid",
        metavar="N",
        default=argparse.SUPPRESS,
        help="its process, likewise (default: whoever listens on the port)",
    )


def run(flags: Mapping[str, object]) -> int:
    """0 once a bundle is written, complete or not.

    Raises:
        ConfigError: a wrong argument, named.
        StartupError: nothing to be had, or the file cannot be written.
    """
    from gpt_oss_server.bundle.ask import NoAnswer, bundle_of, is_here, port_of
    from gpt_oss_server.bundle.pack import file_name

    url, port = str(flags["url"]), port_of(str(flags["url"]))
    timeout_s = _parsed(Number(0, open_low=True), flags, "timeout", _TIMEOUT_S)
    pid = _parsed(Integer(1), flags, "pid", None)
    out = str(flags.get("out") or file_name(time.time(), "zip"))
    _check_out(out)
    form = "json" if out == _STDOUT or out.endswith(".json") else "zip"
    try:
        key = os.environ.get(ADMIN_KEY_ENV)
        bundle = bundle_of(url, form=form, key=key, timeout_s=timeout_s)
        _say(f"{url} gave its bundle")
    except NoAnswer as reason:
        if not is_here(url):
            raise StartupError(
                f"no bundle from {url}: {reason}. Run this on the server's machine to look there"
            ) from None
        _say(f"no bundle from {url}: {reason}. What follows was found beside it")
        bundle = _look_around(flags, port, pid, form, str(reason))
    _write(bundle, out)
    return 0


def _look_around(
    flags: Mapping[str, object], port: int, pid: int | None, form: str, reason: str
) -> bytes:
    """A bundle without the server's help; says what is missing."""
    import asyncio

    from gpt_oss_server.bundle.local import Beside
    from gpt_oss_server.bundle.pack import as_document, as_json, as_zip
    from gpt_oss_server.bundle.redact import Sieve, known_secrets
    from gpt_oss_server.bundle.sections import OnLoop, Section, collect

    log_file = Path(str(flags["log_file"])) if "log_file" in flags else None
    given = {name: flags[name] for name in ("config",) if name in flags}

    def settings() -> Settings:
        return config.load(given, os.environ)

    try:
        known = settings()
    except StartupError:
        known = None
    sections = (
        Section("server", OnLoop(lambda: {"answers": False, "reason": reason})),
        *Beside(settings, os.environ, port, pid, log_file).sections(),
    )
    collected = asyncio.run(collect(sections, "local"))
    for name, state in collected.states.items():
        if state.status != "ok":
            _say(f"  {name}: {state.status.replace('_', ' ')}: {state.error}")
    document = as_document(collected, Sieve(known_secrets(known, os.environ)))
    return as_json(document) if form == "json" else as_zip(document)


def _check_out(out: str) -> None:
    """Find out before half a minute of collecting what would be found out after it."""
    folder = os.path.dirname(out) or "."
    if out == _STDOUT or os.path.exists(out):
        error = errno.EISDIR if os.path.isdir(out) else 0
    elif os.path.isdir(folder):
        error = 0 if os.access(folder, os.W_OK) else errno.EACCES
    else:
        error = errno.ENOENT
    if error:
        raise StartupError(f"cannot write {out}: {os.strerror(error)}")


def _write(bundle: bytes, out: str) -> None:
    if out == _STDOUT:
        sys.stdout.write(bundle.decode() + "\n")
        return
    try:
        # For the operator's eyes alone, whatever the umask.
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bundle)
    except OSError as error:
        raise StartupError(f"cannot write {out}: {error.strerror}") from None
    _say(f"wrote {out}")


def _parsed(kind: Kind, flags: Mapping[str, object], name: str, default: Any) -> Any:
    if name not in flags:
        return default
    try:
        return kind.parse(flags[name])
    except ValueError as error:
        raise ConfigError(f"flag --{name}: {error}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
