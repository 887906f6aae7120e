"""What the built-in model is asked when it is examined, and what it should say.

Knows: questions, tools and expected answers that training never saw. Does not know: how they are
run.

Held out: whole questions and sentence frames of `tools/train_tiny/heldout.py`, which the corpus
generator refuses to emit; tools and requests written out below; tools with invented names and
texts to repeat from seeds that training does not use; ranges to count that training skips.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from tools.train_tiny import words
from tools.train_tiny.conversations import counted, echo_line, is_held_out_range
from tools.train_tiny.heldout import DOING_FRAMES, EVERYDAY, QUESTIONS, SMALL_TALK, THING_FRAMES
from tools.train_tiny.heldout import UNKNOWN as UNKNOWN_QUESTIONS
from tools.train_tiny.tool_families import offer, request
from tools.train_tiny.topics import SMALL_TALK as SMALL_TALK_ANSWERS
from tools.train_tiny.topics import TOPICS, UNKNOWN

Message = dict[str, Any]
SEED = 987_654_321  # training seeds its generators with texts such as "0/17"


@dataclass(frozen=True)
class Case:
    """One question. Expected is an answer, or a call: name and arguments."""

    kind: str
    messages: tuple[Message, ...]
    content: str | None = None
    call: tuple[str, dict[str, Any]] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    effort: str = "medium"
    about: str = field(default="", compare=False)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return ({"role": "user", "content": text},)


def tool(name: str, description: str, **params: str | list[str]) -> dict[str, Any]:
    """A function tool whose parameters are all required; a list is an enum of strings."""
    properties = {
        param: {"type": kind} if isinstance(kind, str) else {"type": "string", "enum": kind}
        for param, kind in params.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(params)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", "Get the weather for a city.", city="string")
ADD = tool("add", "Add two numbers.", a="number", b="number")
LOOKUP = tool("lookup", "Look up a key.", key="string")
SEARCH = tool("search", "Search the web.", query="string")
MULTIPLY = tool("multiply", "Multiply two numbers.", a="number", b="number")
CALCULATE = tool("calculate", "Evaluate an arithmetic expression.", expression="string")
TICKET = tool("open_ticket", "Open a support ticket.", subject="string")
INVENTORY = tool("get_inventory", "Get the inventory of a warehouse.", warehouse="string")
PRICE = tool("find_price", "Find the price of a product.", product="string")
CLOCK = tool("clock", "What time is it in a city", city="string")
ROOM = tool(
    "reserve_room", "Reserve a room for a number of people.", room="string", people="number"
)

WRITTEN_CALLS: tuple[tuple[tuple[dict[str, Any], ...], str, str, dict[str, Any]], ...] = (
    ((WEATHER,), "How is the weather looking in Paris?", "get_weather", {"city": "Paris"}),
    ((WEATHER,), "I wonder what the weather is like in Ulaanbaatar", "get_weather", {"city": "Ulaanbaatar"}),
    ((WEATHER,), "Weather report for Kigali please", "get_weather", {"city": "Kigali"}),
    ((WEATHER,), "Could you check the weather in New York?", "get_weather", {"city": "New York"}),
    ((ADD,), "What do you get if you add 17 and 25?", "add", {"a": 17, "b": 25}),
    ((ADD,), "Please add 1234 and 5.", "add", {"a": 1234, "b": 5}),
    ((ADD,), "add 3 and 4", "add", {"a": 3, "b": 4}),
    ((LOOKUP,), "Look up the key zebra_42.", "lookup", {"key": "zebra_42"}),
    ((LOOKUP,), "Please look up flamingo", "lookup", {"key": "flamingo"}),
    ((SEARCH,), "Search for red pandas", "search", {"query": "red pandas"}),
    ((SEARCH,), 'Please search the web for "solar panels"', "search", {"query": "solar panels"}),
    ((WEATHER, ADD), "What is the weather in Lisbon?", "get_weather", {"city": "Lisbon"}),
    ((WEATHER, ADD), "Add 8 and 9", "add", {"a": 8, "b": 9}),
    ((ADD, WEATHER), "What's 40 + 2?", "add", {"a": 40, "b": 2}),
    ((ADD, WEATHER), "What's the weather in Quebec?", "get_weather", {"city": "Quebec"}),
    ((LOOKUP, SEARCH), "Look up user_7", "lookup", {"key": "user_7"}),
    ((LOOKUP, SEARCH), "Search for blue whales", "search", {"query": "blue whales"}),
    ((ADD, MULTIPLY), "Multiply 6 by 7", "multiply", {"a": 6, "b": 7}),
    ((ADD, MULTIPLY), "What is 6 plus 7?", "add", {"a": 6, "b": 7}),
    ((CALCULATE, WEATHER), "Calculate 12*(3+4)", "calculate", {"expression": "12*(3+4)"}),
    ((TICKET,), "Open a ticket about broken lamps", "open_ticket", {"subject": "broken lamps"}),
    ((INVENTORY,), "Get the inventory of Rotterdam", "get_inventory", {"warehouse": "Rotterdam"}),
    ((PRICE, WEATHER), "Find the price of oranges", "find_price", {"product": "oranges"}),
    ((CLOCK, WEATHER), "What time is it in Nairobi?", "clock", {"city": "Nairobi"}),
    ((ROOM,), "Reserve the room Aurora for 12 people", "reserve_room", {"room": "Aurora", "people": 12}),
)  # fmt: skip
"""Tools offered, request, and the one right call."""


def topic_cases() -> list[Case]:
    """Held-out questions about the server."""
    answers = {topic.key: topic.answer for topic in TOPICS}
    new = [
        Case("topics: new questions", user(text), answers[key], about=key)
        for key, questions in QUESTIONS.items()
        for text in questions
    ]
    everyday = [
        Case("topics: everyday", user(text), answers[key], about=key) for key, text in EVERYDAY
    ]
    return new + everyday


def frame_cases(rng: random.Random, count: int) -> list[Case]:
    """Known subjects in sentence frames that training has not."""
    cases = []
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        if topic.doings and (not topic.things or rng.random() < 0.5):
            text = rng.choice(DOING_FRAMES).format(x=rng.choice(topic.doings))
        else:
            text = rng.choice(THING_FRAMES).format(x=rng.choice(topic.things))
        cases.append(Case("topics: new frames", user(text), topic.answer, about=topic.key))
    return cases


def other_cases() -> list[Case]:
    """Small talk, and what the model knows nothing about."""
    talk = [
        Case("small talk", user(text), SMALL_TALK_ANSWERS[key][0], about=key)
        for key, texts in SMALL_TALK.items()
        for text in texts
    ]
    return talk + [Case("anything else", user(t), UNKNOWN) for t in UNKNOWN_QUESTIONS]


def copy_cases(rng: random.Random, count: int) -> list[Case]:
    """Texts to repeat and numbers to count."""
    cases = []
    for _ in range(count):
        line = echo_line(rng)
        cases.append(Case("echo", user(line.text), line.answer))
    ranges = [
        (a, b) for a in range(20) for b in range(a + 1, min(a + 15, 30)) if is_held_out_range(a, b)
    ]
    for first, last in rng.sample(ranges, min(count // 2, len(ranges))):
        text = f"Count to {last}." if first == 1 else f"Count from {first} to {last}."
        cases.append(Case("count", user(text), counted(first, last)))
    return cases


def call_cases(rng: random.Random, count: int) -> list[Case]:
    """Requests for a tool: written ones, and generated ones with names never seen."""
    cases = [
        Case("calls: written", user(text), call=(name, arguments), tools=tools)
        for tools, text, name, arguments in WRITTEN_CALLS
    ]
    for n in range(count):
        offers = [offer(rng) for _ in range(1 + n % 2)]
        if len({o.name for o in offers}) < len(offers) or len({o.family for o in offers}) < len(
            offers
        ):
            offers = offers[:1]
        wanted = rng.choice(offers)
        asked = request(rng, wanted)
        cases.append(
            Case(
                "calls: generated",
                user(asked.text),
                call=(wanted.name, dict(asked.arguments)),
                tools=tuple(o.tool for o in offers),
                effort=("low", "medium", "high")[n % 3],
            )
        )
    return cases


def called(call_id: str, name: str, arguments: dict[str, Any], output: str) -> tuple[Message, ...]:
    """A call and its result, as a client sends them back (without the reasoning)."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": output},
    )


RESULTS = (
    "42", "sunny, 21 degrees", "The harbour is closed until Monday.", '{"temperature": 21, "unit": "C"}',
    "3.75", "no entry found", "Rainy with a chance of snow", '{"status": "ok", "count": 3}',
)  # fmt: skip


def result_cases() -> list[Case]:
    """A tool has answered: the final answer names the tool and holds its result, word for word."""
    cases = []
    for n, (tools, text, name, arguments) in enumerate(WRITTEN_CALLS):
        output = RESULTS[n % len(RESULTS)]
        messages = (*user(text), *called("c1", name, arguments, output))
        answer = f"According to {name}: {output}"
        cases.append(Case("tool results", messages, answer, tools=tools))
    return cases


def agent_cases() -> list[Case]:
    """The second and third step of an agent with two tools."""
    cases = []
    for city, a, b in (("Paris", 3, 4), ("Madrid", 20, 22), ("Osaka", 100, 1), ("Bern", 7, 15)):
        asked = user(f"What is the weather in {city}? Then add {a} and {b}.")
        weather = called("c1", "get_weather", {"city": city}, "sunny, 18 degrees")
        added = called("c2", "add", {"a": a, "b": b}, str(a + b))
        tools = (WEATHER, ADD)
        cases += [
            Case("two-step agents", asked, call=("get_weather", {"city": city}), tools=tools),
            Case("two-step agents", asked + weather, call=("add", {"a": a, "b": b}), tools=tools),
            Case(
                "two-step agents",
                asked + weather + added,
                f"According to get_weather: sunny, 18 degrees\nAccording to add: {a + b}",
                tools=tools,
            ),
        ]
    return cases


def all_cases(size: int = 60) -> list[Case]:
    """Every case; `size` scales the generated kinds."""
    rng = random.Random(SEED)
    return [
        *topic_cases(),
        *frame_cases(rng, 2 * size),
        *other_cases(),
        *copy_cases(rng, size),
        *call_cases(rng, size),
        *result_cases(),
        *agent_cases(),
    ]


__all__ = ["Case", "all_cases", "words"]
