"""Ranking policies, row by row: who comes first and why."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.routing.policies import (
    POLICIES,
    Ask,
    ExpectedOutputs,
    PoolFacts,
    ReplicaState,
    policy,
)


class Rate:
    """A pool in which a prefill token takes `1/rate` ms, a step 10/rate ms."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.sequence_s = 0.0001 / rate
        self.kv_s = 1e-8 / rate

    def base_s(self, tokens: int) -> float:
        return 0.010 / self.rate

    def prefill_s(self, tokens: int, context: int) -> float:
        return tokens * 0.001 / self.rate


def pool(gpus: int = 1, kv_tokens: int = 100_000, longest: int = 100_000) -> PoolFacts:
    return PoolFacts(
        name=f"tp{gpus}",
        gpus=gpus,
        speed=Rate(float(gpus)),
        kv_tokens=kv_tokens,
        longest_tokens=longest,
        step_prefill_s=1.0 / gpus,
        max_num_seqs=256,
    )


ONE, FOUR = pool(), pool(4, 800_000)


def state(name: str, facts: PoolFacts = ONE, **fields: object) -> ReplicaState:
    given = {"kv_free_tokens": facts.kv_tokens} | fields
    return ReplicaState(id=name, pool=facts, **given)  # type: ignore[arg-type]


def ask(tokens: int = 1000, number: int = 0, **fields: object) -> Ask:
    given = {"expected_output_tokens": 100.0, "ttft_s": 2.0, "tpot_s": 0.05} | fields
    return Ask(number=number, input_tokens=tokens, **given)  # type: ignore[arg-type]


SETTINGS = {"kv_bytes_per_token": 36_864}


def order(name: str, asked: Ask, *replicas: ReplicaState) -> str:
    """The ids in order, as one text."""
    return "".join(ranked.id for ranked in policy(name, SETTINGS).rank(asked, replicas))


WORK = (0.0,) * 11 + (3.0,) + (0.0,) * 12  # three seconds of prompts of 1,024 … 2,047 tokens
BEHIND = (0.0,) * 14 + (0.5,) + (0.0,) * 9  # half a second of prompts of 8,192 … 16,383
PREFIX = {"cached_tokens": 600}


@pytest.mark.parametrize(
    ("name", "asked", "replicas", "expected", "why"),
    [
        ("round_robin", ask(number=4), [state("c"), state("a"), state("b")], "bca", "in turns"),
        ("least_request", ask(), [state("a", in_flight=2), state("b", in_flight=1)], "ba", "few"),
        ("least_request", ask(), [state("b"), state("a")], "ab", "ties by id"),
        (
            "least_tokens",
            ask(),
            [state("a", assigned_tokens=50_000), state("b", FOUR, assigned_tokens=200_000)],
            "ba",
            "relative to the cache",
        ),
        (
            "prefix_affinity",
            ask(),
            [state("a"), state("b", in_flight=9, cached_tokens=900)],
            "ba",
            "the longest prefix, though busier",
        ),
        (
            "prefix_affinity",
            ask(),
            [state("a"), state("b", in_flight=9, cached_tokens=200)],
            "ab",
            "too little is cached to matter",
        ),
        (
            "prefix_affinity",
            ask(),
            [state("a", in_flight=10), state("b", in_flight=90, cached_tokens=900)],
            "ab",
            "too far out of balance",
        ),
        (
            "new_tokens_times_batch",
            ask(),
            [state("a", decoding=3), state("b", decoding=9, cached_tokens=900)],
            "ba",
            "1000 · 4 against 100 · 10",
        ),
        (
            "new_tokens_times_batch",
            ask(),
            [state("a", waiting=1, waiting_tokens=3000), state("b", decoding=4)],
            "ba",
            "4000 · 2 against 1000 · 5",
        ),
        (
            "length_ranges",
            ask(9000),
            [state("a"), state("b", FOUR, in_flight=50)],
            "ba",
            "long ones on the large",
        ),
        ("length_ranges", ask(8000), [state("a", in_flight=50), state("b", FOUR)], "ab", "short"),
        ("triggers", ask(8001), [state("a"), state("b", FOUR)], "ba", "large_input"),
        ("triggers", ask(8000), [state("a"), state("b", FOUR)], "ab", "nothing fires"),
        (
            "triggers",
            ask(5000),
            [state("a", kv_free_tokens=9_000), state("b", FOUR)],
            "ba",
            "memory_pressure: 0.91 with 5000 tokens",
        ),
        (
            "triggers",
            ask(3000),
            [state("a", kv_free_tokens=2_000), state("c", assigned_tokens=9.0)],
            "ca",
            "room first",
        ),
        ("earliest_completion", ask(), [state("a"), state("b", FOUR)], "ba", "four are faster"),
        (
            "earliest_completion",
            ask(1500),
            [state("a", waiting=2, waiting_work_s=WORK), state("b")],
            "ba",
            "who would wait goes elsewhere",
        ),
        (
            "earliest_completion",
            ask(4000),
            [state("a", decoding=20, context_tokens=9000), state("b", decoding=1)],
            "ba",
            "a long prefill disturbs few",
        ),
        (
            "earliest_completion",
            ask(4000),
            [state("a"), state("b", decoding=4, cached_tokens=3900)],
            "ba",
            "what is cached is not computed",
        ),
        (
            "earliest_completion",
            ask(expected_output_tokens=3000.0),
            [state("a", kv_free_tokens=500), state("b", decoding=10, context_tokens=9000)],
            "ba",
            "a full cache is a wait",
        ),
        (
            "earliest_completion",
            ask(expected_output_tokens=3000.0),
            [
                state("a", decoding=1, context_tokens=900, kv_reserved_tokens=99_000),
                state("b", decoding=10, context_tokens=9000),
            ],
            "ba",
            "so is one that is held for others",
        ),
        (
            "earliest_completion",
            ask(100),
            [state("a", prefill_share=0.7), state("b", decoding=8)],
            "ba",
            "decoding beside prefills is slow",
        ),
        (
            "earliest_completion",
            ask(100),
            [
                state("a", waiting=1, waiting_tokens=9000, waiting_work_s=BEHIND),
                state("b", decoding=20, context_tokens=20_000),
            ],
            "ba",
            "an answer that turns out short would be all wait",
        ),
        (
            "earliest_completion",
            ask(1500),
            [
                state("a", decoding=2, context_tokens=3000),
                state("b", decoding=8, context_tokens=12_000, prefill_share=0.45, **PREFIX),
                state("c", decoding=30, context_tokens=45_000, prefill_share=0.5),
            ],
            "bac",
            "the idler one would hold the prefix a second time",
        ),
        (
            "earliest_completion",
            ask(1500),
            [
                state("a", decoding=2, context_tokens=3000),
                state("b", decoding=8, context_tokens=12_000, prefill_share=0.8, **PREFIX),
                state("c", decoding=8, context_tokens=12_000),
            ],
            "acb",
            "held twice rather than late",
        ),
    ],
)
def test_who_comes_first(
    name: str, asked: Ask, replicas: list[ReplicaState], expected: str, why: str
) -> None:
    """One row, one reason."""
    assert order(name, asked, *replicas) == expected, why


@pytest.mark.parametrize("name", ["random", "power_of_two"])
def test_seeded_chance(name: str) -> None:
    """Every replica gets its share; another seed decides otherwise; the same one the same."""
    replicas = [state(letter) for letter in "abcd"]
    firsts = {}
    for seed in (0, 1):
        chosen = policy(name, {"seed": seed})
        firsts[seed] = [chosen.rank(ask(number=n), replicas)[0].id for n in range(4000)]
    assert firsts[0] != firsts[1]
    shares = [firsts[0].count(letter) for letter in "abcd"]
    assert sum(shares) == 4000
    assert min(shares) > 850


def test_power_of_two_takes_the_less_loaded_of_its_draw() -> None:
    """The busiest of three comes first only where it was not drawn against: never."""
    replicas = [state("a", in_flight=9), state("b", in_flight=5), state("c", in_flight=1)]
    chosen = policy("power_of_two")
    firsts = [chosen.rank(ask(number=n), replicas)[0].id for n in range(300)]
    assert set(firsts) == {"b", "c"}


@given(
    name=st.sampled_from(sorted(POLICIES)),
    tokens=st.integers(1, 120_000),
    number=st.integers(0, 1000),
    seed=st.integers(0, 1000),
)
def test_a_ranking(name: str, tokens: int, number: int, seed: int) -> None:
    """Only replicas that are up and large enough, each once, best first, whatever the order in
    which they are given."""
    rng = random.Random(seed)
    replicas = [
        state(
            f"{facts.name}/{i}",
            facts,
            decoding=rng.randrange(50),
            context_tokens=rng.randrange(90_000),
            in_flight=rng.randrange(60),
            assigned_tokens=float(rng.randrange(90_000)),
            kv_free_tokens=rng.randrange(facts.kv_tokens),
            ready=rng.random() < 0.8,
        )
        for facts in (ONE, FOUR, pool(2, 50_000, 50_000))
        for i in range(3)
    ]
    chosen = policy(name, SETTINGS)
    asked = ask(tokens, number)
    ranking = chosen.rank(asked, replicas)
    able = {r.id for r in replicas if r.ready and tokens < r.pool.longest_tokens}
    assert {ranked.id for ranked in ranking} == able
    assert len(ranking) == len(able)
    assert [ranked.score for ranked in ranking] == sorted(ranked.score for ranked in ranking)
    rng.shuffle(replicas)
    assert chosen.rank(asked, replicas) == ranking


def test_no_replica() -> None:
    """Nobody to send to: an empty ranking, of every policy."""
    for name in POLICIES:
        assert policy(name, SETTINGS).rank(ask(), [state("a", ready=False)]) == []


def test_an_unknown_policy() -> None:
    """The error lists the known ones."""
    with pytest.raises(ConfigError, match="unknown policy best: use one of round_robin, random"):
        policy("best")


def test_expected_outputs() -> None:
    """Means by length of the prompt, leaning on all while few are known, following a change."""
    expected = ExpectedOutputs(assumed_tokens=100.0, memory=100)
    assert expected.predict(50) == 100.0
    for _ in range(80):
        expected.observe(50, 10)
        expected.observe(5000, 1000)
    assert expected.predict(50) == pytest.approx(10, abs=50)
    assert expected.predict(5000) == pytest.approx(1000, abs=60)
    assert 300 < expected.predict(300) < 600
    for _ in range(400):
        expected.observe(50, 500)
    assert expected.predict(50) == pytest.approx(500, abs=30)
