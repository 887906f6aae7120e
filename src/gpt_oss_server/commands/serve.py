"""`gpt-oss-server serve`: settle the settings and hand them to the composition root."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from gpt_oss_server import config, config_flags

SUMMARY = "Serve one model over OpenAI's HTTP API."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per setting."""
    config_flags.add_arguments(parser)


def run(flags: Mapping[str, object]) -> int:
    """Serve until a signal; returns the exit status.

    Raises:
        StartupError: the settings are wrong or the server cannot start.
    """
    settings = config.load(flags, os.environ)
    from gpt_oss_server.app import serve

    return serve(settings)
