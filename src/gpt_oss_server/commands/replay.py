"""`gpt-oss-server replay`: decide recorded requests again, with the same or other thresholds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from gpt_oss_server.errors import ConfigError, StartupError
from gpt_oss_server.routing.config import RoutingConfig
from gpt_oss_server.routing.replay import DecisionRecord, RecordError, from_line, replay

SUMMARY = "Recompute recorded routing decisions; with thresholds, what they would have been."
SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and one flag per threshold."""
    parser.add_argument("file", metavar="DECISIONS", help="JSON lines written by --decision-log")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="THRESHOLD=NUMBER",
        help="decide with this threshold instead (large_input_tokens=4000); repeatable",
    )


def run(arguments: Mapping[str, object]) -> int:
    """0 when every decision came out as recorded (or a what-if was asked for), 1 when one did
    not.

    Raises:
        StartupError: the file cannot be read, or a line of it is no decision.
        ConfigError: an unknown or impossible threshold.
    """
    overrides = _overrides(arguments.get("set") or [])
    report = replay(_records(Path(str(arguments["file"]))), overrides)
    if arguments.get("json"):
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _print(report.total, report.recorded_triggers, report.replayed_triggers)
        for difference in report.differences[:SHOWN]:
            print(f"  {difference}")
        if len(report.differences) > SHOWN:
            print(f"  … and {len(report.differences) - SHOWN} more (--json shows all)")
        print(f"{len(report.differences)} of {report.total} differ, {report.rerouted} rerouted")
    return 1 if report.differences and not overrides else 0


def _print(total: int, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    print(f"{total} decisions\n{'trigger':<18}{'recorded':>10}{'replayed':>10}")
    for trigger in sorted(set(before) | set(after)):
        print(f"{trigger:<18}{before.get(trigger, 0):>10}{after.get(trigger, 0):>10}")


def _overrides(given: object) -> dict[str, float]:
    overrides: dict[str, float] = {}
    for text in given if isinstance(given, list) else []:
        name, equals, number = str(text).partition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not equals or value != value:
            raise ConfigError(f"--set {text}: write THRESHOLD=NUMBER")
        if name not in RoutingConfig.__struct_fields__:
            raise ConfigError(f"--set {text}: unknown threshold {name}")
        overrides[name] = int(value) if value.is_integer() else value
    return overrides


def _records(path: Path) -> Iterator[DecisionRecord]:
    try:
        lines = path.open("rb")
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield from_line(line)
            except (RecordError, ConfigError) as error:  # no record, or impossible thresholds in it
                raise StartupError(f"{path} line {number}: {error}") from error
