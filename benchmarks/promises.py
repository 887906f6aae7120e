"""What a benchmark must reach, beside what it found; how it ends, and where its result is kept.

Knows: tables, exit statuses, the naming of `results/`. Does not know: what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Promise:
    """`found` against `target`. A promise that is `timing` depends on the machine and on what
    else it does; the others hold anywhere."""

    what: str
    found: str
    target: str
    met: bool
    timing: bool = False


def table(promises: Sequence[Promise]) -> list[str]:
    """As markdown, a line each."""
    lines = ["| promise | found | target | met |", "|---|---|---|---|"]
    for promise in promises:
        met = "yes" if promise.met else "**no**"
        lines.append(f"| {promise.what} | {promise.found} | {promise.target} | {met} |")
    return lines


def exit_status(promises: Sequence[Promise], *, quick: bool) -> int:
    """2 if one is broken (1 is for what could not be measured). A smoke run is too short to judge
    timings by."""
    broken = any(not one.met and not (quick and one.timing) for one in promises)
    return 2 if broken else 0


def keep(folder: Path, date: str, what: str, text: str, result: dict[str, Any]) -> None:
    """Write `YYYY-MM-DD-<what>.md` and `.json`; `date` may go on after the day."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{date[:10]}-{what}"
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
