"""Bias, penalties and minimum length, against transformers and OpenAI's formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_rows import adjusted, row, sample
from transformers import RepetitionPenaltyLogitsProcessor

from gpt_oss_server.engine.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = 12
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=8)


def some_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=60, deadline=None)
@given(IDS, IDS, st.sampled_from([0.5, 1.1, 2.0]), st.integers(0, 20))
def test_repetition_penalty_is_transformers(
    prompt: list[int], output: list[int], penalty: float, seed: int
) -> None:
    """Equal to transformers' own processor over prompt and output, bit for bit."""
    logits, prompt = some_logits(seed), [1, *prompt]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(adjusted(logits, row(prompt, output, repetition_penalty=penalty)), expected)


@settings(max_examples=60, deadline=None)
@given(
    IDS, st.sampled_from([-2.0, 0.0, 0.7]), st.sampled_from([-1.0, 0.0, 1.5]), st.integers(0, 20)
)
def test_presence_and_frequency_are_openais(
    output: list[int], presence: float, frequency: float, seed: int
) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the output only."""
    logits = some_logits(seed)
    one = row([3, 3, 4], output, presence_penalty=presence, frequency_penalty=frequency)
    expected = [
        logits[0, j].item() - output.count(j) * frequency - (output.count(j) > 0) * presence
        for j in range(VOCAB)
    ]
    assert adjusted(logits, one)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_each_row_has_its_own_penalties() -> None:
    """Rows with different penalties, or none, do not touch each other."""
    logits = some_logits(3, rows=4)
    rows = [
        row([1, 2], [5, 5], key=0, frequency_penalty=1.0),
        row([1, 2], [5, 5], key=1),
        row([1, 2], [6], key=2, presence_penalty=0.5, repetition_penalty=1.3),
        row([1, 2], [7], key=3, repetition_penalty=0.7),
    ]
    together = adjusted(logits, *rows)
    for index, one in enumerate(rows):
        assert torch.equal(together[index], adjusted(logits[index : index + 1], one)[0])
    assert torch.equal(together[1], logits[1])
    assert together[0, 5].item() == pytest.approx(logits[0, 5].item() - 2.0, abs=1e-5)


def test_counts_follow_the_output_and_go_with_the_sequence() -> None:
    """Counts are kept from step to step, brought up to date, and dropped with their sequence."""
    sampler = Sampler(VOCAB, torch.device("cpu"))
    one = row([2, 2], [5], key=7, frequency_penalty=1.0)
    plain = row(key=8)
    flat = torch.zeros(2, VOCAB)
    for expected in ([0], [0, 1], [0, 1, 2]):
        got = sampler.sample(flat, [one, plain])
        assert got.tokens == [expected[-1], 0]
        one.append(expected[-1])
    prompt, output = sampler.counts.rows([one])
    assert prompt[0].tolist() == [0, 0, 2] + [0] * 9
    assert output[0].tolist() == [1, 1, 1, 0, 0, 1] + [0] * 6
    assert len(sampler.counts) == 1
    sampler.counts.drop(plain)
    sampler.counts.drop(one)
    assert len(sampler.counts) == 0


def test_recounting_after_a_preemption_changes_nothing() -> None:
    """A sampler that sees a sequence late counts the same as one that followed it."""
    logits = some_logits(5)
    late = row([1, 2], [3, 3, 4], frequency_penalty=0.5, presence_penalty=0.2)
    followed = row([1, 2], [], frequency_penalty=0.5, presence_penalty=0.2)
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for token in (3, 3, 4):
        adjusted(logits, followed, sampler=sampler)
        followed.append(token)
    assert torch.equal(adjusted(logits, followed, sampler=sampler), adjusted(logits, late))


def test_logit_bias_is_added() -> None:
    """Each biased token's logit moves by its bias, in its own row only."""
    logits = some_logits(1, rows=2)
    got = adjusted(logits, row(key=0, logit_bias={3: 1.5, 0: -100.0}), row(key=1))
    assert torch.equal(got[1], logits[1])
    expected = logits[0].clone()
    expected[3] += 1.5
    expected[0] -= 100.0
    assert torch.equal(got[0], expected)


@pytest.mark.parametrize(
    ("output_len", "held_back"), [(0, True), (2, True), (3, False), (4, False)]
)
def test_min_tokens_hold_back_every_stop(output_len: int, held_back: bool) -> None:
    """No stop id can be sampled until `min_tokens` tokens are out, bias or not."""
    logits = torch.zeros(1, VOCAB)
    one = row([1], [4] * output_len, stop_ids=[2, 9], min_tokens=3, logit_bias={2: 100.0, 9: 50.0})
    got = adjusted(logits, one)[0]
    assert torch.isinf(got[[2, 9]]).tolist() == [held_back, held_back]
    assert torch.isfinite(got[[0, 1, 3, 4]]).all()
    assert (sample(logits, one).tokens == [2]) == (not held_back)


ADJUSTMENTS: list[dict[str, Any]] = [
    {"logit_bias": {4: 2.0}, "repetition_penalty": 2.0, "presence_penalty": 0.5},
    {"logit_bias": {5: -1.0}, "repetition_penalty": 0.5, "frequency_penalty": 1.0},
]


@pytest.mark.parametrize("params", ADJUSTMENTS)
def test_bias_comes_before_penalties(params: dict[str, Any]) -> None:
    """The order is bias, repetition, presence and frequency."""
    logits = some_logits(2)
    expected = logits[0].clone()
    for token, bias in params["logit_bias"].items():
        expected[token] += bias
    for token in (1, 4, 5):
        value, penalty = expected[token], params["repetition_penalty"]
        expected[token] = value / penalty if value > 0 else value * penalty
    for token, count in ((4, 1), (5, 2)):
        expected[token] -= params.get("presence_penalty", 0.0)
        expected[token] -= params.get("frequency_penalty", 0.0) * count
    got = adjusted(logits, row([1], [4, 5, 5], **params))[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
