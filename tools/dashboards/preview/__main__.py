"""Draws every dashboard from a real run: server, Prometheus and load, then the panels' queries.

    python -m tools.dashboards.preview                # two minutes; writes docs/images/
    python -m tools.dashboards.preview --seconds 30 --out /tmp

The requests, decisions and figures are those of a real server with the built-in model on this
machine; only the GPU readings are a recording (`demo/server.py`). Needs the program prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tools.dashboards.boards import DASHBOARDS
from tools.dashboards.demo.load import drive
from tools.dashboards.demo.run import ROOT, ask, demo_server, prometheus
from tools.dashboards.preview.picture import picture
from tools.dashboards.preview.series import Span

# A window of rates before there is anything to see.
_LEAD_S = 4.0
_POINTS = 90
_MOST_ANSWERED = 'sum(gpt_oss_requests_total{outcome="ok"}) > 0.5 * sum(gpt_oss_requests_total)'


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboards.preview",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the run")
    parser.add_argument("--per-s", type=float, default=9.0, help="requests per second, about")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    chosen = parser.parse_args()
    for path, content in pictures(chosen.seconds, chosen.per_s).items():
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / path).write_text(content, encoding="utf-8")
        print(chosen.out / path)
    return 0


def pictures(seconds: float, per_s: float) -> dict[str, str]:
    """File name → SVG of each dashboard."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with demo_server(folder) as url, prometheus(folder, url) as api:
            began_s = time.time()
            sent = asyncio.run(drive(url, seconds, per_s=per_s, begin_s=10.0))
            end_s = time.time()
            if not ask(api, "query", query=_MOST_ANSWERED):
                raise RuntimeError("most requests failed: the pictures would show nothing")
            start_s = began_s + _LEAD_S
            span = Span(start_s, end_s, (end_s - start_s) / _POINTS)
            note = (
                f"The built-in model on a CPU under {sent} requests in {end_s - began_s:.0f} s, "
                "scraped each second, thresholds scaled down to its size. GPU readings are a "
                "recording. Drawn from the panels' own queries by tools/dashboards/preview."
            )
            return {
                f"{dashboard.slug}.svg": picture(dashboard, partial(ask, api), span, note)
                for dashboard in DASHBOARDS
            }


if __name__ == "__main__":
    sys.exit(main())
