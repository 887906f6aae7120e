"""How the chat page is used and looks: keyboard, light and dark, narrow screens, copying."""

from __future__ import annotations

from byte_format import END, ids_of
from chat_page import NAMED, ChatPage
from harmony_server import analysis, call, final, harmony_server
from live_server import LiveServer, Serve
from tools.browser import Chromium, Page

from gpt_oss_server.engine.fake import Script

PAPER = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(252, 251, 248)", "rgb(23, 23, 21)"
FOCUSED = "document.activeElement.id"


def saying(serve: Serve, text: str) -> LiveServer:
    return serve(lambda _: Script((*ids_of(text), END)))


def test_keyboard_alone(serve: Serve, browser: Chromium) -> None:
    """Write, break a line, send, stop, leave and come back: no mouse is needed."""
    live = saying(serve, "Hello")
    page = ChatPage.of(browser, live).page
    assert page.ask(FOCUSED) == "prompt"
    page.write("a")
    page.press("Enter", shift=True)
    page.write("b")
    page.press("Enter")
    ChatPage(page).until_done()
    assert live.services.chat_format.decode(live.engine.jobs[0].prompt) == "user:a\nb\n"
    assert page.ask(FOCUSED) == "prompt"
    page.press("Enter")
    assert len(live.engine.jobs) == 1
    page.press("Tab")
    assert page.ask(FOCUSED) == "send"
    page.press("/")
    assert page.ask(FOCUSED) == "prompt"
    page.press("/")
    assert page.ask("document.getElementById('prompt').value") == "/"
    for _ in range(20):
        if page.ask(FOCUSED) == "open-settings":
            break
        page.press("Tab", shift=True)
    page.press("Enter")
    page.until("document.getElementById('settings').open")
    page.press("Escape")
    page.until("!document.getElementById('settings').open")
    assert page.ask(FOCUSED) == "open-settings"


def test_the_focus_is_seen(serve: Serve, browser: Chromium) -> None:
    """Whatever the Tab key reaches shows that it has the focus."""
    page = ChatPage.of(browser, serve()).page
    outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
    label = "(({ariaLabel, innerText, id}) => ariaLabel || innerText || id)(document.activeElement)"
    seen: list[str] = []
    while (focused := page.ask(label)) not in seen:
        seen.append(focused)
        page.press("Tab", shift=True)
        # The box around the prompt shows it; the body has it behind the last.
        if page.ask("!document.activeElement.matches('#prompt, body')"):
            assert page.ask(outlined), page.ask("document.activeElement.outerHTML")
    assert {"Settings", "Light or dark", "New conversation", "prompt"} <= set(seen)


def test_everything_has_a_name(serve: Serve, browser: Chromium) -> None:
    """All that can be pressed or filled in says to a screen reader what it is."""
    page = ChatPage.of(browser, harmony_server(serve, call("f", "{}")))
    page.set_all(tools='{"name": "f"}')
    page.send("hi")
    page.until_done()
    names = _names(page.page)
    page.page.click("#open-settings")
    names += _names(page.page)
    assert {role for role, _ in names} >= {"button", "textbox", "combobox", "spinbutton"}
    assert [role for role, name in names if not name] == []
    assert ("textbox", "Your answer") in names
    assert ("textbox", "Message") in names
    log = "document.getElementById('log')"
    assert page.page.ask(f"[{log}.role, {log}.ariaLive]") == ["log", "polite"]


def _names(page: Page) -> list[tuple[str, str]]:
    """Role and name of every control in the accessibility tree."""
    controls = {"button", "textbox", "combobox", "spinbutton", "link", "searchbox"}
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in controls
    ]


def test_light_and_dark(serve: Serve, browser: Chromium) -> None:
    """As the system prefers, until the user chooses; the choice lasts."""
    page = ChatPage.of(browser, serve()).page
    assert page.ask(PAPER) == LIGHT
    page.prefer(dark=True)
    assert page.ask(PAPER) == DARK
    page.click("#theme")
    assert page.ask(PAPER) == LIGHT
    page.go(page.ask("location.href"))
    page.until(NAMED)
    assert page.ask(PAPER) == LIGHT
    page.click("#theme")
    page.prefer(dark=False)
    assert page.ask(PAPER) == DARK


def test_text_stands_out_in_both(serve: Serve, browser: Chromium) -> None:
    """Text has the contrast of WCAG 2.2 AA, 4.5 to 1, against what it stands on."""
    page = ChatPage.of(browser, saying(serve, "Hello `code`"))
    page.ask("hi")
    for dark in (False, True):
        page.page.prefer(dark=dark)
        for part in (".user .text", ".assistant .text p", ".why", ".route", ".figures dt", ".copy"):
            assert page.page.ask(_CONTRAST.replace("PART", part)) >= 4.5, (part, dark)


_CONTRAST = """(() => {
    const part = document.querySelector("PART");
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    let under = part;
    while (numbers(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
    const light = (colour) => numbers(colour).slice(0, 3).map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    }).reduce((sum, share, index) => sum + share * [0.2126, 0.7152, 0.0722][index], 0.05);
    const pair = [getComputedStyle(part).color, getComputedStyle(under).backgroundColor].map(light);
    return Math.max(...pair) / Math.min(...pair);
})()"""


def test_narrow_screens(serve: Serve, browser: Chromium) -> None:
    """At 360 pixels nothing sticks out sideways: long words, code, calls, facts, the drawer."""
    word = "x" * 200
    code = f"```\n{word}\n```"
    live = harmony_server(
        serve,
        analysis(word) + final(f"{word} `{word}`\n\n{code}\n\n- {word}\n| {word} |"),
        call("f", f'{{"{word}": "{word}"}}'),
    )
    page = ChatPage.of(browser, live, width=360, height=640)
    page.set_all(tools='{"name": "f"}')
    _fits(page.page)
    page.ask(word)
    page.page.click(".reasoning summary")
    _fits(page.page)
    page.send("call it")
    page.until_done(2)
    page.page.write(word)
    page.page.press("Enter")
    page.until_done(3)
    _fits(page.page)
    page.page.click("#open-settings")
    _fits(page.page)


def _fits(page: Page) -> None:
    """The document and what scrolls upright in it are no wider than the screen."""
    wide = """['html', 'body', '#scroll', '#log', '#settings'].filter((part) => {
        const element = document.querySelector(part);
        return element.scrollWidth > element.clientWidth || element.clientWidth > 360;
    })"""
    assert page.ask(wide) == []


def test_code_and_lists(serve: Serve, browser: Chromium) -> None:
    """Code keeps its lines and says its language, as soon as it begins; lists keep their marks."""
    text = "Do:\n1. this\n- that\n```python\nif x:\n\n    y()\n```\n**Then** `z`.\n```\nopen"
    page = ChatPage.of(browser, saying(serve, text))
    page.ask("how?")
    figures = "[...document.querySelectorAll('figure.code')]"
    assert page.page.ask(f"{figures}.map(one => one.querySelector('pre').textContent)") == [
        "if x:\n\n    y()",
        "open",
    ]
    assert page.page.ask(f"{figures}.map(one => one.querySelector('span').textContent)") == [
        "python",
        "code",
    ]
    marks = "[...document.querySelectorAll('.item')].map(one => one.textContent)"
    assert page.page.ask(marks) == ["1.this", "•that"]
    assert page.page.text(".text strong") == "Then"
    assert page.page.text(".text > p code") == "z"


def test_copying(serve: Serve, browser: Chromium) -> None:
    """An answer is copied as the model wrote it, a piece of code without its fence."""
    text = "**Do** this:\n```sh\nls\n```"
    live = saying(serve, text)
    page = ChatPage.of(browser, live)
    browser.call(
        "Browser.grantPermissions",
        origin=live.url,
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        browserContextId=page.page.context,
    )
    page.ask("how?")
    page.page.click(".facts .copy")
    page.page.until("document.querySelector('.facts .copy').textContent === 'Copied'")
    assert page.page.ask("navigator.clipboard.readText()") == text
    page.page.click("figcaption .copy")
    page.page.until("document.querySelector('figcaption .copy').textContent === 'Copied'")
    assert page.page.ask("navigator.clipboard.readText()") == "ls"


def test_reading_is_not_disturbed(serve: Serve, browser: Chromium) -> None:
    """The view follows an answer as it grows, but not away from a user who scrolled up."""
    live = saying(serve, "line\n\n" * 100)
    page = ChatPage.of(browser, live, height=500)
    page.ask("go")
    at_end = (
        "(({scrollTop, clientHeight, scrollHeight}) => scrollTop + clientHeight > scrollHeight - 2)"
        "(document.getElementById('scroll'))"
    )
    page.page.until(at_end)
    live.steer(live.engine.close_gate)
    page.send("more")
    live.steer(lambda: live.engine.let_pass(60))
    page.page.until("document.querySelectorAll('.assistant')[1]?.querySelectorAll('p').length > 9")
    page.page.ask("document.getElementById('scroll').scrollTop = 0")
    live.steer(lambda: live.engine.let_pass(60))
    page.page.until("document.querySelectorAll('.assistant')[1].querySelectorAll('p').length > 18")
    assert page.page.ask("document.getElementById('scroll').scrollTop") == 0
    live.steer(live.engine.open_gate)
    page.until_done(2)
    assert page.page.ask("document.getElementById('scroll').scrollTop") == 0
