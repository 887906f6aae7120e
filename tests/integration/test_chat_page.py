"""The chat page in a real browser, with a real server behind it."""

from __future__ import annotations

import json
from typing import Any

from app_process import running
from byte_format import END, THINK, THOUGHT, ids_of
from chat_page import NAMED, READY, ChatPage
from desk_server import desk_server
from harmony_server import analysis, call, final, harmony_server, prompt_of
from live_server import LiveServer, Serve
from tools.browser import Chromium

from gpt_oss_server.api.auth import KeyRing
from gpt_oss_server.api.services import ServedModel
from gpt_oss_server.engine.fake import Script
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.routing import RoutingConfig
from gpt_oss_server.types import Job

WEATHER = json.dumps([{"name": "get_weather", "parameters": {"type": "object"}}])


def thought_and_said(thought: str, said: str) -> Script:
    """A token for every byte, and one at each end."""
    return Script((THINK, *ids_of(thought), THOUGHT, *ids_of(said), END), cached_tokens=4)


def gated(serve: Serve, script: Script) -> LiveServer:
    """A server whose model waits for every token to be let pass."""
    live = serve(lambda _: script)
    live.steer(live.engine.close_gate)
    return live


def let_pass(live: LiveServer, tokens: int) -> None:
    live.steer(lambda: live.engine.let_pass(tokens))


def test_it_loads_from_this_server_alone(serve: Serve, browser: Chromium) -> None:
    """Nothing on the console, nothing asked of anybody else; the server says who it is."""
    live = serve()
    page = ChatPage.of(browser, live).page
    page.until("document.getElementById('context').textContent")
    assert page.complaints == []
    assert page.text("#model") == "tiny"
    assert page.text("#context") == "4,096 tokens of context"
    assert page.text("#health") == "ready"
    assert {address.removeprefix(live.url).partition("?")[0] for address in page.requested} >= {
        *("/", "/page/chat.js", "/page/theme.css", "/health", "/v1/models"),
    }
    assert [address for address in page.requested if not address.startswith(live.url)] == []


def test_an_answer_streams_in(serve: Serve, browser: Chromium) -> None:
    """Text is there while the model still writes; the reasoning stays folded until opened."""
    live = gated(serve, thought_and_said("hm, so", "Hello you"))
    page = ChatPage.of(browser, live)
    page.send("hi")
    let_pass(live, 4)
    page.page.until("document.querySelector('.reasoning-text')?.textContent === 'hm,'")
    assert page.page.shows(".reasoning summary")
    assert page.page.shows(".assistant .text p") is False
    assert page.page.shows("#stop")
    let_pass(live, 4 + 5)
    page.page.until("document.querySelector('.assistant .text').innerText === 'Hello'")
    assert page.page.ask("document.querySelector('.assistant').ariaBusy") == "true"
    assert page.page.ask("document.querySelector('.reasoning').open") is False
    live.steer(live.engine.open_gate)
    page.until_done()
    assert page.answer() == "Hello you"
    assert page.page.text(".reasoning-text") == ""
    page.page.click(".reasoning summary")
    assert page.page.text(".reasoning-text") == "hm, so"
    assert page.page.text(".reasoning-size") == "6 tokens"
    assert page.page.text("#announcement") == "The answer is complete"
    assert page.page.complaints == []


def test_facts_under_an_answer(browser: Chromium) -> None:
    """Route, every reason, predicted KV and tokens are the server's; the times are measured."""
    script = thought_and_said("hm", "Hello")
    routing = RoutingConfig(large_input_tokens=5, pressure_input_tokens=5)
    with desk_server(routing=routing, script=lambda _: script) as live:
        page = ChatPage.of(browser, live)
        page.set_all(max_tokens="64")
        live.steer(live.engine.close_gate)
        page.send("where does it run?")
        let_pass(live, 2)
        page.page.until("document.querySelector('.reasoning-text')?.textContent === 'h'")
        live.steer(live.engine.open_gate)
        page.until_done()
        (record,) = live.records
    tokens = record.facts.input_tokens
    assert page.where() == (
        "single_gpu",
        f"large_input: {tokens} > 5 tokens; no multi-GPU replica",
    )
    figures = page.figures()
    assert list(figures) == ["KV predicted", "tokens in", "out", "first token", "speed"]
    assert record.facts.predicted_kv_bytes == 6 * 2**20
    assert figures["KV predicted"] == "6.00 MiB"
    assert figures["tokens in"] == f"{tokens}, 4 cached"
    assert figures["out"] == "10"
    assert figures["first token"].endswith((" ms", " s"))
    assert figures["speed"].endswith(" tok/s")
    assert page.page.text(".request") == record.facts.request_id


def test_stop(serve: Serve, browser: Chromium) -> None:
    """Esc and the button end an answer here and at the server; what came of it stays and counts."""
    live = gated(serve, thought_and_said("", "Hello"))
    page = ChatPage.of(browser, live)
    page.send("hi")
    let_pass(live, 5)
    page.page.until("document.querySelector('.assistant .text').innerText === 'Hel'")
    page.page.press("Escape")
    page.until_done()
    live.until(lambda engine: engine.cancelled == 1)
    assert page.page.text(".cut") == "Stopped."
    assert page.page.shows(".failure") is False
    assert list(page.figures()) == ["first token"]
    page.send("go on")
    let_pass(live, 3)
    page.page.until("document.querySelectorAll('.assistant .text')[1]?.innerText === 'H'")
    page.page.click("#stop")
    page.until_done(2)
    live.until(lambda engine: engine.cancelled == 2)
    shown = live.services.chat_format.decode(live.engine.jobs[1].prompt)
    assert "assistant:Hel\n" in shown


def test_turns_and_a_new_conversation(serve: Serve, browser: Chromium) -> None:
    """Every turn is sent with those before it, without their reasoning; `+` forgets them."""
    live = harmony_server(
        serve,
        analysis("first thought") + final("One."),
        analysis("second thought") + final("Two."),
        final("Three."),
    )
    page = ChatPage.of(browser, live)
    assert page.ask("a?") == "One."
    assert page.ask("b?", 2) == "Two."
    second = prompt_of(live.engine.jobs[1])
    assert second.endswith(
        "<|start|>user<|message|>a?<|end|><|start|>assistant<|channel|>final<|message|>One.<|end|>"
        "<|start|>user<|message|>b?<|end|><|start|>assistant"
    )
    page.page.click("#fresh")
    assert page.page.shows("#welcome")
    assert page.ask("c?") == "Three."
    assert "One." not in prompt_of(live.engine.jobs[2])


def test_settings_reach_the_request(serve: Serve, browser: Chromium) -> None:
    """Instructions, effort, temperature and bound are sent; a bound that cut an answer is told."""
    live = harmony_server(serve, final("A long answer."))
    page = ChatPage.of(browser, live)
    page.set_all(system="Be brief.", effort="high", temperature="0.25", max_tokens="5")
    page.ask("hi")
    (job,) = live.engine.jobs
    assert (job.sampling.temperature, job.sampling.max_tokens) == (0.25, 5)
    assert "Reasoning: high" in prompt_of(job)
    assert "Be brief." in prompt_of(job)
    assert page.page.text(".cut") == "Cut at its limit of tokens."
    page.page.go(page.page.ask("location.href"))
    page.page.until(NAMED)
    page.ask("again")
    assert live.engine.jobs[1].sampling.temperature == 0.25


def test_a_key_is_asked_for(serve: Serve, browser: Chromium) -> None:
    """A server with a key has the page ask for it, again if it is wrong; it stays in the tab."""
    live = serve(services={"api_keys": KeyRing(("right",))})
    page = browser.open(f"{live.url}/")
    dialog = "document.getElementById('ask-key').open"
    page.until(dialog)
    assert "You didn't provide an API key." in page.text("#ask-key-why")
    page.write("wrong")
    page.press("Enter")
    page.until(f"{dialog} && document.getElementById('ask-key-why').textContent.includes('Incorr')")
    page.write("right")
    page.press("Enter")
    page.until(f"!{dialog} && {NAMED}")
    assert ChatPage(page).ask("hi") == "user:hi"
    assert page.ask("[Object.values(sessionStorage), {...localStorage}]") == [["right"], {}]
    assert page.ask("document.cookie") == ""


def test_a_key_may_be_declined(serve: Serve, browser: Chromium) -> None:
    """Without the key, a message is answered by why there is no answer."""
    live = serve(services={"api_keys": KeyRing(("right",))})
    page = browser.open(f"{live.url}/")
    dialog = "document.getElementById('ask-key').open"
    page.until(dialog)
    page.press("Escape")
    page.until(f"!{dialog}")
    ChatPage(page).send("hi")
    page.until(dialog)
    page.press("Escape")
    ChatPage(page).until_done()
    assert "You didn't provide an API key." in page.text(".failure")
    assert "status 401" in page.text(".failure .about")
    assert live.engine.jobs == []


def test_a_tool_call_is_shown_and_answered_by_hand(serve: Serve, browser: Chromium) -> None:
    """Name and arguments are shown; what the user answers goes to the model as the result."""
    live = harmony_server(
        serve,
        analysis("Paris it is.") + call("get_weather", '{"city":"Paris","days":2}'),
        final("It rains."),
    )
    page = ChatPage.of(browser, live)
    page.set_all(tools=WEATHER)
    page.send("weather?")
    page.until_done()
    assert page.page.text(".call-name") == "get_weather"
    assert page.page.text(".call-arguments") == '{\n  "city": "Paris",\n  "days": 2\n}'
    assert page.page.text("#announcement") == "The model calls a function"
    page.page.write('{"sky": "rain"}')  # the field for it has the focus
    page.page.press("Enter")
    page.until_done(2)
    assert page.answer() == "It rains."
    assert page.page.text(".call-result") == '{"sky": "rain"}'
    second = prompt_of(live.engine.jobs[1])
    assert "Paris it is." in second
    assert '{"sky": "rain"}<|end|><|start|>assistant' in second
    assert page.page.complaints == []


def test_a_call_may_be_left_unanswered(serve: Serve, browser: Chromium) -> None:
    """Whoever goes on without answering a call is not refused: it is left out."""
    live = harmony_server(serve, call("get_weather", "{}"), final("Well then."))
    page = ChatPage.of(browser, live)
    page.set_all(tools=WEATHER)
    page.send("weather?")
    page.until_done()
    assert page.ask("never mind", 2) == "Well then."
    assert page.page.text(".calls .note") == "Not answered."
    assert "functions.get_weather" not in prompt_of(live.engine.jobs[1]).partition("weather?")[2]


def test_arguments_that_are_no_json(serve: Serve, browser: Chromium) -> None:
    """A call that the server would not take back is shown as it came, with nothing to fill in."""
    live = harmony_server(serve, call("get_weather", '{"city": Par'), final("Well then."))
    page = ChatPage.of(browser, live)
    page.set_all(tools=WEATHER)
    page.send("weather?")
    page.until_done()
    assert page.page.text(".call-arguments") == '{"city": Par'
    assert page.page.shows(".call-answer") is False
    assert page.page.text(".calls .note").startswith("The arguments are no JSON object")
    assert page.ask("go on", 2) == "Well then."


def test_tools_that_are_none(serve: Serve, browser: Chromium) -> None:
    """What is no JSON, or has no name, is told in the drawer, and nothing is sent with it."""
    live = serve()
    page = ChatPage.of(browser, live)
    page.set_all(tools='[{"name": ')
    assert page.page.ask("document.getElementById('tools-state').textContent").startswith(
        "This is no JSON:"
    )
    page.send("hi")
    page.until_done()
    assert page.page.text(".failure").startswith("This is no JSON:")
    assert live.engine.jobs == []
    page.set_all(tools=WEATHER)
    offered = "[...document.getElementById('tool-choice').options].map(option => option.value)"
    assert page.page.ask(offered) == ["auto", "required", "none", "name:get_weather"]


def test_errors_in_words_and_again(serve: Serve, browser: Chromium) -> None:
    """Before the answer and in the midst of it: the server's words, and a way to try again."""
    scripts = [
        Script(ids_of("Hello"), fail_after=0, error=EngineFailed("The worker died.")),
        Script(ids_of("Hello"), fail_after=3, error=EngineFailed("It died again.")),
        Script((*ids_of("Hello"), END)),
    ]
    live = serve(lambda _: scripts.pop(0))
    page = ChatPage.of(browser, live)
    page.send("hi")
    page.until_done()
    first = page.page.text(".failure")
    assert first.startswith("The worker died.")
    assert "status 503 · try again in 1 s · request req_" in first
    page.page.click(".failure button")
    page.page.until("document.querySelector('.failure')?.innerText.startsWith('It died again.')")
    assert page.answer() == "Hel"
    page.page.click(".failure button")
    page.page.until("document.querySelector('.assistant .text').innerText === 'Hello'")
    assert page.page.ask("document.querySelectorAll('.assistant').length") == 1
    prompts = [live.services.chat_format.decode(job.prompt) for job in live.engine.jobs]
    assert prompts == ["user:hi\n"] * 3


def test_not_ready_then_ready(serve: Serve, browser: Chromium) -> None:
    """While the model loads the page says so, and takes notice when it is there."""
    live = serve(started=False)
    page = browser.open(f"{live.url}/")
    page.until("document.getElementById('health-words').textContent === 'not started'")
    assert page.ask("document.getElementById('health').dataset.state") == "not-ready"
    live.run(live.engine.start())
    page.until(f"{READY} && document.getElementById('context').textContent")
    live.steer(live.engine.crash)
    ChatPage(page).send("hi")
    page.until("document.getElementById('health-words').textContent === 'the worker died'")
    assert page.text(".failure").startswith("The model is not ready: the worker died")


def test_what_the_model_says_is_never_markup(serve: Serve, browser: Chromium) -> None:
    """Markup in answers, reasoning, calls and questions is shown as the text that it is."""
    evil = "<img src=x onerror=pwned=1><script>pwned=1</script><b>bold</b>"
    fence = "```html\n" + evil + "\n```"

    def says(job: Job) -> str:
        return analysis(evil) + (
            call("f", json.dumps({"a": evil}))
            if "functions" in prompt_of(job)
            else final(f"{evil}\n\n# {evil}\n- {evil}\n`{evil}` **{evil}**\n\n{fence}\n| {evil}")
        )

    live = harmony_server(serve, says)
    page = ChatPage.of(browser, live)
    assert page.ask(evil).count(evil) == 7
    page.set_all(tools=json.dumps([{"name": "f"}]))
    page.send(evil)
    page.until_done(2)
    parts: list[Any] = page.page.ask(
        "['.user .text', '.reasoning-text', '.call-arguments'].map("
        "part => document.querySelector(part).textContent)"
    )
    assert parts == [evil, evil, json.dumps({"a": evil}, indent=2)]
    assert page.page.ask("document.querySelector('#log :is(img, script, b)')") is None
    assert page.page.ask("typeof pwned") == "undefined"
    assert page.page.complaints == []


def test_with_the_real_engine(browser: Chromium) -> None:
    """The built-in model, forced to call: arguments are JSON, and KV was predicted."""
    with running("real", "--threads", "1", "--kv-cache-memory", "32MiB") as server:
        url = server.url()
        server.read_until("ready in")
        page = ChatPage(browser.open(f"{url}/"))
        page.page.until(f"{READY} && document.getElementById('context').textContent")
        page.set_all(tools=WEATHER, tool_choice="name:get_weather", max_tokens="60")
        page.send("weather?")
        page.until_done()
        assert page.page.text(".call-name") == "get_weather"
        assert isinstance(json.loads(page.page.text(".call-arguments")), dict)
        assert page.where() == ("single_gpu", "default: no multi-GPU trigger")
        assert page.figures()["KV predicted"].endswith("iB")
        assert page.page.complaints == []


def test_only_the_last_answer_is_tried_again(serve: Serve, browser: Chromium) -> None:
    """Behind a later message the failed answer stays, without a way to ask for it: its question
    is no longer the last one."""
    scripts = [
        Script(ids_of("Hello"), fail_after=0, error=EngineFailed("The worker died.")),
        Script((*ids_of("Yes"), END)),
    ]
    live = serve(lambda _: scripts.pop(0))
    page = ChatPage.of(browser, live)
    page.send("first")
    page.until_done()
    assert page.page.shows(".failure button")
    assert page.ask("second", 2) == "Yes"
    assert page.page.text(".failure").startswith("The worker died.")
    assert page.page.ask("document.querySelector('.failure button')") is None


def test_another_model_is_served_by_now(serve: Serve, browser: Chromium) -> None:
    """A page that outlives a restart with another model asks who is there, and goes on."""
    live = serve(lambda _: Script((*ids_of("Hello"), END)))
    page = ChatPage.of(browser, live)
    object.__setattr__(live.services, "model", ServedModel(("other",), created=1))
    page.send("hi")
    page.until_done()
    assert "status 404" in page.page.text(".failure .about")
    page.page.until("document.getElementById('model').textContent === 'other'")
    page.page.click(".failure button")
    page.page.until("document.querySelector('.assistant .text').innerText === 'Hello'")
    assert len(live.engine.jobs) == 1


def test_the_choice_of_tools_outlives_a_reload(serve: Serve, browser: Chromium) -> None:
    """Settings last as long as the tab: also which function must be called."""
    live = harmony_server(serve, call("get_weather", "{}"))
    page = ChatPage.of(browser, live)
    page.set_all(tools=WEATHER, tool_choice="name:get_weather")
    page.page.go(f"{live.url}/?again")
    page.page.until(NAMED)
    page.send("hi")
    page.until_done()
    assert page.page.ask("document.getElementById('tool-choice').value") == "name:get_weather"
    assert live.engine.jobs[0].sampling.guided is not None


def test_a_key_of_any_letters(serve: Serve, browser: Chromium) -> None:
    """Keys are text, not ASCII alone: the page sends them as curl does, in UTF-8."""
    live = serve(services={"api_keys": KeyRing(("clé-ключ",))})
    page = browser.open(f"{live.url}/")
    page.until("document.getElementById('ask-key').open")
    page.write("clé-ключ")
    page.press("Enter")
    page.until(NAMED)
    assert ChatPage(page).ask("hi") == "user:hi"
