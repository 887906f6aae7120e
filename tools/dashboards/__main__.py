"""Writes `deploy/grafana/*.json`, or says with `--check` which of them are out of date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.dashboards.boards import DASHBOARDS
from tools.dashboards.grafana import render

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"


def files() -> dict[Path, str]:
    """What each generated file should hold."""
    return {
        FOLDER / f"{dashboard.slug}.json": json.dumps(render(dashboard), indent=2) + "\n"
        for dashboard in DASHBOARDS
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [
        path
        for path, content in files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(FOLDER.parents[1])}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files()[path], encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
