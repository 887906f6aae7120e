"""The report's documentation: every flag, every key, pictures that are there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from sim_documents import document
from tools.simulation_screenshot import PICTURES, RUN

from gpt_oss_server.commands import simulate

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "simulator.md").read_text(encoding="utf-8")
REPORT = PAGE[PAGE.index("## The report") : PAGE.index("## What is simulated")]


def test_every_flag_is_in_the_table() -> None:
    """And nothing else."""
    parser = argparse.ArgumentParser(add_help=False)
    simulate.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    rows = re.findall(r"^\| (`--[^|]*) \|", REPORT, flags=re.MULTILINE)
    assert {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)`", row)} == flags


def test_every_key_is_in_the_table(tmp_path: Path) -> None:
    """Of the document, of its inputs beside the flags, of a policy that is drawn."""
    written = document(tmp_path, "--sweep", "--seeds", "2")
    named = set(re.findall(r"`\.?([a-z_0-9.NAME]+)`", REPORT))
    assert set(written) - {"policies"} <= named
    assert {"fleet", "calibrated", "slo"} <= named & set(written["inputs"])
    assert "efficiency" in named & set(written["inputs"]["fleet"]["pools"][0])
    figures = written["policies"]["earliest_completion"]
    drawn = {"curves", "where", "ends", "samples", "sweep", "capacity_per_s", "repeats"}
    assert drawn <= named & set(figures)


def test_pictures_are_of_the_command_that_is_shown() -> None:
    """They are there, linked, and taken by the tool from the same run."""
    for name in PICTURES:
        assert (DOCS / "images" / name).is_file()
        assert f"(images/{name})" in REPORT
    shown = re.sub(r"\\\n\s+", "", REPORT[: REPORT.index("![")])
    words = set(shown.split())
    assert set(RUN.split()) <= words
