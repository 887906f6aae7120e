"""`python -m tools.simulation_screenshot` takes the documentation's pictures of `simulate --html`.

Knows: what is simulated, and which part of the page is in which picture. Does not know: the page
beyond the ids of its sections. What the letters look like depends on the fonts of this machine
(Debian: `fonts-inter` and `fonts-jetbrains-mono`).
"""

from __future__ import annotations

import argparse
import base64
import shlex
import sys
import tempfile
from pathlib import Path

from tools.browser import Page, chromium

from gpt_oss_server import cli

FOLDER = Path(__file__).parents[1] / "docs" / "images"
RUN = (
    "--pools 4xtp1+2xtp2 --workload mixed --rate 14 --duration 900 --fail 2@420+90 --sweep "
    "--policy earliest_completion --policy least_request --policy round_robin"
)
WIDTH, SCALE = 1180, 1.25
# File → the selectors of what is at the top and at the bottom of it.
PICTURES = {
    "simulation.png": ("header", "#latency"),
    "simulation-time.png": ("#load", "#time details"),
}
_MARGIN = 24


def picture_of(page: Page, first: str, last: str) -> bytes:
    """From the top of one element to the bottom of another, as PNG."""
    top, bottom = page.ask(
        f"[document.querySelector({first!r}).getBoundingClientRect().top,"
        f" document.querySelector({last!r}).getBoundingClientRect().bottom].map(y => y + scrollY)"
    )
    top = max(0.0, top - _MARGIN)
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom + _MARGIN - top, "scale": SCALE}
    # Nothing may stick to the top of the window where the window is not.
    page.ask("document.querySelector('.chooser').style.position = 'static'")
    taken = page.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return base64.b64decode(taken["data"])


def main(argv: list[str] | None = None) -> int:
    """Write the pictures; 0."""
    parser = argparse.ArgumentParser(description="Take the pictures of a simulation's page.")
    parser.add_argument("--html", type=Path, help="a page that was written (default: run one)")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder")
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        html = chosen.html
        if html is None:
            html = Path(folder) / "page.html"
            status = cli.main(["simulate", *shlex.split(RUN), "--html", str(html)])
            if status:
                return status
        with chromium() as browser:
            page = browser.open(html.resolve().as_uri(), dark=chosen.dark, width=WIDTH)
            for name, (first, last) in PICTURES.items():
                (chosen.out / name).write_bytes(picture_of(page, first, last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
