"""The page on the debug bundle names every section and every flag."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gpt_oss_server.bundle.local import LOG_TAIL_LINES, Beside
from gpt_oss_server.bundle.recent import KEPT_DECISIONS
from gpt_oss_server.bundle.server import ServerBundle, Sources
from gpt_oss_server.commands import bundle
from gpt_oss_server.config import Settings
from gpt_oss_server.engine.fake import FakeEngine
from gpt_oss_server.telemetry.logs import KEPT_LINES

PAGE = (Path(__file__).parents[3] / "docs" / "bundle.md").read_text(encoding="utf-8")
SERVER, LOCAL = PAGE.split("## A server that does not answer")


def listed(part: str) -> set[str]:
    """The sections that the table of a part names in its first column."""
    rows = re.findall(r"^\| (`[^|]+`) \|", part, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}


def test_every_section_is_documented_and_no_other() -> None:
    """Those of a running server, and those found beside one."""
    running = ServerBundle(Sources(settings=Settings(), engine=FakeEngine()))
    assert listed(SERVER) == set(running.names)
    beside = Beside(Settings, {}, 8000)
    assert listed(LOCAL) == {section.name for section in beside.sections()} | {"server"}


def test_every_flag_is_documented() -> None:
    """`--help` knows no flag that the page does not."""
    parser = argparse.ArgumentParser(add_help=False)
    bundle.add_arguments(parser)
    for action in parser._actions:
        assert action.option_strings[0] in PAGE
    assert bundle.ADMIN_KEY_ENV in PAGE


def test_the_figures_are_those_of_the_code() -> None:
    """How much is kept."""
    assert f"the last {KEPT_DECISIONS} routing decisions" in PAGE
    assert f"the last {KEPT_LINES} lines" in PAGE
    assert KEPT_LINES == LOG_TAIL_LINES
