"""Step times: bytes and operations counted by hand, closed forms against sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_builders import MODEL_120B, PLAIN, PLAIN_GPU, replica

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.memory.errors import ImpossibleSplit
from gpt_oss_server.simulate.cost.roofline import Efficiency, ReplicaCost, Terms, model_cost
from gpt_oss_server.simulate.cost.step_time import StepTime

LAYERS, HIDDEN, EXPERTS = 36, 2880, 128
EXPERT_BYTES = 24_883_200 // 32 * 17 + 3 * HIDDEN * 2  # MXFP4 matrices, bf16 biases
HEAD_BYTES = 201_088 * HIDDEN * 2


def test_bytes_of_a_decode_step() -> None:
    """Dense weights once, and of the experts the expected number that B tokens choose."""
    cost = ReplicaCost(MODEL_120B, PLAIN_GPU)
    attention = 2 * (64 * 64 * HIDDEN + 8 * 64 * HIDDEN) + 64 * 64 + 64 + 2 * 8 * 64 + HIDDEN
    router = EXPERTS * HIDDEN + EXPERTS
    dense = LAYERS * 2 * (attention + router + 2 * HIDDEN) + HEAD_BYTES + 2 * HIDDEN
    assert cost.dense_s == pytest.approx(dense / 1e12, rel=1e-12)
    assert cost.expert_s == pytest.approx(LAYERS * EXPERTS * EXPERT_BYTES / 1e12, rel=1e-12)
    for tokens in (1, 7, 64):
        touched = 1 - (1 - 4 / EXPERTS) ** tokens
        assert cost.share_of_experts(tokens) == pytest.approx(touched, rel=1e-12)
        expected = cost.dense_s + cost.expert_s * touched
        assert cost.base(tokens, tokens).memory_s == pytest.approx(expected, rel=1e-12)


def test_kv_bytes_and_windows() -> None:
    """36,864 bytes per token in full layers; in the others the same up to 128 tokens."""
    cost = ReplicaCost(MODEL_120B, PLAIN_GPU)
    assert cost.cache(1000).cache_s == pytest.approx(36_864 * (1000 + 128) / 1e12)
    assert cost.cache(100, 3).cache_s == pytest.approx(3 * 36_864 * 200 / 1e12)


def test_prefill_operations() -> None:
    """Two per active parameter and token, 16,384 per pair of tokens in each of 18 full layers, and
    per pair within 128 tokens in the others."""
    cost = ReplicaCost(MODEL_120B, PLAIN_GPU, tp=2)
    tokens, context = 300, 1000
    pairs = tokens * (context + tokens / 2)
    operations = 2 * MODEL_120B.multiplied_params * tokens
    operations += 18 * 16_384 * (pairs + 128 * tokens)
    assert cost.prefill_s(tokens, context) == pytest.approx(operations / 2e14, rel=1e-12)
    parts = cost.prefill(tokens, context)
    assert parts.compute_s == pytest.approx(2 * MODEL_120B.multiplied_params * tokens / 2e14)
    assert parts.compute_s + parts.attention_s == cost.prefill_s(tokens, context)
    # From the start of a prompt the first 128 tokens see fewer: 128²/2 pairs.
    start = cost.prefill_s(200, 0) - 200 * cost.linear_s - cost.pair_s * 200 * 100
    assert start == pytest.approx(18 * 16_384 * (128 * 64 + 72 * 128) / 2e14, rel=1e-9)
    assert MODEL_120B.multiplied_params == pytest.approx(4.554e9, rel=1e-3)


def test_collectives_and_stages() -> None:
    """Two ring exchanges a layer for tensor ranks; a hop per further pipeline stage; pipeline
    stages add no speed."""
    tensor = ReplicaCost(MODEL_120B, PLAIN_GPU, tp=4).base(10, 10)
    assert tensor.latency_hops == 2 * LAYERS * 2
    assert tensor.link_s == pytest.approx(10 * 2 * LAYERS * 2 * 3 / 4 * HIDDEN * 2 / 1e11)
    one, staged = (ReplicaCost(MODEL_120B, PLAIN_GPU, pp=pp).base(10, 10) for pp in (1, 2))
    assert staged.link_s == pytest.approx(10 * HIDDEN * 2 / 1e11)
    assert (one.memory_s, one.link_s) == (staged.memory_s, 0.0)
    with pytest.raises(ImpossibleSplit):
        ReplicaCost(MODEL_120B, PLAIN_GPU, tp=3)


def test_efficiencies_fold_in() -> None:
    """Each part is divided by its share, the GPU's own memory share unless one is given."""
    terms = Terms(1.0, 10.0, 4.0, 3.0, 5.0, 7.0)
    shared = Efficiency(2.0, 0.1, 0.5, 0.5, 0.25, 0.0)
    assert shared.seconds(terms, PLAIN_GPU) == 2 + 1 + 2 + 3 + 10 + 28
    given_share = Efficiency(2.0, 0.1, 0.5, 0.5, 0.25, 0.0, memory=0.5)
    assert given_share.seconds(terms, PLAIN_GPU) == 2 + 1 + 2 + 6 + 10 + 28


def test_a_dense_model_reads_all_its_weights() -> None:
    """Without experts a step's bytes do not depend on its tokens."""
    llama = {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "torch_dtype": "bfloat16",
    }
    model = model_cost(llama)
    cost = ReplicaCost(model, PLAIN_GPU)
    weights = model.weights.total_bytes - 1000 * 256 * 2  # the embedding is looked up
    assert cost.base(1, 1).memory_s == cost.base(99, 9).memory_s == pytest.approx(weights / 1e12)
    assert model.even_tokens() > 0


def test_bfloat16_where_no_dtype_is_stated() -> None:
    """gpt-oss's published files state none: 60.8 GiB, as its checkpoint has."""
    assert MODEL_120B.weights.total_bytes / 2**30 == pytest.approx(60.8, abs=0.1)
    assert model_cost(PUBLISHED["openai/gpt-oss-120b"], dtype="float32").weights.dtype_bytes == 4


TIMES = [replica(tp=tp).time for tp in (1, 4)]


@given(
    time=st.sampled_from(TIMES),
    steps=st.integers(0, 400),
    sequences=st.integers(1, 256),
    context=st.integers(0, 2_000_000),
)
def test_a_run_is_the_sum_of_its_steps(
    time: StepTime, steps: int, sequences: int, context: int
) -> None:
    """The closed form of k decode steps equals k steps added up, and its inverse finds k."""
    first = time.base_s(sequences) + sequences * time.sequence_s
    added = sum(first + time.kv_s * (context + k * sequences) for k in range(steps))
    closed = time.decode_run_s(steps, sequences, context * time.kv_s)
    assert closed == pytest.approx(added, rel=1e-9, abs=1e-12)
    found = time.decode_steps_within(closed, sequences, context * time.kv_s)
    assert found == steps
    if steps:
        just_less = closed * (1 - 1e-9)
        assert time.decode_steps_within(just_less, sequences, context * time.kv_s) == steps - 1


@given(
    chunks=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    context=st.integers(0, 5000),
)
def test_prefill_is_the_same_in_any_chunks(chunks: list[int], context: int) -> None:
    """Operations are a property of the tokens, however they are cut, here and in `cost`."""
    time = TIMES[0]
    done, total = context, 0.0
    for chunk in chunks:
        total += time.prefill_s(chunk, done)
        done += chunk
    assert total == pytest.approx(time.prefill_s(sum(chunks), context), rel=1e-9)


def test_step_time_is_the_cost_with_its_efficiencies() -> None:
    """The fast tables say what the terms say, in and beyond the table."""
    cost = ReplicaCost(MODEL_120B, PLAIN_GPU, tp=2)
    time = StepTime(cost, PLAIN)
    for tokens in (1, 5, 1024, 5000):
        exact = PLAIN.seconds(cost.base(tokens, 0), PLAIN_GPU)
        assert time.base_s(tokens) == pytest.approx(exact, rel=1e-9)
    assert time.prefill_s(70, 90) == pytest.approx(cost.prefill_s(70, 90), rel=1e-12)
    assert time.window_s(100) == pytest.approx(cost.window_s(100), rel=1e-12)
    assert time.decode_steps_within(-1.0, 1, 0.0) == 0
    assert math.isfinite(time.even_tokens)
