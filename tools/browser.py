"""A headless Chromium, driven over a pair of pipes in its own debugging protocol.

Knows: how to start the browser, and the few commands of the protocol that looking at a page takes
(https://chromedevtools.github.io/devtools-protocol/). Does not know: any page. Pipes need neither
a driver program nor a package, and no port that something else could take.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 30.0

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--font-render-hinting=none",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",
)
# The browser reads commands from descriptor 3 and writes to 4. They are moved there in a process
# between, since code between fork and exec is unsafe beside threads. First out of each other's way.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"code": "Escape", "windowsVirtualKeyCode": 27},
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
    " ": {"code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "/": {"code": "Slash", "windowsVirtualKeyCode": 191, "text": "/"},
}
_SHIFT = 8


class PageError(Exception):
    """A script that was evaluated in a page threw, or the browser refused a command."""


def program() -> str | None:
    """Where the browser is; None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser while the block runs. Raises FileNotFoundError where there is none."""
    path = program()
    if path is None:
        raise FileNotFoundError("no Chromium on this machine (Debian package `chromium`)")
    # Its sandbox cannot be set up by root, as whom containers run.
    flags = (*_FLAGS, "--no-sandbox") if os.geteuid() == 0 else _FLAGS
    theirs_in, our_out = os.pipe()
    our_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out)),
                *(path, *flags, f"--user-data-dir={profile}"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        browser = Chromium(our_in, our_out)
        try:
            yield browser
            browser.call("Browser.close")
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            os.close(our_in)
            os.close(our_out)


class Chromium:
    """The browser's end of the pipes: commands, one at a time, and the events between them."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._waiting = b""
        self._calls = 0
        self._pages: dict[str, Page] = {}

    def close_pages(self) -> None:
        """Close all pages, and forget their profiles."""
        while self._pages:
            _, page = self._pages.popitem()
            self.call("Target.disposeBrowserContext", browserContextId=page.context)

    def open(self, url: str, *, width: int = 1200, height: int = 800, dark: bool = False) -> Page:
        """A page in a profile of its own, loaded. Sizes in CSS pixels."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], context)
        self._pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        # As if its window were in front.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.resize(width, height)
        page.prefer(dark=dark)
        page.go(url)
        return page

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of a command. Raises PageError if it is refused, TimeoutError."""
        self._calls += 1
        call = self._calls
        command = {"id": call, "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        os.write(self._writing, json.dumps(command).encode() + b"\0")
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            message = self._next(deadline_s)
            if message.get("id") == call:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            page = self._pages.get(message.get("sessionId", ""))
            if page is not None:
                page.note(message["method"], message["params"])

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _, _ = select.select([self._reading], [], [], left_s)
            if not ready:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S:g} s")
            read = os.read(self._reading, 2**16)
            if not read:
                raise EOFError("the browser has ended")
            self._waiting += read
        message, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(message))


@dataclass
class Page:
    """A page, as somebody before the screen has it.

    Attributes:
        context: the id of its profile.
        requested: every address that it asked for.
        complaints: errors and warnings on its console, exceptions that nobody caught.
    """

    browser: Chromium
    session: str
    context: str
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def note(self, method: str, params: dict[str, Any]) -> None:
        """An event of this page."""
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(_thrown(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def go(self, url: str) -> None:
        """Load an address, to the end."""
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise PageError(f"{url}: {failed}")
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """The value of an expression, or what its promise resolves to. Raises PageError."""
        got = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in got:
            raise PageError(_thrown(got["exceptionDetails"]))
        return got["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait, frame by frame, for an expression to be true. Raises TimeoutError."""
        limit_ms = 900 * PATIENCE_S
        script = f"""new Promise((resolve) => {{
            const look = () => {{
                const found = ({condition});
                if (found) resolve(found);
                else if (performance.now() - began > {limit_ms}) resolve(null);
                else requestAnimationFrame(look);
            }};
            const began = performance.now();
            look();
        }})"""
        found = self.ask(script)
        if found is None:
            raise TimeoutError(f"never true: {condition}; the page: {self.text('body')!r}")
        return found

    def text(self, selector: str) -> str:
        """What is shown of the first such element; empty where there is none."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def shows(self, selector: str) -> bool:
        """Whether there is such an element, to be seen."""
        look = f"document.querySelector({json.dumps(selector)})?.checkVisibility() ?? false"
        return bool(self.ask(look))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        x, y = self.ask(
            f"""(() => {{
                const element = document.querySelector({json.dumps(selector)});
                element.scrollIntoView({{block: "nearest"}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Put text where the focus is, as if pasted."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key: one of `_KEYS`."""
        stroke = {"key": key, "modifiers": _SHIFT if shift else 0, **_KEYS[key]}
        down = "keyDown" if "text" in stroke else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=down, **stroke)
        stroke.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **stroke)

    def resize(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """The window's inside, in CSS pixels, each of `scale` pixels of a screen."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, *, dark: bool) -> None:
        """What the system says of light and dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])
