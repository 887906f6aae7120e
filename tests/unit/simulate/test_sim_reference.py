"""A replica against a simulation written from docs/simulator.md alone: every step, token by token,
with gpt-oss-120b's own figures instead of what the project reads from its config.

Where a windowed layer's KV grows into its window while it decodes, the simulator counts what was
there when that began (docs, "Limits"); so does this, and then all moments are equal."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from sim_builders import replica

from gpt_oss_server.routing.policies import policy
from gpt_oss_server.simulate.fleet.cluster import simulate
from gpt_oss_server.simulate.fleet.pools import Fleet, Pool
from gpt_oss_server.simulate.workload.requests import Request, workload_of

LAYERS, FULL, HIDDEN, HEADS, KV_HEADS, HEAD = 36, 18, 2880, 64, 8, 64
EXPERTS, CHOSEN, INNER, VOCAB, WINDOW = 128, 4, 2880, 201_088, 128
BANDWIDTH, FLOPS = 3.35e12 * 0.9586, 989.4e12 * 0.2754
FIRST_TOKEN_S = 17.7e-3

ATTENTION = (HIDDEN + 1) * (HEADS + 2 * KV_HEADS) * HEAD + (HEADS * HEAD + 1) * HIDDEN + HEADS
DENSE = LAYERS * (ATTENTION + (HIDDEN + 1) * EXPERTS + 2 * HIDDEN) + HIDDEN
EXPERT_WEIGHTS, EXPERT_BIASES = 3 * HIDDEN * INNER, 2 * INNER + HIDDEN
EXPERT_BYTES = EXPERT_WEIGHTS * 4.25 / 8 + EXPERT_BIASES * 2
KV_ROW_BYTES = 2 * KV_HEADS * HEAD * 2


@dataclass
class Asked:
    """One request: when, how long; how far it is; what came of it."""

    at_s: float
    prompt: int
    answer: int
    held: int = 0
    made: int = 0
    first_s: float = 0.0
    end_s: float = 0.0


def step_s(decoding: list[Asked], prompts: list[Asked]) -> float:
    """The step formula, in full, for whole prompts beside decoding sequences."""
    tokens = len(decoding) + sum(one.prompt for one in prompts)
    sequences = len(decoding) + len(prompts)
    touched = EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** tokens)
    weights = 2 * (DENSE + VOCAB * HIDDEN) + LAYERS * touched * EXPERT_BYTES
    rows = sum(FULL * one.held + (LAYERS - FULL) * min(one.prompt, WINDOW) for one in decoding)
    active = DENSE + LAYERS * CHOSEN * (EXPERT_WEIGHTS + EXPERT_BIASES)
    pairs = sum(
        FULL * one.prompt**2 / 2
        + (LAYERS - FULL) * sum(min(place + 0.5, WINDOW) for place in range(one.prompt))
        for one in prompts
    )
    operations = 2 * active * sum(one.prompt for one in prompts) + 2 * HEADS * 2 * HEAD * pairs
    overhead = 1.0469 * (1.34e-3 + 0.047e-3 * LAYERS) + 12.04e-6 * sequences
    return overhead + (weights + rows * KV_ROW_BYTES) / BANDWIDTH + operations / FLOPS


def play(requests: list[Asked]) -> None:
    """Iteration-level batching: in every step each decoding sequence gets a token, and whoever has
    come gets its whole prompt computed and its first token."""
    now_s, coming, running = 0.0, sorted(requests, key=lambda one: one.at_s), list[Asked]()
    while coming or running:
        if not running:
            now_s = max(now_s, coming[0].at_s)
        prompts = [one for one in coming if one.at_s <= now_s]
        coming = coming[len(prompts) :]
        now_s += step_s(running, prompts)
        for one in running:
            one.held, one.made = one.held + 1, one.made + 1
        for one in prompts:
            one.held, one.made, one.first_s = one.prompt, 1, now_s + FIRST_TOKEN_S
        running += prompts
        for one in running:
            one.end_s = now_s + FIRST_TOKEN_S
        running = [one for one in running if one.made < one.answer]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_s", [0.5, 8.0])
def test_a_replica_against_counting_every_token(seed: int, per_s: float) -> None:
    """First tokens and ends of every request, alone and at up to some forty at a time."""
    rng = random.Random(seed)
    moments = sorted(rng.uniform(0, 60 / per_s) for _ in range(60))
    asked = [Asked(at_s, rng.randint(1, 400), rng.randint(1, 300)) for at_s in moments]
    play(asked)
    rows = [Request(one.at_s, one.prompt, one.answer) for one in asked]
    fleet = Fleet((Pool(replica(admission="engine", prefill_order="fcfs"), 1),))
    found = simulate(workload_of("t", rows), fleet, policy("round_robin"))
    assert found.counts()["served"] == len(asked)
    assert list(found.ttft_s) == pytest.approx([one.first_s - one.at_s for one in asked], rel=1e-9)
    assert list(found.e2e_s) == pytest.approx([one.end_s - one.at_s for one in asked], rel=1e-9)
