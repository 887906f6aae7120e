"""`python -m tools.page_screenshot` takes the README's picture of the chat page.

Knows: what is asked, and how large the picture is. Does not know: the page beyond its fields. It
starts a server with the built-in model, unless it is given the address of one that runs. What the
picture's letters look like depends on the fonts of this machine (Debian: `fonts-inter` and
`fonts-jetbrains-mono`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.browser import Page, chromium

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "chat-page.png"
QUESTION = "What does route4 mean?"
WIDTH, HEIGHT, SCALE = 1040, 500, 1.5
# A long answer makes the picture so much taller at most.
MOST_EXTRA = 200
_SETTINGS = {"temperature": "0", "max-tokens": "200"}


@contextmanager
def server() -> Iterator[str]:
    """The address of a server with the built-in model, while the block runs."""
    command = [sys.executable, "-m", "gpt_oss_server", "serve", "--port", "0", "--threads", "1"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            for line in process.stdout:
                if line.startswith("ready in"):
                    break
            yield address
        finally:
            process.terminate()


def picture_of(page: Page, question: str) -> bytes:
    """Ask, wait for the end of the answer, and look. Raises TimeoutError if there is none."""
    page.ask("document.getElementById('prompt').focus()")
    page.write(question)
    page.press("Enter")
    page.until("document.querySelector('.assistant[aria-busy=false]')")
    hidden = page.ask(
        "(({scrollHeight, clientHeight}) => scrollHeight - clientHeight)"
        "(document.getElementById('scroll'))"
    )
    page.resize(WIDTH, HEIGHT + min(hidden, MOST_EXTRA), scale=SCALE)
    # A caret that blinks would make every picture another one.
    page.ask("document.activeElement.blur()")
    return page.picture()


def main(argv: list[str] | None = None) -> int:
    """Write the picture; 0."""
    parser = argparse.ArgumentParser(description="Take the README's picture of the chat page.")
    parser.add_argument("--url", help="a server that runs (default: start one)")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, default=PICTURE)
    chosen = parser.parse_args(argv)
    if chosen.url is None:
        with server() as url:
            _take(url, chosen)
    else:
        _take(chosen.url, chosen)
    return 0


def _take(url: str, chosen: argparse.Namespace) -> None:
    with chromium() as browser:
        address = url.rstrip("/") + "/"
        page = browser.open(address, dark=chosen.dark)
        page.resize(WIDTH, HEIGHT, scale=SCALE)
        for field, value in _SETTINGS.items():
            page.ask(f"sessionStorage.setItem({field!r}, {value!r})")
        page.go(address)
        page.until("document.getElementById('context').textContent")
        chosen.out.write_bytes(picture_of(page, chosen.question))


if __name__ == "__main__":
    sys.exit(main())
