"""Several steps in flight: the same tokens as with one, nothing leaked, nothing stale."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelined_core import NOWHERE, POISON, CoreConfig, PipelinedCore, said_alone

from gpt_oss_server.engine.shortage import Shortage
from gpt_oss_server.errors import EngineFailed
from gpt_oss_server.memory.blocks import max_blocks_in_step

DEPTHS = (1, 2, 3, 4)


@st.composite
def configs(draw: st.DrawFn) -> CoreConfig:
    """Engines of any depth, with lookahead or without, whose pools run dry; of depth 1 also such
    as have no memory for large steps."""
    size = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(4, 14))
    sliding = None
    if draw(st.booleans()):
        window = draw(st.sampled_from([2, 3, 5, 8]))
        least = min(max_blocks_in_step(size, window, 1), blocks)
        sliding = (window, least + draw(st.integers(0, 4)))
    slots = draw(st.integers(1, 6))
    depth = draw(st.sampled_from(DEPTHS))
    room = draw(st.sampled_from([NOWHERE, 1, 2, 5, 9])) if depth == 1 else NOWHERE
    return CoreConfig(
        depth=depth,
        lookahead=draw(st.booleans()),
        room=room,
        blocks=blocks,
        sliding=sliding,
        block_size=size,
        max_num_seqs=slots,
        max_batch_tokens=draw(st.integers(slots, 16)),
        prefix_caching=draw(st.booleans()),
        order=draw(st.sampled_from(["shortest", "fcfs"])),
    )


@settings(max_examples=300)
@given(st.data())
def test_any_load_says_what_each_job_says_alone(data: st.DataObject) -> None:
    """Arrivals and cancels at any point, poisoned prompts among them, any depth: who is not
    cancelled ends with its own tokens, and at the end every block is free."""
    config = data.draw(configs())
    engine = PipelinedCore(config)
    longest = config.blocks * config.block_size + 1
    prompts: dict[int, tuple[list[int], int]] = {}
    cancelled: set[int] = set()
    actions = st.sampled_from(["submit", "submit", "step", "step", "step", "cancel"])
    for action in data.draw(st.lists(actions, max_size=40)):
        if action == "submit":
            total = data.draw(st.integers(2, min(longest, 40)))
            count = data.draw(st.integers(1, total - 1))
            seed = data.draw(st.integers(0, 3))
            prompt = [(index >> seed) & 1 for index in range(count)]
            if data.draw(st.integers(0, 9)) == 0:
                prompt[data.draw(st.integers(0, count - 1))] = POISON
            key = len(prompts)
            prompts[key] = prompt, total - count
            engine.submit(key, prompt, total - count)
        elif action == "step":
            engine.step()
        elif live := sorted(set(prompts) - cancelled - set(engine.finished) - set(engine.failed)):
            key = data.draw(st.sampled_from(live))
            engine.core.cancel(key)
            cancelled.add(key)
            engine.check()
    engine.drain()
    for key, (prompt, max_tokens) in prompts.items():
        if POISON in prompt:
            assert engine.said[key] == []
            assert key in cancelled or type(engine.failed[key]) is EngineFailed
        elif key in cancelled:
            expected = said_alone(prompt, max_tokens)
            assert engine.said[key] == expected[: len(engine.said[key])]
        else:
            assert engine.finished[key] == "length"
            assert engine.said[key] == said_alone(prompt, max_tokens)
    assert set(engine.finished).isdisjoint(cancelled)


@pytest.mark.parametrize("depth", DEPTHS)
def test_steps_in_flight_share_the_decoding_evenly(depth: int) -> None:
    """With twelve that decode, each of the steps in flight takes its share of them."""
    engine = PipelinedCore(
        CoreConfig(depth=depth, blocks=200, max_num_seqs=12, max_batch_tokens=48)
    )
    for key in range(12):
        engine.submit(key, [0, 1, key % 3], 20)
    while min(len(tokens) for tokens in engine.said.values()) < 4:
        engine.step()
    assert engine.runner.sizes[-depth:] == [(12 // depth, 12 // depth)] * depth
    assert engine.runner.most_in_flight == depth
    before = {key: len(tokens) for key, tokens in engine.said.items()}
    for _ in range(6 * depth):
        engine.step()
        ahead = [len(tokens) - before[key] for key, tokens in engine.said.items()]
        assert max(ahead) - min(ahead) <= 1
    assert ahead == [6] * 12
    engine.drain()


def test_the_next_step_is_launched_before_the_last_one_s_tokens_are_known() -> None:
    """With lookahead every decode step but the first goes on with tokens that are not known yet,
    and only where one turns out to be another is a token computed for nothing: those that reach
    their bound are not launched again."""
    engine = PipelinedCore(CoreConfig(depth=1, lookahead=True, blocks=60, prefix_caching=False))
    for key in range(3):
        engine.submit(key, [0, 1, key % 2], 10)
    engine.drain()
    assert engine.said == {key: said_alone([0, 1, key % 2], 10) for key in range(3)}
    assert engine.runner.most_in_flight == 2
    wrong = sum(hash((key, length)) % 5 == 0 for key in range(3) for length in range(3, 12))
    assert wrong == 7
    assert engine.runner.guessed == 3 * 9
    assert sum(tokens for _, tokens in engine.runner.sizes) == 3 * 3 + 3 * 9 + wrong


def test_chunks_of_one_prompt_are_in_flight_together() -> None:
    """A long prompt alone keeps every stage busy: its next chunk does not wait for the last."""
    engine = PipelinedCore(CoreConfig(depth=2, blocks=40, max_batch_tokens=16))
    engine.submit(0, [0, 1] * 20, 2)
    engine.step()
    assert engine.runner.sizes == [(1, 8), (1, 8)]
    engine.step()
    assert engine.runner.sizes == [(1, 8)] * 3
    engine.drain()
    assert engine.said[0] == said_alone([0, 1] * 20, 2)


def test_what_is_in_flight_is_never_preempted() -> None:
    """When memory runs dry the oldest waits for younger ones in flight to come back."""
    engine = PipelinedCore(CoreConfig(depth=2, blocks=6, max_num_seqs=2, max_batch_tokens=8))
    for key in range(2):
        engine.submit(key, [key, 1, 0], 8)
    engine.drain()
    assert engine.core.stats().preemptions > 0
    assert engine.said == {key: said_alone([key, 1, 0], 8) for key in range(2)}


def test_a_prompt_in_flight_is_shared_and_not_computed_again() -> None:
    """Copies of a prompt that come while it is in flight wait for its blocks."""
    engine = PipelinedCore(CoreConfig(depth=3, blocks=60, max_batch_tokens=48))
    prompt = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    for key in range(4):
        engine.submit(key, prompt, 6)
    engine.drain()
    assert engine.core.stats().prefix_hit_tokens == 3 * 8
    assert engine.core.stats().prefill_tokens == 9 + 3
    assert list(engine.said.values()) == [said_alone(prompt, 6)] * 4


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_key_may_be_used_again_while_its_old_step_is_in_flight(depth: int) -> None:
    """What comes back for a cancelled job never reaches another under the same key."""
    engine = PipelinedCore(CoreConfig(depth=depth, blocks=60))
    for key in range(4):
        engine.submit(key, [0, 1, 1], 30)
    engine.step()
    for key in range(4):
        engine.core.cancel(key)
        engine.submit(key, [1, 0, key % 2], 5)
    engine.drain()
    assert engine.said == {key: said_alone([1, 0, key % 2], 5) for key in range(4)}


def test_what_is_left_in_flight_is_work() -> None:
    """With all jobs cancelled, steps in flight are still collected, and say nothing."""
    engine = PipelinedCore(CoreConfig(depth=3, blocks=60))
    engine.submit(0, [0, 1] * 12, 3)
    engine.step()
    engine.core.cancel(0)
    assert engine.core.has_work
    assert not any(engine.core.stats().blocks_in_use.values())
    engine.drain()
    assert engine.said[0] == []


@settings(max_examples=200)
@given(st.data())
def test_a_want_of_memory_changes_no_token(data: st.DataObject) -> None:
    """However little fits into a step, and however that changes: every job says what it says
    alone, and steps were refused and computed in parts on the way."""
    config = data.draw(configs())
    config = replace(config, depth=1, room=data.draw(st.integers(1, 4)))
    engine = PipelinedCore(config)
    longest = config.blocks * config.block_size + 1
    prompts = {}
    for key in range(data.draw(st.integers(1, 6))):
        total = data.draw(st.integers(2, min(longest, 40)))
        count = data.draw(st.integers(1, total - 1))
        prompts[key] = [(index >> key % 3) & 1 for index in range(count)], total - count
        engine.submit(key, *prompts[key])
    for room in data.draw(st.lists(st.integers(1, 12), max_size=6)):
        engine.step()
        engine.runner.room = room
    engine.drain()
    assert engine.failed == {}
    assert engine.said == {key: said_alone(*prompt) for key, prompt in prompts.items()}
    assert engine.core.stats().shortages == engine.runner.shortages
    assert engine.core.stats().jobs_too_large == 0


def test_a_step_for_nothing_that_finds_no_memory_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A guess was wrong, and there is no room to look at the step that went on with it: its one
    sequence computes the token again, and is not taken for too large."""
    engine = PipelinedCore(CoreConfig(depth=1, lookahead=True, blocks=60, prefix_caching=False))
    runner = engine.runner
    sample = runner.sample
    refused = []

    def scarce(sampling: list[object]) -> None:
        if not any(sampling):
            refused.append(len(sampling))
            runner._flights.popleft()
            raise Shortage("it is too large")
        sample(sampling)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "sample", scarce)
    engine.submit(0, [0, 1, 0], 30)
    engine.drain()
    assert refused
    assert engine.failed == {}
    assert engine.said == {0: said_alone([0, 1, 0], 30)}
    assert engine.core.stats().jobs_too_large == 0


def test_where_a_step_has_no_room_for_all_that_decode_they_take_turns() -> None:
    """After a shortage one decodes at a time: nobody is ever two tokens behind another."""
    engine = PipelinedCore(CoreConfig(depth=1, blocks=200, max_batch_tokens=48))
    for key in range(6):
        engine.submit(key, [0, 1, key % 2], 30)
    while min(len(tokens) for tokens in engine.said.values()) < 2:
        engine.step()
    engine.runner.room = 1
    before = {key: len(tokens) for key, tokens in engine.said.items()}
    for _ in range(15):
        engine.step()
        gained = [len(tokens) - before[key] for key, tokens in engine.said.items()]
        assert max(gained) - min(gained) <= 1
    assert sum(gained) == 15
    engine.drain()
