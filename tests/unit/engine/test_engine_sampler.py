"""Sampling: exact where it is deterministic, by a fixed-seed chi-square where it is a draw."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_rows import drawn, row, sample

from gpt_oss_server.engine import sampler as sampler_module
from gpt_oss_server.engine.guided import Restriction
from gpt_oss_server.engine.sampler import Sampler, _invert, uniforms

pytestmark = pytest.mark.usefixtures("one_thread")

LOGITS = [0.5, 3.0, -1.0, 2.5, 1.0, -2.0]
BY_RANK = [1, 3, 4, 0, 2, 5]
MASK = (1 << 64) - 1
KNOWN = [
    0.6524484863740322,
    0.011660290489395542,
    0.36818951565166946,
    0.5182293917109976,
    0.5209102172696005,
]


def split_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(seed: int, step: int) -> float:
    """The generator again, in whole numbers."""
    golden = 0x9E3779B97F4A7C15
    z = split_mix((seed + golden) & MASK) ^ (step * 0xD1342543DE82EF95 & MASK)
    return (split_mix((z + golden) & MASK) >> 11) / 2**53


def numbers(seeds: list[int], steps: list[int]) -> list[float]:
    draws = uniforms(np.array(seeds, dtype=np.uint64), np.array(steps, dtype=np.uint64))
    values: list[float] = draws.tolist()
    return values


def test_known_uniforms() -> None:
    """The numbers themselves are fixed: an upgrade must not change what a seed gives."""
    got = numbers([0, 0, 1, 42, MASK], [0, 1, 0, 1000, 3])
    assert got == KNOWN


@given(st.integers(0, MASK), st.integers(0, 1 << 40))
def test_uniforms_are_a_pure_function(seed: int, step: int) -> None:
    """Each number depends on its own seed and step only, and lies in [0, 1)."""
    [alone] = numbers([seed], [step])
    assert alone == uniform(seed, step)
    assert numbers([7, seed, 8], [0, step, 0])[1] == alone
    assert 0.0 <= alone < 1.0


@pytest.mark.parametrize("over", ["steps", "seeds"])
def test_uniforms_are_uniform(over: str) -> None:
    """Along a sequence and across seeds: chi-square over 64 bins, and no serial correlation."""
    count = 16_384
    fixed, running = [5] * count, list(range(count))
    got = np.array(numbers(*((fixed, running) if over == "steps" else (running, fixed))))
    observed = np.histogram(got, bins=64, range=(0, 1))[0]
    chi = float(((observed - count / 64) ** 2 / (count / 64)).sum())
    assert chi < 103.4  # 99.9 % quantile of chi-square with 63 degrees of freedom
    assert abs(float(np.corrcoef(got[:-1], got[1:])[0, 1])) < 0.03


def test_temperature_zero_takes_the_most_likely() -> None:
    """Greedy is the arg max of each row, whatever the other parameters filter."""
    got = sample([LOGITS, LOGITS[::-1]], row(), row(key=1, top_k=1, top_p=0.1, seed=3))
    assert got.tokens == [1, 4]
    assert got.finite == [True, True]
    assert got.logprobs == [None, None]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 6}, 6),
        ({"top_k": 600}, 6),
        ({"top_p": 1e-6}, 1),
        ({"top_p": 0.0}, 1),
        ({"top_p": 0.55}, 2),
        ({"top_p": 0.9}, 3),
        ({"min_p": 1.0}, 1),
        ({"min_p": 0.5}, 2),
        ({"min_p": 0.1}, 3),
        ({"top_k": 2, "top_p": 0.99}, 2),
        ({"top_k": 4, "min_p": 0.1}, 3),
    ],
    ids=str,
)
def test_filters_keep_exactly_the_most_likely(params: dict[str, float], kept: int) -> None:
    """Filters keep the right number of tokens, the best ones, in their proportions.

    Probabilities of LOGITS by rank: .541 .328 .073 .044 .010 .004, so that the mass before each
    is 0 .54 .87 .94 …; relative to the best: 1 .61 .14 .08 .02 .007.
    """
    count = 4000
    got = Counter(drawn(LOGITS, count, temperature=1.0, **params))
    assert set(got) == set(BY_RANK[:kept])
    weights = np.exp(np.array(LOGITS)[BY_RANK[:kept]])
    expected = weights / weights.sum() * count
    observed = np.array([got[token] for token in BY_RANK[:kept]])
    chi = float(((observed - expected) ** 2 / expected).sum())
    assert chi < 20.5  # 99.9 % quantile with 5 degrees of freedom, the most there are


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_shapes_the_distribution(temperature: float) -> None:
    """Draws follow softmax(logits / temperature): chi-square under fixed seeds."""
    count = 8000
    got = Counter(drawn(LOGITS, count, temperature=temperature))
    weights = np.exp(np.array(LOGITS) / temperature)
    expected = weights / weights.sum() * count
    tested = expected >= 5
    observed = np.array([got[token] for token in range(6)])
    chi = float(((observed - expected)[tested] ** 2 / expected[tested]).sum())
    assert chi < 20.5


def test_every_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    """A draw is the first token at which the cumulative distribution passes its number."""
    cumulative = np.cumsum(np.exp(LOGITS) / np.exp(LOGITS).sum())
    got = drawn(LOGITS, 500)
    assert got == [int(np.searchsorted(cumulative, uniform(s, 0), "right")) for s in range(500)]


def test_a_seed_gives_the_same_draws_in_any_batch() -> None:
    """A row's token does not change with its neighbours, their filters or its place."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 50, generator=random) * 2
    params = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 9},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.0},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "presence_penalty": 1.0, "logprobs": 2},
        {"temperature": 1.0, "logit_bias": {3: 4.0}},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.6, "min_p": 0.01},
        {"temperature": 1.0, "repetition_penalty": 1.5},
    ]
    rows = [row([1, 2], [3], key=i, seed=i + 11, **p) for i, p in enumerate(params)]
    alone = [sample(logits[i : i + 1], rows[i]).tokens[0] for i in range(9)]
    assert sample(logits, *rows).tokens == alone
    order = torch.randperm(9, generator=random).tolist()
    mixed = sample(logits[order], *(rows[i] for i in order))
    assert mixed.tokens == [alone[i] for i in order]
    assert len(set(alone)) > 3


def test_the_number_drawn_moves_with_the_output() -> None:
    """Each output position has its own number; prompt and batch do not shift it."""
    flat = [0.0] * 1000
    tokens = []
    for length in range(20):
        one = sample([flat], row([1], [2] * length, seed=9, temperature=1.0)).tokens
        assert sample([flat], row([4] * 7, [5] * length, seed=9, temperature=1.0)).tokens == one
        tokens += one
    assert tokens == [int(uniform(9, step) * 1000) for step in range(20)]
    other = sample([flat], row(seed=10, temperature=1.0)).tokens
    assert other != tokens[:1]


def test_negative_seeds_are_seeds() -> None:
    """A seed below zero stands for its 64-bit pattern."""
    flat = [0.0] * 1000
    got = sample([flat], row(seed=-1, temperature=1.0)).tokens
    assert got == [int(uniform(MASK, 0) * 1000)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-50, 50) | st.just(-math.inf), min_size=1, max_size=30),
    st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_impossible_tokens_are_never_drawn(logits: list[float], number: float) -> None:
    """Even the largest number below 1 stays on a token that the filters left."""
    if not any(math.isfinite(logit) for logit in logits):
        return
    draws = torch.tensor([number], dtype=torch.float64)
    index = int(_invert(torch.tensor([logits]), draws).item())
    assert math.isfinite(logits[index])


@pytest.mark.parametrize(
    "bad",
    [
        [math.nan] * 4,
        [1.0, math.nan, 2.0, 0.0],
        [1.0, math.inf, 2.0, 0.0],
        [-math.inf] * 4,
    ],
    ids=["all nan", "one nan", "infinite", "nothing possible"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_flagged_alone(bad: list[float], temperature: float) -> None:
    """A row without usable logits is flagged; its neighbours sample as ever."""
    good = [0.0, 9.0, 1.0, -math.inf]
    rows = [row(key=i, seed=i, temperature=temperature, top_k=2, logprobs=1) for i in range(3)]
    got = sample([good, bad, good], *rows)
    assert got.finite == [True, False, True]
    expected = sample([good, good], rows[0], rows[2])
    assert [got.tokens[0], got.tokens[2]] == expected.tokens


def test_half_precision_logits_are_sampled_in_float32() -> None:
    """bfloat16 logits give what the same numbers give in float32."""
    logits = torch.tensor([LOGITS] * 50).bfloat16()
    rows = [row(key=i, seed=i, temperature=0.8, top_p=0.95) for i in range(50)]
    assert sample(logits, *rows).tokens == sample(logits.float(), *rows).tokens


def test_logprobs_are_of_the_raw_distribution_best_first() -> None:
    """Bias, penalties, temperature and filters change the token, not its log-probability."""
    expected = torch.log_softmax(torch.tensor(LOGITS), 0).tolist()
    got = sample(
        [LOGITS] * 4,
        row(key=0, logprobs=2),
        row(key=1, logprobs=0, logit_bias={5: 100.0}, temperature=0.5, top_k=1),
        row(key=2),
        row([3], [1, 1], key=3, logprobs=6, frequency_penalty=2.0, temperature=0.0),
    )
    assert got.tokens == [1, 5, 1, 3]
    first, second, third, fourth = got.logprobs
    assert third is None
    for token, item, top in ((1, first, 2), (5, second, 0), (3, fourth, 6)):
        assert item is not None
        assert item[0] == pytest.approx(expected[token], abs=1e-6)
        assert [t for t, _ in item[1]] == BY_RANK[:top]
        assert [p for _, p in item[1]] == pytest.approx([expected[t] for t in BY_RANK[:top]])


def test_more_logprobs_than_tokens() -> None:
    """Asking for more alternatives than the vocabulary has gives all of them."""
    [item] = sample([LOGITS], row(logprobs=20)).logprobs
    assert item is not None
    assert [token for token, _ in item[1]] == BY_RANK


def test_raw_logits_are_not_changed() -> None:
    """The caller's logits survive every adjustment."""
    logits = torch.tensor([LOGITS, LOGITS])
    before = logits.clone()
    rows = (
        row([1], [3], key=0, logit_bias={1: -5.0}, repetition_penalty=2.0, temperature=1.0),
        row(key=1, stop_ids=[1], min_tokens=2, top_k=2, min_p=0.1, temperature=1.0),
    )
    Sampler(6, torch.device("cpu")).sample(logits, rows)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [{"top_k": 7}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8}])
def test_ties_are_broken_alike_in_any_batch(params: dict[str, float]) -> None:
    """Coarse logits have many equals; which of them is drawn does not depend on the neighbours."""
    torch.manual_seed(0)
    logits = torch.randn(64, 3000).mul(4).round()
    alone = [
        sample(logits[i : i + 1], row(key=i, seed=i, temperature=1.0, **params)).tokens[0]
        for i in range(64)
    ]
    rows = [row(key=i, seed=i, temperature=1.0, **params) for i in range(64)]
    rows.append(row(key=64, seed=1, temperature=1.0, top_k=2000))
    rows.append(row(key=65, seed=1, temperature=1.0, top_p=0.999999))
    together = sample(torch.cat([logits, logits[:2]]), *rows).tokens[:64]
    assert together == alone


def test_equal_logprobs_are_listed_by_id_in_any_batch() -> None:
    """Alternatives of the same probability come in the order of their ids."""
    logits = torch.zeros(2, 500)
    logits[:, 400] = 1.0
    one = sample(logits[:1], row(key=0, logprobs=3)).logprobs[0]
    both = sample(logits, row(key=0, logprobs=3), row(key=1, logprobs=20)).logprobs[0]
    assert one is not None
    assert one == both
    assert next(token for token, _ in one[1]) == 400


class Insisting:
    """A guide that allows all, and then has its way: token 3 for the sequence of key 1."""

    def restriction(self, seqs: Any) -> Restriction:
        allowed = np.full((1, 1), -1, dtype=np.int32)
        return Restriction([1], allowed, [False])

    def settle(self, seqs: Any, tokens: Any) -> list[int]:
        return [3 if seq.key == 1 else token for seq, token in zip(seqs, tokens, strict=True)]


def test_a_token_that_a_guide_wants_instead_has_its_own_logprob(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row for row, and without asking the device for memory once the step is drawn."""
    logits = torch.tensor([LOGITS] * 3) * torch.tensor([[1.0], [2.0], [0.5]])
    rows = [row(key=n, logprobs=2 if n else None) for n in range(3)]
    sampler = Sampler(6, torch.device("cpu"), Insisting())  # type: ignore[arg-type]
    drawn_step = sampler.draw(logits, rows)
    monkeypatch.setattr(sampler_module, "send_named", None)
    found = sampler.finish(drawn_step, rows)
    assert found.tokens == [1, 3, 1]
    assert found.settled == {1}
    logs = torch.log_softmax(logits, dim=-1)
    assert found.logprobs[0] is None
    for n, token in ((1, 3), (2, 1)):
        said = found.logprobs[n]
        assert said is not None
        assert said[0] == pytest.approx(float(logs[n, token]))
        assert [token for token, _ in said[1]] == BY_RANK[:2]
