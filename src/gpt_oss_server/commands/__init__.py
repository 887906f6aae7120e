"""The subcommands of `gpt-oss-server`: one module each, listed in one table.

A command adds its arguments to a parser and later gets the raw values of those that were given.
It imports what it needs when it runs, so that `--help` stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpt_oss_server.commands import bundle, calibrate, doctor, plan, replay, serve, simulate


@dataclass(frozen=True)
class Command:
    """One subcommand. `run` returns the exit status and may raise `StartupError`."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Mapping[str, object]], int]


COMMANDS: dict[str, Command] = {
    "serve": Command(serve.SUMMARY, serve.add_arguments, serve.run),
    "doctor": Command(doctor.SUMMARY, doctor.add_arguments, doctor.run),
    "replay": Command(replay.SUMMARY, replay.add_arguments, replay.run),
    "simulate": Command(simulate.SUMMARY, simulate.add_arguments, simulate.run),
    "plan": Command(plan.SUMMARY, plan.add_arguments, plan.run),
    "calibrate": Command(calibrate.SUMMARY, calibrate.add_arguments, calibrate.run),
    "bundle": Command(bundle.SUMMARY, bundle.add_arguments, bundle.run),
}
