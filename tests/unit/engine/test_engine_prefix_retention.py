"""Which prefixes outlive other traffic: sliding blocks are kept where prompts end or part."""

from __future__ import annotations

import random

from stub_engine import StubConfig, StubEngine

from gpt_oss_server.engine.kv_space import GroupSpec

WINDOW = 8
CONFIG = StubConfig(
    # Room for every prefix in the full pool, for a few windows only in the sliding one.
    groups=(GroupSpec("full", None, 4000), GroupSpec("sliding", WINDOW, 60)),
    block_size=2,
    max_num_seqs=2,
    max_model_len=400,
    max_batch_tokens=16,
    vocab=1000,
)


def _prompt(seed: int, tokens: int) -> list[int]:
    return [random.Random(seed * 1009 + i).randrange(2000, 9000) for i in range(tokens)]


def _hit(engine: StubEngine, prompt: list[int]) -> int:
    """Tokens of the prompt that a new job finds cached."""
    arrival = engine.submit(prompt, 2)
    seq = engine.live[arrival]
    engine.drain()
    assert seq.cached_tokens is not None
    return seq.cached_tokens


def test_a_prompt_outlives_many_times_the_sliding_pool_of_other_traffic() -> None:
    """A repeated prompt is still found after others have filled the sliding pool many times."""
    engine = StubEngine(CONFIG)
    prompt = _prompt(1, 100)
    assert _hit(engine, prompt) == 0
    for seed in range(10, 15):  # 1,500 tokens: 750 blocks through a pool of 60
        assert _hit(engine, _prompt(seed, 300)) == 0
    assert _hit(engine, prompt) == 98


def test_a_chat_goes_on_where_its_last_prompt_ended() -> None:
    """The next turn repeats the last prompt and an answer in other words; up to the prompt's end it
    is found, whatever came between."""
    engine = StubEngine(CONFIG)
    first = _prompt(2, 60)
    assert _hit(engine, first) == 0
    for seed in range(30, 36):
        _hit(engine, _prompt(seed, 120))
    assert _hit(engine, [*first, *_prompt(3, 20)]) == 60


def test_a_shared_beginning_is_kept_once_prompts_were_seen_to_part() -> None:
    """Where two prompts part is known from the second on; from the third on it is found, whatever
    came between."""
    engine = StubEngine(CONFIG)
    system = _prompt(4, 80)
    _hit(engine, [*system, *_prompt(5, 40)])
    _hit(engine, [*system, *_prompt(6, 40)])
    for seed in range(40, 46):
        _hit(engine, _prompt(seed, 120))
    assert _hit(engine, [*system, *_prompt(7, 40)]) == 80
