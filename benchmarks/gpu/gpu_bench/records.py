"""What sections found, one file each, so that nothing is lost when one of them ends badly.

Knows: the files. Does not know: what is in them, nor how they are shown.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """`figures` of a section that went well; `trouble`, one line, of one that did not. `at` is when
    it ended, by `time.time`; `host` what it ran in."""

    section: str
    host: str
    seconds: float
    at: float
    figures: dict[str, Any] = field(default_factory=dict)
    trouble: str | None = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = _file(folder, self.section)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        fresh.replace(file)


def read_all(folder: Path) -> dict[str, Record]:
    """By section."""
    found = [Record(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
    return {record.section: record for record in found}


def drop(folder: Path, section: str) -> None:
    _file(folder, section).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    for file in folder.glob("*.json"):
        file.unlink()


def _file(folder: Path, section: str) -> Path:
    return folder / f"{section.replace(':', '-')}.json"
