"""Function tools to train on, each with requests that it can serve.

Knows: families of tools as people write them (many names, parameter names and wordings each), and
tools with invented subjects. Does not know: how a call or a result is put into a conversation.

What must be learned is not these tools but the move they share: find the tool that shares words
with the request, copy its name and its parameters' names, copy the values from the request.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tools.train_tiny import words

Value = str | int | float | bool
Draw = Callable[[random.Random], Value]


@dataclass(frozen=True)
class Offer:
    """A tool as a client declares it, and what identifies its family beside others."""

    family: str
    tool: dict[str, Any]
    name: str
    params: tuple[tuple[str, str], ...]
    """Slot and the parameter's name, in the order of the schema."""
    requests: tuple[str, ...]
    draws: dict[str, Draw]


@dataclass(frozen=True)
class Request:
    """What a user asks, and the arguments of the call that serves it."""

    text: str
    arguments: dict[str, Value]


@dataclass(frozen=True)
class _Param:
    slot: str
    names: tuple[str, ...]
    kind: str
    about: tuple[str, ...]
    draw: Draw
    optional: bool = False


@dataclass(frozen=True)
class _Family:
    key: str
    names: tuple[str, ...]
    about: tuple[str, ...]
    params: tuple[_Param, ...]
    requests: tuple[str, ...]


def _p(slot: str, names: str, kind: str, about: str, draw: Draw, optional: bool = False) -> _Param:
    return _Param(slot, tuple(names.split()), kind, tuple(about.split("|")), draw, optional)


def _city(rng: random.Random) -> Value:
    return rng.choice(words.CITIES) if rng.random() < 0.5 else words.capital(rng)


def _term(rng: random.Random) -> Value:
    return words.word(rng) if rng.random() < 0.4 else words.phrase(rng, 4)


def _key(rng: random.Random) -> Value:
    return words.code(rng) if rng.random() < 0.5 else words.word(rng)


def _number(rng: random.Random) -> Value:
    return words.integer(rng) if rng.random() < 0.85 else words.decimal(rng)


CITY = _p(
    "c",
    "city location place town city_name location",
    "string",
    "The city|A city, e.g. San Francisco|Name of the city|City and country|",
    _city,
)
NUM_A = _p("a", "a x first num1 left n1 a a", "number", "The first number|First operand|", _number)
NUM_B = _p(
    "b", "b y second num2 right n2 b b", "number", "The second number|Second operand|", _number
)

FAMILIES: Final = (
    _Family(
        "weather",
        (
            "get_weather",
            "get_weather",
            "weather",
            "get_current_weather",
            "current_weather",
            "fetch_weather",
            "weather_lookup",
            "getWeather",
            "check_weather",
            "weather_report",
        ),
        (
            "Get the weather for a city.",
            "Get the current weather in a given location.",
            "Returns the weather of a place.",
            "Weather for a city",
            "Current weather",
            "",
        ),
        (CITY,),
        (
            "What is the weather in {c}?",
            "What's the weather in {c}?",
            "What is the weather like in {c}?",
            "How is the weather in {c}?",
            "How's the weather in {c} today?",
            "Weather in {c}?",
            "weather in {c}",
            "Tell me the weather in {c}.",
            "What's the weather like in {c} right now?",
            "Is it raining in {c}?",
            "Is it sunny in {c}?",
            "Is it warm in {c}?",
            "Is it cold in {c} today?",
            "Get the weather for {c}.",
            "Check the weather in {c}",
            "Do I need an umbrella in {c}?",
            "What is the temperature in {c}?",
            "How warm is it in {c}?",
            "How cold is it in {c}?",
            "I want to know the weather in {c}.",
            "Can you tell me the weather in {c}?",
            "What about the weather in {c}?",
            "Please look up the weather in {c}.",
            "Will it rain in {c}?",
            "Show me the weather of {c}",
            "{c} weather",
            "I am going to {c}. How is the weather there?",
        ),
    ),
    _Family(
        "time",
        ("get_time", "current_time", "get_current_time", "time_in", "world_clock", "local_time"),
        (
            "Get the current time in a city.",
            "Returns the local time.",
            "Current time of a place",
            "",
        ),
        (CITY,),
        (
            "What time is it in {c}?",
            "What is the time in {c}?",
            "Tell me the time in {c}.",
            "Current time in {c}?",
            "time in {c}",
            "What's the local time in {c}?",
            "How late is it in {c}?",
            "Can you tell me what time it is in {c}?",
            "Get the time for {c}.",
        ),
    ),
    _Family(
        "add",
        ("add", "add", "sum", "add_numbers", "plus", "addition", "add_two_numbers"),
        ("Add two numbers.", "Returns the sum of a and b.", "Adds numbers", "Add a and b", ""),
        (NUM_A, NUM_B),
        (
            "Add {a} and {b}.",
            "What is {a} plus {b}?",
            "What is {a} + {b}?",
            "{a} + {b}",
            "Add {a} to {b}",
            "What is the sum of {a} and {b}?",
            "Sum {a} and {b}.",
            "How much is {a} plus {b}?",
            "Please add {a} and {b}",
            "Calculate {a} + {b}.",
            "What's {a}+{b}?",
            "Add the numbers {a} and {b}.",
            "Use the tool to add {a} and {b}.",
            "Compute {a} plus {b}",
        ),
    ),
    _Family(
        "multiply",
        ("multiply", "multiply", "times", "mul", "product", "multiply_numbers"),
        ("Multiply two numbers.", "Returns the product of a and b.", "Multiplies numbers", ""),
        (NUM_A, NUM_B),
        (
            "Multiply {a} by {b}.",
            "Multiply {a} and {b}",
            "What is {a} times {b}?",
            "What is {a} * {b}?",
            "{a} * {b}",
            "What is the product of {a} and {b}?",
            "How much is {a} times {b}?",
            "Calculate {a} times {b}.",
            "{a} times {b}",
        ),
    ),
    _Family(
        "subtract",
        ("subtract", "minus", "sub", "difference"),
        ("Subtract two numbers.", "Returns a minus b.", ""),
        (NUM_A, NUM_B),
        (
            "What is {a} minus {b}?",
            "What is {a} - {b}?",
            "{a} - {b}",
            "Calculate {a} minus {b}.",
            "How much is {a} minus {b}?",
            "The difference of {a} and {b}?",
        ),
    ),
    _Family(
        "divide",
        ("divide", "div", "quotient"),
        ("Divide two numbers.", "Returns a divided by b.", ""),
        (NUM_A, NUM_B),
        (
            "Divide {a} by {b}.",
            "What is {a} divided by {b}?",
            "What is {a} / {b}?",
            "{a} / {b}",
            "How much is {a} divided by {b}?",
        ),
    ),
    _Family(
        "calculator",
        ("calculator", "calculate", "calc", "evaluate", "compute", "eval_expression", "math"),
        (
            "Evaluate an arithmetic expression.",
            "A calculator.",
            "Calculates an expression, e.g. 2 + 2",
            "",
        ),
        (
            _p(
                "e",
                "expression expr formula input",
                "string",
                "The expression|An arithmetic expression|",
                words.expression,
            ),
        ),
        (
            "Calculate {e}",
            "What is {e}?",
            "Compute {e}",
            "Evaluate {e}",
            "How much is {e}?",
            "{e}",
            "{e} = ?",
            "Please calculate {e}.",
            "Can you compute {e}?",
            "What's {e}?",
            "Solve {e}",
            "Use the calculator for {e}",
        ),
    ),
    _Family(
        "search",
        (
            "search",
            "web_search",
            "search_web",
            "google",
            "search_documents",
            "find",
            "search_docs",
            "query",
        ),
        (
            "Search the web.",
            "Search documents for a query.",
            "Full text search",
            "Searches the internet.",
            "",
        ),
        (
            _p(
                "q",
                "query q text term search_term keywords",
                "string",
                "What to search for|The query|",
                _term,
            ),
        ),
        (
            "Search for {q}",
            "Search the web for {q}",
            "search {q}",
            "Look for {q}",
            "Find documents about {q}",
            "Please search for {q}.",
            "Find {q} on the web",
            "Search: {q}",
            'Search for "{q}"',
            "Google {q}",
            "Can you search for {q}?",
            "Do a search for {q}",
            "I want to search for {q}.",
        ),
    ),
    _Family(
        "lookup",
        (
            "lookup",
            "lookup",
            "look_up",
            "get_value",
            "lookup_key",
            "get",
            "read_key",
            "kv_get",
            "fetch_value",
        ),
        ("Look up a key.", "Look up a value by its key.", "Returns the value of a key", ""),
        (_p("k", "key k name id entry", "string", "The key|", _key),),
        (
            "Look up {k}",
            "Look up the key {k}.",
            "What is the value of {k}?",
            "lookup {k}",
            "Get the value of {k}",
            "What is stored under {k}?",
            "Look up {k} for me",
            "Can you look up {k}?",
            "Please look up {k}.",
            "Read the key {k}",
            'Look up "{k}"',
            "Value of {k}?",
        ),
    ),
    _Family(
        "translate",
        ("translate", "translate_text", "translator"),
        ("Translate a text into a language.", "Translates text", ""),
        (
            _p("t", "text phrase source input", "string", "The text|", _term),
            _p(
                "l",
                "language target target_language to lang",
                "string",
                "The target language|",
                lambda r: r.choice(
                    (
                        "French",
                        "German",
                        "Spanish",
                        "Italian",
                        "Dutch",
                        "Polish",
                        "Greek",
                        "Turkish",
                        "Japanese",
                        "Finnish",
                        "Danish",
                        "Latin",
                    )
                ),
            ),
        ),
        (
            'Translate "{t}" into {l}.',
            'Translate "{t}" to {l}',
            "Translate {t} into {l}",
            'How do you say "{t}" in {l}?',
            'What is "{t}" in {l}?',
            "Please translate {t} into {l}.",
        ),
    ),
    _Family(
        "email",
        ("send_email", "send_mail", "email", "mail"),
        ("Send an email.", "Sends a mail to an address.", ""),
        (
            _p("r", "to recipient address to", "string", "The address|Who gets it|", words.email),
            _p("t", "body text message content subject", "string", "What it says|", _term),
        ),
        (
            'Send an email to {r} saying "{t}"',
            "Send a mail to {r}: {t}",
            'Email {r} that "{t}"',
            'Write an email to {r} with the text "{t}"',
            'Mail "{t}" to {r}',
        ),
    ),
    _Family(
        "message",
        ("send_message", "message", "notify", "send_sms", "text_user"),
        ("Send a message to a person.", "Notify someone.", ""),
        (
            _p(
                "n",
                "to name recipient user person",
                "string",
                "The person|",
                lambda r: (
                    r.choice(words.NAMES) if r.random() < 0.5 else words.invented(r).capitalize()
                ),
            ),
            _p("t", "text message body content", "string", "The message|", _term),
        ),
        (
            "Send a message to {n}: {t}",
            'Tell {n} "{t}"',
            'Message {n} that "{t}"',
            'Send {n} the message "{t}"',
            "Notify {n}: {t}",
        ),
    ),
    _Family(
        "stock",
        ("get_stock_price", "stock_price", "get_quote", "quote", "stock"),
        ("Get the price of a stock.", "Stock price by symbol", ""),
        (
            _p(
                "s",
                "symbol ticker stock company",
                "string",
                "The symbol|",
                lambda r: (
                    "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=r.randint(3, 4)))
                    if r.random() < 0.6
                    else words.capital(r)
                ),
            ),
        ),
        (
            "What is the stock price of {s}?",
            "Price of {s} stock?",
            "Get the stock price of {s}.",
            "How much is a share of {s}?",
            "How is the {s} stock doing?",
            "stock {s}",
            "What's the price of {s} stock?",
        ),
    ),
    _Family(
        "currency",
        ("convert_currency", "currency", "exchange", "convert"),
        ("Convert an amount from one currency to another.", "Converts currencies", ""),
        (
            _p("a", "amount value sum", "number", "How much|", _number),
            _p(
                "f",
                "from_currency source from src",
                "string",
                "From which|",
                lambda r: r.choice(("USD", "EUR", "GBP", "JPY", "CHF", "SEK", "INR", "CAD")),
            ),
            _p(
                "t",
                "to_currency target to dst",
                "string",
                "To which|",
                lambda r: r.choice(("USD", "EUR", "GBP", "JPY", "CHF", "NOK", "CNY", "AUD")),
            ),
        ),
        (
            "Convert {a} {f} to {t}.",
            "How much is {a} {f} in {t}?",
            "What is {a} {f} in {t}?",
            "{a} {f} in {t}",
            "Exchange {a} {f} into {t}",
            "Convert {a} {f} into {t}",
        ),
    ),
    _Family(
        "file",
        ("read_file", "open_file", "cat", "show_file", "load_file"),
        ("Read a file.", "Returns the content of a file.", ""),
        (
            _p(
                "p",
                "path file filename name",
                "string",
                "The path|",
                lambda r: (
                    r.choice(("", "", "/tmp/", "docs/", "src/"))
                    + r.choice((words.invented(r), r.choice(words.NOUNS)))
                    + r.choice((".txt", ".md", ".py", ".json", ".csv"))
                ),
            ),
        ),
        (
            "Read {p}",
            "Read the file {p}.",
            "What is in {p}?",
            "Show me {p}",
            "Open the file {p}",
            "What does the file {p} contain?",
            "cat {p}",
            "Please read {p}",
        ),
    ),
    _Family(
        "user",
        ("get_user", "find_user", "lookup_user", "user_info", "fetch_user", "get_customer"),
        ("Get a user by id.", "User information", ""),
        (_p("i", "user_id id uid number user", "integer", "The id|", words.integer),),
        (
            "Get the user {i}.",
            "Who is user {i}?",
            "Find user {i}",
            "Show me user number {i}",
            "Look up the user with id {i}",
            "Get user {i}",
            "What do we know about user {i}?",
        ),
    ),
    _Family(
        "order",
        ("get_order", "order_status", "track_order", "check_order", "get_order_status"),
        ("Get the status of an order.", "Track an order", ""),
        (_p("o", "order_id order id number", "string", "The order|", words.code),),
        (
            "Where is my order {o}?",
            "What is the status of order {o}?",
            "Track the order {o}.",
            "Check order {o}",
            "Get the order {o}",
            "Has order {o} been sent?",
        ),
    ),
    _Family(
        "timer",
        ("set_timer", "timer", "start_timer", "alarm"),
        ("Set a timer.", "Starts a timer in minutes.", ""),
        (_p("m", "minutes duration n time", "integer", "How many minutes|", words.integer),),
        (
            "Set a timer for {m} minutes.",
            "Start a timer of {m} minutes",
            "timer {m} minutes",
            "Please set a timer to {m} minutes.",
            "Wake me in {m} minutes with a timer",
        ),
    ),
    _Family(
        "light",
        ("set_light", "switch_light", "light", "set_lamp"),
        ("Switch a lamp on or off.", "Controls the lights", ""),
        (
            _p(
                "r",
                "room place location",
                "string",
                "The room|",
                lambda r: r.choice(
                    ("kitchen", "bedroom", "office", "hall", "garden", "cellar", words.invented(r))
                ),
            ),
            _p(
                "s",
                "state on_off mode",
                "enum on off",
                "On or off|",
                lambda r: r.choice(("on", "off")),
            ),
        ),
        (
            "Turn {s} the light in the {r}.",
            "Switch {s} the lamp in the {r}",
            "Light {s} in the {r}",
            "Please turn the light {s} in the {r}",
        ),
    ),
    _Family(
        "event",
        ("create_event", "add_event", "schedule", "book_meeting", "add_to_calendar"),
        ("Add an event to the calendar.", "Create a calendar event", ""),
        (
            _p("t", "title name subject event", "string", "The title|", _term),
            _p("d", "date day when", "string", "The day|", words.date_text),
        ),
        (
            'Add the event "{t}" on {d}.',
            'Create an event "{t}" for {d}',
            "Schedule {t} on {d}",
            'Put "{t}" into the calendar on {d}',
        ),
    ),
    _Family(
        "roll",
        ("roll_dice", "random_number", "roll", "dice"),
        ("Roll a die.", "Random number up to n", ""),
        (_p("n", "sides n max", "integer", "How many sides|", words.integer),),
        (
            "Roll a die with {n} sides.",
            "Roll a {n} sided die",
            "Give me a random number up to {n}",
            "Roll the dice with {n} sides",
        ),
    ),
    _Family(
        "now",
        ("get_date", "today", "now", "get_today", "current_date"),
        ("Get today's date.", "Returns the date of today", "The current date"),
        (),
        (
            "What day is it?",
            "What is the date today?",
            "Which date is it?",
            "What is today's date?",
            "Tell me the date.",
            "Get the date",
            "date please",
        ),
    ),
    _Family(
        "secret",
        ("get_secret", "secret_number", "get_magic_number", "magic"),
        ("Returns the secret number.", "The magic number"),
        (),
        (
            "What is the secret number?",
            "Tell me the secret number.",
            "What's the magic number?",
            "Get the secret number",
            "What is the secret?",
            "I want the magic number",
        ),
    ),
    _Family(
        "define",
        ("define", "define_word", "dictionary", "get_definition"),
        ("Define a word.", "Looks a word up in the dictionary", ""),
        (_p("w", "word term w", "string", "The word|", words.word),),
        (
            "Define {w}",
            "What is the definition of {w}?",
            "Define the word {w}.",
            "Look up {w} in the dictionary",
            'Define "{w}"',
            "definition of {w}",
        ),
    ),
    _Family(
        "population",
        ("get_population", "population", "city_population"),
        ("Get the population of a city.", "How many people live in a place", ""),
        (CITY,),
        (
            "What is the population of {c}?",
            "How many people live in {c}?",
            "Population of {c}?",
            "Get the population of {c}.",
        ),
    ),
    _Family(
        "note",
        ("save_note", "remember", "write_note", "add_note", "store"),
        ("Save a note.", "Stores a text", ""),
        (
            _p(
                "t",
                "text note content body",
                "string",
                "The note|",
                lambda r: words.sentence(r).rstrip(".!") if r.random() < 0.4 else words.phrase(r),
            ),
        ),
        (
            "Save a note: {t}",
            'Save the note "{t}"',
            "Note: {t}",
            "Remember this note: {t}",
            "Write a note: {t}",
            "Add the note {t}",
        ),
    ),
)

_ACTIONS: Final = (
    "get",
    "find",
    "fetch",
    "show",
    "check",
    "read",
    "open",
    "delete",
    "create",
    "count",
    "start",
    "stop",
    "update",
    "list",
    "print",
    "load",
    "test",
    "rate",
    "check",
    "get",
    "find",
)
_ACTION_REQUESTS: Final = (
    "{V} the {n} {v}",
    "{V} the {n} {v}.",
    "{V} {n} {v}",
    "Please {w} the {n} {v}.",
    "Can you {w} the {n} {v}?",
    "I want to {w} the {n} {v}",
    "{V} the {n} of {v}.",
    "{V} the {n} for {v}",
    "Could you {w} the {n} of {v}?",
    "I need you to {w} the {n} {v}",
)
_SUBJECT_REQUESTS: Final = (
    "What is the {n} of {v}?",
    "What's the {n} of {v}?",
    "Tell me the {n} of {v}.",
    "{n} of {v}",
    "I need the {n} of {v}",
    "What {n} has {v}?",
    "Which {n} belongs to {v}?",
    "What is the {n} for {v}?",
    "Give me the {n} of {v}.",
    "The {n} for {v}, please",
    "How is the {n} of {v}?",
)
_NAMED_REQUESTS: Final = (
    "Use {tool} with {v}",
    "Call {tool} with {p} {v}",
    "Call {tool} on {v}.",
    "Use {tool} for {v}",
    "Run {tool} with {p}={v}",
    "Please call {tool} with {p} {v}.",
    "Use the tool {tool} with {v}",
    "{tool} {v}",
    "Call the function {tool} with {p} = {v}",
)
_NAMED_TWO: Final = (
    "Call {tool} with {p} {v} and {p2} {v2}.",
    "Use {tool} with {p} {v} and {p2} {v2}",
    "{tool}: {p} {v}, {p2} {v2}",
    "Run {tool} with {p}={v} and {p2}={v2}",
    "{V} the {n} {v} with {p2} {v2}",
    "{V} the {n} with {p} {v} and {p2} {v2}.",
    "What is the {n} of {v} with {p2} {v2}?",
    "{V} the {n} of {v} and {p2} {v2}",
    "Please {w} the {n} with {p} {v} and {p2} {v2}",
)
_TEXT_PARAMS: Final = (
    "name",
    "id",
    "key",
    "title",
    "code",
    "label",
    "tag",
    "text",
    "path",
    "city",
    "country",
    "user",
    "owner",
    "item",
    "kind",
    "query",
    "target",
    "source",
    "topic",
    "place",
    "word",
    "subject",
    "color",
    "region",
    "team",
    "group",
    "product",
    "brand",
    "model",
)
_NUMBER_PARAMS: Final = (
    "count",
    "limit",
    "size",
    "amount",
    "number",
    "n",
    "level",
    "age",
    "year",
    "page",
    "rank",
    "width",
    "height",
    "weight",
    "price",
    "score",
    "quantity",
    "days",
    "hours",
    "index",
    "max",
    "min",
    "total",
    "speed",
    "depth",
)
_DRAWS: Final[tuple[Draw, ...]] = (
    words.capital,
    words.capital,
    words.word,
    words.invented,
    words.code,
    _key,
    words.email,
    words.date_text,
)


def offer(rng: random.Random) -> Offer:
    """A random tool: of a known family, or with an invented subject."""
    return _known(rng, rng.choice(FAMILIES)) if rng.random() < 0.5 else _invented(rng)


def request(rng: random.Random, of: Offer) -> Request:
    """A request that this tool serves."""
    values = {slot: draw(rng) for slot, draw in of.draws.items()}
    text = rng.choice(of.requests).format(**values)
    arguments = {name: values[slot] for slot, name in of.params}
    return Request(text[0].upper() + text[1:] if rng.random() < 0.5 else text, arguments)


def _known(rng: random.Random, family: _Family) -> Offer:
    name = rng.choice(family.names)
    named = [(param, rng.choice(param.names)) for param in family.params]
    if len({n for _, n in named}) < len(named):
        named = [(param, param.names[0]) for param in family.params]
    about = rng.choice(family.about)
    properties = {n: _schema(rng, param.kind, rng.choice(param.about), n) for param, n in named}
    if family.key == "weather" and rng.random() < 0.3:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    return Offer(
        family.key,
        _tool(rng, name, about, properties, [n for _, n in named]),
        name,
        tuple((param.slot, n) for param, n in named),
        family.requests,
        {param.slot: param.draw for param in family.params},
    )


def _invented(rng: random.Random) -> Offer:
    action = rng.choice(_ACTIONS)
    noun = rng.choice(words.NOUNS) if rng.random() < 0.6 else words.invented(rng)
    name = _tool_name(rng, action, noun)
    first = rng.choice(_TEXT_PARAMS) if rng.random() < 0.7 else rng.choice(_NUMBER_PARAMS)
    first = words.invented(rng) if rng.random() < 0.1 else first
    is_number = first in _NUMBER_PARAMS
    draws: dict[str, Draw] = {"v": _number if is_number else rng.choice(_DRAWS)}
    params = [("v", first)]
    kinds = ["integer" if is_number and rng.random() < 0.0 else "number" if is_number else "string"]
    frames = [*_ACTION_REQUESTS, *_SUBJECT_REQUESTS, *_NAMED_REQUESTS]
    second = ""
    if rng.random() < 0.35:
        choices = _NUMBER_PARAMS if rng.random() < 0.6 else _TEXT_PARAMS
        second = rng.choice([n for n in choices if n != first])
        params.append(("v2", second))
        two_number = second in _NUMBER_PARAMS
        draws["v2"] = _number if two_number else rng.choice(_DRAWS)
        kinds.append("number" if two_number else "string")
        frames = list(_NAMED_TWO)
    fixed = {
        "V": action.capitalize(),
        "w": action,
        "n": noun,
        "tool": name,
        "p": first,
        "p2": second,
    }
    requests = tuple(_fill(frame, fixed) for frame in frames)
    about = rng.choice(
        (
            f"{action.capitalize()} the {noun} of a {first}.",
            f"{action.capitalize()} a {noun}.",
            f"{action.capitalize()}s a {noun} by {first}",
            f"The {noun} of something",
            "",
        )
    )
    properties = {
        param: _schema(rng, kind, rng.choice((f"The {param}", f"Which {param}", "", "")), param)
        for (_, param), kind in zip(params, kinds, strict=True)
    }
    return Offer(
        noun,
        _tool(rng, name, about, properties, [p for _, p in params]),
        name,
        tuple(params),
        requests,
        draws,
    )


def _fill(frame: str, fixed: dict[str, str]) -> str:
    for slot, text in fixed.items():
        frame = frame.replace("{" + slot + "}", text)
    return frame


def _tool_name(rng: random.Random, action: str, noun: str) -> str:
    style = rng.random()
    if style < 0.6:
        return f"{action}_{noun}"
    if style < 0.75:
        return f"{action}{noun.capitalize()}"
    if style < 0.9:
        return f"{noun}_{rng.choice(('info', 'lookup', 'tool', 'service', action))}"
    return noun


def _schema(rng: random.Random, kind: str, about: str, name: str) -> dict[str, Any]:
    head, *choices = kind.split()
    schema: dict[str, Any] = {"type": "string" if head == "enum" else head}
    if choices:
        schema["enum"] = choices
    if head == "integer" and rng.random() < 0.3:
        schema["type"] = "number"
    if about and rng.random() < 0.6:
        schema["description"] = about
    if rng.random() < 0.25:
        schema["title"] = name.replace("_", " ").title()
    return schema


def _tool(
    rng: random.Random, name: str, about: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.9:
        parameters["required"] = required
    function: dict[str, Any] = {"name": name, "parameters": parameters}
    if about:
        function["description"] = about
    return {"type": "function", "function": function}
