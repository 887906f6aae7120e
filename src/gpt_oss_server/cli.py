"""The command line: which subcommands there are, and how the process ends.

Knows: the table of subcommands, exit statuses, that an expected failure is one line on stderr.
Does not know: what a subcommand does (see `commands/`).

Exit status: 0 done, 1 cannot start (`StartupError`), 2 wrong settings (`ConfigError`),
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt_oss_server import __version__
from gpt_oss_server.commands import COMMANDS
from gpt_oss_server.errors import ConfigError, StartupError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status of the process."""
    try:
        arguments, unknown = build_parser().parse_known_args(argv)
        given = vars(arguments)
        name = given.pop("command")
        if unknown:
            # Only the name: what follows it may be a key.
            first = unknown[0].partition("=")[0]
            kind = "flag" if first.startswith("-") else "argument"
            raise ConfigError(f"unknown {kind} {first} (see gpt-oss-server {name} --help)")
        return COMMANDS[name].run(given)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(
        prog="gpt-oss-server",
        description="OpenAI-compatible server for gpt-oss and other decoders.",
    )
    parser.add_argument("--version", action="version", version=f"gpt-oss-server {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.summary, description=command.summary)
        command.add_arguments(sub)
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse without its usage block on an error and without guessing at abbreviations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument --"):
            message = "flag " + message.removeprefix("argument ")
        raise ConfigError(f"{message} (see {self.prog} --help)")
