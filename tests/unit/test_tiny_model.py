"""The built-in model talks: small, well-formed, right, and what its corpus promises of it."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import gpt_oss_server

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny"
if str(ROOT) not in sys.path:  # tools/ and benchmarks/ are run from the repository's root
    sys.path.insert(0, str(ROOT))

from benchmarks.tiny_cases import ADD, SEED, WEATHER, Case, all_cases, called, user  # noqa: E402
from benchmarks.tiny_eval import Outcome, examine, judge  # noqa: E402
from tools.train_tiny.batches import IGNORED, Encoder, batch  # noqa: E402
from tools.train_tiny.conversations import line, scene  # noqa: E402
from tools.train_tiny.fast_forward import losses  # noqa: E402
from tools.train_tiny.heldout import (  # noqa: E402
    DOING_FRAMES,
    EVERYDAY,
    QUESTIONS,
    THING_FRAMES,
    held_out,
)
from tools.train_tiny.optimise import rate  # noqa: E402
from tools.train_tiny.phrasing import DOING_FRAMES as KNOWN_DOING_FRAMES  # noqa: E402
from tools.train_tiny.phrasing import THING_FRAMES as KNOWN_THING_FRAMES  # noqa: E402
from tools.train_tiny.phrasing import normalised  # noqa: E402
from tools.train_tiny.topics import TOPICS, UNKNOWN  # noqa: E402
from tools.train_tiny.train import Recipe, continues, new_model  # noqa: E402

from gpt_oss_server.harmony.tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

ANSWERS = {topic.key: topic.answer for topic in TOPICS}
ASKED = (
    ("What does route4 mean?", "route4"),
    ("Which GPU mode should I use?", "gpu_mode"),
    ("How do I read /stats?", "stats"),
    ("What is the KV cache?", "kv_cache"),
    ("How do I set an API key?", "api_key"),
    ("How do I start 20b?", "start_20b"),
    ("How do I start 120b?", "start_120b"),
    ("What is prefix caching?", "prefix_caching"),
    ("What is preemption?", "preemption"),
    ("What does 429 mean?", "e429"),
    ("What is a lease?", "lease"),
    ("How do I read /memory_stats?", "memory_stats"),
    ("Who are you?", "tiny"),
    ("What does /health say?", "health"),
)
ECHO = "Repeat after me: seven blue boats"
CITY = {"city": "Lisbon"}


def spoken() -> list[Case]:
    """Prompts of every kind."""
    weather = user("What is the weather in Lisbon?")
    return [
        *(Case("topics", user(text), ANSWERS[key]) for text, key in ASKED),
        Case("echo", user(ECHO), "seven blue boats"),
        Case("count", user("Count from 3 to 9."), "3, 4, 5, 6, 7, 8, 9"),
        Case("unknown", user("What is the capital of Norway?"), UNKNOWN),
        Case("call", weather, call=("get_weather", CITY), tools=(WEATHER, ADD)),
        Case("call", user("Add 3 and 4."), call=("add", {"a": 3, "b": 4}), tools=(WEATHER, ADD)),
        Case("low", user("What does route4 mean?"), ANSWERS["route4"], effort="low"),
        Case("high", user("What does route4 mean?"), ANSWERS["route4"], effort="high"),
        Case(
            "result",
            (*weather, *called("c", "get_weather", CITY, "sunny, 21 degrees")),
            "According to get_weather: sunny, 21 degrees",
            tools=(WEATHER,),
        ),
    ]


@pytest.fixture(scope="module")
def outcomes(one_thread: None) -> list[Outcome]:
    """What the model says to them, greedily, through the engine."""
    return examine(TINY, spoken(), (0.0,))[0.0]


def test_weights_fit_the_repository() -> None:
    """The weights take at most 4 MB, the whole folder little more."""
    assert (TINY / "model.safetensors").stat().st_size <= 4_000_000
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 4_200_000


def test_everything_said_is_well_formed(outcomes: list[Outcome]) -> None:
    """Every prompt gets harmony: reasoning at most once, then one answer or call."""
    assert len(outcomes) == 22
    assert [o.text for o in outcomes if not o.well_formed] == []


def test_everything_said_is_right(outcomes: list[Outcome]) -> None:
    """Topics, echo, counting, calls, a tool's result: exactly what was expected."""
    assert [(o.case.messages[-1]["content"], o.text) for o in outcomes if not o.right] == []


def test_effort_sets_the_reasoning(outcomes: list[Outcome]) -> None:
    """Low shows no reasoning, medium a sentence, high more."""
    texts = {o.case.effort: o.text for o in outcomes if "route4" in o.case.messages[-1]["content"]}
    reasoning = {effort: text.rpartition("<|end|>")[0] for effort, text in texts.items()}
    assert reasoning["low"] == ""
    assert reasoning["medium"] == "<|channel|>analysis<|message|>The user asks about route4."
    assert len(reasoning["high"]) > len(reasoning["medium"])


def test_greedy_speech_is_repeatable(outcomes: list[Outcome]) -> None:
    """The same prompts in another order give the same tokens."""
    again = examine(TINY, spoken()[::-1], (0.0,))[0.0]
    assert [o.text for o in again[::-1]] == [o.text for o in outcomes]


@pytest.mark.parametrize(
    ("text", "well_formed", "right"),
    [
        ("<|channel|>final<|message|>hi<|return|>", True, True),
        ("<|channel|>final<|message|>ho<|return|>", True, False),
        ("<|channel|>final<|message|>hi", False, False),
        ("hi<|return|>", False, False),
        ("<|channel|>final<|message|>hi<|call|>", False, False),
        (
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant"
            "<|channel|>final<|message|>hi<|return|>",
            True,
            True,
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            True,
            False,
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{a}<|call|>",
            False,
            False,
        ),
    ],
)
def test_judge(text: str, well_formed: bool, right: bool) -> None:
    """The evaluation tells harmony from what only looks like it."""
    outcome = judge(Case("x", user("Say hi"), "hi"), text, 5)
    assert (outcome.well_formed, outcome.right) == (well_formed, right)


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("f", '{"a": 1}', True),
        ("g", '{"a": 1}', False),
        ("f", '{"b": 1}', False),
        ("f", '{"a": "1"}', False),
    ],
)
def test_judge_of_calls(name: str, arguments: str, valid: bool) -> None:
    """A call counts as well-formed if the tool is offered and its schema allows the arguments."""
    parameters = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    offered = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    case = Case("x", user("Call f"), call=("f", {"a": 2}), tools=(offered,))
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    outcome = judge(case, f"{header}{arguments}<|call|>", 5)
    assert (outcome.valid_call, outcome.right) == (valid, False)


def test_corpus_has_no_held_out_question() -> None:
    """Nothing that the evaluation asks about the server is ever trained on."""
    rng = random.Random(3)
    forbidden = held_out()
    asked = {normalised(line(rng).text) for _ in range(20_000)}
    assert len(asked) > 15_000
    assert asked & forbidden == set()
    assert not set(THING_FRAMES) & set(KNOWN_THING_FRAMES)
    assert not set(DOING_FRAMES) & set(KNOWN_DOING_FRAMES)


def test_every_topic_is_examined() -> None:
    """Each topic has an answer of its own and a held-out question."""
    assert set(QUESTIONS) == set(ANSWERS)
    assert {key for key, _ in EVERYDAY} <= set(ANSWERS)
    assert len(set(ANSWERS.values())) == len(TOPICS)
    assert {c.about for c in all_cases(60) if c.kind.startswith("topics")} == set(ANSWERS)


def test_evaluation_is_repeatable() -> None:
    """The generated cases follow from their seed."""
    assert all_cases(10) == all_cases(10)
    assert SEED != 0


def test_scenes_are_repeatable_and_calls_are_json() -> None:
    """A seed gives the same scene; every call to learn is JSON of a tool that is offered."""
    for seed in range(50):
        made = scene(random.Random(seed), with_tools=True, threads=3)
        assert made == scene(random.Random(seed), with_tools=True, threads=3)
        names = {tool["function"]["name"] for tool in made.tools}
        calls = [e.say.call for thread in made.threads for e in thread if e.say.call]
        assert {name for name, _ in calls} <= names
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


def test_the_rate_is_level_then_falls() -> None:
    """Up within 40 steps, level, down to a half in the middle of the fall, never to nothing."""
    shares = [rate(step, 1000, 400) for step in (0, 19, 40, 600, 800, 999)]
    assert shares == [1 / 40, 0.5, 1.0, 1.0, 0.5, 0.02]


def test_training_goes_on_only_with_a_recipe_that_led_here() -> None:
    """More steps are fine until the rate falls; another seed or size never."""
    made_with = asdict(Recipe(steps=4000, decay=1000))
    longer = Recipe(steps=6000, decay=1500)
    assert continues(made_with, 3000, longer)
    assert not continues(made_with, 3001, longer)
    assert continues(made_with, 3001, Recipe(steps=4000, decay=1000))
    assert not continues(made_with, 10, Recipe(steps=4000, decay=1000, seed=1))


def test_rows_train_exactly_what_the_server_renders() -> None:
    """Each sequence of a row gives the model's own loss: sharing a beginning changes nothing."""
    torch.manual_seed(0)
    model = new_model(TINY, seed=0)
    encoder = Encoder(Tokenizer.from_folder(TINY))
    rows = batch(encoder, seed=4, step=4, rows=1, length=384)
    packed = float(losses(model, rows, torch.float32).cross_entropy.detach())
    total, count = 0.0, 0
    tokens, targets, segments = (a[0] for a in (rows.tokens, rows.targets, rows.segments))
    for segment in range(1, int(segments.max()) + 1):
        alone = (segments == 0) | (segments == segment)
        wanted = torch.from_numpy(targets[alone])
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens[alone])[None]).logits[0]
        learned = wanted != IGNORED
        total += float(
            torch.nn.functional.cross_entropy(logits[learned], wanted[learned], reduction="sum")
        )
        count += int(learned.sum())
    assert count > 50
    assert packed == pytest.approx(total / count, rel=1e-5)
