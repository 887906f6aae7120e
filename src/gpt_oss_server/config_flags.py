"""The settings as command-line flags.

Knows: how a row of the table becomes an argument of argparse. Does not know: any setting by name,
the other sources, what a value means.
"""

from __future__ import annotations

import argparse
from typing import Any

from gpt_oss_server.config import CONFIG_ENV, GROUPS, TABLE
from gpt_oss_server.config_kinds import Choice, Integer, Kind, Number, Secret, Size, Switch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one flag per setting, grouped; values stay raw until `load`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"YAML file of settings (default: none; env: {CONFIG_ENV})",
    )
    for group_name in GROUPS:
        group = parser.add_argument_group(group_name)
        for row in (row for row in TABLE if row.group == group_name):
            text = f"{row.help} (default: {row.default_text}; env: {row.env})".replace("%", "%%")
            options: dict[str, Any] = {"dest": row.name, "default": argparse.SUPPRESS, "help": text}
            if isinstance(row.kind, Switch):
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = _metavar(row.kind)
                if isinstance(row.kind, Secret) and row.kind.several:
                    options["action"] = "append"
            group.add_argument(row.flag, **options)


def _metavar(kind: Kind) -> str:
    if isinstance(kind, Choice):
        return "{" + ",".join(kind.options) + "}"
    names: dict[type, str] = {Integer: "N", Number: "X", Size: "SIZE", Secret: "KEY"}
    return names.get(type(kind), "TEXT")
