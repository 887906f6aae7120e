"""A token deep in a long prompt counts for more of a step's budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from gpt_oss_server.engine.batcher import Batcher
from gpt_oss_server.engine.kv_space import GroupSpec, KvSpace
from gpt_oss_server.engine.order import ShortestFirst
from gpt_oss_server.engine.sequence import Sequence
from gpt_oss_server.engine.step_cost import (
    MIN_CHUNK_TOKENS,
    StepCost,
    active_parameters,
    step_cost,
)
from gpt_oss_server.memory.architecture import shape_from_config
from gpt_oss_server.types import Job, SamplingParams

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@given(st.floats(1, 1e7), st.integers(1, 8192), st.integers(0, 200_000), st.integers(0, 100))
def test_affordable_is_the_most_that_the_cost_allows(
    even: float, cost: int, context: int, seed: int
) -> None:
    """What is affordable costs no more than was given, and two more tokens cost more."""
    step = StepCost(even)
    tokens = step.affordable(cost, context)
    assert 0 <= tokens <= cost
    assert step.of(tokens, context) <= cost + 1
    assert step.of(tokens + 2, context) > cost


def test_a_cost_by_hand() -> None:
    """100 tokens after 1,950 others, at an even context of 1,000: each counts as three."""
    assert StepCost(1000).of(100, 1950) == 300
    assert StepCost(1000).affordable(300, 1950) == 100


def test_without_full_attention_every_token_is_one() -> None:
    """Where attention does not grow with the context, cost is the number of tokens."""
    assert StepCost().of(77, 100_000) == 77
    assert StepCost().affordable(77, 100_000) == 77


def test_active_parameters_of_gpt_oss() -> None:
    """Of 8 experts a token meets 2; the embedding is a lookup."""
    config = GptOssConfig(
        **SMALL, num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False
    )
    model = GptOssForCausalLM(config)
    attention = 32 * 32 + 32 + 2 * (32 * 16 + 16) + 32 * 32 + 32 + 4  # q, k and v, o, sinks
    expert = 32 * 48 + 48 + 24 * 32 + 32
    router, norms = 8 * 32 + 8, 2 * 32
    layer = attention + 2 * expert + router + norms
    assert active_parameters(model) == 2 * layer + 32 + 100 * 32
    config.layer_types = ["sliding_attention", "full_attention"]
    shape = shape_from_config(config.to_dict())
    expected = active_parameters(model) / (4 * (8 + 8))
    assert step_cost(active_parameters(model), shape) == StepCost(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_multiplied_too(tied: bool) -> None:
    """A tied embedding is the head's matrix and counts once, as an untied head does."""
    config = LlamaConfig(**SMALL, tie_word_embeddings=tied)
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 24 + 2 * 32
    assert active_parameters(LlamaForCausalLM(config)) == 2 * layer + 32 + 100 * 32


def _sequence(arrival: int, length: int) -> Sequence:
    prompt = [1 + (arrival * 7 + i) % 90 for i in range(length)]
    job = Job(id=str(arrival), prompt=prompt, sampling=SamplingParams(max_tokens=4))
    return Sequence.create(
        arrival, job, arrival=arrival, max_tokens=4, groups=1, block_size=16, stop_ids=frozenset()
    )


def test_a_deep_chunk_shrinks_and_leaves_the_short_its_part() -> None:
    """Deep in its prompt a giant takes the least chunk, and a short prompt beside it is still
    prefilled within the step in which it arrives."""
    kv = KvSpace(
        [GroupSpec("full", None, 4000)],
        block_size=16,
        max_num_seqs=4,
        max_model_len=60_000,
        prefix_caching=False,
    )
    batcher = Batcher(kv, ShortestFirst(0.25), 256, StepCost(1000))
    giant = _sequence(0, 30_000)
    batcher.add(giant)
    chunks = []
    while giant.computed < 25_000:
        batch = batcher.schedule()
        chunks.append(batch.tokens[0])
        kv.advance(giant, batch.tokens[0])
    # The budget of 256 at the start, less and less after it, never under the least chunk.
    assert 200 < chunks[0] < 256
    assert chunks == sorted(chunks, reverse=True)
    assert MIN_CHUNK_TOKENS <= chunks[-1] < 2 * MIN_CHUNK_TOKENS
    short = _sequence(1, 150)
    batcher.add(short)
    batch = batcher.schedule()
    granted = dict(zip((seq.arrival for seq in batch.seqs), batch.tokens, strict=True))
    assert granted[1] == 150
    assert granted[0] < 2 * MIN_CHUNK_TOKENS
    assert math.fsum(granted.values()) <= 256


def test_of_two_deep_prefills_one_goes_on_at_a_time() -> None:
    """Two giants deep in their prompts do not both read their caches in one step: the one that
    came first goes on, and the other has its turn when it is done."""
    kv = KvSpace(
        [GroupSpec("full", None, 8000)],
        block_size=16,
        max_num_seqs=4,
        max_model_len=60_000,
        prefix_caching=False,
    )
    batcher = Batcher(kv, ShortestFirst(0.25), 256, StepCost(1000))
    giants = [_sequence(0, 12_000), _sequence(1, 12_000)]
    for giant in giants:
        batcher.add(giant)
    served = []
    while giants[1].remaining:
        batch = batcher.schedule()
        for seq, tokens in zip(batch.seqs, batch.tokens, strict=True):
            kv.advance(seq, tokens)
        deep = [seq.arrival for seq in batch.seqs if seq.remaining and seq.computed > 9_000]
        served.append(tuple(deep))
        if not giants[0].remaining and giants[0].arrival in batcher.running:
            batcher.remove(giants[0])
    assert (0, 1) not in served
    assert (0,) in served
    assert (1,) in served
