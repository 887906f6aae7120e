"""Random tokens through harmony's parser: whatever comes, in whatever batches."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from gpt_oss_server.api.choice import ChoiceText
from gpt_oss_server.api.tool_calls import CallsOfChoice, ToolCall, collect
from gpt_oss_server.harmony.header import could_be_header
from gpt_oss_server.ports import Piece
from gpt_oss_server.types import TokenDelta
from tool_models import harmony, harmony_ids

FRAMES = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"]
SPECIALS = [harmony_ids(text)[0] for text in (*FRAMES, "<|return|>")]
START, END, MESSAGE, CHANNEL, _, CALL, RETURN = SPECIALS
WORDS = [
    *("assistant", "analysis", "commentary", "final", " to=", "functions.f", "json", " ", "{}"),
    *("Hello", '{"a": "', "!", "\n", "commentary to=functions.get_weather "),
]
HEADERS = [
    "<|channel|>analysis<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    "<|start|>assistant<|channel|>final<|message|>",
]


def sequences(count: int, seed: int) -> Iterator[tuple[list[int], bool]]:
    """Ids of every kind: framing, header words, whole headers, any token, none at all. Whether
    each token of it is made of whole characters."""
    rng = random.Random(seed)
    size = harmony().vocab_size
    words = [harmony_ids(word) for word in (*WORDS, *HEADERS)]
    whole = [token for token in range(size) if is_whole(token)]
    for number in range(count):
        any_token = whole if number % 2 else range(-1, size + 3)
        ids: list[int] = []
        for _ in range(rng.randint(0, 24)):
            match rng.randrange(4):
                case 0:
                    ids.append(rng.choice(SPECIALS))
                case 1:
                    ids += rng.choice(words)
                case _:
                    ids.append(rng.choice(any_token))
        yield ids, bool(number % 2)


def is_whole(token: int) -> bool:
    """A token of whole characters, and no special one."""
    try:
        text = harmony().token_bytes(token).decode()
    except UnicodeDecodeError:
        return False
    return bool(text) and not text.startswith("<|")


Told = tuple[str, str, list[ToolCall], str | None]


def told(ids: list[int], rng: random.Random | None) -> Told:
    """What a client is told of these tokens, one by one or in random batches."""
    numbers = iter(range(len(ids)))
    choice = ChoiceText(
        harmony().chat_parser(tools=True),
        [],
        calls=CallsOfChoice(new_id=lambda: str(next(numbers))),
    )
    content, reasoning, calls, at = "", "", list[ToolCall](), 0
    while at < len(ids):
        size = 1 if rng is None else rng.randint(0, 6)
        text = choice.feed(TokenDelta(tuple(ids[at : at + size])))
        content, reasoning, at = content + text.content, reasoning + text.reasoning, at + size
        collect(calls, text.calls)
    text = choice.feed(TokenDelta((), finish="stop"))
    collect(calls, text.calls)
    return content + text.content, reasoning + text.reasoning, calls, choice.finish


def pieces_of(ids: list[int]) -> list[Piece]:
    parser = harmony().chat_parser(tools=True)
    return [*(parser.feed(token) for token in ids), *parser.finish()]


def texts_that_must_show(ids: list[int]) -> Iterator[str]:
    """Every run of text but those in a header that read like one."""
    in_header, run = True, list[int]()
    for token in [*ids, END]:
        if token not in SPECIALS:
            run.append(token)
            continue
        text = b"".join(map(harmony().token_bytes, run)).decode()
        if text and not (in_header and could_be_header("role", text)):
            yield text
        run = []
        if token in (START, CHANNEL):
            in_header = True
        elif token in (MESSAGE, END, CALL, RETURN):
            in_header = False


def check(count: int, seed: int) -> None:
    rng = random.Random(seed)
    for ids, whole in sequences(count, seed):
        alone = told(ids, None)
        assert told(ids, rng) == alone, ids
        if not whole:
            continue
        shown, at = "".join(piece.text for piece in pieces_of(ids)), 0
        for text in texts_that_must_show(ids):
            at = shown.find(text, at)
            assert at >= 0, (ids, text)
            at += len(text)


def test_random_tokens() -> None:
    """No exception, no lost text, and the same content, reasoning and calls in any batches."""
    check(2_000, seed=1)


@pytest.mark.slow
def test_a_hundred_thousand_random_sequences() -> None:
    """The same at length."""
    check(100_000, seed=2)
