"""The chat page in a browser, as its tests use it."""

from __future__ import annotations

import json
from typing import Any

from live_server import LiveServer
from tools.browser import Chromium, Page

READY = "document.getElementById('health').dataset.state === 'ready'"
NAMED = "document.getElementById('model').textContent !== ''"


class ChatPage:
    """What a user does with the page, and sees of it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @classmethod
    def of(cls, browser: Chromium, live: LiveServer, **look: Any) -> ChatPage:
        """The page of a server that is up, once it knows the model."""
        page = browser.open(f"{live.url}/", **look)
        page.until(f"{READY} && {NAMED}")
        return cls(page)

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.page.ask("document.getElementById('prompt').focus()")
        self.page.write(text)
        self.page.press("Enter")

    def until_done(self, answers: int = 1) -> None:
        """Wait for the end of so many answers, the last of them just now."""
        self.page.until(
            f"document.querySelectorAll('.assistant[aria-busy=false]').length === {answers}"
            " && document.getElementById('stop').hidden"
        )

    def ask(self, text: str, answers: int = 1) -> str:
        """Send a message; the text of its answer, which is the page's `answers`th."""
        self.send(text)
        self.until_done(answers)
        return self.answer()

    def last(self, selector: str) -> str:
        """A script's expression for this part of the last answer."""
        return f"[...document.querySelectorAll('.assistant')].at(-1).querySelector('{selector}')"

    def answer(self) -> str:
        return str(self.page.ask(f"{self.last('.text')}.innerText"))

    def figures(self) -> dict[str, str]:
        """The facts under the last answer: name to value, as shown."""
        rows = f"[...{self.last('.figures')}.children]"
        pairs = "row => [row.querySelector('dt').innerText, row.querySelector('dd').innerText]"
        return dict(self.page.ask(f"{rows}.map({pairs})"))

    def where(self) -> tuple[str, str]:
        """The route and the reason under the last answer."""
        route, why = (f"{self.last(part)}.innerText" for part in (".route", ".why"))
        return tuple(self.page.ask(f"[{route}, {why}]"))

    def set(self, field: str, value: str) -> None:
        """Fill in a field of the settings drawer, which is open."""
        self.page.ask(
            f"""(() => {{
                const field = document.getElementById({json.dumps(field)});
                field.value = {json.dumps(value)};
                field.dispatchEvent(new Event("input", {{bubbles: true}}));
            }})()"""
        )

    def set_all(self, **fields: str) -> None:
        """Open the drawer, fill in fields (`max_tokens` is `max-tokens`), close it."""
        self.page.click("#open-settings")
        for field, value in fields.items():
            self.set(field.replace("_", "-"), value)
        self.page.press("Escape")
        self.page.until("!document.getElementById('settings').open")
